"""Cuts one window of T frames out of a clip, decoded straight to training resolution.

Calibration, ego motion and labels follow. It does not know shards, batches or randomness: which
frames and which views are arguments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.batch import ClipWindow, Frames, StoredFrames
from fsdtrain.data.encoded import encoded_frames
from fsdtrain.data.geometry import (
    Array,
    interpolate_pose,
    intrinsic_matrix,
    invert_pose,
    pose_matrices,
    transform_points,
)
from fsdtrain.data.schema import Clip, EgoState, EgoTrack, Lane
from fsdtrain.data.video import decode_h264, decode_i420
from fsdtrain.data.view import View, cut_view, fit_view, source_window, view_camera
from fsdtrain.errors import DataError, UserError


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """What every window of a data set has in common."""

    num_frames: int  # T
    image_size: tuple[int, int]  # rows, columns
    frame_stride: int = 1  # stored frames from one frame of the window to the next
    crop_top: float = 0.0  # share of the stored height to cut away above (sky) ...
    crop_bottom: float = 0.0  # ... and below (bonnet)
    # Rows, columns of pictures that stay as they are stored; None: they become RGB of image_size.
    stored_size: tuple[int, int] | None = None
    is_encoded: bool = False  # whether those stay encoded, too

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.frame_stride < 1:
            raise UserError(
                f"num_frames={self.num_frames} and frame_stride={self.frame_stride} must be at "
                "least 1"
            )
        if min(self.image_size) < 1:
            raise UserError(f"image_size={self.image_size} must be positive rows and columns")
        # Reports a bad crop now, not in a worker.
        fit_view((64, 64), self.image_size, crop_top=self.crop_top, crop_bottom=self.crop_bottom)

    @property
    def num_stored_frames(self) -> int:
        """Stored frames from a window's first to its last."""
        return (self.num_frames - 1) * self.frame_stride + 1


def base_views(clip: Clip, shape: WindowShape) -> dict[str, View]:
    """Every camera's view without augmentation."""
    return {
        name: fit_view(
            (camera.height, camera.width),
            shape.image_size,
            crop_top=shape.crop_top,
            crop_bottom=shape.crop_bottom,
        )
        for name, camera in clip.rig.cameras.items()
    }


def cut_window(
    clip: Clip,
    shape: WindowShape,
    *,
    where: str,
    first_frame: int | None = None,
    views: Mapping[str, View] | None = None,
) -> ClipWindow:
    """One window of `clip`, with all its cameras in the order of its meta.

    Args:
        clip: a valid clip.
        shape: length and resolution.
        where: names shard and clip in errors.
        first_frame: stored frame to begin with; None takes the last window of the clip.
        views: what each camera shows; None means `base_views`.

    Raises:
        DataError: the clip is too short or a video cannot be decoded.
    """
    latest = clip.meta.num_frames - shape.num_stored_frames
    first = latest if first_frame is None else first_frame
    if not 0 <= first <= latest:
        raise DataError(
            f"{where}: meta.num_frames: {clip.meta.num_frames} frames hold no window of "
            f"{shape.num_stored_frames} frames that begins at {first}"
        )
    chosen = range(first, first + shape.num_stored_frames, shape.frame_stride)
    if views is None:
        views = base_views(clip, shape)
    cameras = [clip.rig.cameras[name] for name in clip.meta.cameras]
    reference_ns = [clip.frames.reference_ns[index] for index in chosen]
    boxes = clip.labels.boxes
    occupancy = clip.labels.occupancy
    motion = _ego_motion(clip, reference_ns)
    return ClipWindow(
        clip_id=clip.meta.clip_id,
        frames=_frames(clip, shape, views, chosen, where),
        intrinsics_N33=np.stack(
            [
                intrinsic_matrix(view_camera(camera, views[name]))
                for name, camera in zip(clip.meta.cameras, cameras, strict=True)
            ]
        ),
        camera_to_ego_N44=pose_matrices([camera.camera_to_ego for camera in cameras]),
        timestamps_s_T=np.array([(ns - reference_ns[0]) * 1e-9 for ns in reference_ns]),
        ego_to_world_T44=motion.ego_to_world_T44,
        speed_mps=motion.speed_mps,
        yaw_rate_radps=motion.yaw_rate_radps,
        future_s_F=motion.future_s_F,
        future_ego_to_world_F44=motion.future_ego_to_world_F44,
        boxes=None if boxes is None else tuple(boxes[index] for index in chosen),
        lanes=_lanes(clip, chosen[-1]),
        # A grid belongs to one frame and cannot be moved exactly.
        occupancy=(
            occupancy if occupancy is not None and occupancy.frame_index == chosen[-1] else None
        ),
    )


def _frames(
    clip: Clip, shape: WindowShape, views: Mapping[str, View], chosen: Sequence[int], where: str
) -> Frames:
    if shape.stored_size is None:
        return _rgb_frames(clip, views, chosen, where)
    _check_stored_size(clip, shape.stored_size, where)
    make = encoded_frames if shape.is_encoded else _stored_frames
    return make(clip, views, chosen, shape.stored_size, where)


def _rgb_frames(
    clip: Clip, views: Mapping[str, View], chosen: Sequence[int], where: str
) -> NDArray[np.uint8]:
    frames_NTHWC = []
    for name in clip.meta.cameras:
        camera, view = clip.rig.cameras[name], views[name]
        scaled_THWC = decode_h264(
            clip.video[name],
            num_frames=clip.meta.num_frames,
            size=(view.scaled_height, view.scaled_width),
            where=f"{where}: video.{name}",
            frames=chosen,
            stored_size=(camera.height, camera.width),
        )
        frames_NTHWC.append(cut_view(scaled_THWC, camera, view))
    return np.stack(frames_NTHWC, axis=1)


