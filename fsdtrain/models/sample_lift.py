"""From image features to bird's-eye view: pillars of voxel centres look into the cameras."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsdtrain.data.geometry import BevGrid
from fsdtrain.models.lift import Lift
from fsdtrain.ops.table import OpTable


class SampleLift(Lift):
    """Sample every voxel, then mix the Z layers of a cell.

    Calibration is an input, so that rigs and augmentation may vary from clip to clip. Source:
    Simple-BEV, arXiv 2206.07959.
    """

    def __init__(
        self,
        *,
        grid: BevGrid,
        ops: OpTable,
        in_channels: int,
        out_channels: int,
        heights_m: Sequence[float],
        max_views: int,
    ) -> None:
        super().__init__()
        self.project_sample = ops.project_sample
        self.max_views = max_views
        num_x, num_y = grid.shape
        # From the same formula as the grid's cell_centers, but in torch: under a meta device
        # the buffer is a meta tensor too.
        x = grid.x_min_m + (torch.arange(num_x) + 0.5) * grid.cell_m
        y = grid.y_min_m + (torch.arange(num_y) + 0.5) * grid.cell_m
        z = torch.tensor(list(heights_m), dtype=x.dtype)
        layers = torch.meshgrid(z, x, y, indexing="ij")
        points_ZXY3 = torch.stack([layers[1], layers[2], layers[0]], -1)
        self.points_ZXY3: Tensor
        self.register_buffer("points_ZXY3", points_ZXY3, persistent=False)
        num_inputs = in_channels * len(heights_m)
        self.mix = nn.Parameter(torch.randn(out_channels, num_inputs) * num_inputs**-0.5)
        self.norm_relu = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    def forward(
        self,
        feats_BTNChw: Tensor,
        intrinsics_BN33: Tensor,
        camera_to_ego_BN44: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """[B, T, C, X, Y]; a cell no camera sees holds the same learnt value everywhere."""
        voxels_BTCZXY = self.project_sample(
            feats_BTNChw,
            self.points_ZXY3,
            intrinsics_BN33,
            camera_to_ego_BN44,
            image_size,
            self.max_views,
        )
        B, T, C, Z, X, Y = voxels_BTCZXY.shape
        # A batched product and not a 1x1 convolution: it takes the op's layout as it is, and the
        # change to channels last comes after it, where the tensor is several times smaller.
        pillars = voxels_BTCZXY.reshape(B * T, C * Z, X * Y)
        mixed = torch.bmm(self.mix.expand(B * T, -1, -1), pillars).reshape(B * T, -1, X, Y)
        lifted: Tensor = self.norm_relu(mixed.contiguous(memory_format=torch.channels_last))
        return torch.unflatten(lifted, 0, (B, T))
