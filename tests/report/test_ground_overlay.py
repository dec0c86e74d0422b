import numpy as np
import pytest

from fsdtrain.data.geometry import BevGrid, pose_from_matrix, project_points
from fsdtrain.data.schema import CameraCalibration
from fsdtrain.report.ground_overlay import (
    Ribbon,
    distance_to_polyline,
    draw_on_ground,
    ground_seen_by,
    sample_cells,
)

GRID = BevGrid(x_min_m=-4.0, x_max_m=12.0, y_min_m=-5.0, y_max_m=7.0, cell_m=2.0)


def make_camera(
    rng: np.random.Generator, *, width: int = 61, height: int = 34
) -> CameraCalibration:
    """Looking down and somewhere ahead, rolled a little, 1 to 2 m above the ground."""
    yaw, pitch, roll = rng.uniform(-3, 3), rng.uniform(0.1, 0.5), rng.uniform(-0.1, 0.1)
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll) * right + np.sin(roll) * down
    pose[:3, 1] = np.cos(roll) * down - np.sin(roll) * right
    pose[:3, 2] = forward
    pose[:3, 3] = [rng.uniform(-1, 2), rng.uniform(-1, 1), rng.uniform(1, 2)]
    return CameraCalibration(
        model="pinhole",
        fx=40.0,
        fy=43.0,
        cx=width / 2 + rng.uniform(-3, 3),
        cy=height / 2 + rng.uniform(-3, 3),
        camera_to_ego=pose_from_matrix(pose),
        width=width,
        height=height,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1, 2])
def test_the_ground_of_a_pixel_projects_back_to_its_centre(seed: int, scale: int) -> None:
    camera = make_camera(np.random.default_rng(seed))
    ground, is_seen = ground_seen_by(camera, scale=scale)
    assert is_seen.shape == (camera.height * scale, camera.width * scale)
    assert is_seen.mean() > 0.3
    points = np.concatenate([ground, np.zeros((*is_seen.shape, 1))], axis=-1)
    uv, depth = project_points(camera, points[is_seen])
    rows, columns = np.nonzero(is_seen)
    centres = (np.stack([columns, rows], axis=-1) + 0.5) / scale
    np.testing.assert_allclose(uv, centres, atol=1e-6)
    assert (depth > 0).all()


def test_above_the_horizon_nothing_is_seen() -> None:
    rng = np.random.default_rng(5)
    pose = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
    camera = CameraCalibration(
        model="pinhole", fx=40, fy=40, cx=20, cy=11, width=40, height=22,
        camera_to_ego=pose_from_matrix(pose),
    )  # fmt: skip
    _, is_seen = ground_seen_by(camera)
    assert not is_seen[:11].any()
    assert is_seen[12:].all()
    image = rng.integers(0, 255, (22, 40, 3), dtype=np.uint8)
    cells = np.ones(GRID.shape)
    drawn = draw_on_ground(image, camera, cells_XY=cells, grid=GRID, color=(255, 0, 0))
    np.testing.assert_array_equal(drawn[:11], image[:11])
    assert (drawn[-1] != image[-1]).any()


@pytest.mark.parametrize("seed", range(3))
def test_samples_are_the_values_at_centres_and_bilinear_between(seed: int) -> None:
    from scipy.interpolate import RegularGridInterpolator

    rng = np.random.default_rng(seed)
    values = rng.random(GRID.shape)
    np.testing.assert_allclose(sample_cells(values, GRID, GRID.cell_centers()), values, atol=1e-5)
    centres = GRID.cell_centers()
    expected = RegularGridInterpolator((centres[:, 0, 0], centres[0, :, 1]), values)
    places = rng.uniform([-3, -4], [11, 6], size=(50, 2))
    np.testing.assert_allclose(sample_cells(values, GRID, places), expected(places), atol=1e-5)
    outside = np.array([[-6.0, 0], [20, 0], [0, 9.5], [3, -7]])
    np.testing.assert_allclose(sample_cells(values, GRID, outside), 0, atol=1e-5)


def test_distance_to_a_polyline_is_that_to_its_densely_sampled_points() -> None:
    rng = np.random.default_rng(8)
    corners = np.array([[0.0, 0], [4, 0], [4, 0], [7, 3]])  # one point stands twice
    share = np.linspace(0, 1, 2001)[:, None]
    dense = np.concatenate(
        [(1 - share) * a + share * b for a, b in zip(corners[:-1], corners[1:], strict=True)]
    )
    places = rng.uniform(-3, 9, size=(6, 5, 2))
    expected = np.linalg.norm(places[..., None, :] - dense, axis=-1).min(axis=-1)
    np.testing.assert_allclose(distance_to_polyline(corners, places), expected, atol=2e-3)


def test_a_patch_covers_the_pixels_of_its_cell_and_no_others() -> None:
    camera = make_camera(np.random.default_rng(1), width=160, height=96)
    cells = np.zeros(GRID.shape)
    ground, is_seen = ground_seen_by(camera)
    # The cell that the lowest middle pixel looks at, and its neighbours: their shared centre is 1.
    place = ground[-1, 80]
    i, j = ((place - (GRID.x_min_m, GRID.y_min_m)) / GRID.cell_m).astype(int)
    cells[i - 1 : i + 2, j - 1 : j + 2] = 1.0
    image = np.full((96, 160, 3), 100, dtype=np.uint8)
    drawn = draw_on_ground(image, camera, cells_XY=cells, grid=GRID, color=(0, 200, 255))
    centre = GRID.cell_centers()[i, j]
    offset = np.abs(ground - centre).max(axis=-1)
    changed = (drawn != image).any(axis=-1)
    assert changed[is_seen & (offset < 2.0)].all()
    assert not changed[is_seen & (offset > 3.6)].any()
    # 0.65 of the colour where the model is certain.
    expected = 0.35 * 100 + 0.65 * np.array([0, 200, 255])
    np.testing.assert_allclose(drawn[-1, 80], expected, atol=1)


def test_ribbons_lie_where_their_path_is_and_fade_with_distance() -> None:
    pose = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
    camera = CameraCalibration(
        model="pinhole", fx=80, fy=80, cx=80, cy=30, width=160, height=96,
        camera_to_ego=pose_from_matrix(pose),
    )  # fmt: skip
    image = np.zeros((96, 160, 3), dtype=np.uint8)
    path = np.array([[0.0, 0.0], [30.0, 0.0]])
    ribbon = Ribbon(points_S2=path, width_m=2.0, color=(200, 0, 0), opacity=0.9, middle=0.5)
    drawn = draw_on_ground(image, camera, grid=GRID, color=(0, 0, 0), ribbons=[ribbon])
    ground, is_seen = ground_seen_by(camera)
    covered = drawn[..., 0] > 0
    assert covered[is_seen & (np.abs(ground[..., 1]) < 0.95) & (ground[..., 0] < 29)].all()
    assert not covered[is_seen & (np.abs(ground[..., 1]) > 1.2)].any()
    near, far = drawn[-1, 80, 0], drawn[36, 80, 0]
    assert near > far > 0
    edge = np.argmin(np.abs(ground[-1, :, 1] - 0.93))
    assert drawn[-1, edge, 0] > 1.5 * near


def test_nothing_to_draw_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    camera = make_camera(rng)
    image = rng.integers(0, 255, (camera.height, camera.width, 3), dtype=np.uint8)
    drawn = draw_on_ground(
        image, camera, cells_XY=np.full(GRID.shape, 0.5), grid=GRID, color=(1, 2, 3)
    )
    np.testing.assert_array_equal(drawn, image)
