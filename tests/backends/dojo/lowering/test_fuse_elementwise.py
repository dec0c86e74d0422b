"""Element-wise kernels join their producers, and the values stay what they were, bit for bit."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Block,
    Kernel,
    KernelGraph,
    Loop,
    Phase,
    Span,
    Unit,
    Value,
    ValueKind,
    along,
    whole,
)
from fsdtrain_dojo.lowering.mapping import node_block
from fsdtrain_dojo.lowering.passes.fuse_elementwise import fuse_elementwise
from torch import Tensor


def value(name: str, *shape: int, kind=ValueKind.ACTIVATION, is_output=False) -> Value:
    return Value(
        name=name, shape=shape, format="fp32", element_bytes=4, kind=kind, is_output=is_output
    )


def operand(name: str, *shape: int) -> Value:
    return value(name, *shape, kind=ValueKind.INPUT)


def pointwise(
    made: Value,
    function: Callable[..., Tensor],
    *read: Value,
    phase: Phase = Phase.FORWARD,
    order: Sequence[int] | None = None,
) -> Kernel:
    """made[i, j] = function of read[i, j], or of read[j] or read[], each broadcast to the right.

    `order` numbers the loops otherwise than the dimensions.
    """
    order = tuple(order or range(len(made.shape)))
    loops = {loop: Loop("ijkl"[place], made.shape[place]) for place, loop in enumerate(order)}

    def access(value: Value) -> Access:
        skipped = len(made.shape) - len(value.shape)
        spans = (
            whole(1) if size == 1 != made.shape[place + skipped] else along(order[place + skipped])
            for place, size in enumerate(value.shape)
        )
        return Access(value.name, tuple(spans))

    return Kernel(
        name=f"{made.name}_kernel", op="aten.pointwise", phase=phase, unit=Unit.VECTOR,
        loops=tuple(loops[loop] for loop in sorted(loops)),
        reads=tuple(access(each) for each in read), writes=(access(made),),
        flops=made.num_elements, compute=lambda tensors, block: [function(*tensors)],
    )  # fmt: skip


def product(made: Value, left: Value, right: Value) -> Kernel:
    """made[m, n] += left[m, k] right[k, n]"""
    (rows, inner), columns = left.shape, right.shape[1]
    return Kernel(
        name=f"{made.name}_kernel", op="aten.mm", phase=Phase.FORWARD, unit=Unit.MATRIX,
        loops=(Loop("m", rows), Loop("k", inner), Loop("n", columns)),
        reads=(Access(left.name, (along(0), along(1))), Access(right.name, (along(1), along(2)))),
        writes=(Access(made.name, (along(0), along(2))),),
        macs=rows * inner * columns, compute=lambda tensors, block: [tensors[0] @ tensors[1]],
    )  # fmt: skip


def graph_of(*parts: Value | Kernel, renews=None) -> KernelGraph:
    values = {each.name: each for each in parts if isinstance(each, Value)}
    kernels = tuple(each for each in parts if isinstance(each, Kernel))
    return KernelGraph(values=values, kernels=kernels, renews=renews or {})


def run(graph: KernelGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything that the kernels make, each computed whole, the epilogue after its kernel."""
    tensors = dict(tensors)
    shapes = {name: each.shape for name, each in graph.values.items()}
    for main in graph.kernels:
        for kernel in (main, *main.epilogue):
            block = node_block(kernel, [(0, loop.size) for loop in kernel.loops], shapes)
            assert all(
                box == tuple((0, size) for size in shapes[access.value])
                for access, box in zip((*kernel.reads, *kernel.writes), block.boxes, strict=True)
            )
            made = kernel.compute([tensors[each.value] for each in kernel.reads], block)
            tensors.update(zip((each.value for each in kernel.writes), made, strict=True))
    return tensors


def names(graph: KernelGraph) -> list[list[str]]:
    """What each kernel and its epilogue write."""
    return [
        [access.value for each in (kernel, *kernel.epilogue) for access in each.writes]
        for kernel in graph.kernels
    ]


