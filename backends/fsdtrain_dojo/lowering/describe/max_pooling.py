"""Maxima of windows, their gradients, and unpooling.

Indices, as ATen has them, count points of the whole plane.
"""

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
    is_all,
)
from fsdtrain_dojo.lowering.describe.pool_nests import Pool, make_planes_kernel
from fsdtrain_dojo.lowering.describe.windows import make_windows, pad_axes, per_axis
from fsdtrain_dojo.lowering.kernel import Block, Range, Unit, Value
from fsdtrain_dojo.lowering.op_call import Expansion, OpCall

_NAMES = "kernel stride padding dilation ceil_mode"


def describe_max_pool(call: OpCall) -> Expansion:
    """Of max_pool1d, and of 2 and 3 axes with indices."""
    given = bind(call, f"input {_NAMES}", stride=[], padding=0, dilation=1, ceil_mode=False)
    data: Value = given["input"]
    writes = [each for each in call.outputs if each is not None]
    pool = _make_pool(call, given, data, writes[0])
    loops = pool.loops("o")
    lengths = [window.length for window in pool.windows]
    strides = [window.stride for window in pool.windows]
    dilations = [window.dilation for window in pool.windows]

    def run(tensor: Tensor, *settings: Any) -> list[Tensor]:
        results = call.function(tensor, *settings)
        results = (results,) if isinstance(results, Tensor) else results
        pairs = zip(results, call.outputs, strict=True)
        return [result for result, output in pairs if output is not None]

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        (tensor,) = tensors
        read, written = block.boxes[:2]
        if is_all(loops, block):
            settings = [given[name] for name in _NAMES.split()]
            return run(fill_rest(tensor, data.shape, read), *settings)
        pads = pool.pads_to_cover(written, read)
        padded = pad_axes(tensor, pads, -torch.inf)
        zeros = [0] * len(lengths)
        results = run(padded, lengths, strides, zeros, dilations, False)
        first = [side[0] - pad[0] for side, pad in zip(read[pool.num_leading :], pads, strict=True)]
        return [
            result
            if result.is_floating_point()
            else _count_in_plane(result, first, padded.shape, pool)
            for result in results
        ]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops,
        reads=(index_access(Indexed(data, pool.covered), loops),),
        writes=tuple(index_access(Indexed(each, pool.plain), loops) for each in writes),
        flops=pool.num_taps,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def describe_max_pool_backward(call: OpCall) -> Expansion:
    """Of max_pool2d_with_indices_backward and its kin: every place adds to the point it picked."""
    given = bind(call, f"gradient input {_NAMES} indices")
    gradient, indices = given["gradient"], given["indices"]
    (out,) = call.outputs
    assert out is not None
    pool = _make_pool(call, given, out, gradient)
    loops = pool.loops("i")

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        read, written = block.boxes[0], block.boxes[-1]
        if is_all(loops, block):
            gradient, indices = (fill_rest(each, pool.places, read) for each in tensors)
            # Of the input ATen takes no more than the shape here.
            unread = gradient.new_empty(out.shape)
            settings = [given[name] for name in _NAMES.split()]
            return [call.function(gradient, unread, *settings, indices)]
        gradient, indices = tensors
        return [_scatter(gradient, indices, written, pool)]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops,
        reads=tuple(
            index_access(Indexed(each, pool.placed), loops) for each in (gradient, indices)
        ),
        writes=(index_access(Indexed(out, pool.plain), loops),),
        # An addition, and the address.
        flops=3 * prod(pool.places),
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def describe_adaptive_max_pool(call: OpCall) -> Expansion:
    """Of adaptive_max_pool2d and 3d, with indices."""
    data, sizes = call.args[0], call.args[1]
    writes = [each for each in call.outputs if each is not None]

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        pairs = zip(call.function(*tensors, sizes), call.outputs, strict=True)
        return [result for result, output in pairs if output is not None]

    kernel = make_planes_kernel(call, [data], writes, len(sizes), compute, flops=data.num_elements)
    return Expansion(kernels=(kernel,))


def describe_adaptive_max_pool_backward(call: OpCall) -> Expansion:
    """Of adaptive_max_pool2d_backward and 3d."""
    gradient, _, indices = call.args
    (out,) = call.outputs
    assert out is not None

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        gradient, indices = tensors
        # Of the input ATen takes no more than the shape here.
        return [call.function(gradient, gradient.new_empty(box_shape(block.boxes[-1])), indices)]

    num_axes = 3 if "3d" in call.op else 2
    kernel = make_planes_kernel(
        call, [gradient, indices], [out], num_axes, compute, flops=3 * gradient.num_elements
    )
    return Expansion(kernels=(kernel,))


def describe_unpool(call: OpCall) -> Expansion:
    """Of max_unpool2d: every place is put at the point that it was picked from."""
    data, indices, sizes = call.args
    (out,) = call.outputs
    assert out is not None

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        return [call.function(*tensors, sizes)]

    kernel = make_planes_kernel(
        call, [data, indices], [out], len(sizes), compute, flops=2 * data.num_elements
    )
    return Expansion(kernels=(kernel,))


def _make_pool(call: OpCall, given: dict[str, Any], planes: Value, places: Value) -> Pool:
    rank = int(call.op.split("pool")[1][0])
    lengths = per_axis(given["kernel"], rank)
    return Pool(
        call=call,
        windows=make_windows(
            lengths, given["stride"] or lengths, given["padding"], given["dilation"]
        ),
        planes=planes.shape,
        places=places.shape,
    )


def _count_in_plane(
    indices: Tensor, first: Sequence[int], padded: Sequence[int], pool: Pool
) -> Tensor:
    """Indices into a padded piece that begins at a point, as those into the plane."""
    result = torch.zeros_like(indices)
    sizes = pool.planes[pool.num_leading :]
    axes = _split_indices(indices, padded[pool.num_leading :])
    for axis, start, size in zip(axes, first, sizes, strict=True):
        # A window of nothing but minus infinities may have picked from the padding.
        result = result * size + (axis + start).clamp(0, size - 1)
    return result


def _split_indices(indices: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Coordinates along every axis."""
    axes = []
    for size in reversed(sizes):
        axes.append(indices % size)
        indices = indices // size
    return axes[::-1]


def _scatter(gradient: Tensor, indices: Tensor, written: Sequence[Range], pool: Pool) -> Tensor:
    """What places add to the points of a piece of the planes."""
    shape = box_shape(written)
    num_planes = prod(shape[: pool.num_leading])
    num_points = prod(shape[pool.num_leading :])
    target, is_inside = torch.zeros_like(indices), torch.ones_like(indices, dtype=torch.bool)
    axes = _split_indices(indices, pool.planes[pool.num_leading :])
    for axis, (first, end) in zip(axes, written[pool.num_leading :], strict=True):
        is_inside &= (axis >= first) & (axis < end)
        target = target * (end - first) + axis - first
    # One more point takes what falls beside the piece.
    target = torch.where(is_inside, target, num_points)
    result = gradient.new_zeros(num_planes, num_points + 1)
    result.scatter_add_(1, target.reshape(num_planes, -1), gradient.reshape(num_planes, -1))
    return result[:, :-1].reshape(shape)
