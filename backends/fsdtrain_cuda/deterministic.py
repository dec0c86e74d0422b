"""Ops in plain PyTorch whose gradients have the same bits in every run, unlike grid_sample's.

It adds a gradient with atomics, in any order, and refuses where torch is told to be deterministic.
Reading by index is added up in order, which takes longer.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fsdtrain.ops.warp_bev import find_places


def warp_bev(
    bev_BCXY: Tensor,
    previous_to_current_B44: Tensor,
    min_corner_m: tuple[float, float],
    cell_m: float,
) -> Tensor:
    """As fsdtrain.ops.warp_bev, which see."""
    B, C, X, Y = bev_BCXY.shape
    row, column = find_places(previous_to_current_B44, (X, Y), min_corner_m, cell_m)
    cells = bev_BCXY.to(row.dtype).permute(0, 2, 3, 1).reshape(B * X * Y, C)
    first_of_clip = torch.arange(B, device=row.device).mul(X * Y).view(B, 1, 1)
    warped_BXYC = torch.zeros_like(cells).view(B, X, Y, C)
    for row_index, row_share in _neighbours(row, X):
        for column_index, column_share in _neighbours(column, Y):
            chosen = cells[first_of_clip + row_index * Y + column_index]
            warped_BXYC = warped_BXYC + chosen * (row_share * column_share)[..., None]
    return warped_BXYC.permute(0, 3, 1, 2).to(bev_BCXY.dtype)


def _neighbours(place: Tensor, num_cells: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Index and share of the cells before and behind; a cell outside has no share."""
    index = (place + 1) * (num_cells / 2) - 0.5
    before = index.floor()
    for cell, share in ((before, before + 1 - index), (before + 1, index - before)):
        is_inside = (cell >= 0) & (cell < num_cells)
        index_there = cell.nan_to_num().clamp(0, num_cells - 1).long()
        yield index_there, torch.where(is_inside, share, 0.0)
