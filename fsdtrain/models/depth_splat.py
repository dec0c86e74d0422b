"""From image features to bird's-eye view: features spread along their rays by a predicted depth."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsdtrain.data.geometry import BevGrid
from fsdtrain.models.lift import Lift
from fsdtrain.ops.table import OpTable


class DepthSplat(Lift):
    """Predict a distribution over depths, splat the features by it, sum what falls into a cell.

    Source: Lift, Splat, Shoot, arXiv 2008.05711.

    Args:
        grid: cells of the bird's-eye view.
        ops: the backend's implementations.
        in_channels: of the image features.
        out_channels: of what is splatted.
        depth_min_m: where the first depth bin begins, along the optical axis.
        depth_max_m: where the last one ends.
        num_depths: bins of equal length; a feature is put into the middle of one.
        z_range_m: (lowest, highest) z in the ego frame of what is kept.

    Raises:
        ValueError: a range is empty, or there are no bins.
    """

    def __init__(
        self,
        *,
        grid: BevGrid,
        ops: OpTable,
        in_channels: int,
        out_channels: int,
        depth_min_m: float,
        depth_max_m: float,
        num_depths: int,
        z_range_m: Sequence[float],
    ) -> None:
        super().__init__()
        lowest, highest = _check(depth_min_m, depth_max_m, num_depths, z_range_m)
        self.z_range_m = (lowest, highest)
        self.bev_pool = ops.bev_pool
        self.min_corner_m = (grid.x_min_m, grid.y_min_m)
        self.cell_m = grid.cell_m
        self.num_cells = grid.shape
        bins_D = torch.arange(num_depths) + 0.5
        self.depths_m_D: Tensor
        self.register_buffer(
            "depths_m_D",
            depth_min_m + bins_D * ((depth_max_m - depth_min_m) / num_depths),
            persistent=False,
        )
        # Two convolutions and not one that is cut in two: a pixel's channels stay aligned.
        self.depth = nn.Conv2d(in_channels, num_depths, 1)
        self.features = nn.Conv2d(in_channels, out_channels, 1)
        self.norm_relu = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    def forward(
        self,
        feats_BTNChw: Tensor,
        intrinsics_BN33: Tensor,
        camera_to_ego_BN44: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """[B, T, C, X, Y]; a cell that no ray crosses holds the same learnt value everywhere."""
        B, T, N = feats_BTNChw.shape[:3]
        images = feats_BTNChw.flatten(0, 2)
        # Channels last, a pixel's depths lie together already.
        logits = self.depth(images).permute(0, 2, 3, 1)
        shares = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        bev_BTCXY = self.bev_pool(
            self.features(images).unflatten(0, (B, T, N)),
            shares.permute(0, 3, 1, 2).unflatten(0, (B, T, N)),
            self.depths_m_D,
            intrinsics_BN33,
            camera_to_ego_BN44,
            image_size,
            self.min_corner_m,
            self.cell_m,
            self.num_cells,
            self.z_range_m,
        )
        bev = bev_BTCXY.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        lifted: Tensor = self.norm_relu(bev)
        return torch.unflatten(lifted, 0, (B, T))


def _check(
    depth_min_m: float, depth_max_m: float, num_depths: int, z_range_m: Sequence[float]
) -> tuple[float, float]:
    if not 0 < depth_min_m < depth_max_m or num_depths < 1:
        raise ValueError(
            f"depth_min_m={depth_min_m}, depth_max_m={depth_max_m}, num_depths={num_depths}: the "
            "depths must begin above 0 and end above where they begin, with at least one bin"
        )
    if len(z_range_m) != 2 or not z_range_m[0] < z_range_m[1]:
        raise ValueError(f"z_range_m={list(z_range_m)} must be [lowest, highest], lowest first")
    return z_range_m[0], z_range_m[1]
