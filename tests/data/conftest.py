"""A world that is nothing but a texture on the sky, and cameras that look at it.

What a pixel shows depends on its ray's direction alone, so any picture can be checked against its
own calibration: that is how the tests of views, windows and augmentation find a wrong pixel.
"""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import root

from fsdtrain.data.geometry import project_points, rotation_matrix
from fsdtrain.data.schema import CameraCalibration, Clip
from fsdtrain.data.video import encode_h264

Pictures = NDArray[np.uint8]
ShiftOf = Callable[..., NDArray[np.float64]]


def sky_colour(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., 3] colours 0..255 of ego directions [..., 3]: no symmetry, smooth over a few pixels."""
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    waves = np.array([[9.0, 4.0, 6.0], [-3.0, 8.0, -9.0], [7.0, -6.0, 5.0]])
    phases = np.array([0.3, 1.1, 2.3])
    return 127.5 + 90.0 * np.sin(unit @ waves.T + phases)


def pixel_centres(height: int, width: int) -> NDArray[np.float64]:
    """[H, W, 2] as (u, v)."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.stack([columns, rows], axis=-1)


def pinhole_directions(
    intrinsics: NDArray[np.float64], camera_to_ego: NDArray[np.float64], uv: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Ego directions of pixels, by inverting the matrices."""
    homogeneous = np.concatenate([uv, np.ones_like(uv[..., :1])], axis=-1)
    return homogeneous @ np.linalg.inv(intrinsics).T @ camera_to_ego[:3, :3].T


def distorted_directions(camera: CameraCalibration) -> NDArray[np.float64]:
    """Ego directions of all pixels of a camera that distorts, by solving for each."""
    rotation = rotation_matrix(camera.camera_to_ego.rotation_wxyz)
    origin = np.array(camera.camera_to_ego.translation_m)
    uv = pixel_centres(camera.height, camera.width).reshape(-1, 2)

    def miss(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        rays = np.concatenate([xy.reshape(-1, 2), np.ones((len(uv), 1))], axis=-1)
        found, _ = project_points(camera, rays @ rotation.T + origin)
        return (found - uv).ravel()

    start = (uv - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    solved = root(miss, start.ravel(), method="df-sane", options={"fatol": 1e-6, "maxfev": 2000})
    assert np.abs(miss(solved.x)).max() < 1e-3
    rays = np.concatenate([solved.x.reshape(-1, 2), np.ones((len(uv), 1))], axis=-1)
    return (rays @ rotation.T).reshape(camera.height, camera.width, 3)


@pytest.fixture(scope="session")
def paint_sky() -> Callable[[Clip], Clip]:
    """A clip whose videos show the sky as its own calibration sees it, in every frame."""

    def paint(clip: Clip) -> Clip:
        video = {}
        for name, camera in clip.rig.cameras.items():
            picture = np.round(sky_colour(distorted_directions(camera))).astype(np.uint8)
            video[name] = encode_h264([picture] * clip.meta.num_frames, frame_rate_hz=10.0, crf=4)
        return msgspec.structs.replace(clip, video=video)

    return paint


@pytest.fixture(scope="session")
def shift_of() -> ShiftOf:
    """`shift_of(picture, intrinsics, camera_to_ego, mirrored=False)` -> (du, dv, rms error).

    By how many pixels the picture lies beside what its calibration says, from the gradients; pixels
    that are black count as not seen.
    """

    def shift(
        picture: Pictures,
        intrinsics: NDArray[np.float64],
        camera_to_ego: NDArray[np.float64],
        *,
        mirrored: bool = False,
    ) -> NDArray[np.float64]:
        mirror = np.array([1.0, -1.0 if mirrored else 1.0, 1.0])

        def expected(offset: tuple[float, float]) -> NDArray[np.float64]:
            uv = pixel_centres(*picture.shape[:2]) + offset
            return sky_colour(pinhole_directions(intrinsics, camera_to_ego, uv) * mirror)

        seen = (picture > 0).all(axis=-1)
        error = (picture - expected((0, 0)))[seen].ravel()
        gradient = np.stack(
            [
                (expected((0.5, 0)) - expected((-0.5, 0)))[seen].ravel(),
                (expected((0, 0.5)) - expected((0, -0.5)))[seen].ravel(),
            ],
            axis=-1,
        )
        offset, *_ = np.linalg.lstsq(gradient, error, rcond=None)
        return np.array([*offset, np.sqrt(np.mean(error**2))])

    return shift
