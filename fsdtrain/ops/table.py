"""Which implementation of each op a model calls: the references, unless a backend brings its own.

A model gets its table when it is built and calls ops through nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdtrain.ops.bev_pool import bev_pool
from fsdtrain.ops.focal_loss import focal_loss
from fsdtrain.ops.ms_deform_attn import ms_deform_attn
from fsdtrain.ops.occupancy_loss import occupancy_loss
from fsdtrain.ops.project_sample import project_sample
from fsdtrain.ops.warp_bev import warp_bev
from fsdtrain.ops.yuv_to_input import YuvLayout, yuv_to_input

MsDeformAttn = Callable[[Tensor, Tensor, Tensor, Sequence[tuple[int, int]]], Tensor]
BevPool = Callable[
    [
        Tensor, Tensor, Tensor, Tensor, Tensor,
        tuple[int, int], tuple[float, float], float, tuple[int, int], tuple[float, float],
    ],
    Tensor,
]  # fmt: skip
OccupancyLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FocalLoss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
ProjectSample = Callable[[Tensor, Tensor, Tensor, Tensor, tuple[int, int], int], Tensor]
WarpBev = Callable[[Tensor, Tensor, tuple[float, float], float], Tensor]
YuvToInput = Callable[
    [
        Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
        YuvLayout, tuple[int, int], Sequence[float], Sequence[float], torch.dtype,
    ],
    Tensor,
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OpTable:
    """One callable an op, with the signature of its reference; the references are the default."""

    ms_deform_attn: MsDeformAttn = ms_deform_attn
    bev_pool: BevPool = bev_pool
    project_sample: ProjectSample = project_sample
    warp_bev: WarpBev = warp_bev
    yuv_to_input: YuvToInput = yuv_to_input
    occupancy_loss: OccupancyLoss = occupancy_loss
    focal_loss: FocalLoss = focal_loss
