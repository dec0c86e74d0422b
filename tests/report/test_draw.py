import numpy as np
import pytest

from fsdtrain.data.geometry import (
    BevGrid,
    intrinsic_matrix,
    pose_from_matrix,
    pose_matrix,
    project_points,
    resize_camera,
    yaw_quaternion,
)
from fsdtrain.data.schema import Box3d, CameraCalibration, Lane
from fsdtrain.report.canvas import CLASS_COLORS, LANE_COLORS, PANEL, PATH_COLORS, heat_colors
from fsdtrain.report.draw import (
    OUTLINE_COLOR,
    BevPath,
    bev_view,
    camera_mosaic,
    camera_yaw,
    draw_boxes,
    draw_polyline,
    pinhole_camera,
)

GRID = BevGrid(x_min_m=-20.0, x_max_m=40.0, y_min_m=-15.0, y_max_m=15.0, cell_m=0.5)
AHEAD = np.eye(4)
AHEAD[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
AHEAD[2, 3] = 1.5


def looking(yaw):
    matrix = AHEAD.copy()
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    matrix[:3, :3] = turn @ AHEAD[:3, :3]
    return matrix


@pytest.fixture
def camera():
    return CameraCalibration(
        model="pinhole",
        fx=200.0,
        fy=200.0,
        cx=160.0,
        cy=100.0,
        camera_to_ego=pose_from_matrix(AHEAD),
        width=320,
        height=200,
    )


def box(x, y, *, yaw=0.0, category="car", size=(4.0, 2.0, 1.6)):
    return Box3d(
        category=category,
        track_id="1",
        center_m=(x, y, size[2] / 2),
        size_m=size,
        rotation_wxyz=yaw_quaternion(yaw),
    )


def is_color(image, color, tolerance=40):
    return np.abs(np.asarray(image).astype(int) - color).max(axis=-1) <= tolerance


def test_a_box_is_drawn_around_its_object_and_nowhere_else(camera):
    image = np.full((200, 320, 3), 60, dtype=np.uint8)
    drawn = draw_boxes(image, camera, [box(15.0, 2.0)])

    assert (image == 60).all()
    rows, columns = np.nonzero((drawn != 60).any(axis=-1))
    # The nearest face is at x = 13, y = 1..3, z = 0..1.6.
    (left, top), _ = project_points(camera, np.array([13.0, 3.0, 1.6]))
    (right, bottom), _ = project_points(camera, np.array([13.0, 1.0, 0.0]))
    assert columns.min() == pytest.approx(left, abs=2)
    assert rows.min() == pytest.approx(top, abs=2)
    assert rows.max() == pytest.approx(bottom, abs=2)
    # Of the far end, the right corners reach furthest to the right.
    far, _ = project_points(camera, np.array([17.0, 1.0, 0.0]))
    assert columns.max() == pytest.approx(max(right, far[0]), abs=2)
    assert is_color(drawn, CLASS_COLORS["car"]).sum() > 50


def test_the_heading_side_is_filled(camera):
    """A car that comes towards us shows its filled front; one that leaves shows its back."""
    image = np.full((200, 320, 3), 60, dtype=np.uint8)
    (u, v), _ = project_points(camera, np.array([13.0, 0.0, 0.45]))
    patch = np.s_[round(v) - 1 : round(v) + 2, round(u) + 6 : round(u) + 9]
    oncoming = draw_boxes(image, camera, [box(15.0, 0.0, yaw=np.pi)])[patch]
    assert (oncoming[..., 2] > 90).all()
    area = [
        (draw_boxes(image, camera, [box(15.0, 0.0, yaw=yaw)]) != 60).any(-1).sum()
        for yaw in (np.pi, 0.0)
    ]
    assert area[0] > area[1]  # the near face is larger than the far one


def test_boxes_around_and_behind_the_camera_do_no_harm(camera):
    image = np.full((200, 320, 3), 60, dtype=np.uint8)
    assert (draw_boxes(image, camera, [box(-10.0, 0.0)]) == 60).all()
    for x in np.linspace(-4, 4, 17):
        assert draw_boxes(image, camera, [box(x, 0.3), box(x, -8.0)]).shape == image.shape


def test_the_image_must_fit_its_calibration(camera):
    with pytest.raises(ValueError, match="resize_camera"):
        draw_boxes(np.zeros((100, 160, 3), np.uint8), camera, [])
    small = resize_camera(camera, width=160, height=100)
    draw_boxes(np.zeros((100, 160, 3), np.uint8), small, [box(15.0, 0.0)], color=(9, 9, 9))


def test_a_polyline_follows_the_ground(camera):
    image = np.zeros((200, 320, 3), dtype=np.uint8)
    points = np.array([[-5.0, 1.0, 0.0], [10.0, 1.0, 0.0], [30.0, -2.0, 0.0]])
    drawn = draw_polyline(image, camera, points, color=(255, 0, 0), line_px=3)
    for place in ([8.0, 1.0, 0.0], [10.0, 1.0, 0.0], [20.0, -0.5, 0.0]):
        u, v = project_points(camera, np.array(place))[0].astype(int)
        assert drawn[v, u, 0] > 150
    assert drawn[:100].max() == 0  # nothing above the horizon


def test_pinhole_camera_keeps_the_matrices(camera):
    copy = pinhole_camera(
        intrinsic_matrix(camera), pose_matrix(camera.camera_to_ego), width=320, height=200
    )
    assert copy == camera


def place_of(grid, size_px, x, y):
    """(column, row) by the rule of geometry.py: forward is up, left is left."""
    scale = size_px / (grid.x_max_m - grid.x_min_m)
    return round((grid.y_max_m - y) * scale), round((grid.x_max_m - x) * scale)


def test_bev_view_puts_forward_up_and_left_left():
    image = bev_view(
        GRID,
        boxes=[box(20.0, 8.0, category="truck"), box(-10.0, -6.0, category="bus")],
        lanes=[Lane(kind="boundary", points_m=((0.0, -10.0, 0.0), (30.0, -10.0, 0.0)))],
        paths=[BevPath(points=np.array([[0.0, 0.0], [10.0, 0.0], [14.0, 4.0]]), kind="prediction")],
        size_px=600,
    )
    map_ = np.asarray(image)[:600]
    for color, (x, y) in {
        CLASS_COLORS["truck"]: (20.0, 8.0),
        CLASS_COLORS["bus"]: (-10.0, -6.0),
        LANE_COLORS["boundary"]: (15.0, -10.0),
        PATH_COLORS["prediction"]: (7.0, 0.0),
    }.items():
        rows, columns = np.nonzero(is_color(map_, color, 25))
        column, row = place_of(GRID, 600, x, y)
        assert np.hypot(rows - row, columns - column).min() < 4
        assert len(rows) > 20
    assert is_color(map_, CLASS_COLORS["car"], 25).sum() == 0
    # The legend names what is there: each colour has its disc below the map.
    legend = np.asarray(image)[600:]
    for color in (CLASS_COLORS["truck"], CLASS_COLORS["bus"], PATH_COLORS["prediction"]):
        assert is_color(legend, color, 10).any()


def test_bev_view_shows_probability_and_truth_cell_by_cell():
    probability = np.zeros(GRID.shape)
    probability[90:96, 10:14] = 1.0  # x 25..28, y -10..-8
    truth = np.zeros(GRID.shape, dtype=bool)
    truth[60:70, 40:44] = True  # x 10..15, y 5..7
    image = np.asarray(
        bev_view(GRID, vehicle_probability_XY=probability, vehicle_truth_XY=truth, size_px=960)
    )[:960]
    column, row = place_of(GRID, 960, 26.5, -9.0)
    assert is_color(image[row, column], heat_colors(np.array(1.0)), 5)
    ys, xs = np.nonzero(is_color(image, OUTLINE_COLOR, 30))
    left, top = place_of(GRID, 960, 15.0, 7.0)
    right, bottom = place_of(GRID, 960, 10.0, 5.0)
    assert (xs.min(), ys.min()) == pytest.approx((left, top), abs=2)
    assert (xs.max(), ys.max()) == pytest.approx((right, bottom), abs=2)
    inside = image[(top + bottom) // 2, (left + right) // 2]
    assert is_color(inside, PANEL, 5)  # an outline, not a patch


@pytest.mark.parametrize("size_px", [64, 333])
def test_bev_view_of_nothing(size_px):
    image = bev_view(GRID, size_px=size_px)
    assert image.size == (round(size_px / 2), size_px)
    bev_view(GRID, vehicle_truth_XY=np.zeros(GRID.shape, dtype=bool), size_px=size_px)


def solid(color, shape=(30, 60)):
    return np.full((*shape, 3), color, dtype=np.uint8)


def test_mosaic_places_cameras_as_a_driver_would_look():
    yaws = {"rear": np.pi, "front": 0.0, "left": 1.0, "right": -1.0, "rl": 2.2, "rr": -2.2}
    colors = {name: (40 * n + 40, 255 - 40 * n, 128) for n, name in enumerate(yaws)}
    image = np.asarray(
        camera_mosaic(
            [solid(colors[name]) for name in yaws],
            list(yaws),
            yaws_rad=[camera_yaw(looking(yaw)) for yaw in yaws.values()],
            gap_px=0,
        )
    )
    assert image.shape == (60, 180, 3)
    found = [
        [
            next(name for name in yaws if is_color(image[row, column], colors[name], 3))
            for column in (55, 115, 175)
        ]
        for row in (25, 55)
    ]
    assert found == [["left", "front", "right"], ["rl", "rear", "rr"]]


@pytest.mark.parametrize(("count", "size"), [(1, (60, 30)), (3, (192, 30)), (5, (192, 66))])
def test_mosaic_without_directions(count, size):
    images = [solid((9, 9, 9), (15, 30)) for _ in range(count)]
    names = [f"c{n}" for n in range(count)]
    assert camera_mosaic(images, names, panel_px=60).size == size


def test_camera_yaw():
    for yaw in (-3.0, -1.0, 0.0, 0.7, 3.0):
        assert camera_yaw(looking(yaw)) == pytest.approx(yaw)
