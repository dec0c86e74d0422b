"""Frames of reference, and the plain arithmetic between them (numpy float64, no I/O).

Every coordinate in fsdtrain is in one of these frames; all are right-handed, in metres:

    world    z up (against gravity); origin and heading arbitrary, fixed within one clip
    ego      x forward, y left, z up; origin on the ground below the rear axle's centre
             (converted data keeps its source's origin: a converter says which)
    camera   x right, y down, z forward (optical axis); origin at the optical centre
    image    u right, v down, in pixels; the top-left pixel covers [0, 1) x [0, 1), its centre is
             (0.5, 0.5); a resize by s multiplies fx, fy, cx, cy by s, nothing else
    box      x along the length (forward), y along the width (left), z along the height (up);
             origin at the box's centre
    BEV grid cell [i, j]: i counts along ego x (forward), j along ego y (left); the centre of cell
             [i, j] is x = x_min + (i + 0.5) * cell, y = y_min + (j + 0.5) * cell.
             Pictures turn it so that forward is up and left is left.

A transform `a_to_b` is a 4x4 matrix that takes a column vector in frame a to frame b:
p_b = a_to_b @ p_a. Rotations on disk are unit quaternions (w, x, y, z), Hamilton convention.
Yaw is counter-clockwise seen from above: 0 is forward, +pi/2 is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.schema import Box3d, CameraCalibration, Pose, Quaternion

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BevGrid:
    """A rectangle of ego ground cut into square cells; see the module's head for the axes."""

    x_min_m: float
    x_max_m: float
    y_min_m: float
    y_max_m: float
    cell_m: float

    @property
    def shape(self) -> tuple[int, int]:
        """(cells along x, cells along y)."""
        return (
            round((self.x_max_m - self.x_min_m) / self.cell_m),
            round((self.y_max_m - self.y_min_m) / self.cell_m),
        )

    def cell_centers(self) -> Array:
        """[X, Y, 2] ego coordinates of the cell centres."""
        num_x, num_y = self.shape
        x = self.x_min_m + (np.arange(num_x) + 0.5) * self.cell_m
        y = self.y_min_m + (np.arange(num_y) + 0.5) * self.cell_m
        return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)


def rotation_matrix(rotation_wxyz: Quaternion) -> Array:
    """[3, 3] of a unit quaternion (normalised here, so that a rounded one stays orthogonal)."""
    return rotation_matrices(np.asarray(rotation_wxyz, dtype=np.float64))


