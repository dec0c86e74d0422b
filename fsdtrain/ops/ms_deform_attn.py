"""Deformable attention: each query reads a few learnt places of several feature maps.

The plain-PyTorch function below is the specification; a backend's kernel is tested against it.
It knows nothing of what predicts the places and weights, nor of what the maps show.

Shape letters: B samples, Q queries, H heads, L levels (maps), P points, C channels of a head,
S places of all maps together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn(
    value_BSHC: Tensor,
    locations_BQHLP2: Tensor,
    weights_BQHLP: Tensor,
    level_sizes: Sequence[tuple[int, int]],
) -> Tensor:
    """Weighted sum over levels and points of bilinear samples; zeros lie around every map.

    Source: Deformable DETR, arXiv 2010.04159, equation 3 without its two projections.

    Args:
        value_BSHC: the maps one after the other, each row by row.
        locations_BQHLP2: (x, y) as fractions of each map's width and height: (0, 0) is the outer
            corner of its first pixel, whose centre is (0.5 / w, 0.5 / h). Any number is allowed;
            float32 or wider, whatever the dtype of the values.
        weights_BQHLP: taken as they are, they need not sum to 1.
        level_sizes: (rows h, columns w) of each map; S is the sum of h * w.

    Returns:
        [B, Q, H * C] in the dtype of the values.
    """
    B, _, H, C = value_BSHC.shape
    Q, P = locations_BQHLP2.shape[1], locations_BQHLP2.shape[4]
    # Coordinates never go down to the values' precision.
    dtype = torch.promote_types(value_BSHC.dtype, locations_BQHLP2.dtype)
    grids = (locations_BQHLP2.to(dtype) * 2 - 1).unbind(3)
    weights = weights_BQHLP.to(dtype).unbind(3)
    maps = torch.split(value_BSHC.to(dtype), [h * w for h, w in level_sizes], 1)
    total_NCQ = value_BSHC.new_zeros((B * H, C, Q), dtype=dtype)
    for (h, w), map_BSHC, grid_BQHP2, weights_BQHP in zip(
        level_sizes, maps, grids, weights, strict=True
    ):
        sampled_NCQP = F.grid_sample(
            map_BSHC.permute(0, 2, 3, 1).reshape(B * H, C, h, w),
            grid_BQHP2.transpose(1, 2).reshape(B * H, Q, P, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        weights_N1QP = weights_BQHP.transpose(1, 2).reshape(B * H, 1, Q, P)
        total_NCQ = total_NCQ + (sampled_NCQP * weights_N1QP).sum(-1)
    attended = total_NCQ.view(B, H, C, Q).permute(0, 3, 1, 2).reshape(B, Q, H * C)
    return attended.to(value_BSHC.dtype)
