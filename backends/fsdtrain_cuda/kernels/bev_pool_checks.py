"""What bev_pool.py asks of its arguments before anything is launched."""

from typing import Any

import torch
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain.ops.bev_pool import find_cells
from fsdtrain_cuda.kernels.arguments import (
    FLOATS,
    MAX_INT32,
    check_device,
    check_dtype,
    check_shape,
)

MAX_GRID = 65_535  # of a launch along its second and third dimension


def check_arguments(
    feats: Tensor,
    depth: Tensor,
    geometry: tuple[Tensor, Tensor, Tensor],
    cell_m: float,
    num_cells: tuple[int, int],
    z_range_m: tuple[float, float],
) -> None:
    """Dtypes, shapes, devices and sizes.

    Raises:
        BackendError: what is wrong, with the shapes.
    """
    op, (depths_m, intrinsics, poses) = "bev_pool", geometry
    if feats.ndim != 6 or depths_m.ndim != 1:
        raise BackendError(
            f"{op}: features must be [B, T, N, C, h, w] and depths_m [D], not "
            f"{tuple(feats.shape)} and {tuple(depths_m.shape)}"
        )
    B, T, N, _, h, w = feats.shape
    (D,) = depths_m.shape
    check_shape(op, "depth", depth, (B, T, N, D, h, w))
    check_shape(op, "intrinsics", intrinsics, (B, N, 3, 3))
    check_shape(op, "camera_to_ego", poses, (B, N, 4, 4))
    check_dtype(op, "features", feats, FLOATS)
    check_dtype(op, "depth", depth, FLOATS)
    named = (("depths_m", depths_m), ("intrinsics", intrinsics), ("camera_to_ego", poses))
    for name, tensor in named:
        check_dtype(op, name, tensor, (torch.float32, torch.float64))
        check_dtype(op, name, tensor, (depths_m.dtype,))
        if tensor.requires_grad and torch.is_grad_enabled():
            raise BackendError(
                f"{op}: gradients go to the features and the depth, but {name} asks for one"
            )
    check_device(op, features=feats, depth=depth, **dict(named))
    if min(N, h, w, D, *num_cells) < 1:
        raise BackendError(
            f"{op}: features of shape {tuple(feats.shape)}, {D} depths and {num_cells} cells: "
            "there must be a camera, a pixel, a depth and a cell"
        )
    if cell_m <= 0 or z_range_m[0] >= z_range_m[1]:
        raise BackendError(
            f"{op}: cell_m={cell_m} must be above 0, and of z_range_m={z_range_m} the second above "
            "the first"
        )
    num_points, num_keys = B * N * D * h * w, B * num_cells[0] * num_cells[1]
    if max(num_points, num_keys) >= MAX_INT32 or max(B * N, T) > MAX_GRID:
        raise BackendError(
            f"{op}: {num_points} frustum points, {num_keys} cells, {B * N} cameras and {T} frames "
            f"in a batch of {B} clips; points and cells must stay below {MAX_INT32}, cameras and "
            f"frames may be {MAX_GRID}; take fewer clips"
        )


def check_values(
    depths_m: Tensor, intrinsics: Tensor, poses: Tensor, map_size: tuple[int, int], *grid: Any
) -> None:
    """The calibration is finite, and `grid`, the arguments from the image's size on, is seen.

    Raises:
        BackendError: it is not.
    """
    for name, tensor in (
        ("depths_m", depths_m), ("intrinsics", intrinsics), ("camera_to_ego", poses),
    ):  # fmt: skip
        if not bool(tensor.isfinite().all()):
            raise BackendError(
                f"bev_pool: {name} of shape {tuple(tensor.shape)} has NaN or infinity"
            )
    if poses.numel() and not bool(
        (find_cells(depths_m, intrinsics, poses, map_size, *grid) >= 0).any()
    ):
        image_size, min_corner_m, cell_m, num_cells, z_range_m = grid
        raise BackendError(
            f"bev_pool: of {intrinsics.shape[0]} x {intrinsics.shape[1]} cameras with images of "
            f"{image_size} no frustum point lies inside the {num_cells} cells of {cell_m} m from "
            f"{min_corner_m} at heights {z_range_m}; is camera_to_ego right, and in metres?"
        )
