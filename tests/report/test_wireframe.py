import numpy as np
import pytest

from fsdtrain.data.geometry import (
    box_corners,
    invert_pose,
    pose_from_matrix,
    pose_matrix,
    project_points,
    transform_points,
    yaw_quaternion,
)
from fsdtrain.data.schema import Box3d, CameraCalibration
from fsdtrain.report.wireframe import BOX_EDGES, FRONT_FACE, visible_polygon, visible_segments

LENSES = {
    "pinhole": (),
    "opencv": (-0.3, 0.12, 0.001, -0.002, -0.02),
    "opencv_fisheye": (0.05, -0.02, 0.003, -0.001),
}
AHEAD = np.eye(4)
AHEAD[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
AHEAD[2, 3] = 1.5


def camera(model="pinhole"):
    return CameraCalibration(
        model=model,
        fx=60.0,
        fy=62.0,
        cx=50.0,
        cy=31.0,
        distortion=LENSES[model],
        camera_to_ego=pose_from_matrix(AHEAD),
        width=100,
        height=60,
    )


def sampled(start, end, count=4001):
    return start + np.linspace(0, 1, count)[:, None] * (end - start)


def distance_to_segments(points, segments):
    """[P] distance of points [P, 2] to the nearest of segments [S, 2, 2]."""
    start, step = segments[:, 0], segments[:, 1] - segments[:, 0]
    square = np.maximum((step**2).sum(-1), 1e-12)
    t = np.clip(((points[:, None] - start) * step).sum(-1) / square, 0, 1)
    return np.linalg.norm(points[:, None] - (start + t[..., None] * step), axis=-1).min(axis=1)


@pytest.mark.parametrize("model", LENSES)
@pytest.mark.parametrize("seed", range(40))
def test_segments_are_what_dense_points_project_to(model, seed):
    """Any line, also through and behind the camera: against projecting thousands of its points."""
    rng = np.random.default_rng([seed, 21])
    start, end = rng.uniform((-20, -20, -3), (30, 20, 5), (2, 3))
    lens = camera(model)
    segments = visible_segments(lens, start[None], end[None])

    points = sampled(start, end)
    uv, _ = project_points(lens, points)
    in_camera = transform_points(invert_pose(pose_matrix(lens.camera_to_ego)), points)
    # Where a lens polynomial folds back is outside any image: only the sane field is compared.
    angle = np.arctan2(np.hypot(in_camera[:, 0], in_camera[:, 1]), in_camera[:, 2])
    in_field = (in_camera[:, 2] > 0.25) & (angle < 1.0)
    inside = in_field & (uv > -10).all(1) & (uv < (110, 70)).all(1)
    if inside.any():
        assert len(segments)
        assert distance_to_segments(uv[inside], segments).max() < 1.0
    assert np.isfinite(segments).all()
    assert (segments >= (-51, -31)).all()
    assert (segments <= (151, 91)).all()
    # Nothing is drawn where the line is not seen.
    if not inside.any() and len(segments) and model == "pinhole":
        assert not ((segments > 1).all(-1) & (segments < (99, 59)).all(-1)).any()


def test_lines_behind_the_camera_and_points_vanish():
    lens = camera()
    behind = np.array([[-5.0, -3.0, 1.0], [-1.0, 3.0, 1.0]])
    assert visible_segments(lens, behind[:1], behind[1:]).shape == (0, 2, 2)
    assert visible_segments(lens, np.empty((0, 3)), np.empty((0, 3))).shape == (0, 2, 2)


def box(**changes):
    values = {
        "category": "car",
        "track_id": "1",
        "center_m": (12.0, 0.0, 0.8),
        "size_m": (4.0, 2.0, 1.6),
        "rotation_wxyz": yaw_quaternion(0.4),
    }
    return Box3d(**(values | changes))


def test_edges_and_front_face_of_a_box():
    corners = box_corners(box())
    lengths = np.linalg.norm(corners[BOX_EDGES[:, 0]] - corners[BOX_EDGES[:, 1]], axis=1)
    assert sorted(lengths.round(6)) == [1.6] * 4 + [2.0] * 4 + [4.0] * 4
    heading = np.array([np.cos(0.4), np.sin(0.4), 0])
    middle = corners[list(FRONT_FACE)].mean(axis=0)
    np.testing.assert_allclose(middle, np.array([12.0, 0.0, 0.8]) + 2.0 * heading)


@pytest.mark.parametrize(
    ("center", "is_seen"),
    [((12.0, 0.0, 0.8), True), ((-9.0, 0.0, 0.8), False), ((0.0, 0, 0.8), False)],
)
def test_a_polygon_is_whole_or_nothing(center, is_seen):
    corners = box_corners(box(center_m=center))
    polygon = visible_polygon(camera(), corners)
    if is_seen:
        np.testing.assert_allclose(polygon, project_points(camera(), corners)[0])
    else:
        assert polygon is None
