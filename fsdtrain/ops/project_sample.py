"""Lift: sample camera feature maps at the projections of ego points, averaged over cameras.

The plain-PyTorch function below is the specification; a backend's kernel is tested against it.
It knows nothing of grids or heads: points are any [Z, X, Y, 3] in the ego frame.

Shape letters: B clips, T frames, N cameras, C channels, h w rows and columns of the feature map,
Z X Y points, V views (how many cameras may see one point).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_DEPTH_M = 0.1  # nearer points project to anything at all
OUTSIDE = 4.0  # beyond the corners of grid_sample's [-1, 1]: reads zeros, sends no gradient


def project_sample(
    feats_BTNChw: Tensor,
    points_ZXY3: Tensor,
    intrinsics_BN33: Tensor,
    camera_to_ego_BN44: Tensor,
    image_size: tuple[int, int],
    max_views: int,
) -> Tensor:
    """Masked mean over cameras of bilinear samples.

    A camera sees a point when its depth is at least MIN_DEPTH_M and its pixel lies in
    [0, W] x [0, H]. Samples between the image border and the outermost feature centres repeat the
    border. When more than `max_views` cameras see a point, the first ones in camera order count.
    A point no camera sees is 0.

    Args:
        feats_BTNChw: feature maps that cover the whole image, any stride.
        points_ZXY3: ego coordinates in metres; the same for every clip.
        intrinsics_BN33: pinhole, in pixels of an image of `image_size`.
        camera_to_ego_BN44: rigid.
        image_size: (H, W) in pixels.
        max_views: V; the work grows with V, not with N.

    Returns:
        [B, T, C, Z, X, Y] in the dtype of the features.
    """
    B, T, N, C, h, w = feats_BTNChw.shape
    num_z, num_x, num_y, _ = points_ZXY3.shape
    u_BNZXY, v_BNZXY, seen_BNZXY = project(
        points_ZXY3, intrinsics_BN33, camera_to_ego_BN44, image_size
    )
    # Cameras stand below each other in one strip, so that one sample serves each view of a point:
    # clamped to the outermost feature centres, no sample reads the neighbour camera.
    column = (u_BNZXY * w).clamp(0.5, w - 0.5)
    first_row_N = torch.arange(N, device=column.device, dtype=column.dtype).mul(h).view(N, 1, 1, 1)
    row = (v_BNZXY * h).clamp(0.5, h - 0.5) + first_row_N
    rank_BNZXY = seen_BNZXY.cumsum(1)
    columns, rows = [], []
    for view in range(1, max_views + 1):
        chosen = seen_BNZXY & (rank_BNZXY == view)
        is_filled = chosen.any(1)
        columns.append(_pick(chosen, column * (2 / w) - 1, is_filled))
        rows.append(_pick(chosen, row * (2 / (N * h)) - 1, is_filled))
    grid_BVZXY2 = torch.stack([torch.stack(columns, 1), torch.stack(rows, 1)], -1)

    # The same geometry serves all T frames: they ride along as channels.
    strip = feats_BTNChw.permute(0, 1, 3, 2, 4, 5).reshape(B, T * C, N * h, w)
    sampled = F.grid_sample(
        strip.to(grid_BVZXY2.dtype),  # coordinates never go down to the features' precision
        grid_BVZXY2.reshape(B, max_views * num_z * num_x, num_y, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    ).reshape(B, T, C, max_views, num_z, num_x, num_y)
    num_seen = rank_BNZXY[:, -1].clamp(1, max_views)
    mean = sampled.sum(3) / num_seen[:, None, None].to(sampled.dtype)
    return mean.to(feats_BTNChw.dtype)


def project(
    points_ZXY3: Tensor,
    intrinsics_BN33: Tensor,
    camera_to_ego_BN44: Tensor,
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Where points fall in each image: (u, v as fractions of the width and height, is seen).

    All [B, N, Z, X, Y]. Written element by element, not as matrix products: those may run in a
    lower precision, which coordinates do not survive.
    """
    height, width = image_size
    rotation = camera_to_ego_BN44[..., :3, :3]
    offset = [
        points_ZXY3[..., i] - _spread(camera_to_ego_BN44[..., i, 3])  # from camera, ego axes
        for i in range(3)
    ]
    # The inverse of a rotation is its transpose.
    x, y, depth = (
        _spread(rotation[..., 0, j]) * offset[0]
        + _spread(rotation[..., 1, j]) * offset[1]
        + _spread(rotation[..., 2, j]) * offset[2]
        for j in range(3)
    )
    is_ahead = depth >= MIN_DEPTH_M
    scale = 1 / torch.where(is_ahead, depth, 1.0)
    fx, skew, cx = (_spread(intrinsics_BN33[..., 0, i]) for i in range(3))
    fy, cy = (_spread(intrinsics_BN33[..., 1, i]) for i in (1, 2))
    u = ((fx * x + skew * y) * scale + cx) / width
    v = (fy * y * scale + cy) / height
    return u, v, is_ahead & (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)


def _spread(value_BN: Tensor) -> Tensor:
    return value_BN[..., None, None, None]


def _pick(chosen_BNZXY: Tensor, value_BNZXY: Tensor, is_filled_BZXY: Tensor) -> Tensor:
    picked = torch.where(chosen_BNZXY, value_BNZXY, 0.0).sum(1)
    return torch.where(is_filled_BZXY, picked, OUTSIDE)
