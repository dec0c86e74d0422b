"""Means of windows, of fixed or adaptive ones, and their gradients."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import make_kernel
from fsdtrain_dojo.lowering.describe.nest import (
    Indexed,
    bind,
    box_shape,
    fill_rest,
    index_access,
    indices_of,
    is_all,
)
from fsdtrain_dojo.lowering.describe.pool_nests import Pool
from fsdtrain_dojo.lowering.describe.separable import make_separable
from fsdtrain_dojo.lowering.describe.windows import is_empty, make_windows, pad_axes, per_axis
from fsdtrain_dojo.lowering.kernel import Block, Range, Unit, Value
from fsdtrain_dojo.lowering.op_call import Expansion, OpCall

_NAMES = "kernel stride padding ceil_mode count_include_pad divisor_override"
_DEFAULTS: dict[str, Any] = {
    "stride": [],
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}


def describe_average_pool(call: OpCall) -> Expansion:
    """Of avg_pool1d, 2d and 3d."""
    given = bind(call, f"input {_NAMES}", **_DEFAULTS)
    data: Value = given["input"]
    (out,) = call.outputs
    assert out is not None
    pool = _make_pool(call, given, data, out)
    loops = pool.loops("o")

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        (tensor,) = tensors
        read, written = block.boxes
        if is_all(loops, block):
            return [
                call.function(fill_rest(tensor, data.shape, read), *call.args[1:], **call.kwargs)
            ]
        padded = pad_axes(tensor, pool.pads_to_cover(written, read))
        return [call.function(padded, *_piece_settings(pool)) * _scales(pool, given, written)]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops,
        reads=(index_access(Indexed(data, pool.covered), loops),),
        writes=(index_access(Indexed(out, pool.plain), loops),),
        flops=pool.num_taps + out.num_elements,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def describe_average_pool_backward(call: OpCall) -> Expansion:
    """Of avg_pool2d_backward and 3d: every point adds up its share of the windows it is in."""
    given = bind(call, f"gradient input {_NAMES}")
    gradient: Value = given["gradient"]
    (out,) = call.outputs
    assert out is not None
    pool = _make_pool(call, given, out, gradient)
    loops = pool.loops("i")

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        (tensor,) = tensors
        read, written = block.boxes
        shape = box_shape(written)
        if is_all(loops, block):
            tensor = fill_rest(tensor, gradient.shape, read)
            # Of the input ATen takes no more than the shape here.
            return [call.function(tensor, tensor.new_empty(shape), *call.args[2:])]
        if is_empty(read):
            return [tensor.new_zeros(shape)]
        pads = pool.pads_to_fit(read, written)
        leading = shape[: pool.num_leading]
        spread = [size - sum(pad) for size, pad in zip(shape[len(leading) :], pads, strict=True)]
        unread = tensor.new_empty(*leading, *spread)
        scaled = tensor * _scales(pool, given, read)
        return [pad_axes(call.function(scaled, unread, *_piece_settings(pool), None), pads)]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops,
        reads=(index_access(Indexed(gradient, pool.placed), loops),),
        writes=(index_access(Indexed(out, pool.plain), loops),),
        flops=pool.num_taps + gradient.num_elements,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def describe_adaptive_average(call: OpCall) -> Expansion:
    """Of _adaptive_avg_pool2d and 3d."""
    data, sizes = call.args
    (out,) = call.outputs
    assert out is not None

    def run_whole(tensor: Tensor) -> Tensor:
        result: Tensor = call.function(tensor, sizes)
        return result

    matrices = _find_means(data.shape, out.shape, len(sizes))
    kernel = make_separable(call, data, out, matrices, run_whole, flops_per_tap=1)
    return Expansion(kernels=(kernel,))


def describe_adaptive_average_backward(call: OpCall) -> Expansion:
    """Of _adaptive_avg_pool2d_backward and 3d: the transposed map."""
    gradient, _ = call.args
    (out,) = call.outputs
    assert out is not None

    def run_whole(tensor: Tensor) -> Tensor:
        # Of the input ATen takes no more than the shape here.
        result: Tensor = call.function(tensor, tensor.new_empty(out.shape))
        return result

    num_axes = 3 if "3d" in call.op else 2
    matrices = [each.T for each in _find_means(out.shape, gradient.shape, num_axes)]
    kernel = make_separable(call, gradient, out, matrices, run_whole, flops_per_tap=1)
    return Expansion(kernels=(kernel,))


def _make_pool(call: OpCall, given: dict[str, Any], planes: Value, places: Value) -> Pool:
    rank = int(call.op.split("pool")[1][0])
    lengths = per_axis(given["kernel"], rank)
    return Pool(
        call=call,
        windows=make_windows(lengths, given["stride"] or lengths, given["padding"], 1),
        planes=planes.shape,
        places=places.shape,
    )


def _piece_settings(pool: Pool) -> tuple[Any, ...]:
    """Without padding, which is then counted as the points that it stands for."""
    lengths = [window.length for window in pool.windows]
    strides = [window.stride for window in pool.windows]
    return lengths, strides, [0] * len(lengths), False, True


def _scales(pool: Pool, given: dict[str, Any], places: Sequence[Range]) -> Tensor:
    """The length of a window over what ATen divides by, at every place."""
    rank = len(pool.windows)
    scales = torch.ones([1] * rank)
    divisor: int | None = given["divisor_override"]
    if divisor is not None:
        return scales * (prod(window.length for window in pool.windows) / divisor)
    first = pool.num_leading
    for axis, (window, side, size) in enumerate(
        zip(pool.windows, places[first:], pool.planes[first:], strict=True)
    ):
        begin = indices_of(side) * window.stride - window.padding
        # What lies behind the padding, where sizes are rounded up, is not counted either.
        end = (begin + window.length).clamp(max=size + window.padding)
        if not given["count_include_pad"]:
            begin, end = begin.clamp(min=0), end.clamp(max=size)
        shape = [1] * rank
        shape[axis] = -1
        scales = scales * (window.length / (end - begin)).reshape(shape)
    return scales


def _find_means(inputs: tuple[int, ...], outputs: tuple[int, ...], num_axes: int) -> list[Tensor]:
    """For every axis, what each output point is the mean of."""
    matrices = []
    for size, count in zip(inputs[-num_axes:], outputs[-num_axes:], strict=True):
        matrix = torch.zeros(count, size)
        for point in range(count):
            first, end = point * size // count, -(-(point + 1) * size // count)
            matrix[point, first:end] = 1 / (end - first)
        matrices.append(matrix)
    return matrices
