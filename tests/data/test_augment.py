from dataclasses import fields, replace

import msgspec
import numpy as np
import pytest

from fsdtrain.data.augment import (
    Augmentation,
    augment_views,
    augment_window,
    change_colours,
    draw_colours,
    mirror_window,
)
from fsdtrain.data.geometry import BevGrid, box_corners, invert_pose, yaw_of
from fsdtrain.data.window import WindowShape, base_views, cut_window
from fsdtrain.errors import UserError
from fsdtrain.heads.vehicle_segmentation import rasterise_vehicles

SHAPE = WindowShape(num_frames=2, image_size=(48, 72), crop_top=0.1)
MIRROR = np.array([1.0, -1.0, 1.0])
ONLY_ZOOM = Augmentation(
    mirror_probability=0.0, max_zoom=1.5, brightness=0.0, contrast=0.0, channel_gain=0.0
)


@pytest.fixture(scope="module")
def sky_clip(make_clip, paint_sky):
    return paint_sky(make_clip(num_frames=2, size=(96, 128), seed=5))


@pytest.fixture(scope="module")
def window(make_clip):
    return cut_window(make_clip(num_frames=5, seed=6), SHAPE, where="w")


def assert_same(first, second, atol=1e-12):
    for field in fields(first):
        one, two = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_allclose(one, two, atol=atol, err_msg=field.name)
        else:
            assert one == two, field.name


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mirrored", [False, True])
def test_after_every_change_pixels_show_what_the_calibration_says(
    sky_clip, shift_of, seed, mirrored
):
    rng = np.random.default_rng(seed)
    views = augment_views(base_views(sky_clip, SHAPE), ONLY_ZOOM, rng)
    assert views != base_views(sky_clip, SHAPE)
    window = cut_window(sky_clip, SHAPE, where="w", views=views)
    window = augment_window(window, replace(ONLY_ZOOM, mirror_probability=float(mirrored)), rng)
    for camera in range(2):
        du, dv, error = shift_of(
            window.frames[0, camera],
            window.intrinsics_N33[camera],
            window.camera_to_ego_N44[camera],
            mirrored=mirrored,
        )
        assert abs(du) < 0.1
        assert abs(dv) < 0.1
        assert error < 5.0


def test_zooms_differ_between_cameras_and_stay_in_range(sky_clip):
    base = base_views(sky_clip, SHAPE)
    zooms = []
    for seed in range(200):
        views = augment_views(base, ONLY_ZOOM, np.random.default_rng(seed))
        zooms.append([views[name].scaled_width / base[name].scaled_width for name in views])
    zooms = np.array(zooms)
    assert zooms.min() >= 1.0
    assert zooms.max() <= 1.51
    assert zooms.std() > 0.1
    assert abs(np.corrcoef(zooms.T)[0, 1]) < 0.2


def test_mirroring_twice_gives_the_window_back(window):
    once = mirror_window(window)
    assert (once.frames != window.frames).any()
    assert_same(mirror_window(once), window)


def test_the_mirrored_camera_sees_the_mirrored_world(window):
    """Projected with plain matrices: a mirrored point falls on the flipped pixel."""
    mirrored = mirror_window(window)
    points = np.random.default_rng(0).uniform((-20, -20, 0), (20, 20, 3), size=(200, 3))

    def project(window, camera, points):
        in_camera = points - window.camera_to_ego_N44[camera, :3, 3]
        in_camera = in_camera @ window.camera_to_ego_N44[camera, :3, :3]
        pixels = in_camera @ window.intrinsics_N33[camera].T
        return pixels[:, :2] / pixels[:, 2:], in_camera[:, 2]

    for camera in range(2):
        uv, depth = project(window, camera, points)
        mirrored_uv, mirrored_depth = project(mirrored, camera, points * MIRROR)
        np.testing.assert_allclose(mirrored_depth, depth, atol=1e-9)
        np.testing.assert_allclose(mirrored_uv[:, 0], 72 - uv[:, 0], rtol=1e-6)
        np.testing.assert_allclose(mirrored_uv[:, 1], uv[:, 1], rtol=1e-6)
        rotation = mirrored.camera_to_ego_N44[camera, :3, :3]
        assert np.linalg.det(rotation) == pytest.approx(1.0)  # still right-handed


