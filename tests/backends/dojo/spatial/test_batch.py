"""Nodes computed together get what each gets alone, bit for bit."""

import numpy as np
import pytest
import torch
from fsdtrain_dojo.lowering.kernel import Block, Kernel, Span
from fsdtrain_dojo.lowering.mapping import node_block
from fsdtrain_dojo.lowering.passes.expand_macros import find_describe
from fsdtrain_dojo.spatial.batch import compute_nodes
from fsdtrain_dojo.spatial.boxes import equal_rows, lengths, touched_boxes
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.dojo.lowering.pieces import make_call
from tests.backends.dojo.spatial.programs import make_kernel
from tests.backends.dojo.spatial.test_ops_placed import CALLS

NODES = 24


def random_ranges(kernel: Kernel, draw: np.random.Generator) -> np.ndarray:
    """Of many nodes, short and long ones at any place, with at least one point."""
    sizes = np.array([loop.size for loop in kernel.loops], dtype=np.int64)
    fixed = np.array([not loop.is_splittable for loop in kernel.loops], dtype=bool)
    length = np.maximum(draw.choice([1, 2, 3], len(sizes)), 1)
    length = np.where(fixed, sizes, np.minimum(length, sizes))
    first = draw.integers(0, sizes - length + 1, (NODES, len(sizes)))
    return np.stack([first, first + length], axis=2)


@pytest.mark.parametrize("name", CALLS)
def test_ops_of_many_nodes(name):
    torch.manual_seed(len(name))
    draw = np.random.default_rng(len(name))
    function, *arguments = CALLS[name]()
    call, tensors = make_call(function, *arguments)
    expansion = find_describe(call)(call)
    shapes = {each: tensor.shape for each, tensor in tensors.items()}
    shapes |= {each.name: each.shape for each in (*expansion.values, *call.outputs) if each}
    for kernel in expansion.kernels:
        if kernel.is_random:
            continue
        ranges = random_ranges(kernel, draw)
        accesses = (*kernel.reads, *kernel.writes)
        boxes = [touched_boxes(each, ranges, shapes[each.value]) for each in accesses]
        for each in ranges[:5]:
            block = node_block(kernel, tuple(map(tuple, each.tolist())), shapes)
            at = int(np.flatnonzero((ranges == each).all(axis=(1, 2)))[0])
            assert block.boxes == tuple(tuple(map(tuple, box[at].tolist())) for box in boxes)
        for group in equal_rows(np.concatenate([lengths(each) for each in boxes], axis=1)):
            own = [each[group] for each in boxes]
            local = [
                random_local(tensors.get(read.value), lengths(box), len(group))
                for read, box in zip(kernel.reads, own, strict=False)
            ]
            found = compute_nodes(kernel, ranges[group], own, local)
            assert sorted(np.concatenate([nodes for nodes, _ in found])) == [*range(len(group))]
            for nodes, results in found:
                for number, node in enumerate(nodes):
                    block = node_block(
                        kernel, tuple(map(tuple, ranges[group][node].tolist())), shapes
                    )
                    alone = kernel.compute([each[node].clone() for each in local], block)
                    for one, other in zip(alone, results, strict=True):
                        assert one.dtype == other.dtype
                        torch.testing.assert_close(
                            other[number], one, rtol=0, atol=0, equal_nan=True
                        )


def random_local(given: torch.Tensor | None, sizes: np.ndarray, count: int) -> torch.Tensor:
    """Numbers of every node's own; indices as the op was given some."""
    shape = [count, *sizes[0].tolist()]
    if given is None or given.is_floating_point():
        return torch.rand(shape) + 0.5
    return given.flatten()[torch.randint(0, given.numel(), shape)]


