"""Random changes to a training sample that keep picture, calibration and labels consistent.

Three kinds: another view per camera (zoom and shift, done while decoding), the world mirrored left
to right, and other colours. It does not know clips on disk; the randomness is an argument, so a
sample's augmentation depends on nothing but its own generator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fsdtrain.data.batch import ClipWindow, Frames
from fsdtrain.data.geometry import Array
from fsdtrain.data.schema import Box3d, Lane, Occupancy, Quaternion, Vector3
from fsdtrain.data.view import View, zoom_view
from fsdtrain.errors import UserError

# Reflections: the world's and the ego's y axis, and the camera's x axis, change their sign.
_MIRROR_EGO = np.diag([1.0, -1.0, 1.0, 1.0])
_MIRROR_CAMERA = np.diag([-1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may change, and by how much. All zero leaves every sample as it is."""

    mirror_probability: float = 0.5  # of the whole world, left to right
    max_zoom: float = 1.1  # per camera, uniform in 1..max_zoom, then shifted at random
    brightness: float = 0.15  # share of full scale added, uniform in -b..b
    contrast: float = 0.2  # factor about mid-grey, uniform in 1-c..1+c
    channel_gain: float = 0.08  # factor per colour, uniform in 1-g..1+g
    colours_per_camera: bool = True  # False: all cameras of a rig change alike

    def __post_init__(self) -> None:
        if not 0 <= self.mirror_probability <= 1:
            raise UserError(
                f"augmentation.mirror_probability={self.mirror_probability}: must be 0..1"
            )
        if not 1 <= self.max_zoom <= 4:
            raise UserError(f"augmentation.max_zoom={self.max_zoom}: must be 1..4")
        for field in ("brightness", "contrast", "channel_gain"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(
                    f"augmentation.{field}={getattr(self, field)}: must be at least 0, below 1"
                )


def augment_views(
    views: Mapping[str, View], augmentation: Augmentation, rng: np.random.Generator
) -> dict[str, View]:
    """A random part of each camera's view, the same for all frames of a window."""
    zoomed = {}
    for name, view in views.items():
        zoom, shift_down, shift_right = rng.random(3)
        zoomed[name] = zoom_view(
            view,
            zoom=1.0 + (augmentation.max_zoom - 1.0) * float(zoom),
            shift_down=float(shift_down),
            shift_right=float(shift_right),
        )
    return zoomed


def augment_window(
    window: ClipWindow, augmentation: Augmentation, rng: np.random.Generator
) -> ClipWindow:
    """Mirror the world with the given probability, and change the colours."""
    is_mirrored = rng.random() < augmentation.mirror_probability
    if is_mirrored:
        window = mirror_window(window)
    colour_N34 = draw_colours(len(window.intrinsics_N33), augmentation, rng)
    if isinstance(window.frames, np.ndarray):
        return replace(window, frames=change_colours(window.frames, colour_N34))
    return replace(window, frames=replace(window.frames, colour_N34=colour_N34))


def draw_colours(
    num_cameras: int, augmentation: Augmentation, rng: np.random.Generator
) -> NDArray[np.float64]:
    """[N, 3, 4], of grey levels (R, G, B, 1): brightness, contrast and gains of each camera."""
    num_draws = num_cameras if augmentation.colours_per_camera else 1
    draws_K5 = rng.uniform(-1.0, 1.0, size=(num_draws, 5))
    contrast_K1 = 1.0 + augmentation.contrast * draws_K5[:, :1]
    gain_K3 = (1.0 + augmentation.channel_gain * draws_K5[:, 2:]) * contrast_K1
    offset_K1 = 255.0 * (0.5 - 0.5 * contrast_K1 + augmentation.brightness * draws_K5[:, 1:2])
    colour_N34 = np.zeros((num_cameras, 3, 4))
    colour_N34[:, range(3), range(3)] = gain_K3
    colour_N34[:, :, 3] = offset_K1
    return colour_N34


def change_colours(
    frames_TNHWC: NDArray[np.uint8], colour_N34: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The pictures after a change of colours; of its matrices the diagonal and the offsets count.

    It is the same for all frames of a camera.
    """
    if (colour_N34 == np.eye(3, 4)).all():
        return frames_TNHWC
    num_frames, num_cameras, height, width, _ = frames_TNHWC.shape
    gain_N3, offset_N3 = np.diagonal(colour_N34, axis1=1, axis2=2), colour_N34[:, :, 3]
    # Whole rows of pixels at once: an inner loop over three colours would be slow.
    gain = np.tile(gain_N3, width).astype(np.float32)[:, None]
    changed = frames_TNHWC.reshape(num_frames, num_cameras, height, width * 3) * gain
    changed += np.tile(offset_N3, width).astype(np.float32)[:, None]
    np.rint(changed, out=changed)
    np.clip(changed, 0.0, 255.0, out=changed)
    return changed.astype(np.uint8).reshape(frames_TNHWC.shape)


def mirror_window(window: ClipWindow) -> ClipWindow:
    """The window as it would be in a world mirrored at the ego's x-z plane.

    Mirroring twice gives the window back. Cameras keep their places in the array; their poses move
    to the other side.
    """
    intrinsics_N33 = window.intrinsics_N33.copy()
    intrinsics_N33[:, 0, 2] = window.image_size[1] - intrinsics_N33[:, 0, 2]
    intrinsics_N33[:, 0, 1] *= -1
    boxes, lanes, occupancy = window.boxes, window.lanes, window.occupancy
    return replace(
        window,
        frames=_mirror_frames(window.frames),
        intrinsics_N33=intrinsics_N33,
        camera_to_ego_N44=_MIRROR_EGO @ window.camera_to_ego_N44 @ _MIRROR_CAMERA,
        ego_to_world_T44=_mirror_poses(window.ego_to_world_T44),
        yaw_rate_radps=-window.yaw_rate_radps,
        future_ego_to_world_F44=_mirror_poses(window.future_ego_to_world_F44),
        boxes=(
            None
            if boxes is None
            else tuple(tuple(_mirror_box(box) for box in frame) for frame in boxes)
        ),
        lanes=None if lanes is None else tuple(_mirror_lane(lane) for lane in lanes),
        occupancy=None if occupancy is None else _mirror_occupancy(occupancy),
    )


def _mirror_frames(frames: Frames) -> Frames:
    if not isinstance(frames, np.ndarray):
        return replace(frames, is_mirrored=not frames.is_mirrored)
    # torch: ten times as fast as a copy of numpy's reversed view
    mirrored: NDArray[np.uint8] = torch.from_numpy(frames).flip(3).numpy()
    return mirrored


def _mirror_poses(poses_K44: Array) -> Array:
    mirrored: Array = _MIRROR_EGO @ poses_K44 @ _MIRROR_EGO
    return mirrored


def _mirror_vector(vector: Vector3) -> Vector3:
    return (vector[0], -vector[1], vector[2])


def _mirror_rotation(rotation_wxyz: Quaternion) -> Quaternion:
    # S R S for S = diag(1, -1, 1): the axis is mirrored, and the sense of turning is reversed.
    w, x, y, z = rotation_wxyz
    return (w, -x, y, -z)


def _mirror_box(box: Box3d) -> Box3d:
    return msgspec.structs.replace(
        box,
        center_m=_mirror_vector(box.center_m),
        rotation_wxyz=_mirror_rotation(box.rotation_wxyz),
        velocity_mps=None if box.velocity_mps is None else _mirror_vector(box.velocity_mps),
    )


def _mirror_lane(lane: Lane) -> Lane:
    return msgspec.structs.replace(
        lane, points_m=tuple(_mirror_vector(point) for point in lane.points_m)
    )


def _mirror_occupancy(occupancy: Occupancy) -> Occupancy:
    values, lengths = np.array(occupancy.runs, dtype=np.int64).T
    grid_XYZ = np.repeat(values, lengths).reshape(occupancy.shape)[:, ::-1].ravel()
    starts = np.flatnonzero(np.diff(grid_XYZ, prepend=grid_XYZ[0] - 1))
    run_lengths = np.diff(starts, append=len(grid_XYZ))
    x, y, z = occupancy.min_corner_m
    return msgspec.structs.replace(
        occupancy,
        min_corner_m=(x, -(y + occupancy.shape[1] * occupancy.voxel_size_m), z),
        runs=tuple(
            (int(value), int(length))
            for value, length in zip(grid_XYZ[starts], run_lengths, strict=True)
        ),
    )
