"""What travels from the data plane to the model: one clip window, then a batch of them.

Shape letters, used in tensor names everywhere: B clips, T frames, N cameras, C channels,
H image rows, W image columns, X BEV cells forward, Y BEV cells to the left, Z voxel layers,
S future steps, K modes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fsdtrain.data.schema import Box3d, Lane, Occupancy


@dataclass(frozen=True, kw_only=True)
class StoredFrames:
    """Pictures as they are stored, R = stored rows * 3/2, and how each becomes the network's.

    The arrays are arguments of fsdtrain/ops/yuv_to_input.py, where they are described.
    """

    planes_TNRW: NDArray[np.uint8]  # "i420"
    window_N4: NDArray[np.float64]
    chroma_site_N2: NDArray[np.float64]
    to_rgb_N34: NDArray[np.float64]
    colour_N34: NDArray[np.float64]
    is_mirrored: bool
    image_size: tuple[int, int]  # rows, columns of the network's pictures


@dataclass(frozen=True, kw_only=True)
class EncodedFrames:
    """Video as it is stored, and how each of its pictures becomes the network's: `StoredFrames`."""

    videos_N: tuple[bytes, ...]  # fsdtrain/data/encoded.py
    where_N: tuple[str, ...]  # names shard, clip and camera in errors
    frame_index_T: NDArray[np.int64]  # which frames of the videos
    stored_size: tuple[int, int]
    window_N4: NDArray[np.float64]
    colour_N34: NDArray[np.float64]
    is_mirrored: bool
    image_size: tuple[int, int]


# RGB [T, N, H, W, 3], or what can become that.
Frames = NDArray[np.uint8] | StoredFrames | EncodedFrames


@dataclass(frozen=True, kw_only=True)
class ClipWindow:
    """T consecutive frames of one clip at training resolution, calibration already following.

    Frames of reference: `geometry.py`. Arrays are float64 unless said. Target builders of the
    heads read this; nothing here is a tensor yet.
    """

    clip_id: str
    frames: Frames
    intrinsics_N33: NDArray[np.float64]  # pinhole, pixels of image_size
    camera_to_ego_N44: NDArray[np.float64]
    timestamps_s_T: NDArray[np.float64]  # seconds since the first frame of the window
    ego_to_world_T44: NDArray[np.float64]
    speed_mps: float  # at the last frame, over ground
    yaw_rate_radps: float  # at the last frame
    # Ego states from the last frame on: seconds after it, and poses; empty where nothing is known.
    future_s_F: NDArray[np.float64]
    future_ego_to_world_F44: NDArray[np.float64]
    boxes: tuple[tuple[Box3d, ...], ...] | None  # one tuple a frame; None: not annotated
    lanes: tuple[Lane, ...] | None
    occupancy: Occupancy | None

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns of the network's pictures."""
        if isinstance(self.frames, np.ndarray):
            return self.frames.shape[2], self.frames.shape[3]
        return self.frames.image_size


class YuvFrames(NamedTuple):
    """`StoredFrames` of B windows; the tensors are float32 where not said otherwise."""

    planes_BTNRW: torch.Tensor  # uint8
    window_BN4: torch.Tensor
    chroma_site_BN2: torch.Tensor
    to_rgb_BN34: torch.Tensor
    colour_BN34: torch.Tensor
    is_mirrored_B: torch.Tensor  # bool


class RgbFrames(NamedTuple):
    """What a device decoded of `EncodedVideo`; but for the planes as `YuvFrames`."""

    planes_BTNRW: torch.Tensor  # uint8, R = stored rows * 3: R, G, B as "planar444"
    window_BN4: torch.Tensor
    chroma_site_BN2: torch.Tensor  # without a meaning
    to_rgb_BN34: torch.Tensor  # the identity
    colour_BN34: torch.Tensor
    is_mirrored_B: torch.Tensor


class EncodedVideo(NamedTuple):
    """`EncodedFrames` of B windows; the network gets what a device decodes of it."""

    bytes_L: torch.Tensor  # uint8, the videos one behind the other
    ends_BN: torch.Tensor  # int64, where each of them ends
    frame_index_BT: torch.Tensor  # int64
    stored_size: Sequence[int]
    where_BN: Sequence[Sequence[str]]
    window_BN4: torch.Tensor
    colour_BN34: torch.Tensor
    is_mirrored_B: torch.Tensor


class ClipBatch(NamedTuple):
    """Tensors of B windows. A NamedTuple, so DataLoader, Lightning and torch.compile take it."""

    # uint8 RGB [B, T, N, 3, H, W], what the network makes it of, or what a device makes that of
    frames: torch.Tensor | YuvFrames | RgbFrames | EncodedVideo
    intrinsics_BN33: torch.Tensor  # float32, pixels of the network's pictures
    camera_to_ego_BN44: torch.Tensor  # float32
    previous_to_current_BT44: torch.Tensor  # float32, ego of t-1 -> ego of t; t=0: identity
    frame_interval_s_BT: torch.Tensor  # float32, seconds since frame t-1; t=0: 0
    reset_BT: torch.Tensor  # bool, True where the BEV memory must start afresh (t=0)
    speed_B: torch.Tensor  # float32 m/s at the last frame: for baselines, never for the model
    yaw_rate_B: torch.Tensor  # float32 rad/s, likewise
    clip_index_B: torch.Tensor  # int64, position in the data set's list of clips
    targets: Mapping[str, torch.Tensor]  # what the heads' target builders made, stacked over B