def layer_graph() -> KernelGraph:
    """The example of the docstring."""
    x, w, b = operand("x", 5, 7), operand("w", 7, 3), operand("b", 3)
    y, z, r = value("y", 5, 3), value("z", 5, 3), value("r", 5, 3)
    v, o = operand("v", 3, 4), value("o", 5, 4, is_output=True)
    return graph_of(
        x, w, b, y, z, r, v, o, product(y, x, w), pointwise(z, torch.add, y, b),
        pointwise(r, torch.relu, z), product(o, r, v),
    )  # fmt: skip


def test_bias_and_relu_join_the_product():
    fused = fuse_elementwise(layer_graph())
    assert names(fused) == [["y", "z", "r"], ["o"]]
    first, second = fused.kernels
    assert first.hidden == {"y", "z"}
    assert first.epilogue[0].reads == (
        Access("y", (along(0), along(2))),
        Access("b", (along(2),)),
    )
    assert second.hidden == frozenset()
    assert first.macs == 5 * 7 * 3
    assert sum(each.flops for each in first.epilogue) == 2 * 5 * 3


def test_fusing_again_changes_nothing():
    once = fuse_elementwise(layer_graph())
    assert fuse_elementwise(once) == once


def test_what_others_read_is_still_written():
    graph = layer_graph()
    later = value("later", 5, 3, is_output=True)
    graph = replace(
        graph,
        values={**graph.values, "later": later},
        kernels=(
            *graph.kernels,
            pointwise(later, torch.neg, graph.values["z"], phase=Phase.BACKWARD),
        ),
    )
    fused = fuse_elementwise(graph)
    assert names(fused) == [["y", "z", "r"], ["o"], ["later"]]
    assert fused.kernels[0].hidden == {"y"}


def test_loops_in_another_order_are_matched_by_what_they_index():
    x, w = operand("x", 5, 7), operand("w", 7, 3)
    y, z = value("y", 5, 3), value("z", 5, 3, is_output=True)
    fused = fuse_elementwise(
        graph_of(x, w, y, z, product(y, x, w), pointwise(z, torch.neg, y, order=(1, 0)))
    )
    (kernel,) = fused.kernels
    assert kernel.epilogue[0].writes == (Access("z", (along(0), along(2))),)


def ranges_of(block: Block) -> list[Tensor]:
    return [torch.tensor(block.ranges)]


def test_an_epilogue_is_told_the_ranges_of_its_own_loops():
    x, w = operand("x", 5, 7), operand("w", 7, 3)
    y, z = value("y", 5, 3), value("z", 5, 3, is_output=True)
    told = pointwise(z, torch.neg, y, order=(1, 0))
    told = replace(told, compute=lambda tensors, block: ranges_of(block))
    (kernel,) = fuse_elementwise(graph_of(x, w, y, z, product(y, x, w), told)).kernels
    block = node_block(kernel, [(1, 4), (0, 7), (2, 3)], {"x": (5, 7), "w": (7, 3), "y": (5, 3)})
    (found,) = kernel.epilogue[0].compute([], block)
    assert found.tolist() == [[2, 3], [1, 4]]


def test_a_crosswise_reader_is_renumbered_unless_it_reads_straight_as_well():
    x, w = operand("x", 5, 7), operand("w", 7, 5)
    y, z = value("y", 5, 5), value("z", 5, 5, is_output=True)
    crossed = replace(pointwise(z, lambda t: t.T, y), reads=(Access("y", (along(1), along(0))),))
    both = replace(
        pointwise(z, lambda a, b: a + b.T, y, y),
        reads=(Access("y", (along(0), along(1))), Access("y", (along(1), along(0)))),
    )
    # read crosswise alone, every point is still made once: its loops are only numbered otherwise
    assert len(fuse_elementwise(graph_of(x, w, y, z, product(y, x, w), crossed)).kernels) == 1
    assert len(fuse_elementwise(graph_of(x, w, y, z, product(y, x, w), both)).kernels) == 2


