"""Lift-splat pooling: image features spread along their rays, summed into the cells of the ground.

The plain-PyTorch function below is the specification; a backend's kernel is tested against it.

Shape letters: B clips, T frames, N cameras, C channels, D depths, h w rows and columns of the
feature map, X Y cells forward and to the left.
"""

import torch
from torch import Tensor


def bev_pool(
    feats_BTNChw: Tensor,
    depth_BTNDhw: Tensor,
    depths_m_D: Tensor,
    intrinsics_BN33: Tensor,
    camera_to_ego_BN44: Tensor,
    image_size: tuple[int, int],
    min_corner_m: tuple[float, float],
    cell_m: float,
    num_cells: tuple[int, int],
    z_range_m: tuple[float, float],
) -> Tensor:
    """Sum, over the frustum points in a cell, of depth weight x feature.

    Point (d, row, column) of a camera lies behind the centre of that feature cell, depths_m_D[d]
    ahead along the camera's optical axis (not along the ray). Points outside the grid or the
    heights are dropped; a cell without points is 0. Sums are at least as precise as the geometry.
    Gradients go to the features and the depth weights. Source: LSS, arXiv 2008.05711.

    Args:
        feats_BTNChw: feature maps that cover the whole image, any stride.
        depth_BTNDhw: the share of a feature that each depth gets.
        depths_m_D: metres.
        intrinsics_BN33: pinhole, in pixels of an image of `image_size`; the same for T frames.
        camera_to_ego_BN44: rigid; the same for T frames.
        image_size: (H, W) in pixels.
        min_corner_m: (x, y) where cell [0, 0] begins in the ego frame (x forward, y left).
        cell_m: edge of a cell.
        num_cells: (X, Y).
        z_range_m: (lowest, highest) z of points that count; the lowest is inside.

    Returns:
        [B, T, C, X, Y] in the dtype of the features.
    """
    B, T, N, C, h, w = feats_BTNChw.shape
    num_x, num_y = num_cells
    cell_BNDhw = find_cells(
        depths_m_D, intrinsics_BN33, camera_to_ego_BN44, (h, w),
        image_size, min_corner_m, cell_m, num_cells, z_range_m,
    )  # fmt: skip
    # Clips stand below each other in one list of cells; one more takes what is dropped.
    num_owned = B * num_x * num_y
    clip_B1111 = torch.arange(B, device=cell_BNDhw.device).view(B, 1, 1, 1, 1)
    place = torch.where(cell_BNDhw >= 0, cell_BNDhw + clip_B1111 * (num_x * num_y), num_owned)

    # Features never go down to their own precision here: thousands of points may share a cell.
    dtype = torch.promote_types(feats_BTNChw.dtype, intrinsics_BN33.dtype)
    feats_BNhwTC = feats_BTNChw.to(dtype).permute(0, 2, 4, 5, 1, 3)
    depth_BNDhwT = depth_BTNDhw.to(dtype).permute(0, 2, 3, 4, 5, 1)
    points_BNDhwTC = depth_BNDhwT[..., None] * feats_BNhwTC[:, :, None]
    sums = points_BNDhwTC.new_zeros(num_owned + 1, T * C)
    sums = sums.index_add(0, place.flatten(), points_BNDhwTC.reshape(-1, T * C))
    bev_BXYTC = sums[:num_owned].reshape(B, num_x, num_y, T, C)
    return bev_BXYTC.permute(0, 3, 4, 1, 2).to(feats_BTNChw.dtype)


def find_cells(
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
    """The cell x * Y + y of every frustum point of a feature map of `map_size` (h, w).

    Written element by element, not as matrix products: those may run in a lower precision, which
    coordinates do not survive. A kernel that keeps to the order of the operations, and fuses none,
    finds the same cells to the last point.

    Returns:
        [B, N, D, h, w] int64; -1 outside of the grid or the heights.
    """
    (h, w), (height, width), (num_x, num_y) = map_size, image_size, num_cells
    device, dtype = intrinsics_BN33.device, intrinsics_BN33.dtype
    row_h = (torch.arange(h, device=device, dtype=dtype) + 0.5) * (height / h)
    column_w = (torch.arange(w, device=device, dtype=dtype) + 0.5) * (width / w)
    fx, skew, cx = (_spread(intrinsics_BN33[..., 0, i], 2) for i in range(3))
    fy, cy = (_spread(intrinsics_BN33[..., 1, i], 2) for i in (1, 2))
    y = (row_h[:, None] - cy) / fy  # where the ray is one metre ahead of the camera
    x = (column_w - cx - skew * y) / fx
    depth_D11 = depths_m_D[:, None, None]
    origins_m = (*min_corner_m, z_range_m[0])
    per_m = (1 / cell_m, 1 / cell_m, 1 / (z_range_m[1] - z_range_m[0]))
    sizes = (num_x, num_y, 1)  # one layer: heights are treated like the other two
    cell = torch.zeros((), device=device, dtype=torch.int64)
    is_inside = torch.ones((), device=device, dtype=torch.bool)
    for axis in range(3):
        turn = [_spread(camera_to_ego_BN44[..., axis, j], 2) for j in range(3)]
        ray_BNhw = turn[0] * x + turn[1] * y + turn[2]
        offset = _spread(camera_to_ego_BN44[..., axis, 3], 3)
        point_BNDhw = ray_BNhw[:, :, None] * depth_D11 + offset
        place = torch.floor((point_BNDhw - origins_m[axis]) * per_m[axis])
        is_inside = is_inside & (place >= 0) & (place < sizes[axis])  # NaN is outside
        cell = cell * sizes[axis] + place.clamp(0, sizes[axis] - 1).to(torch.int64)
    return torch.where(is_inside, cell, -1)


def _spread(value_BN: Tensor, num_dims: int) -> Tensor:
    return value_BN.reshape(*value_BN.shape, *[1] * num_dims)