def test_nodes_are_divided_by_what_they_compute():
    """By how much borders cut off, not by where they are."""
    asked = []

    def pad(x, block):
        (first, end), (begin, stop) = block.ranges[0], block.boxes[0][0]
        asked.append(1)
        return torch.nn.functional.pad(x, [begin - (first - 1), end + 1 - stop])[:-2]

    kernel = make_kernel({"i": 40}, {"x": [Span(((0, 1),), low=-1, high=1)]}, {"y": "i"}, pad)
    ranges = np.stack([np.arange(0, 40, 4), np.arange(4, 44, 4)], axis=1)[:, None]
    boxes = [touched_boxes(each, ranges, (40,)) for each in (*kernel.reads, *kernel.writes)]
    inner = np.arange(1, 9)
    own = [each[inner] for each in boxes]
    (found,) = compute_nodes(kernel, ranges[inner], own, [torch.rand(8, 6)])
    assert len(found[0]) == 8
    assert len(asked) == 2


def test_positions_stay_each_nodes_own():
    def number(x, block):
        first, end = block.boxes[0][0]
        return x + (torch.arange(int(end - first)) + first) * 10

    kernel = make_kernel({"i": 40}, {"x": "i"}, {"y": "i"}, number)
    ranges = np.array([[[3, 5]], [[20, 22]], [[8, 10]], [[38, 40]]])
    local = torch.rand(4, 2)
    ((nodes, (made,)),) = compute_nodes(kernel, ranges, [ranges, ranges], [local])
    wanted = local + torch.tensor([[30, 40], [200, 210], [80, 90], [380, 390]])
    assert torch.equal(made, wanted[torch.from_numpy(nodes)])


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.from_numpy(x.numpy() * 2),  # leaves torch
        lambda x: x * 2 if x.sum() > -1e9 else x,  # asks for a number
        lambda x: x * 2 + x[x < -1e9].sum(),  # as many as there are
        lambda x: torch.zeros(x.shape).add_(x * 2),  # many into one
        lambda x: torch.take(x, torch.arange(x.numel())).reshape(x.shape) * 2,  # no rule for it
    ],
)
def test_what_cannot_be_batched_is_computed_node_by_node(compute):
    kernel = make_kernel({"i": 40}, {"x": "i"}, {"y": "i"}, compute)
    ranges = np.stack([np.arange(0, 40, 4), np.arange(4, 44, 4)], axis=1)[:, None]
    local = torch.rand(10, 4)
    ((nodes, (made,)),) = compute_nodes(kernel, ranges, [ranges, ranges], [local])
    assert nodes.tolist() == list(range(10))
    assert torch.equal(made, local * 2)


@given(data=st.data())
def test_boxes_of_many_nodes_are_those_of_each(data):
    whole = st.integers(1, 5)
    size = data.draw(st.integers(1, 30))
    span = Span(
        tuple((loop, data.draw(whole)) for loop in range(data.draw(st.integers(0, 2)))),
        divide=data.draw(whole),
        low=data.draw(st.integers(-6, 6)),
        high=data.draw(st.integers(-6, 6)),
        modulo=data.draw(st.none() | st.integers(2, 9)),
    )
    kernel = make_kernel({"i": 30, "j": 30}, {"x": [span]}, {"y": "ij"}, lambda x: x)
    bounds = st.tuples(st.integers(0, 15), st.integers(0, 15)).map(lambda b: (b[0], b[0] + b[1]))
    ranges = np.array(data.draw(st.lists(st.tuples(bounds, bounds), min_size=1, max_size=9)))
    found = touched_boxes(kernel.reads[0], ranges, (size,))
    for each, box in zip(ranges.tolist(), found.tolist(), strict=True):
        assert tuple(box[0]) == span.touched([tuple(side) for side in each], size)


def test_a_block_of_one_node_has_plain_numbers():
    seen: list[Block] = []

    def look(x, block):
        seen.append(block)
        return x

    kernel = make_kernel({"i": 40}, {"x": "i"}, {"y": "i"}, look)
    ranges = np.array([[[3, 5]]])
    compute_nodes(kernel, ranges, [ranges, ranges], [torch.rand(1, 2)])
    assert seen == [Block(ranges=((3, 5),), boxes=(((3, 5),), ((3, 5),)))]