def test_what_lies_beside_a_loop_that_cannot_be_divided_has_to_fit() -> None:
    """A plane of 5 x 3 float32, the sum over 7 places: 60 B each of sums, shortcut and result."""
    x, y, z = operand("x", 7), value("y", 5, 3), value("z", 5, 3, is_output=True)
    scatter = Kernel(
        name="scatter", op="scatter", phase=Phase.FORWARD, unit=Unit.VECTOR, flops=7,
        loops=(Loop("i", 5, is_splittable=False), Loop("j", 3, is_splittable=False), Loop("o", 7)),
        reads=(Access("x", (along(2),)),),
        writes=(Access("y", (along(0), along(1)), is_gathered=True, gathered_share=0.5),),
        compute=lambda tensors, block: [tensors[0].sum().expand(5, 3)],
    )  # fmt: skip
    shortcut = operand("shortcut", 5, 3)
    graph = graph_of(x, shortcut, y, z, scatter, pointwise(z, torch.add, y, shortcut))
    beside = 3 * 60 + 4
    assert names(fuse_elementwise(graph, room_bytes=beside)) == [["y", "z"]]
    assert names(fuse_elementwise(graph, room_bytes=beside - 1)) == [["y"], ["z"]]
    # What can be divided is no matter of room.
    assert len(fuse_elementwise(layer_graph(), room_bytes=1).kernels) == 2


@pytest.mark.parametrize("span", [Span(((1, 1),), low=-1, high=1), Span(((1, 2),), high=1)])
def test_a_reader_of_neighbours_stays_alone(span):
    x, w = operand("x", 5, 7), operand("w", 7, 4)
    y, z = value("y", 5, 4), value("z", 5, 4, is_output=True)
    reader = replace(pointwise(z, torch.neg, y), reads=(Access("y", (along(0), span)),))
    assert len(fuse_elementwise(graph_of(x, w, y, z, product(y, x, w), reader)).kernels) == 2


def test_a_reader_that_broadcasts_its_operand_stays_alone():
    x, row, z = operand("x", 3), value("row", 3), value("z", 5, 3, is_output=True)
    kernels = pointwise(row, torch.neg, x), pointwise(z, lambda r: r.expand(5, 3), row)
    assert len(fuse_elementwise(graph_of(x, row, z, *kernels)).kernels) == 2


def test_a_producer_keeps_out_what_needs_a_whole_loop():
    x, w = operand("x", 5, 7), operand("w", 7, 3)
    y, z = value("y", 5, 3), value("z", 5, 3, is_output=True)
    reader = pointwise(z, torch.neg, y)
    reader = replace(reader, loops=(reader.loops[0], Loop("j", 3, is_splittable=False)))
    assert len(fuse_elementwise(graph_of(x, w, y, z, product(y, x, w), reader)).kernels) == 2


def test_rows_that_are_made_whole_are_read_whole():
    x, y = operand("x", 5, 3), value("y", 5, 3)
    z = value("z", 5, 3, is_output=True)
    softmax = Kernel(
        name="softmax", op="aten._softmax", phase=Phase.FORWARD, unit=Unit.VECTOR,
        loops=(Loop("row", 5),), reads=(Access("x", (along(0), whole(3))),),
        writes=(Access("y", (along(0), whole(3))),),
        compute=lambda tensors, block: [tensors[0].softmax(1)],
    )  # fmt: skip
    graph = graph_of(x, y, z, softmax, pointwise(z, torch.neg, y))
    (kernel,) = fuse_elementwise(graph).kernels
    assert kernel.epilogue[0].writes == (Access("z", (along(0), whole(3))),)


def test_a_sum_is_scaled_when_it_is_complete():
    x, total = operand("x", 5, 3), value("total")
    mean = value("mean", is_output=True)
    summed = Kernel(
        name="sum", op="aten.sum", phase=Phase.FORWARD, unit=Unit.VECTOR,
        loops=(Loop("i", 5), Loop("j", 3)), reads=(Access("x", (along(0), along(1))),),
        writes=(Access("total", ()),), compute=lambda tensors, block: [tensors[0].sum()],
    )  # fmt: skip
    graph = graph_of(x, total, mean, summed, pointwise(mean, lambda t: t / 15, total))
    (kernel,) = fuse_elementwise(graph).kernels
    assert kernel.hidden == {"total"}
    assert kernel.reductions == {0, 1}