def find_stored_size(clip: Clip, *, where: str) -> tuple[int, int]:
    """Rows and columns of all the clip's cameras.

    Raises:
        DataError: they differ, or a lens distorts: such pictures have to be straightened.
    """
    cameras = {name: clip.rig.cameras[name] for name in clip.meta.cameras}
    sizes = {(camera.height, camera.width) for camera in cameras.values()}
    if len(sizes) > 1:
        words = ", ".join(f"{name} {each.width}x{each.height}" for name, each in cameras.items())
        raise DataError(
            f"{where}: rig: the cameras are stored in different sizes ({words}), which "
            "cannot be batched as they are stored; use data.frames=rgb"
        )
    for name, camera in cameras.items():
        if camera.model != "pinhole":
            raise DataError(
                f"{where}: rig.{name}: a lens of model {camera.model} has to be straightened, "
                "which the network does not do; use data.frames=rgb"
            )
    (size,) = sizes
    return size


def _check_stored_size(clip: Clip, stored_size: tuple[int, int], where: str) -> None:
    found = find_stored_size(clip, where=where)
    if found != stored_size:
        raise DataError(
            f"{where}: rig: pictures of {found[1]}x{found[0]} among those of "
            f"{stored_size[1]}x{stored_size[0]}, which cannot be batched as they are stored; use "
            "data.frames=rgb"
        )


def _stored_frames(
    clip: Clip,
    views: Mapping[str, View],
    chosen: Sequence[int],
    stored_size: tuple[int, int],
    where: str,
) -> StoredFrames:
    pictures = [
        decode_i420(
            clip.video[name],
            num_frames=clip.meta.num_frames,
            where=f"{where}: video.{name}",
            frames=chosen,
            stored_size=stored_size,
        )
        for name in clip.meta.cameras
    ]
    kept = [views[name] for name in clip.meta.cameras]
    return StoredFrames(
        planes_TNRW=np.stack([each.planes_TRW for each in pictures], axis=1),
        window_N4=np.array([source_window(view, stored_size) for view in kept]),
        chroma_site_N2=np.stack([each.chroma_site_2 for each in pictures]),
        to_rgb_N34=np.stack([each.to_rgb_34 for each in pictures]),
        colour_N34=np.tile(np.eye(3, 4), (len(kept), 1, 1)),
        is_mirrored=False,
        image_size=(kept[0].height, kept[0].width),
    )


@dataclass(frozen=True, kw_only=True)
class _EgoMotion:
    ego_to_world_T44: Array
    speed_mps: float
    yaw_rate_radps: float
    future_s_F: Array
    future_ego_to_world_F44: Array


def _ego_motion(clip: Clip, reference_ns: Sequence[int]) -> _EgoMotion:
    if not clip.meta.has_ego_motion:
        return _EgoMotion(
            ego_to_world_T44=np.tile(np.eye(4), (len(reference_ns), 1, 1)),
            speed_mps=0.0,
            yaw_rate_radps=0.0,
            future_s_F=np.zeros(0),
            future_ego_to_world_F44=np.zeros((0, 4, 4)),
        )
    last_ns = reference_ns[-1]
    before, after, fraction = _around(clip.ego, last_ns)
    velocity = (1 - fraction) * np.array(before.velocity_mps) + fraction * np.array(
        after.velocity_mps
    )
    future = [state for state in clip.ego.states if state.timestamp_ns > last_ns]
    return _EgoMotion(
        ego_to_world_T44=np.stack([ego_pose_at(clip.ego, ns) for ns in reference_ns]),
        speed_mps=float(np.linalg.norm(velocity)),
        yaw_rate_radps=(1 - fraction) * before.yaw_rate_radps + fraction * after.yaw_rate_radps,
        # Whole nanoseconds are subtracted before they become floats.
        future_s_F=np.array([(state.timestamp_ns - last_ns) * 1e-9 for state in future]),
        future_ego_to_world_F44=pose_matrices([state.ego_to_world for state in future]),
    )


def ego_pose_at(ego: EgoTrack, timestamp_ns: int) -> Array:
    """[4, 4] ego -> world at a moment that the track covers."""
    before, after, fraction = _around(ego, timestamp_ns)
    return interpolate_pose(before.ego_to_world, after.ego_to_world, fraction)


def _around(ego: EgoTrack, timestamp_ns: int) -> tuple[EgoState, EgoState, float]:
    """The states on both sides of a moment, and how far it lies between them (0..1)."""
    times = [state.timestamp_ns for state in ego.states]
    right = int(np.searchsorted(times, timestamp_ns))
    if times[right] == timestamp_ns:
        return ego.states[right], ego.states[right], 0.0
    span = times[right] - times[right - 1]
    return (
        ego.states[right - 1],
        ego.states[right],
        (timestamp_ns - times[right - 1]) / span,
    )


def _lanes(clip: Clip, last_frame: int) -> tuple[Lane, ...] | None:
    """The lanes, moved from the ego frame of the clip's last frame to that of `last_frame`."""
    lanes = clip.labels.lanes
    if lanes is None or last_frame == clip.meta.num_frames - 1:
        return lanes
    if not clip.meta.has_ego_motion:
        return None
    stored, wanted = (
        ego_pose_at(clip.ego, clip.frames.reference_ns[frame]) for frame in (-1, last_frame)
    )
    stored_to_wanted = invert_pose(wanted) @ stored
    moved = []
    for lane in lanes:
        points = transform_points(stored_to_wanted, np.array(lane.points_m).reshape(-1, 3))
        moved.append(
            msgspec.structs.replace(
                lane, points_m=tuple((float(x), float(y), float(z)) for x, y, z in points)
            )
        )
    return tuple(moved)
