"""Warp: resample a bird's-eye view of the previous frame into the current ego frame.

The plain-PyTorch function below is the specification; a backend's kernel is tested against it.

Shape letters: B clips, C channels, X Y cells forward and to the left.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def warp_bev(
    bev_BCXY: Tensor,
    previous_to_current_B44: Tensor,
    min_corner_m: tuple[float, float],
    cell_m: float,
) -> Tensor:
    """Bilinear resampling by the planar part of a rigid motion; zeros come in from outside.

    Args:
        bev_BCXY: features of the previous frame; cell [i, j] has its centre at
            min_corner_m + (i + 0.5, j + 0.5) * cell_m in the ego frame (x forward, y left).
        previous_to_current_B44: previous ego -> current ego. Only yaw, x and y are used.
        min_corner_m: (x, y) where cell [0, 0] begins, the same before and after.
        cell_m: edge of a cell.

    Returns:
        [B, C, X, Y]: the previous features at the places of the current cells.
    """
    num_x, num_y = bev_BCXY.shape[-2:]
    row, column = find_places(previous_to_current_B44, (num_x, num_y), min_corner_m, cell_m)
    warped = F.grid_sample(
        bev_BCXY.to(row.dtype),  # coordinates never go down to the features' precision
        torch.stack([column, row], -1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return warped.to(bev_BCXY.dtype)


def find_places(
    previous_to_current_B44: Tensor,
    num_cells: tuple[int, int],
    min_corner_m: tuple[float, float],
    cell_m: float,
) -> tuple[Tensor, Tensor]:
    """Where the current cells were in the previous frame: (along X, along Y), each [B, X, Y].

    As grid_sample takes places: -1 is where the first cell begins, 1 where the last one ends.
    """
    num_x, num_y = num_cells
    x_min_m, y_min_m = min_corner_m
    motion = previous_to_current_B44
    x = torch.arange(num_x, device=motion.device, dtype=motion.dtype)
    y = torch.arange(num_y, device=motion.device, dtype=motion.dtype)
    x_X1 = (x_min_m + (x + 0.5) * cell_m)[:, None]
    y_1Y = (y_min_m + (y + 0.5) * cell_m)[None, :]
    cos, sin = motion[:, 0, 0], motion[:, 1, 0]
    # Pitch and roll shorten the projected axis; without this the view would shrink.
    norm = torch.sqrt(cos * cos + sin * sin)
    cos, sin = (cos / norm)[:, None, None], (sin / norm)[:, None, None]
    dx = x_X1 - motion[:, 0, 3, None, None]
    dy = y_1Y - motion[:, 1, 3, None, None]
    # The inverse rotation takes current places back to where they were in the previous frame.
    row = (cos * dx + sin * dy - x_min_m) * (2 / (cell_m * num_x)) - 1
    column = (cos * dy - sin * dx - y_min_m) * (2 / (cell_m * num_y)) - 1
    return row, column
