"""Every kind of op, placed at random on small grids and run node by node, against ATen.

The mappings are any that are legal, good or bad; what each program must pass is the verifier, and
what it must give is what the op gives. The nodes hold their boxes and nothing else.
"""

import random
from collections.abc import Callable, Mapping
from math import prod

import pytest
import torch
from fsdtrain_dojo.lowering.describe.building import values_of
from fsdtrain_dojo.lowering.kernel import Kernel, KernelGraph, Value
from fsdtrain_dojo.lowering.mapping import Grid, Part
from fsdtrain_dojo.lowering.mapping import Mapping as Placing
from fsdtrain_dojo.lowering.op_call import OpCall
from fsdtrain_dojo.lowering.passes.expand_macros import find_describe
from fsdtrain_dojo.lowering.passes.fuse_elementwise import fuse_elementwise
from fsdtrain_dojo.lowering.verify import verify_graph, verify_program
from fsdtrain_dojo.spatial.execute import execute
from torch import Tensor

from tests.backends.dojo.lowering.pieces import make_call
from tests.backends.dojo.spatial.programs import (
    OUTSIDE,
    in_sram,
    place_program,
)

aten = torch.ops.aten
GRIDS = [(2, 3), (3, 5)]
NUM_PLACINGS = 2


def real(*shape: int) -> Tensor:
    return torch.randn(*shape)


def positive(*shape: int) -> Tensor:
    return torch.rand(*shape) + 0.5


def below(end: int, *shape: int) -> Tensor:
    return torch.randint(0, end, shape)


def convolution(x: Tensor, w: Tensor, bias=None, stride=1, pad=0, dilation=1, groups=1, **kw):
    transposed, extra = kw.get("transposed", False), kw.get("extra", 0)
    return (
        aten.convolution.default, x, w, bias, [stride] * 2, [pad] * 2, [dilation] * 2,
        transposed, [extra] * 2, groups,
    )  # fmt: skip


def convolution_backward(stride: int, pad: int, groups: int, size: int):
    x, w = real(2, 6, size, size), real(4, 6 // groups, 3, 3)
    y = aten.convolution(x, w, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], groups)
    return (
        aten.convolution_backward.default, torch.randn_like(y), x, w, [4], [stride] * 2,
        [pad] * 2, [1, 1], False, [0, 0], groups, [True, True, True],
    )  # fmt: skip


def max_pool_backward():
    x = real(2, 3, 11, 11)
    y, places = aten.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])
    return (
        aten.max_pool2d_with_indices_backward.default, torch.randn_like(y), x, [3, 3], [2, 2],
        [1, 1], [1, 1], False, places,
    )  # fmt: skip


def batch_norm_backward():
    x, weight = real(4, 5, 7, 3), positive(5)
    _, mean, scale = aten.native_batch_norm(x, weight, real(5), None, None, True, 0.1, 1e-5)
    return (
        aten.native_batch_norm_backward.default, real(4, 5, 7, 3), x, weight, None, None, mean,
        scale, True, 1e-5, [True, True, True],
    )  # fmt: skip


def layer_norm_backward():
    x, weight, bias = real(4, 5, 7), positive(7), real(7)
    _, mean, scale = aten.native_layer_norm(x, [7], weight, bias, 1e-5)
    return (
        aten.native_layer_norm_backward.default, real(4, 5, 7), x, [7], mean, scale, weight, bias,
        [True, True, True],
    )  # fmt: skip


def group_norm_backward():
    x, weight = real(3, 6, 5, 5), positive(6)
    _, mean, scale = aten.native_group_norm(x, weight, real(6), 3, 6, 25, 2, 1e-5)
    return (
        aten.native_group_norm_backward.default, real(3, 6, 5, 5), x, mean, scale, weight,
        3, 6, 25, 2, [True, True, True],
    )  # fmt: skip


