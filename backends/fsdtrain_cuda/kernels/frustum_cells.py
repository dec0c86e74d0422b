"""Which cell of the ground each point of the cameras' frustums falls into: the index of bev_pool.

Shape letters: B clips, N cameras, D depths, h w rows and columns of the feature map, X Y cells.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_P = 32
BLOCK_D = 64


def find_keys(
    depths_m_D: Tensor,
    intrinsics_BN33: Tensor,
    camera_to_ego_BN44: Tensor,
    map_size: tuple[int, int],
    image_size: tuple[int, int],
    min_corner_m: tuple[float, float],
    cell_m: float,
    num_cells: tuple[int, int],
    z_range_m: tuple[float, float],
) -> Tensor:
    """`find_cells` of the reference, numbered through the batch.

    Returns:
        int32 [B, N * h * w, D]: clip * X * Y + cell; B * X * Y for points in no cell.
    """
    B, N = intrinsics_BN33.shape[:2]
    (D,), (h, w), (num_x, num_y) = depths_m_D.shape, map_size, num_cells
    keys = torch.empty(B, N * h * w, D, device=depths_m_D.device, dtype=torch.int32)
    locate[triton.cdiv(h * w, BLOCK_P), triton.cdiv(D, BLOCK_D), B * N](
        depths_m_D.contiguous(), intrinsics_BN33.contiguous(), camera_to_ego_BN44.contiguous(),
        keys, N, D, h, w, B * num_x * num_y,
        ROW_SCALE=image_size[0] / h, COLUMN_SCALE=image_size[1] / w,
        X_MIN=min_corner_m[0], Y_MIN=min_corner_m[1], Z_MIN=z_range_m[0],
        PER_CELL=1 / cell_m, PER_HEIGHT=1 / (z_range_m[1] - z_range_m[0]), X=num_x, Y=num_y,
        DTYPE=tl.float64 if depths_m_D.dtype == torch.float64 else tl.float32,
        BLOCK_P=BLOCK_P, BLOCK_D=BLOCK_D,
        enable_fp_fusion=False,
    )  # fmt: skip
    return keys


@triton.jit
def locate(
    depths_ptr,
    intrinsics_ptr,
    poses_ptr,
    keys_ptr,
    N,
    D,
    h,
    w,
    num_keys,
    ROW_SCALE: tl.constexpr,
    COLUMN_SCALE: tl.constexpr,
    X_MIN: tl.constexpr,
    Y_MIN: tl.constexpr,
    Z_MIN: tl.constexpr,
    PER_CELL: tl.constexpr,
    PER_HEIGHT: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Keys of the points on the rays of some pixels of one camera.

    depths [D]; intrinsics [B, N, 3, 3]; poses [B, N, 4, 4] -> keys int32 [B, N * h * w, D]. To be
    launched without fused multiply-adds: then it finds the same cells as the reference, bit for
    bit.
    """
    camera = tl.program_id(2)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = (pixel // w).to(DTYPE) + 0.5
    column = (pixel % w).to(DTYPE) + 0.5
    lens = intrinsics_ptr + camera * 9
    pose = poses_ptr + camera * 16
    y = row * tl.full([], ROW_SCALE, DTYPE) - tl.load(lens + 5)
    y = _divide(y, tl.load(lens + 4), DTYPE)
    x = column * tl.full([], COLUMN_SCALE, DTYPE) - tl.load(lens + 2) - tl.load(lens + 1) * y
    x = _divide(x, tl.load(lens), DTYPE)
    depth = tl.load(depths_ptr + d, mask=d < D, other=0.0)
    along_x, in_x = _place(pose, x, y, depth, X_MIN, PER_CELL, X, DTYPE)
    along_y, in_y = _place(pose + 4, x, y, depth, Y_MIN, PER_CELL, Y, DTYPE)
    _, in_z = _place(pose + 8, x, y, depth, Z_MIN, PER_HEIGHT, 1, DTYPE)
    first_key = camera // N * (X * Y)
    key = tl.where(in_x & in_y & in_z, first_key + along_x * Y + along_y, num_keys)
    is_point = (pixel < h * w)[:, None] & (d < D)[None, :]
    tl.store(keys_ptr + (camera * h * w + pixel)[:, None] * D + d[None, :], key, mask=is_point)


@triton.jit
def _place(
    axis_ptr,
    x,
    y,
    depth,
    ORIGIN: tl.constexpr,
    PER_UNIT: tl.constexpr,
    SIZE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Along one axis of the ego: the cell of each point, and whether there is one."""
    ray = tl.load(axis_ptr) * x + tl.load(axis_ptr + 1) * y + tl.load(axis_ptr + 2)
    point = ray[:, None] * depth[None, :] + tl.load(axis_ptr + 3)
    place = tl.floor((point - tl.full([], ORIGIN, DTYPE)) * tl.full([], PER_UNIT, DTYPE))
    is_inside = (place >= 0) & (place < SIZE)  # NaN is outside
    return tl.where(is_inside, place, 0.0).to(tl.int32), is_inside


@triton.jit
def _divide(x, y, DTYPE: tl.constexpr):
    return tl.div_rn(x, y) if tl.float32 == DTYPE else x / y
