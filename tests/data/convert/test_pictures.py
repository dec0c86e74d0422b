import numpy as np
import pytest
from PIL import Image

from fsdtrain.data.convert.pictures import (
    clip_name,
    fit_camera,
    fit_image,
    fit_size,
    level_camera_to_ego,
)
from fsdtrain.data.geometry import pose_from_matrix, project_points
from fsdtrain.data.schema import CameraCalibration


@pytest.mark.parametrize(
    ("size", "max_width", "expected"),
    [
        ((1936, 1216), None, (1936, 1216)),
        ((1936, 1216), 960, (960, 602)),
        ((1241, 376), None, (1240, 376)),
        ((1241, 375), 2000, (1240, 374)),
        ((1241, 375), 1241, (1240, 374)),
        ((640, 480), 33, (32, 24)),
        ((4000, 40), 32, (32, 2)),
    ],
)
def test_sizes_are_even_and_bounded(size, max_width, expected):
    assert fit_size(*size, max_width=max_width) == expected


@pytest.mark.parametrize("max_width", [None, 300, 160, 64])
def test_the_calibration_follows_the_picture(max_width):
    """A dark spot painted where a point projects is found where it projects afterwards."""
    camera = CameraCalibration(
        model="pinhole",
        fx=200.0,
        fy=210.0,
        cx=161.3,
        cy=97.7,
        camera_to_ego=pose_from_matrix(level_camera_to_ego(1.5)),
        width=321,
        height=199,
    )
    point = np.array([10.0, 2.5, 0.7])
    (u, v), _ = project_points(camera, point)
    rows, columns = np.mgrid[0:199, 0:321] + 0.5
    spot = 255 * (1 - np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 8.0**2)))
    image = fit_image(Image.fromarray(spot.astype(np.uint8)), max_width=max_width)

    fitted = fit_camera(camera, max_width=max_width)
    assert image.shape == (fitted.height, fitted.width, 3)
    weight = 255.0 - image[..., 0]
    rows, columns = np.mgrid[0 : fitted.height, 0 : fitted.width] + 0.5
    found = (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()
    np.testing.assert_allclose(found, project_points(fitted, point)[0], atol=0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("scene_01", "scene_01"), ("my drive.2", "my-drive-2"), ("", "clip"), ("a" * 300, "a" * 100)],
)
def test_clip_names(text, expected):
    assert clip_name(text) == expected