# A call is an overload with its arguments.
CALLS: dict[str, Callable[[], tuple]] = {
    "mm": lambda: (aten.mm.default, real(7, 13), real(13, 11)),
    "addmm": lambda: (aten.addmm.default, real(11), real(7, 13), real(13, 11)),
    "bmm": lambda: (aten.bmm.default, real(3, 7, 5), real(3, 5, 11)),
    "convolution": lambda: convolution(real(2, 3, 11, 11), real(5, 3, 3, 3), real(5), pad=1),
    "convolution, strided": lambda: convolution(
        real(2, 4, 13, 13), real(6, 2, 3, 3), stride=2, pad=1, groups=2
    ),
    "convolution, dilated": lambda: convolution(
        real(2, 3, 13, 13), real(5, 3, 3, 3), pad=2, dilation=2
    ),
    "convolution, depthwise": lambda: convolution(
        real(2, 6, 11, 11), real(6, 1, 3, 3), pad=1, groups=6
    ),
    "convolution, transposed": lambda: convolution(
        real(2, 4, 7, 7), real(4, 3, 3, 3), stride=2, pad=1, transposed=True, extra=1
    ),
    "convolution, gradients": lambda: convolution_backward(1, 1, 1, 7),
    "convolution, gradients, strided": lambda: convolution_backward(2, 1, 2, 11),
    "batch norm": lambda: (
        aten._native_batch_norm_legit_functional.default, real(4, 5, 7, 3), positive(5), real(5),
        real(5), positive(5), True, 0.1, 1e-5,
    ),
    "batch norm, gradients": batch_norm_backward,
    "layer norm": lambda: (
        aten.native_layer_norm.default, real(4, 5, 7), [7], positive(7), real(7), 1e-5
    ),
    "layer norm, gradients": layer_norm_backward,
    "group norm": lambda: (
        aten.native_group_norm.default, real(3, 6, 5, 5), positive(6), real(6), 3, 6, 25, 2, 1e-5
    ),
    "group norm, gradients": group_norm_backward,
    "softmax": lambda: (aten._softmax.default, real(3, 7, 11), -1, False),
    "softmax, gradient": lambda: (
        aten._softmax_backward_data.default, real(3, 11), real(3, 11).softmax(1), 1, torch.float32
    ),
    "log softmax": lambda: (aten._log_softmax.default, real(5, 7, 3), 1, False),
    "nll": lambda: (
        aten.nll_loss_forward.default, real(11, 7).log_softmax(1), below(7, 11), None, 1, -100
    ),
    "nll, gradient": lambda: (
        aten.nll_loss_backward.default, torch.tensor(0.7), real(11, 7), below(7, 11), None, 1, -100,
        torch.tensor(11.0),
    ),
    "max pool": lambda: (
        aten.max_pool2d_with_indices.default, real(2, 3, 11, 11), [3, 3], [2, 2], [1, 1]
    ),
    "max pool, gradient": max_pool_backward,
    "average pool": lambda: (aten.avg_pool2d.default, real(2, 3, 11, 11), [3, 3], [2, 2], [1, 1]),
    "adaptive pool": lambda: (aten._adaptive_avg_pool2d.default, real(2, 3, 11, 7), [3, 2]),
    "bilinear": lambda: (
        aten.upsample_bilinear2d.vec, real(2, 3, 5, 7), None, False, [2.0, 2.0]
    ),
    "bilinear, gradient": lambda: (
        aten.upsample_bilinear2d_backward.default, real(2, 3, 10, 14), [10, 14], [2, 3, 5, 7],
        False,
    ),
    "nearest": lambda: (aten.upsample_nearest2d.vec, real(2, 3, 5, 7), None, [2.0, 2.0]),
    "grid sample": lambda: (
        aten.grid_sampler_2d.default, real(2, 3, 7, 5), torch.rand(2, 5, 4, 2) * 2 - 1, 0, 0, False
    ),
    "embedding": lambda: (aten.embedding.default, real(19, 7), below(19, 3, 5)),
    "embedding, gradient": lambda: (
        aten.embedding_dense_backward.default, real(3, 5, 7), below(19, 3, 5), 19, -1, False
    ),
    "gather": lambda: (aten.gather.default, real(5, 11), 1, below(11, 5, 7)),
    "scatter add": lambda: (
        aten.scatter_add.default, real(5, 11), 1, below(11, 5, 7), real(5, 7)
    ),
    "index": lambda: (aten.index.Tensor, real(7, 5, 3), [below(7, 4), below(5, 4)]),
    "index put": lambda: (
        aten.index_put.default, real(7, 5), [below(7, 11)], real(11, 5), True
    ),
    "sum": lambda: (aten.sum.dim_IntList, real(3, 5, 7), [0, 2]),
    "sum of all": lambda: (aten.sum.default, real(5, 11)),
    "mean": lambda: (aten.mean.dim, real(3, 5, 7), [1], True),
    "amax": lambda: (aten.amax.default, real(5, 11), [1]),
    "variance": lambda: (aten.var_mean.correction, real(5, 11), [1]),
    "argmax": lambda: (aten.argmax.default, real(5, 11), 1),
    "running sum": lambda: (aten.cumsum.default, real(5, 11), 1),
    "sort": lambda: (aten.sort.default, real(5, 11), 1),
    "top": lambda: (aten.topk.default, real(5, 11), 3),
    "add": lambda: (aten.add.Tensor, real(5, 1, 7), real(3, 1)),
    "gelu": lambda: (aten.gelu.default, real(5, 11)),
    "where": lambda: (aten.where.self, real(5, 7) > 0, real(5, 7), real(7)),
    "concatenation": lambda: (aten.cat.default, [real(5, 3), real(5, 4), real(5, 7)], 1),
    "permutation": lambda: (aten.permute.default, real(3, 5, 7), [2, 0, 1]),
    "view": lambda: (aten.view.default, real(4, 5, 6), [20, 6]),
    "view that divides": lambda: (aten.view.default, real(20, 6), [4, 5, 2, 3]),
    "slice": lambda: (aten.slice.Tensor, real(11, 5), 0, 2, 10, 3),
    "padding": lambda: (aten.constant_pad_nd.default, real(5, 7), [1, 2, 0, 3], 0.5),
    "flip": lambda: (aten.flip.default, real(5, 7), [1]),
    "stack": lambda: (aten.stack.default, [real(3, 5), real(3, 5)], 1),
}  # fmt: skip


