import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdtrain.data.geometry import project_points
from fsdtrain.data.schema import CameraCalibration, Pose
from fsdtrain.data.view import View, cut_view, fit_view, view_camera, zoom_view
from fsdtrain.errors import UserError

sides = st.integers(2, 300)
shares = st.floats(0.0, 0.45)


@given(sides, sides, sides, sides, shares, shares)
def test_the_view_lies_in_what_the_crop_leaves(height, width, rows, columns, top, bottom):
    view = fit_view((height, width), (rows, columns), crop_top=top, crop_bottom=bottom)
    assert (view.height, view.width) == (rows, columns)
    assert round(top * view.scaled_height) <= view.top
    assert view.top + rows <= view.scaled_height - round(bottom * view.scaled_height)
    assert view.left >= 0
    assert view.left + columns <= view.scaled_width
    # The aspect stays, to a pixel of rounding; and one of the two sides fits tightly.
    factor = view.scaled_height / height
    assert abs(view.scaled_width - factor * width) <= 1 + 2 * width / height
    is_tight_across = view.scaled_width == columns
    is_tight_down = view.scaled_height * (1 - top - bottom) <= rows + 3
    assert is_tight_across or is_tight_down


@given(sides, sides, sides, sides, st.floats(1, 2), st.floats(0, 1), st.floats(0, 1))
def test_zooming_stays_inside_the_picture(height, width, rows, columns, zoom, down, right):
    base = fit_view((height, width), (rows, columns), crop_top=0.1, crop_bottom=0.0)
    view = zoom_view(base, zoom=zoom, shift_down=down, shift_right=right)
    assert view.top >= 0
    assert view.top + rows <= view.scaled_height
    assert view.left >= 0
    assert view.left + columns <= view.scaled_width
    # And inside what the base view kept, to rounding.
    assert view.top / zoom >= base.top - 1
    assert (view.top + rows) / zoom <= base.top + rows + 1


def test_zoom_of_one_changes_nothing():
    base = fit_view((96, 160), (40, 80), crop_top=0.2, crop_bottom=0.1)
    assert zoom_view(base, zoom=1.0, shift_down=0.7, shift_right=0.3) == base


@pytest.mark.parametrize(("top", "bottom"), [(-0.1, 0.0), (0.5, 0.5), (float("nan"), 0.0)])
def test_crops_that_leave_nothing_are_refused(top, bottom):
    with pytest.raises(UserError, match="crop_top"):
        fit_view((96, 160), (48, 80), crop_top=top, crop_bottom=bottom)


def test_calibration_follows_scale_and_cut():
    camera = CameraCalibration(
        model="opencv",
        fx=500.0,
        fy=400.0,
        cx=320.0,
        cy=240.0,
        distortion=(0.1, -0.05, 0.01, -0.02, 0.003),
        camera_to_ego=Pose(rotation_wxyz=(0.5, -0.5, 0.5, -0.5), translation_m=(0.0, 0.0, 1.0)),
        width=640,
        height=480,
    )
    view = View(scaled_height=120, scaled_width=320, top=10, left=40, height=100, width=200)
    seen = view_camera(camera, view)
    assert (seen.height, seen.width) == (100, 200)
    points = np.random.default_rng(0).uniform((4, -2, 0), (9, 2, 2), size=(30, 3))
    stored_uv, _ = project_points(camera, points)
    uv, _ = project_points(seen, points)
    np.testing.assert_allclose(uv, stored_uv * [0.5, 0.25] - [40, 10])


def test_straightening_a_pinhole_is_a_plain_cut():
    """The remap of a lens whose coefficients are zero must agree with slicing."""
    camera = CameraCalibration(
        model="pinhole",
        fx=50.0,
        fy=50.0,
        cx=30.0,
        cy=20.0,
        camera_to_ego=Pose(rotation_wxyz=(1.0, 0.0, 0.0, 0.0), translation_m=(0.0, 0.0, 0.0)),
        width=64,
        height=48,
    )
    pictures = np.random.default_rng(1).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    view = View(scaled_height=48, scaled_width=64, top=5, left=7, height=30, width=41)
    plain = cut_view(pictures, camera, view)
    np.testing.assert_array_equal(plain, pictures[:, 5:35, 7:48])
    straight = msgspec.structs.replace(camera, model="opencv", distortion=(0.0,) * 5)
    np.testing.assert_array_equal(cut_view(pictures, straight, view), plain)
