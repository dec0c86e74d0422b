"""Lines in the ego frame to the line segments that a camera sees of them (numpy, no drawing).

A segment that passes behind the camera is cut at a near plane, one that a distorted lens bends is
cut into short pieces, and what lies far outside the image is dropped: a drawing routine gets
finite coordinates near the image only.
"""

import numpy as np

from fsdtrain.data.geometry import (
    Array,
    invert_pose,
    pose_matrix,
    project_points,
    transform_points,
)
from fsdtrain.data.schema import CameraCalibration

NEAR_M = 0.2  # nearer to the optical centre than this nothing is drawn
PIECES_OF_BENT_LINE = 48  # at most 4 degrees each, as a line spans less than 180
MARGIN = 0.5  # of the image's width and height, kept around it

# Pairs of corners of `box_corners`: bottom, top, uprights.
BOX_EDGES = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]
)
# Corners of the side that the heading points to, in order around it, and its diagonals.
FRONT_FACE = (0, 3, 7, 4)
FRONT_DIAGONALS = np.array([(0, 7), (3, 4)])


def visible_segments(camera: CameraCalibration, start: Array, end: Array) -> Array:
    """[S, 2, 2] pixels (end, uv) of what the camera sees of ego segments [P, 3] to [P, 3]."""
    start, end = _cut_behind(camera, start, end)
    is_bent = camera.model != "pinhole"
    if is_bent:
        start, end = _cut_evenly(camera, start, end)
    ends = np.stack([start, end], axis=1)
    if is_bent:
        ends = ends[_is_in_field(camera, ends).all(axis=1)]
    uv, _ = project_points(camera, ends)
    return _cut_outside(uv, camera.width, camera.height)


def visible_polygon(camera: CameraCalibration, corners: Array) -> Array | None:
    """[P, 2] pixels of a polygon [P, 3] if all of it is before the camera and near the image."""
    uv, depth = project_points(camera, corners)
    if (depth < NEAR_M).any() or not _is_in_field(camera, corners).all():
        return None
    size = np.array([camera.width, camera.height])
    is_near = (uv > -MARGIN * size) & (uv < (1 + MARGIN) * size)
    return uv if is_near.all() else None


def _cut_behind(camera: CameraCalibration, start: Array, end: Array) -> tuple[Array, Array]:
    ego_to_camera = invert_pose(pose_matrix(camera.camera_to_ego))
    depth_start = transform_points(ego_to_camera, start)[:, 2] - NEAR_M
    depth_end = transform_points(ego_to_camera, end)[:, 2] - NEAR_M
    is_seen = (depth_start > 0) | (depth_end > 0)
    start, end = start[is_seen], end[is_seen]
    depth_start, depth_end = depth_start[is_seen], depth_end[is_seen]
    # Where both ends are seen the divisor may vanish, but then the cut is not used.
    crosses = (depth_start > 0) != (depth_end > 0)
    difference = np.where(crosses, depth_start - depth_end, 1.0)
    cut = start + (depth_start / difference)[:, None] * (end - start)
    start_is_behind = (crosses & (depth_start <= 0))[:, None]
    end_is_behind = (crosses & (depth_end <= 0))[:, None]
    return np.where(start_is_behind, cut, start), np.where(end_is_behind, cut, end)


def _cut_evenly(camera: CameraCalibration, start: Array, end: Array) -> tuple[Array, Array]:
    """Pieces that span equal angles seen from the camera, however near an end comes to it."""
    center = np.asarray(camera.camera_to_ego.translation_m)
    a, b = np.linalg.norm(start - center, axis=1), np.linalg.norm(end - center, axis=1)
    cosine = ((start - center) * (end - center)).sum(axis=1) / (a * b)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    # A line seen end-on has no angle to divide, and needs none.
    angle = np.maximum(angle, 1e-6)
    share = np.linspace(0.0, 1.0, PIECES_OF_BENT_LINE + 1)[:, None]
    from_start, to_end = a * np.sin(share * angle), b * np.sin((1 - share) * angle)
    cuts = start + (from_start / (from_start + to_end))[..., None] * (end - start)
    return cuts[:-1].reshape(-1, 3), cuts[1:].reshape(-1, 3)


def _is_in_field(camera: CameraCalibration, points: Array) -> Array:
    """[...] bool: the lens polynomial is still one-to-one there; beyond it points fold back."""
    if camera.model == "pinhole":
        return np.ones(points.shape[:-1], dtype=bool)
    in_camera = transform_points(invert_pose(pose_matrix(camera.camera_to_ego)), points)
    angle = np.arctan2(np.hypot(in_camera[..., 0], in_camera[..., 1]), in_camera[..., 2])
    return np.asarray(angle < _largest_angle(camera))


def _largest_angle(camera: CameraCalibration) -> float:
    """The angle off the optical axis, in radians, up to which the image radius grows."""
    angles = np.linspace(0.0, np.pi / 2 - 1e-3, 512)
    if camera.model == "opencv_fisheye":
        powers = angles[:, None] ** np.array([3, 5, 7, 9])
        radius = angles + powers @ np.asarray(camera.distortion)
    else:
        k1, k2, _, _, k3 = camera.distortion
        r = np.tan(angles)
        radius = r * (1 + k1 * r**2 + k2 * r**4 + k3 * r**6)
    falls = np.flatnonzero(np.diff(radius) <= 0)
    return float(angles[falls[0]] if len(falls) else angles[-1])


def _cut_outside(uv: Array, width: int, height: int) -> Array:
    """Cut segments [S, 2, 2] at the image with its margin; Liang and Barsky's way."""
    start, step = uv[:, 0], uv[:, 1] - uv[:, 0]
    size = np.array([width, height])
    enter = np.zeros(len(uv))
    leave = np.ones(len(uv))
    for sign, limit in ((1.0, -MARGIN * size), (-1.0, -(1 + MARGIN) * size)):
        # Inside means sign * (start + t * step) >= limit, on both axes.
        slope = sign * step
        gap = limit - sign * start
        with np.errstate(divide="ignore", invalid="ignore"):
            t = gap / slope
        enter = np.maximum(enter, np.where(slope > 0, t, 0.0).max(axis=1))
        leave = np.minimum(leave, np.where(slope < 0, t, 1.0).min(axis=1))
        leave = np.where(((slope == 0) & (gap > 0)).any(axis=1), -1.0, leave)
    kept = enter < leave
    start, step = start[kept, None], step[kept, None]
    return np.asarray(start + np.stack([enter[kept], leave[kept]], axis=1)[..., None] * step)