def test_mirrored_labels_are_reflections(window):
    w, x, y, z = np.random.default_rng(3).normal(size=4)
    norm = float(np.linalg.norm([w, x, y, z]))
    rolled = msgspec.structs.replace(
        window.boxes[-1][1],
        rotation_wxyz=(w / norm, x / norm, y / norm, z / norm),
    )
    window = replace(window, boxes=(*window.boxes[:-1], (window.boxes[-1][0], rolled)))
    mirrored = mirror_window(window)
    for before, after in zip(window.boxes[-1], mirrored.boxes[-1], strict=True):
        corners = {tuple(row) for row in np.round(box_corners(before) * MIRROR, 9) + 0.0}
        assert {tuple(row) for row in np.round(box_corners(after), 9) + 0.0} == corners
        if before.velocity_mps is not None:
            np.testing.assert_allclose(after.velocity_mps, before.velocity_mps * MIRROR)
    np.testing.assert_allclose(
        mirrored.lanes[0].points_m, np.array(window.lanes[0].points_m) * MIRROR
    )
    grid = BevGrid(x_min_m=-30.0, x_max_m=30.0, y_min_m=-20.0, y_max_m=20.0, cell_m=0.5)
    cover = rasterise_vehicles(window.boxes[-1], grid)
    assert cover.any()
    np.testing.assert_array_equal(rasterise_vehicles(mirrored.boxes[-1], grid), cover[:, ::-1])


def test_mirrored_motion_turns_the_other_way(window):
    mirrored = mirror_window(window)
    assert mirrored.yaw_rate_radps == -window.yaw_rate_radps
    assert mirrored.speed_mps == window.speed_mps
    for poses, mirrored_poses in (
        (window.ego_to_world_T44, mirrored.ego_to_world_T44),
        (window.future_ego_to_world_F44, mirrored.future_ego_to_world_F44),
    ):
        steps = [invert_pose(poses[0]) @ pose for pose in poses]
        mirrored_steps = [invert_pose(mirrored_poses[0]) @ pose for pose in mirrored_poses]
        for step, mirrored_step in zip(steps, mirrored_steps, strict=True):
            np.testing.assert_allclose(mirrored_step[:3, 3], step[:3, 3] * MIRROR, atol=1e-9)
            assert yaw_of(mirrored_step) == pytest.approx(-yaw_of(step), abs=1e-12)


def test_mirrored_occupancy_is_the_grid_flipped_in_y(window):
    def filled(occupancy):
        values = [value for value, length in occupancy.runs for _ in range(length)]
        grid = np.array(values).reshape(occupancy.shape)
        indices = np.stack(np.nonzero(np.ones_like(grid)), axis=-1)
        centres = np.array(occupancy.min_corner_m) + (indices + 0.5) * occupancy.voxel_size_m
        return {tuple(c): int(v) for c, v in zip(centres.round(6) + 0.0, grid.ravel(), strict=True)}

    runs = ((0, 5), (1, 1), (0, 20), (-1, 30), (1, 8))
    occupancy = msgspec.structs.replace(
        window.occupancy, runs=runs, min_corner_m=(-1.0, -1.5, 0.25)
    )
    mirrored = mirror_window(replace(window, occupancy=occupancy)).occupancy
    expected = {(x, round(-y, 6) + 0.0, z): v for (x, y, z), v in filled(occupancy).items()}
    assert filled(mirrored) == expected
    assert all(a[0] != b[0] for a, b in zip(mirrored.runs, mirrored.runs[1:], strict=False))


def test_unlabelled_windows_can_be_mirrored(make_clip):
    clip = make_clip(annotations=(), has_ego_motion=False)
    window = cut_window(clip, SHAPE, where="w")
    assert_same(mirror_window(mirror_window(window)), window)


def test_colours_follow_the_formula_and_stay_alike_over_time():
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 6, 10, 3), dtype=np.uint8)
    frames[1:] = frames[:1]
    changed = change_colours(frames, draw_colours(2, Augmentation(), np.random.default_rng(4)))
    np.testing.assert_array_equal(changed[1], changed[0])
    for camera, draw in enumerate(np.random.default_rng(4).uniform(-1, 1, size=(2, 5))):
        for channel in range(3):
            level = frames[:, camera, ..., channel] / 255.0 * (1 + 0.08 * draw[2 + channel])
            level = (level - 0.5) * (1 + 0.2 * draw[0]) + 0.5 + 0.15 * draw[1]
            expected = np.clip(255 * level, 0, 255)
            assert np.abs(changed[:, camera, ..., channel] - expected).max() <= 0.51
    shared = change_colours(
        np.repeat(frames[:, :1], 2, axis=1),
        draw_colours(2, Augmentation(colours_per_camera=False), np.random.default_rng(5)),
    )
    np.testing.assert_array_equal(shared[:, 0], shared[:, 1])


def test_the_same_generator_gives_the_same_sample_and_none_changes_nothing(window):
    first = augment_window(window, Augmentation(), np.random.default_rng(7))
    assert_same(augment_window(window, Augmentation(), np.random.default_rng(7)), first, atol=0)
    nothing = Augmentation(
        mirror_probability=0.0, max_zoom=1.0, brightness=0.0, contrast=0.0, channel_gain=0.0
    )
    assert_same(augment_window(window, nothing, np.random.default_rng(7)), window, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("mirror_probability", 1.5), ("max_zoom", 0.9), ("brightness", 1.0), ("contrast", -0.1)],
)
def test_knobs_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=f"augmentation.{field}={value}"):
        Augmentation(**{field: value})
