"""hydra-bev as a user of today's BEV repositories would write it: eager PyTorch, nothing fused.

The raw twin that tools/bench_cuda.py compares with: the same parameters, the same function, the
same losses. Pictures are float32 and NCHW; every camera samples every voxel, and what it sees is
kept until the mean; each step of the memory is written out.

Shape letters: as in fsdtrain/data/batch.py, and V = Z * X * Y voxels.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.heads.head import Head
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.models.memory import BevMemory
from fsdtrain.models.sample_lift import SampleLift
from fsdtrain.ops.project_sample import MIN_DEPTH_M


class RawHydraBev(nn.Module):
    """batch -> the sum of the losses, and each of them by name.

    Args:
        step: the model with its weights, of which this one gets a copy.
    """

    def __init__(self, step: TrainingStep) -> None:
        super().__init__()
        self.network: HydraBev = copy.deepcopy(step.network)
        self.network.to(memory_format=torch.contiguous_format)

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        network = self.network
        assert isinstance(batch.frames, Tensor), "RGB frames"
        B, T, N = batch.frames.shape[:3]
        images = (batch.frames.flatten(0, 2) - network.pixel_mean) / network.pixel_std
        feats = network.backbone(images).unflatten(0, (B, T, N))
        bev = self.lift(feats, batch)
        if network.memory is not None:
            bev = self.remember(network.memory, bev, batch)
        if not network.encode_all_frames:
            bev = bev[:, -1:]
        num_encoded = bev.shape[1]
        bev = network.encoder(bev.flatten(0, 1)).unflatten(0, (B, num_encoded))
        losses = {}
        for name, head in cast("list[tuple[str, Head]]", list(network.heads.items())):
            for loss_name, value in head.loss(head(bev, batch), batch).items():
                losses[f"{name}/{loss_name}"] = value
        return torch.stack(list(losses.values())).sum(), losses

    def lift(self, feats_BTNChw: Tensor, batch: ClipBatch) -> Tensor:
        """Sample all cameras at all voxels, then take the mean of those that see."""
        lift = self.network.lift
        assert isinstance(lift, SampleLift), "model.lift=project_sample"
        B, T, N, C = feats_BTNChw.shape[:4]
        Z, X, Y, _ = lift.points_ZXY3.shape
        height, width = self.network.image_size
        # Coordinates in bf16 would be metres off.
        with torch.autocast(feats_BTNChw.device.type, enabled=False):
            camera_from_ego = torch.linalg.inv(batch.camera_to_ego_BN44)
            points_V4 = F.pad(lift.points_ZXY3.reshape(-1, 3), (0, 1), value=1.0)
            in_camera_BNV3 = (points_V4 @ camera_from_ego.transpose(-1, -2))[..., :3]
            depth_BNV = in_camera_BNV3[..., 2]
            pixels_BNV3 = in_camera_BNV3 @ batch.intrinsics_BN33.transpose(-1, -2)
            pixels_BNV2 = pixels_BNV3[..., :2] / depth_BNV[..., None].clamp(min=MIN_DEPTH_M)
            share_BNV2 = pixels_BNV2 / pixels_BNV2.new_tensor([width, height])
            is_inside = ((share_BNV2 >= 0) & (share_BNV2 <= 1)).all(-1)
            seen_BNV = (depth_BNV >= MIN_DEPTH_M) & is_inside
            # The first `max_views` cameras that see a voxel count.
            seen_BNV = seen_BNV & (seen_BNV.cumsum(1) <= lift.max_views)
            grid = (2 * share_BNV2 - 1)[:, None].expand(B, T, N, Z * X * Y, 2)
            sampled = F.grid_sample(
                feats_BTNChw.flatten(0, 2).to(grid.dtype),
                grid.reshape(B * T * N, Z * X, Y, 2),
                mode="bilinear",
                padding_mode="border",
                align_corners=False,
            ).view(B, T, N, C, Z, X, Y)
            mask = seen_BNV.view(B, 1, N, 1, Z, X, Y).to(grid.dtype)
            mean = (sampled * mask).sum(2) / mask.sum(2).clamp(min=1)
        voxels = mean.view(B * T, C * Z, X, Y)
        mixed = F.conv2d(voxels, lift.mix[:, :, None, None])
        lifted: Tensor = lift.norm_relu(mixed)
        return lifted.unflatten(0, (B, T))

    def remember(self, memory: BevMemory, bev_BTCXY: Tensor, batch: ClipBatch) -> Tensor:
        """A convolutional GRU, frame by frame."""
        states: list[Tensor] = []
        for frame, bev_BCXY in enumerate(bev_BTCXY.unbind(1)):
            keep, read, candidate = memory.from_input(bev_BCXY).chunk(3, 1)
            if not states:
                states.append(torch.sigmoid(keep) * torch.tanh(candidate))
                continue
            state = memory.warp_bev(
                states[-1],
                batch.previous_to_current_BT44[:, frame],
                memory.min_corner_m,
                memory.cell_m,
            )
            state = torch.where(batch.reset_BT[:, frame, None, None, None], 0.0, state)
            keep_state, read_state = memory.gates_from_state(state).chunk(2, 1)
            update = torch.sigmoid(keep + keep_state)
            gated = torch.sigmoid(read + read_state) * state
            candidate = torch.tanh(candidate + memory.candidate_from_state(gated))
            states.append((1 - update) * state + update * candidate)
        return torch.stack(states, 1)