def rotation_matrices(rotations_wxyz: Array) -> Array:
    """[..., 3, 3] of quaternions [..., 4]; see `rotation_matrix`."""
    norms = np.linalg.norm(rotations_wxyz, axis=-1, keepdims=True)
    w, x, y, z = np.moveaxis(rotations_wxyz / norms, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_from_matrix(rotation: Array) -> Quaternion:
    """(w, x, y, z), w >= 0, of a proper [3, 3] rotation (Shepperd's method)."""
    r = np.asarray(rotation, dtype=np.float64)
    trace = np.trace(r)
    # The largest of the four squared components is the well-conditioned divisor.
    squares = np.array([trace, r[0, 0], r[1, 1], r[2, 2]])
    largest = int(np.argmax(squares))
    if largest == 0:
        q = np.array([1 + trace, r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    else:
        i = largest - 1
        j, k = (i + 1) % 3, (i + 2) % 3
        q = np.empty(4)
        q[0] = r[k, j] - r[j, k]
        q[1 + i] = 1 + r[i, i] - r[j, j] - r[k, k]
        q[1 + j] = r[j, i] + r[i, j]
        q[1 + k] = r[k, i] + r[i, k]
    q /= np.linalg.norm(q)
    if q[0] < 0:
        q = -q
    return (float(q[0]), float(q[1]), float(q[2]), float(q[3]))


def yaw_quaternion(yaw_rad: float) -> Quaternion:
    """The rotation by `yaw_rad` about z."""
    return (float(np.cos(yaw_rad / 2)), 0.0, 0.0, float(np.sin(yaw_rad / 2)))


def yaw_of(rotation: Array) -> float:
    """Heading in radians of a [3, 3] or [4, 4] rotation: where its x axis points from above."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def pose_matrix(pose: Pose) -> Array:
    """[4, 4] child -> parent."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(pose.rotation_wxyz)
    matrix[:3, 3] = pose.translation_m
    return matrix


def pose_matrices(poses: Sequence[Pose]) -> Array:
    """[len(poses), 4, 4]; see `pose_matrix`."""
    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    if poses:
        rotations = np.array([pose.rotation_wxyz for pose in poses], dtype=np.float64)
        matrices[:, :3, :3] = rotation_matrices(rotations)
        matrices[:, :3, 3] = [pose.translation_m for pose in poses]
    return matrices


def pose_from_matrix(matrix: Array) -> Pose:
    """The inverse of `pose_matrix`."""
    x, y, z = (float(value) for value in matrix[:3, 3])
    return Pose(rotation_wxyz=quaternion_from_matrix(matrix[:3, :3]), translation_m=(x, y, z))


def invert_pose(matrix: Array) -> Array:
    """The inverse of a rigid [4, 4], by transposition (exact where np.linalg.inv is not)."""
    inverse = np.eye(4)
    inverse[:3, :3] = matrix[:3, :3].T
    inverse[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return inverse


def transform_points(matrix: Array, points: Array) -> Array:
    """Apply a [4, 4] to points [..., 3]."""
    moved: Array = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved


def box_corners(box: Box3d) -> Array:
    """[8, 3] ego coordinates: bottom face 0-3 counter-clockwise from front left, top face 4-7."""
    length, width, height = box.size_m
    x = np.array([1, -1, -1, 1, 1, -1, -1, 1]) * length / 2
    y = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * width / 2
    z = np.array([-1, -1, -1, -1, 1, 1, 1, 1]) * height / 2
    box_to_ego = np.eye(4)
    box_to_ego[:3, :3] = rotation_matrix(box.rotation_wxyz)
    box_to_ego[:3, 3] = box.center_m
    return transform_points(box_to_ego, np.stack([x, y, z], axis=-1))


def intrinsic_matrix(camera: CameraCalibration) -> Array:
    """[3, 3] with the pixel convention of the module's head."""
    return np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1.0]])


def resize_camera(camera: CameraCalibration, *, width: int, height: int) -> CameraCalibration:
    """The calibration after a resize to width x height pixels, each axis by its own factor."""
    scale_x, scale_y = width / camera.width, height / camera.height
    return msgspec.structs.replace(
        camera,
        fx=camera.fx * scale_x,
        fy=camera.fy * scale_y,
        cx=camera.cx * scale_x,
        cy=camera.cy * scale_y,
        width=width,
        height=height,
    )


def project_points(camera: CameraCalibration, points_ego: Array) -> tuple[Array, Array]:
    """Project ego points [..., 3] into the image.

    Returns:
        (uv [..., 2] in pixels, depth [...] in metres along the optical axis). A point with
        depth <= 0 is behind the camera; its uv is NaN. Points may lie outside the image.

    Source: OpenCV, calib3d "pinhole camera model" and "fisheye camera model".
    """
    ego_to_camera = invert_pose(pose_matrix(camera.camera_to_ego))
    points = transform_points(ego_to_camera, np.asarray(points_ego, dtype=np.float64))
    depth = points[..., 2]
    safe = np.where(depth > 1e-9, depth, np.nan)
    x, y = _distort(camera, points[..., 0] / safe, points[..., 1] / safe)
    uv = np.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], axis=-1)
    return uv, depth


def _distort(camera: CameraCalibration, x: Array, y: Array) -> tuple[Array, Array]:
    if camera.model == "opencv":
        k1, k2, p1, p2, k3 = camera.distortion
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        return (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        )
    if camera.model == "opencv_fisheye":
        k1, k2, k3, k4 = camera.distortion
        r = np.hypot(x, y)
        theta = np.arctan(r)
        t2 = theta * theta
        theta_d = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
        scale = np.where(r > 1e-9, theta_d / np.where(r > 1e-9, r, 1.0), 1.0)
        return x * scale, y * scale
    return x, y


def interpolate_pose(first: Pose, second: Pose, fraction: float) -> Array:
    """[4, 4] between two poses: linear in translation, spherical-linear in rotation."""
    a = np.asarray(first.rotation_wxyz)
    b = np.asarray(second.rotation_wxyz)
    dot = float(a @ b)
    if dot < 0:
        b, dot = -b, -dot
    angle = np.arccos(min(dot, 1.0))
    if angle < 1e-6:
        q = (1 - fraction) * a + fraction * b
    else:
        q = (np.sin((1 - fraction) * angle) * a + np.sin(fraction * angle) * b) / np.sin(angle)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix((float(q[0]), float(q[1]), float(q[2]), float(q[3])))
    t0, t1 = np.asarray(first.translation_m), np.asarray(second.translation_m)
    matrix[:3, 3] = (1 - fraction) * t0 + fraction * t1
    return matrix