def test_an_operand_made_in_between_keeps_a_matrix_kernel_where_it_is():
    """y = x w;  s = sum x;  z = y * s: the product has no s to multiply with."""
    x, w, s = operand("x", 5, 7), operand("w", 7, 3), value("s", 3)
    y, z = value("y", 5, 3), value("z", 5, 3, is_output=True)
    column = Kernel(
        name="column", op="aten.sum", phase=Phase.FORWARD, unit=Unit.VECTOR,
        loops=(Loop("i", 7), Loop("j", 3)), reads=(Access("w", (along(0), along(1))),),
        writes=(Access("s", (along(1),)),), compute=lambda tensors, block: [tensors[0].sum(0)],
    )  # fmt: skip
    kernels = product(y, x, w), column, pointwise(z, torch.mul, y, s)
    assert names(fuse_elementwise(graph_of(x, w, s, y, z, *kernels))) == [["y"], ["s"], ["z"]]


def test_the_residual_joins_the_branch_that_is_made_last():
    x, w, v = operand("x", 5, 7), operand("w", 7, 3), operand("v", 7, 3)
    y, u, z = value("y", 5, 3), value("u", 5, 3), value("z", 5, 3, is_output=True)
    kernels = product(y, x, w), product(u, x, v), pointwise(z, torch.add, y, u)
    fused = fuse_elementwise(graph_of(x, w, v, y, u, z, *kernels))
    assert names(fused) == [["y"], ["u", "z"]]
    assert [each.hidden for each in fused.kernels] == [frozenset(), {"u"}]


@pytest.mark.parametrize("phase", [Phase.BACKWARD, Phase.OPTIMIZER])
def test_phases_stay_apart(phase):
    x, w = operand("x", 5, 7), operand("w", 7, 3)
    y, z = value("y", 5, 3), value("z", 5, 3, is_output=True)
    reader = pointwise(z, torch.neg, y, phase=phase)
    assert len(fuse_elementwise(graph_of(x, w, y, z, product(y, x, w), reader)).kernels) == 2


def adam_graph(num_weights: int) -> KernelGraph:
    """Adam of several weights, op by op over all weights as a list optimiser is captured."""
    values, stages = [], [[] for _ in range(7)]
    step, count = value("step", kind=ValueKind.STATE), value("count", is_output=True)
    correction = value("correction")
    renews = {"count": "step"}
    for each in range(num_weights):
        shape = (3 + each, 2)
        weight, first, second = (
            value(f"{name}{each}", *shape, kind=ValueKind.STATE) for name in ("w", "m", "s")
        )
        gradient = operand(f"g{each}", *shape)
        new_weight, new_first, new_second = (
            value(f"new_{name}{each}", *shape, is_output=True) for name in ("w", "m", "s")
        )
        decayed, root, scaled = (
            value(f"{name}{each}", *shape) for name in ("decayed", "root", "scaled")
        )
        made = [
            pointwise(new_first, lambda m, g: m.lerp(g, 0.1), first, gradient),
            pointwise(decayed, lambda s: s * 0.9, second),
            pointwise(new_second, lambda s, g: s.addcmul(g, g), decayed, gradient),
            pointwise(root, torch.sqrt, new_second),
            pointwise(scaled, torch.mul, root, correction),
            pointwise(new_weight, lambda w, m, r: w - m / (r + 1), weight, new_first, scaled),
        ]
        for stage, kernel in zip((0, 1, 2, 4, 5, 6), made, strict=True):
            stages[stage].append(kernel)
        values += [weight, first, second, gradient, new_weight, new_first, new_second]
        values += [decayed, root, scaled]
        renews |= {f"new_{name}{each}": f"{name}{each}" for name in ("w", "m", "s")}
    stages[3] = [
        pointwise(count, lambda t: t + 1, step),
        pointwise(correction, lambda t: 1 - 0.9**t, count),
    ]
    kernels = [replace(each, phase=Phase.OPTIMIZER) for stage in stages for each in stage]
    return graph_of(step, count, correction, *values, *kernels, renews=renews)


