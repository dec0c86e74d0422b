"""Windows and their targets -> one ClipBatch of tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fsdtrain.data.batch import (
    ClipBatch,
    ClipWindow,
    EncodedFrames,
    EncodedVideo,
    Frames,
    StoredFrames,
    YuvFrames,
)
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
    motion = [_previous_to_current(window.ego_to_world_T44) for window in windows]
    intervals = [np.diff(window.timestamps_s_T, prepend=0.0) for window in windows]
    num_frames = len(windows[0].timestamps_s_T)
    return ClipBatch(
        frames=_stack_frames([window.frames for window in windows]),
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


def _stack_frames(frames: Sequence[Frames]) -> torch.Tensor | YuvFrames | EncodedVideo:
    encoded = [each for each in frames if isinstance(each, EncodedFrames)]
    if encoded:
        return _join_videos(encoded)
    stored = [each for each in frames if isinstance(each, StoredFrames)]
    if stored:
        return YuvFrames(
            planes_BTNRW=torch.from_numpy(np.stack([each.planes_TNRW for each in stored])),
            window_BN4=_floats([each.window_N4 for each in stored]),
            chroma_site_BN2=_floats([each.chroma_site_N2 for each in stored]),
            to_rgb_BN34=_floats([each.to_rgb_N34 for each in stored]),
            colour_BN34=_floats([each.colour_N34 for each in stored]),
            is_mirrored_B=torch.tensor([each.is_mirrored for each in stored]),
        )
    frames_BTNHWC = torch.from_numpy(
        np.stack([each for each in frames if isinstance(each, np.ndarray)])
    )
    return frames_BTNHWC.permute(0, 1, 2, 5, 3, 4).contiguous()


def _join_videos(frames: Sequence[EncodedFrames]) -> EncodedVideo:
    videos = [video for each in frames for video in each.videos_N]
    ends = torch.tensor([len(video) for video in videos]).cumsum(0)
    return EncodedVideo(
        bytes_L=torch.frombuffer(bytearray(b"".join(videos)), dtype=torch.uint8),
        ends_BN=ends.view(len(frames), -1),
        frame_index_BT=torch.from_numpy(np.stack([each.frame_index_T for each in frames])),
        stored_size=frames[0].stored_size,
        where_BN=tuple(each.where_N for each in frames),
        window_BN4=_floats([each.window_N4 for each in frames]),
        colour_BN34=_floats([each.colour_N34 for each in frames]),
        is_mirrored_B=torch.tensor([each.is_mirrored for each in frames]),
    )


def _previous_to_current(ego_to_world_T44: Array) -> Array:
    """[T, 4, 4]; in float64, because world coordinates may be kilometres."""
    steps = [np.eye(4)]
    for previous, current in zip(ego_to_world_T44, ego_to_world_T44[1:], strict=False):
        steps.append(invert_pose(current) @ previous)
    return np.stack(steps)


def _floats(arrays: Sequence[Array]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32))
