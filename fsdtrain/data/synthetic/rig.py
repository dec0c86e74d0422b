"""The cameras of one synthetic vehicle: where they sit, what they see, how well they are made.

Every vehicle differs a little, as in a fleet: mounting, lens, exposure, colour and noise are drawn
around a nominal surround rig. Calibration is exact; it is given with the clip.
"""

from dataclasses import dataclass

import numpy as np

from fsdtrain.data.geometry import Array, pose_from_matrix, yaw_quaternion
from fsdtrain.data.schema import CameraCalibration, Pose
from fsdtrain.errors import UserError

# Names by the number of cameras, evenly spaced counter-clockwise from straight ahead.
CAMERA_NAMES: dict[int, tuple[str, ...]] = {
    1: ("front",),
    2: ("front", "rear"),
    3: ("front", "rear_left", "rear_right"),
    4: ("front", "left", "rear", "right"),
    5: ("front", "front_left", "rear_left", "rear_right", "front_right"),
    6: ("front", "front_left", "rear_left", "rear", "rear_right", "front_right"),
    7: ("front", "front_left", "left", "rear_left", "rear_right", "right", "front_right"),
    8: ("front", "front_left", "left", "rear_left", "rear", "rear_right", "right", "front_right"),
}


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """How one camera turns light into numbers."""

    exposure: float  # gain on linear light
    white_balance: tuple[float, float, float]
    shot_noise: float  # variance per unit of signal
    read_noise: float  # standard deviation
    vignetting: float  # light lost in the corners, 0..1


@dataclass(frozen=True, kw_only=True)
class RigCamera:
    """One mounted camera."""

    name: str
    calibration: CameraCalibration
    sensor: Sensor


def draw_rig(
    rng: np.random.Generator,
    *,
    num_cameras: int,
    width: int,
    height: int,
    fov_deg: float,
    jitter: float = 1.0,
) -> tuple[RigCamera, ...]:
    """The rig of one vehicle.

    Args:
        rng: where randomness comes from.
        num_cameras: 1..8, evenly spaced around.
        width: of each image, pixels.
        height: of each image, pixels.
        fov_deg: nominal horizontal field of view.
        jitter: 1 for a fleet's spread, 0 for the nominal rig.
    """
    if num_cameras not in CAMERA_NAMES:
        raise UserError(f"num_cameras is {num_cameras}, must be 1..{max(CAMERA_NAMES)}")
    body = jitter * rng.normal(0, [0.12, 0.02, 0.08])  # this vehicle's roof differs from the next
    cameras = []
    for number, name in enumerate(CAMERA_NAMES[num_cameras]):
        around = 2 * np.pi * number / num_cameras
        focal = width / 2 / np.tan(np.radians(fov_deg) / 2) * (1 + jitter * rng.normal(0, 0.02))
        position = np.array([1.45 + 0.75 * np.cos(around), 0.62 * np.sin(around), 1.62])
        position += body + jitter * rng.normal(0, [0.04, 0.03, 0.03])
        pitch_down = np.radians(7.0 + jitter * rng.normal(0, 1.0))
        rotation = _look(
            yaw=around + jitter * np.radians(rng.normal(0, 1.5)),
            pitch_down=pitch_down,
            roll=jitter * np.radians(rng.normal(0, 0.7)),
        )
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation, position
        calibration = CameraCalibration(
            model="pinhole",
            fx=float(focal),
            fy=float(focal * (1 + jitter * rng.normal(0, 0.003))),
            cx=width / 2 + float(jitter * rng.normal(0, 0.01) * width),
            cy=height / 2 + float(jitter * rng.normal(0, 0.01) * height),
            camera_to_ego=pose_from_matrix(matrix),
            width=width,
            height=height,
        )
        balance = 1 + jitter * rng.normal(0, 0.025, 3)
        sensor = Sensor(
            exposure=float(np.exp(jitter * rng.normal(0, 0.10))),
            white_balance=(float(balance[0]), float(balance[1]), float(balance[2])),
            shot_noise=float(jitter * rng.uniform(0.0002, 0.0008)),
            read_noise=float(jitter * rng.uniform(0.001, 0.004)),
            vignetting=float(jitter * rng.uniform(0.05, 0.2)),
        )
        cameras.append(RigCamera(name=name, calibration=calibration, sensor=sensor))
    return tuple(cameras)


def _look(*, yaw: float, pitch_down: float, roll: float) -> Array:
    """[3, 3] camera to ego of a camera that looks along `yaw`, tilted down, then rolled."""
    level = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # looks along ego x
    cos_y, sin_y = np.cos(yaw), np.sin(yaw)
    cos_p, sin_p = np.cos(pitch_down), np.sin(pitch_down)
    cos_r, sin_r = np.cos(roll), np.sin(roll)
    turn = np.array([[cos_y, -sin_y, 0.0], [sin_y, cos_y, 0.0], [0.0, 0.0, 1.0]])
    tilt = np.array([[cos_p, 0.0, sin_p], [0.0, 1.0, 0.0], [-sin_p, 0.0, cos_p]])
    about_axis = np.array([[cos_r, -sin_r, 0.0], [sin_r, cos_r, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(turn @ tilt @ level @ about_axis)


def ego_pose(x: float, y: float, yaw: float) -> Pose:
    """ego_to_world on level ground."""
    return Pose(rotation_wxyz=yaw_quaternion(yaw), translation_m=(float(x), float(y), 0.0))
