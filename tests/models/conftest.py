"""Batches of random images from a ring of cameras, and a network small enough for every test."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fsdtrain.build import build_network
from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.geometry import BevGrid
from fsdtrain.heads.ego_path import CROSSINGS, PATH, PATH_VALID, EgoPath, first_row_ahead
from fsdtrain.heads.vehicle_segmentation import COVER, VehicleSegmentation
from fsdtrain.hydra_app import compose_config
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.models.sample_lift import SampleLift
from fsdtrain.ops.table import OpTable
from fsdtrain.settings import ModelSettings, read_settings

MakeBatch = Callable[..., ClipBatch]
MakeNetwork = Callable[..., HydraBev]
GRID = BevGrid(x_min_m=-4.0, x_max_m=6.0, y_min_m=-4.0, y_max_m=4.0, cell_m=0.5)


@pytest.fixture
def make_batch() -> MakeBatch:
    """`make_batch(num_clips=2, num_frames=2, num_cameras=3, image_size=(16, 32), ...)`."""
    return random_batch


def random_batch(
    *,
    num_clips: int = 2,
    num_frames: int = 2,
    num_cameras: int = 3,
    image_size: tuple[int, int] = (16, 32),
    bev_shape: tuple[int, int] = GRID.shape,
    seed: int = 0,
    is_reset: bool = False,
    device: str = "cpu",
) -> ClipBatch:
    """Cameras look around evenly; focal lengths and mountings differ by clip and seed."""
    B, T, N, (H, W) = num_clips, num_frames, num_cameras, image_size
    rng = np.random.default_rng(seed)
    intrinsics, mountings = np.zeros((B, N, 3, 3)), np.zeros((B, N, 4, 4))
    for b, n in np.ndindex(B, N):
        angle = 2 * np.pi * n / N + rng.normal(0, 0.05)
        forward = np.array([np.cos(angle), np.sin(angle), 0.0])
        right = np.array([np.sin(angle), -np.cos(angle), 0.0])
        mountings[b, n, :3, :3] = np.stack([right, [0.0, 0.0, -1.0], forward], axis=1)
        mountings[b, n, :3, 3] = 0.5 * forward + [0, 0, rng.uniform(1.2, 1.8)]
        mountings[b, n, 3, 3] = 1.0
        focal = W * rng.uniform(0.4, 0.6)
        intrinsics[b, n] = np.array([[focal, 0, W / 2], [0, focal, H / 2], [0, 0, 1]])
    motion_BT44 = torch.eye(4).repeat(B, T, 1, 1)
    motion_BT44[:, 1:, 0, 3] = -float(rng.uniform(0.5, 1.5))
    interval_BT = torch.full((B, T), 0.2)
    interval_BT[:, 0] = 0.0
    reset_BT = torch.full((B, T), is_reset)
    reset_BT[:, 0] = True
    generator = torch.Generator().manual_seed(seed)
    batch = ClipBatch(
        frames=torch.randint(0, 256, (B, T, N, 3, H, W), dtype=torch.uint8, generator=generator)
        if device != "meta"
        else torch.empty(B, T, N, 3, H, W, dtype=torch.uint8, device="meta"),
        intrinsics_BN33=torch.tensor(intrinsics).float(),
        camera_to_ego_BN44=torch.tensor(mountings).float(),
        previous_to_current_BT44=motion_BT44,
        frame_interval_s_BT=interval_BT,
        reset_BT=reset_BT,
        speed_B=torch.full((B,), 5.0),
        yaw_rate_B=torch.zeros(B),
        clip_index_B=torch.arange(B),
        targets={
            COVER: (torch.rand(B, T, *bev_shape, generator=generator) < 0.1).to(torch.uint8) * 101,
            PATH: torch.randn(B, 6, 2, generator=generator),
            PATH_VALID: torch.ones(B, 6, dtype=torch.bool),
            CROSSINGS: torch.rand(
                B, bev_shape[0] - first_row_ahead(GRID), bev_shape[1], generator=generator
            ).softmax(-1),
        },
    )
    return batch._replace(
        targets={name: target.to(device) for name, target in batch.targets.items()},
        **{
            name: value.to(device)
            for name, value in batch._asdict().items()
            if isinstance(value, Tensor)
        },
    )


@pytest.fixture
def make_network() -> MakeNetwork:
    """`make_network(**changes)`: three cameras' worth of 16x32 images, all parts present."""

    def make(**changes: Any) -> HydraBev:  # Any: knobs of HydraBev, whatever their types
        ops = changes.pop("ops", OpTable())
        options: dict[str, Any] = {
            "stem_stride": 2,
            "stage_channels": [6, 8],
            "stage_blocks": [1, 1],
            "lift_channels": 4,
            "has_memory": True,
            "memory_kernel": 3,
            "encoder_channels": [6, 8],
            "encoder_blocks": [1, 1],
            "encode_all_frames": True,
            "make_lift": partial(SampleLift, grid=GRID, ops=ops, heights_m=[0.0, 1.0], max_views=2),
        }
        torch.manual_seed(0)
        heads = {
            "vehicle": VehicleSegmentation(
                in_channels=6,
                grid=GRID,
                positive_weight=2.13,
                dice_weight=1.0,
                loss_weight=1.0,
                min_visibility_percent=1,
            ),
            "path": EgoPath(
                in_channels=6,
                grid=GRID,
                num_modes=3,
                curvature_spread=0.02,
                num_steps=6,
                step_s=0.5,
                report_s=2.0,
                channels=2,
                hidden=8,
                loss_weight=0.1,
                crossing_weight=0.1,
            ),
        }
        return HydraBev(grid=GRID, image_size=(16, 32), heads=heads, ops=ops, **(options | changes))

    return make


@pytest.fixture
def load_preset() -> Callable[[str], tuple[ModelSettings, HydraBev]]:
    """`load_preset(name)` -> its settings and the network, without weights."""

    def load(name: str) -> tuple[ModelSettings, HydraBev]:
        config = compose_config("fit", ["run_dir=.", f"model={name}"])
        model = read_settings(config).model
        with torch.device("meta"):
            return model, build_network(model, OpTable())

    return load