def graph_of_call(call: OpCall, wanted: Mapping[str, Tensor]) -> KernelGraph:
    """The kernels of an op, its results wanted."""
    expansion = find_describe(call)(call)
    values: dict[str, Value] = {each.name: each for each in values_of(call)}
    values |= {each.name: each for each in expansion.values}
    for each in call.outputs:
        if each is not None:
            values[each.name] = Value(
                name=each.name, shape=each.shape, format=each.format, kind=each.kind,
                element_bytes=each.element_bytes, is_output=each.name in wanted,
            )  # fmt: skip
    return KernelGraph(values=values, kernels=expansion.kernels)


def random_placing(kernel: Kernel, grid: Grid, draw: random.Random) -> Placing:
    """Any mapping that the kernel allows."""
    loops = [
        number for number, loop in enumerate(kernel.loops) if loop.is_splittable and loop.size > 1
    ]
    draw.shuffle(loops)
    axes: list[list[Part]] = [[], []]
    for loop in loops:
        axis = draw.randrange(2)
        room = grid[axis] // prod(part.count for part in axes[axis])
        count = min(room, kernel.loops[loop].size)
        if count > 1:
            axes[axis].append(Part(loop, draw.randint(2, count), draw.choice([1, 1, 2])))
    steps = {loop: min(draw.choice([2, 3]), kernel.loops[loop].size) for loop in loops[-2:]}
    return Placing(
        rows=tuple(axes[0]), columns=tuple(axes[1]), steps=steps if draw.random() < 0.5 else {}
    )


def random_division(shape: tuple[int, ...], grid: Grid, draw: random.Random) -> Placing:
    """Any layout of a value over the nodes' memories."""
    dims = [dim for dim, size in enumerate(shape) if size > 1]
    draw.shuffle(dims)
    parts = [
        (Part(dim, draw.randint(1, min(shape[dim], length))),)
        for dim, length in zip(dims, grid, strict=False)
    ]
    parts += [()] * (2 - len(parts))
    return Placing(rows=parts[0], columns=parts[1])


@pytest.mark.parametrize("name", CALLS)
def test_ops_give_what_aten_gives(name):
    torch.manual_seed(len(name))
    function, *arguments = CALLS[name]()
    call, tensors = make_call(function, *arguments)
    results = function(*arguments)
    results = results if isinstance(results, tuple | list) else (results,)
    wanted = {
        value.name: result
        for value, result in zip(call.outputs, results, strict=True)
        if value is not None
    }
    graph = graph_of_call(call, wanted)
    verify_graph(graph)
    draw = random.Random(name)
    for grid in GRIDS:
        for number in range(NUM_PLACINGS):
            chosen = fuse_elementwise(graph) if number == 0 else graph
            verify_graph(chosen)
            layouts = {
                each: draw.choice([
                    OUTSIDE, in_sram(value.shape, random_division(value.shape, grid, draw), grid)
                ])
                for each, value in chosen.values.items()
                if each in tensors
            }  # fmt: skip
            mappings = [random_placing(kernel, grid, draw) for kernel in chosen.kernels]
            program = place_program(chosen, grid, mappings, layouts)
            verify_program(program, sram_bytes=10**6)
            found = execute(program, tensors, given=wanted)
            for each, tensor in wanted.items():
                torch.testing.assert_close(
                    found[each], tensor, rtol=1e-5, atol=2e-5, equal_nan=True
                )
