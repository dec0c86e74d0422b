"""From image features to bird's-eye view: each cell attends to where its pillar is seen."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsdtrain.data.geometry import BevGrid
from fsdtrain.models.lift import Lift
from fsdtrain.ops.project_sample import project
from fsdtrain.ops.table import OpTable

OUTSIDE = -2.0  # of every map, as a fraction of its size: reads zeros, sends no gradient


class DeformableLift(Lift):
    """A learnt query of each cell reads the images around the projections of its pillar.

    Offsets and weights of the samples are predicted from the query alone, so that all frames share
    them and ride along as channels. Each camera that sees a point of the pillar counts alike.
    Memory: with X x Y cells, N cameras, H heads, Z heights and P points, a clip keeps
    12 bytes * X * Y * N * H * Z * P of locations and weights for the backward pass, and as much
    again while their gradients exist: 246 MB and 246 MB with 200 x 200 cells, 8 cameras, 8 heads
    and 8 samples of each.

    Source: spatial cross-attention of BEVFormer, arXiv 2203.17270, without dropout and with maps
    of one resolution.

    Args:
        grid: cells of the bird's-eye view.
        ops: the backend's implementations.
        in_channels: of the image features.
        out_channels: of queries and result, a multiple of num_heads.
        heights_m: of the points of a pillar.
        num_heads: each has places and weights of its own.
        num_points: samples around each point of a pillar.

    Raises:
        ValueError: channels that heads cannot share, or nothing to sample.
    """

    def __init__(
        self,
        *,
        grid: BevGrid,
        ops: OpTable,
        in_channels: int,
        out_channels: int,
        heights_m: Sequence[float],
        num_heads: int,
        num_points: int,
    ) -> None:
        super().__init__()
        if num_heads < 1 or out_channels % num_heads:
            raise ValueError(
                f"num_heads={num_heads}: must divide the {out_channels} channels of the bird's-eye "
                "view"
            )
        if num_points < 1 or not heights_m:
            raise ValueError(
                f"num_points={num_points}, heights_m={list(heights_m)}: at least one point at one "
                "height is needed"
            )
        self.ms_deform_attn = ops.ms_deform_attn
        self.num_heads = num_heads
        self.grid_shape = grid.shape
        num_x, num_y = grid.shape
        x = grid.x_min_m + (torch.arange(num_x) + 0.5) * grid.cell_m
        y = grid.y_min_m + (torch.arange(num_y) + 0.5) * grid.cell_m
        z = torch.tensor(list(heights_m), dtype=x.dtype)
        layers = torch.meshgrid(z, x, y, indexing="ij")
        self.points_ZXY3: Tensor
        self.register_buffer(
            "points_ZXY3", torch.stack([layers[1], layers[2], layers[0]], -1), persistent=False
        )
        self.sample_shape = (num_heads, len(heights_m), num_points)
        num_samples = math.prod(self.sample_shape)
        self.query_QC = nn.Parameter(torch.randn(num_x * num_y, out_channels))
        self.offsets = nn.Linear(out_channels, num_samples * 2)
        self.weights = nn.Linear(out_channels, num_samples)
        self.value = nn.Linear(in_channels, out_channels)
        self.out = nn.Linear(out_channels, out_channels)
        self.norm = nn.LayerNorm(out_channels)
        self._initialise()

    def _initialise(self) -> None:
        """At first all queries look alike: a ring of rays, a head each, all samples weigh alike."""
        num_heads, _, num_points = self.sample_shape
        angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
        ray_H2 = torch.stack([angle.cos(), angle.sin()], -1)
        ray_H2 = ray_H2 / ray_H2.abs().amax(-1, keepdim=True)
        steps_P = torch.arange(1, num_points + 1)
        ring = (ray_H2[:, None, None] * steps_P[:, None]).expand(*self.sample_shape, 2)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(ring.flatten())
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        feats_BTNChw: Tensor,
        intrinsics_BN33: Tensor,
        camera_to_ego_BN44: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """[B, T, C, X, Y]; a cell no camera sees holds what its query makes of zeros."""
        B, T, N, _, h, w = feats_BTNChw.shape
        locations, weights = self._samples(
            *project(self.points_ZXY3, intrinsics_BN33, camera_to_ego_BN44, image_size), (h, w)
        )
        # The images of a clip are the levels: what all cameras see of a cell is one sum.
        value = self.value(feats_BTNChw.permute(0, 2, 4, 5, 1, 3))  # B N h w T C
        value = value.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)  # B N h w H T C
        attended_BQE = self.ms_deform_attn(
            value.flatten(5).flatten(1, 3), locations, weights, ((h, w),) * N
        )
        attended = torch.unflatten(attended_BQE, -1, (self.num_heads, T, -1)).permute(0, 3, 1, 2, 4)
        lifted_BTQC = self.norm(self.query_QC + self.out(attended.flatten(3)))
        return torch.unflatten(lifted_BTQC, 2, self.grid_shape).permute(0, 1, 4, 2, 3)

    def _samples(
        self, u_BNZXY: Tensor, v_BNZXY: Tensor, seen_BNZXY: Tensor, feat_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Locations [B, Q, H, N, Z * P, 2] and weights [B, Q, H, N, Z * P].

        In the precision of the calibration. A sample counts where the camera sees its point.
        """
        h, w = feat_size
        u, v, seen = (_by_query(each) for each in (u_BNZXY, v_BNZXY, seen_BNZXY))
        offsets = self.offsets(self.query_QC).unflatten(-1, (*self.sample_shape, 2))
        offsets = offsets.to(u.dtype).unsqueeze(2)  # Q H 1 Z P 2, in pixels of the features
        x = torch.where(seen, u + offsets[..., 0] / w, OUTSIDE)
        y = torch.where(seen, v + offsets[..., 1] / h, OUTSIDE)
        shares = self.weights(self.query_QC).unflatten(-1, (self.num_heads, -1))
        shares = shares.softmax(-1, dtype=u.dtype).unflatten(-1, self.sample_shape[1:])
        num_views = seen.any(4, keepdim=True).sum(3, keepdim=True).clamp(min=1)
        weights = shares.unsqueeze(2) * (seen.to(u.dtype) / num_views)
        return torch.stack([x, y], -1).flatten(4, 5), weights.flatten(4)


def _by_query(value_BNZXY: Tensor) -> Tensor:
    """[B, Q, 1, N, Z, 1]: beside heads and points."""
    return value_BNZXY.permute(0, 3, 4, 1, 2).flatten(1, 2).unsqueeze(2).unsqueeze(-1)
