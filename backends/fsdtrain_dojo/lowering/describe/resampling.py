"""Interpolation onto another grid, and its gradients, as loop nests.

Every kind is linear along each axis by itself; its weights are those that ATen gives to unit
vectors, border handling and rounding included.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import call_with
from fsdtrain_dojo.lowering.describe.separable import make_separable
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall

_ALIGNABLE = (
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
_NEAREST = tuple(
    f"{kind}{rank}d"
    for kind in ("upsample_nearest", "_upsample_nearest_exact")
    for rank in (1, 2, 3)
)


def describe_resampling(call: OpCall) -> Expansion:
    """Of the upsample ops, in both of their forms: sizes with scales, or factors."""
    name = call.op.removeprefix("aten.")
    data, _, *rest = call.args
    (out,) = call.outputs
    assert out is not None
    matrices = _find_matrices(name, data.shape, out.shape, [*rest, *call.kwargs.values()])

    def run_whole(tensor: Tensor) -> Tensor:
        result: Tensor = call_with(call, {data.name: tensor})
        return result

    flops = 0 if name in _NEAREST else 2
    kernel = make_separable(call, data, out, matrices, run_whole, flops_per_tap=flops)
    return Expansion(kernels=(kernel,))


def describe_resampling_backward(call: OpCall) -> Expansion:
    """Of their gradients: the transposed map."""
    name = call.op.removeprefix("aten.").removesuffix("_backward")
    gradient, _, _, *rest = call.args
    (out,) = call.outputs
    assert out is not None
    matrices = _find_matrices(name, out.shape, gradient.shape, [*rest, *call.kwargs.values()])

    def run_whole(tensor: Tensor) -> Tensor:
        result: Tensor = call_with(call, {gradient.name: tensor})
        return result

    kernel = make_separable(
        call,
        gradient,
        out,
        [matrix.T for matrix in matrices],
        run_whole,
        flops_per_tap=1 if name in _NEAREST else 2,
    )
    return Expansion(kernels=(kernel,))


def _find_matrices(
    name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], rest: list[Any]
) -> list[Tensor]:
    """Of every axis; `rest`: what follows the sizes in the op's arguments."""
    is_aligned: bool | None = rest[0] if name in _ALIGNABLE else None
    scales = rest[1:] if name in _ALIGNABLE else rest
    if scales and isinstance(scales[0], list | tuple):
        scales = list(scales[0])
    rank = len(inputs) - 2
    scales = [*scales, *[None] * (rank - len(scales))]
    return [
        _find_matrix(name, rank, *sizes, is_aligned, scale)
        for *sizes, scale in zip(inputs[2:], outputs[2:], scales, strict=True)
    ]


@lru_cache(maxsize=256)
def _find_matrix(
    name: str,
    rank: int,
    input_size: int,
    output_size: int,
    is_aligned: bool | None,
    scale: float | None,
) -> Tensor:
    """What output points read of input points along one axis, [outputs, inputs]."""
    # The last axis: where that one has one point, anti-aliasing kernels of torch 2.13 go wrong.
    others = [1] * (rank - 1)
    points = torch.eye(input_size).reshape(1, input_size, *others, input_size)
    aligned = [] if is_aligned is None else [is_aligned]
    scales = [*[None] * (rank - 1), scale]
    forward = getattr(torch.ops.aten, name).default
    result: Tensor = forward(points, [*others, output_size], *aligned, *scales)
    return result.reshape(input_size, output_size).T.contiguous()


RULES: dict[str, Describe] = {
    **{f"aten.{name}": describe_resampling for name in (*_ALIGNABLE, *_NEAREST)},
    **{f"aten.{name}_backward": describe_resampling_backward for name in (*_ALIGNABLE, *_NEAREST)},
}