def test_the_update_of_a_weight_is_one_kernel():
    graph = adam_graph(3)
    fused = fuse_elementwise(graph)
    assert len(fused.kernels) == 1 + 3
    assert names(fused)[0] == ["count", "correction"]
    for each, kernel in enumerate(fused.kernels[1:]):
        assert kernel.hidden == {f"decayed{each}", f"root{each}", f"scaled{each}"}
        assert len(kernel.epilogue) == 5


def test_a_weight_is_not_renewed_before_its_last_reader():
    """new = w + g may not move up to g past a kernel that still reads w."""
    w, x = value("w", 4, kind=ValueKind.WEIGHT), operand("x", 4)
    g, y, new = value("g", 4), value("y", 4, is_output=True), value("new", 4, is_output=True)
    kernels = (
        pointwise(g, torch.neg, x),
        pointwise(y, torch.exp, w),
        pointwise(new, torch.add, w, g),
    )
    graph = graph_of(w, x, g, y, new, *kernels, renews={"new": "w"})
    assert names(fuse_elementwise(graph)) == [["y"], ["g", "new"]]


def random_graph(seed: int) -> KernelGraph:
    """Products, sums, broadcasts and element-wise kernels of a few shapes, in a random order."""
    draw = random.Random(seed)
    values = [operand(f"x{each}", *shape) for each, shape in enumerate([(5, 3), (3, 3), (3,), ()])]
    kernels: list[Kernel] = []
    functions = [torch.add, torch.mul, lambda a, b: torch.relu(a) - b]
    for number in range(draw.randrange(10, 25)):
        kind = draw.choice(["product", "binary", "binary", "binary", "unary", "sum"])
        left = draw.choice([each for each in values if kind != "sum" or each.shape == (5, 3)])
        made = value(f"v{number}", *left.shape, is_output=draw.random() < 0.3)
        phase = draw.choice([Phase.FORWARD] * 5 + [Phase.BACKWARD])
        if kind == "product" and left.shape == (5, 3):
            right = draw.choice([each for each in values if each.shape == (3, 3)])
            kernels.append(product(made, left, right))
        elif kind == "sum":
            made = replace(made, shape=(3,))
            kernels.append(
                Kernel(
                    name=f"{made.name}_kernel",
                    op="aten.sum",
                    phase=phase,
                    unit=Unit.VECTOR,
                    loops=(Loop("i", 5), Loop("j", 3)),
                    writes=(Access(made.name, (along(1),)),),
                    reads=(Access(left.name, (along(0), along(1))),),
                    compute=lambda tensors, block: [tensors[0].sum(0)],
                )  # fmt: skip
            )
        else:
            order = draw.sample(range(len(left.shape)), len(left.shape))
            fitting = [
                each
                for each in values
                if each.shape == left.shape[len(left.shape) - len(each.shape) :]
            ]
            right = draw.choice(fitting)
            kernels.append(
                pointwise(made, torch.neg, left, phase=phase, order=order)
                if kind == "unary"
                else pointwise(made, draw.choice(functions), left, right, phase=phase, order=order)
            )
        values.append(made)
    return graph_of(*values, *kernels)


@pytest.mark.parametrize("graph", [random_graph(seed) for seed in range(60)] + [adam_graph(4)])
def test_fusing_changes_no_bit(graph):
    generator = torch.Generator().manual_seed(len(graph.values))
    tensors = {
        name: torch.rand(each.shape, generator=generator)
        for name, each in graph.values.items()
        if each.kind is not ValueKind.ACTIVATION
    }
    fused = fuse_elementwise(graph)
    expected, found = run(graph, tensors), run(fused, tensors)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(
            found[name],
            tensor,
        ), name
    for kernel in fused.kernels:
        others = [each for each in fused.kernels if each is not kernel]
        for other in (each for main in others for each in (main, *main.epilogue)):
            assert not kernel.hidden & {access.value for access in other.reads}
        assert not any(fused.values[name].is_output for name in kernel.hidden)


def test_random_graphs_are_worth_testing_with():
    graphs = [random_graph(seed) for seed in range(60)]
    before = sum(len(each.kernels) for each in graphs)
    after = sum(len(fuse_elementwise(each).kernels) for each in graphs)
    assert 0.3 * before < after < 0.8 * before
