"""Windows and batches for heads, which look at neither images nor calibration."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.geometry import pose_matrix, yaw_quaternion
from fsdtrain.data.schema import Box3d, Pose

MakeWindow = Callable[..., ClipWindow]
MakeBatch = Callable[..., ClipBatch]


@pytest.fixture
def make_window() -> MakeWindow:
    """`make_window(boxes=..., poses=..., future_s=..., future_poses=...)`."""

    def make(
        *,
        boxes: tuple[tuple[Box3d, ...], ...] | None = None,
        poses: list[np.ndarray[Any, Any]] | None = None,
        future_s: list[float] | None = None,
        future_poses: list[np.ndarray[Any, Any]] | None = None,
    ) -> ClipWindow:
        num_frames = max(len(boxes or ()), len(poses or ()), 1)
        return ClipWindow(
            clip_id="clip",
            frames=np.zeros((num_frames, 1, 4, 6, 3), dtype=np.uint8),
            intrinsics_N33=np.eye(3)[None],
            camera_to_ego_N44=np.eye(4)[None],
            timestamps_s_T=np.arange(num_frames, dtype=np.float64) * 0.2,
            ego_to_world_T44=np.array(poses or [np.eye(4)] * num_frames),
            speed_mps=0.0,
            yaw_rate_radps=0.0,
            future_s_F=np.array(future_s or []),
            future_ego_to_world_F44=np.array(future_poses or np.zeros((0, 4, 4))),
            boxes=boxes,
            lanes=None,
            occupancy=None,
        )

    return make


@pytest.fixture
def make_batch() -> MakeBatch:
    """`make_batch(targets, num_frames=2, forward_m=..., interval_s=..., speed=...)`."""

    def make(
        targets: dict[str, Tensor],
        *,
        num_frames: int = 2,
        forward_m: Tensor | None = None,
        interval_s: float = 0.2,
        speed_mps: float = 0.0,
        yaw_rate_radps: float = 0.0,
    ) -> ClipBatch:
        B, T = len(next(iter(targets.values()))), num_frames
        motion_BT44 = torch.eye(4).repeat(B, T, 1, 1)
        if forward_m is not None:
            motion_BT44[:, -1, 0, 3] = -forward_m
        interval_BT = torch.full((B, T), interval_s)
        interval_BT[:, 0] = 0.0
        return ClipBatch(
            frames=torch.zeros(B, T, 1, 3, 4, 6, dtype=torch.uint8),
            intrinsics_BN33=torch.eye(3).repeat(B, 1, 1, 1),
            camera_to_ego_BN44=torch.eye(4).repeat(B, 1, 1, 1),
            previous_to_current_BT44=motion_BT44,
            frame_interval_s_BT=interval_BT,
            reset_BT=torch.arange(T).expand(B, T) == 0,
            speed_B=torch.full((B,), speed_mps),
            yaw_rate_B=torch.full((B,), yaw_rate_radps),
            clip_index_B=torch.arange(B),
            targets=targets,
        )

    return make


def planar_pose(x_m: float, y_m: float, yaw_rad: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return pose_matrix(Pose(rotation_wxyz=yaw_quaternion(yaw_rad), translation_m=(x_m, y_m, 0.2)))


@pytest.fixture
def pose() -> Callable[[float, float, float], np.ndarray[Any, np.dtype[np.float64]]]:
    """`pose(x_m, y_m, yaw_rad)` -> [4, 4]."""
    return planar_pose
