"""Windows and their targets -> one ClipBatch of tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.geometry import Array, invert_pose

Targets = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one row of a batch is made of; `clip_index` is -1 for padding."""

    window: ClipWindow
    targets: Targets
    clip_index: int


def collate(samples: Sequence[Sample]) -> ClipBatch:
    """Stack samples of equal shapes; types and units as `ClipBatch` says."""
    windows = [sample.window for sample in samples]
    frames_BTNHWC = np.stack([window.frames_TNHWC for window in windows])
    motion = [_previous_to_current(window.ego_to_world_T44) for window in windows]
    intervals = [np.diff(window.timestamps_s_T, prepend=0.0) for window in windows]
    num_frames = frames_BTNHWC.shape[1]
    return ClipBatch(
        frames_BTNCHW=torch.from_numpy(frames_BTNHWC).permute(0, 1, 2, 5, 3, 4).contiguous(),
        intrinsics_BN33=_floats([window.intrinsics_N33 for window in windows]),
        camera_to_ego_BN44=_floats([window.camera_to_ego_N44 for window in windows]),
        previous_to_current_BT44=_floats(motion),
        frame_interval_s_BT=_floats(intervals),
        reset_BT=(torch.arange(num_frames) == 0).repeat(len(samples), 1),
        speed_B=torch.tensor([window.speed_mps for window in windows], dtype=torch.float32),
        yaw_rate_B=torch.tensor([window.yaw_rate_radps for window in windows], dtype=torch.float32),
        clip_index_B=torch.tensor([sample.clip_index for sample in samples], dtype=torch.int64),
        targets={
            name: torch.from_numpy(np.stack([sample.targets[name] for sample in samples]))
            for name in samples[0].targets
        },
    )


def _previous_to_current(ego_to_world_T44: Array) -> Array:
    """[T, 4, 4]; in float64, because world coordinates may be kilometres."""
    steps = [np.eye(4)]
    for previous, current in zip(ego_to_world_T44, ego_to_world_T44[1:], strict=False):
        steps.append(invert_pose(current) @ previous)
    return np.stack(steps)


def _floats(arrays: Sequence[Array]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32))
