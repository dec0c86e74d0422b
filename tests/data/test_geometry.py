import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from fsdtrain.data.geometry import (
    BevGrid,
    box_corners,
    interpolate_pose,
    intrinsic_matrix,
    invert_pose,
    pose_from_matrix,
    pose_matrices,
    pose_matrix,
    project_points,
    quaternion_from_matrix,
    resize_camera,
    rotation_matrix,
    transform_points,
    yaw_of,
    yaw_quaternion,
)
from fsdtrain.data.schema import Box3d, CameraCalibration, Pose

# Camera x (right) is ego -y, camera y (down) is ego -z, camera z (forward) is ego x.
FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def camera_at(position, rotation=FORWARD, **changes) -> CameraCalibration:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, position
    camera = CameraCalibration(
        model="pinhole",
        fx=500.0,
        fy=400.0,
        cx=320.0,
        cy=240.0,
        camera_to_ego=pose_from_matrix(pose),
        width=640,
        height=480,
    )
    return msgspec.structs.replace(camera, **changes)


def random_rotation(seed: int) -> Rotation:
    return Rotation.random(rng=np.random.default_rng(seed))


@given(st.integers(0, 10_000))
def test_quaternions_agree_with_scipy(seed):
    rotation = random_rotation(seed)
    w, x, y, z = np.roll(rotation.as_quat(), 1)
    np.testing.assert_allclose(rotation_matrix((w, x, y, z)), rotation.as_matrix(), atol=1e-12)
    back = np.array(quaternion_from_matrix(rotation.as_matrix()))
    assert back[0] >= 0
    np.testing.assert_allclose(back * np.sign(back[0] * w or 1), [w, x, y, z], atol=1e-9)


@pytest.mark.parametrize("degrees", [0.0, 90.0, 179.99, 180.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quaternions_of_half_turns(axis, degrees):
    """The trace vanishes or is negative here: the other branches of Shepperd's method."""
    rotation = Rotation.from_rotvec(np.radians(degrees) * np.eye(3)[axis]).as_matrix()
    again = rotation_matrix(quaternion_from_matrix(rotation))
    np.testing.assert_allclose(again, rotation, atol=1e-12)


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1))
def test_interpolation_agrees_with_slerp(first, second, fraction):
    rotations = [random_rotation(first), random_rotation(second)]
    poses = [
        Pose(
            rotation_wxyz=tuple(map(float, np.roll(rotation.as_quat(), 1))),
            translation_m=(float(i), 2.0 - i, 5.0 * i),
        )
        for i, rotation in enumerate(rotations)
    ]
    found = interpolate_pose(*poses, fraction)
    expected = Slerp([0, 1], Rotation.concatenate(rotations))(fraction).as_matrix()
    np.testing.assert_allclose(found[:3, :3], expected, atol=1e-6)
    np.testing.assert_allclose(found[:3, 3], [fraction, 2 - fraction, 5 * fraction], atol=1e-12)


def test_poses_compose_and_invert():
    rng = np.random.default_rng(0)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = random_rotation(4).as_matrix(), rng.normal(size=3)
    np.testing.assert_allclose(invert_pose(matrix), np.linalg.inv(matrix), atol=1e-12)
    np.testing.assert_allclose(pose_matrix(pose_from_matrix(matrix)), matrix, atol=1e-12)
    poses = [pose_from_matrix(matrix), pose_from_matrix(invert_pose(matrix))]
    np.testing.assert_allclose(
        pose_matrices(poses), np.stack([pose_matrix(pose) for pose in poses]), atol=1e-15
    )
    assert pose_matrices([]).shape == (0, 4, 4)
    points = rng.normal(size=(2, 5, 3))
    expected = [[(matrix @ np.append(p, 1))[:3] for p in row] for row in points]
    np.testing.assert_allclose(transform_points(matrix, points), expected, atol=1e-12)


def test_yaw_turns_left_for_positive_angles():
    matrix = rotation_matrix(yaw_quaternion(np.pi / 2))
    np.testing.assert_allclose(matrix @ [1, 0, 0], [0, 1, 0], atol=1e-12)  # forward becomes left
    assert yaw_of(matrix) == pytest.approx(np.pi / 2)


def test_ego_directions_in_the_image_of_a_forward_camera():
    """x forward, y left, z up; u right, v down."""
    camera = camera_at((1.5, 0.0, 1.6))
    ahead = np.array([11.5, 0.0, 1.6])
    uv, depth = project_points(camera, ahead)
    np.testing.assert_allclose(uv, [320.0, 240.0])
    assert depth == pytest.approx(10.0)
    left, _ = project_points(camera, ahead + [0, 1, 0])
    up, _ = project_points(camera, ahead + [0, 0, 1])
    np.testing.assert_allclose(left, [320.0 - 50.0, 240.0])  # fx / depth = 50 pixels a metre
    np.testing.assert_allclose(up, [320.0, 240.0 - 40.0])
    behind, depth = project_points(camera, np.array([-10.0, 0.0, 1.6]))
    assert depth < 0
    assert np.isnan(behind).all()


@pytest.mark.parametrize(
    ("yaw_degrees", "point"), [(90.0, (0, 8, 1)), (-90.0, (0, -8, 1)), (180.0, (-8, 0, 1))]
)
def test_cameras_that_look_sideways_see_what_is_there(yaw_degrees, point):
    turned = rotation_matrix(yaw_quaternion(np.radians(yaw_degrees))) @ FORWARD
    uv, depth = project_points(camera_at((0.0, 0.0, 1.0), turned), np.array(point, dtype=float))
    np.testing.assert_allclose(uv, [320.0, 240.0], atol=1e-9)
    assert depth == pytest.approx(8.0)


def test_projection_is_the_matrix_product():
    camera = camera_at((1.0, -0.3, 1.2), random_rotation(7).as_matrix())
    points = np.random.default_rng(1).normal(size=(100, 3)) * 10
    uv, depth = project_points(camera, points)
    in_camera = (points - (1.0, -0.3, 1.2)) @ random_rotation(7).as_matrix()
    homogeneous = in_camera @ intrinsic_matrix(camera).T
    front = in_camera[:, 2] > 1e-6
    np.testing.assert_allclose(depth, in_camera[:, 2])
    np.testing.assert_allclose(uv[front], (homogeneous[:, :2] / homogeneous[:, 2:])[front])


def test_distortion_models_by_hand():
    point = np.array([2.0, -0.6, 1.4])  # ego; the camera sees x = 0.3, y = -0.2
    lens = {"model": "opencv", "distortion": (0.1, -0.05, 0.01, -0.02, 0.003)}
    uv, _ = project_points(camera_at((0.0, 0.0, 1.0), **lens), point)
    x, y, r2 = 0.3, -0.2, 0.13
    radial = 1 + 0.1 * r2 - 0.05 * r2**2 + 0.003 * r2**3
    distorted_x = x * radial + 2 * 0.01 * x * y - 0.02 * (r2 + 2 * x * x)
    distorted_y = y * radial + 0.01 * (r2 + 2 * y * y) - 2 * 0.02 * x * y
    np.testing.assert_allclose(uv, [320 + 500 * distorted_x, 240 + 400 * distorted_y])

    # Without coefficients a fisheye is equidistant: the image radius is the angle.
    lens = {"model": "opencv_fisheye", "distortion": (0.0, 0.0, 0.0, 0.0), "fy": 500.0}
    uv, _ = project_points(camera_at((0.0, 0.0, 1.0), **lens), np.array([1.0, -1.0, 1.0]))
    np.testing.assert_allclose(uv, [320 + 500 * np.pi / 4, 240])
    uv, _ = project_points(camera_at((0.0, 0.0, 1.0), **lens), np.array([3.0, 0.0, 1.0]))
    np.testing.assert_allclose(uv, [320, 240])
    lens["distortion"] = (0.1, 0.02, -0.01, 0.004)
    uv, _ = project_points(camera_at((0.0, 0.0, 1.0), **lens), np.array([1.0, -1.0, 1.0]))
    t = np.pi / 4
    theta = t + 0.1 * t**3 + 0.02 * t**5 - 0.01 * t**7 + 0.004 * t**9
    np.testing.assert_allclose(uv, [320 + 500 * theta, 240])


def test_resizing_the_image_scales_where_points_fall():
    for lens in (
        {},
        {"model": "opencv", "distortion": (0.1, -0.05, 0.01, -0.02, 0.003)},
        {"model": "opencv_fisheye", "distortion": (0.1, 0.02, -0.01, 0.004)},
    ):
        camera = camera_at((0.0, 0.0, 1.0), **lens)
        points = np.random.default_rng(2).uniform((3, -2, 0), (9, 2, 3), size=(20, 3))
        uv, _ = project_points(camera, points)
        small, _ = project_points(resize_camera(camera, width=160, height=240), points)
        np.testing.assert_allclose(small, uv * [0.25, 0.5])


def test_box_corners_go_round_the_box():
    box = Box3d(
        category="car",
        track_id="a",
        center_m=(10.0, 2.0, 0.8),
        size_m=(4.0, 2.0, 1.6),
        rotation_wxyz=yaw_quaternion(np.pi / 2),
    )
    corners = box_corners(box)
    # Facing left: the front left corner lies towards +y and -x.
    np.testing.assert_allclose(corners[0], [9.0, 4.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(corners[4:] - corners[:4], [[0, 0, 1.6]] * 4, atol=1e-12)
    around = np.roll(corners[:4], -1, axis=0) - corners[:4]
    turns = np.cross(around, np.roll(around, -1, axis=0))[:, 2]
    assert (turns > 0).all()  # counter-clockwise


def test_bev_cells():
    grid = BevGrid(x_min_m=-10.0, x_max_m=30.0, y_min_m=-8.0, y_max_m=8.0, cell_m=0.5)
    assert grid.shape == (80, 32)
    centers = grid.cell_centers()
    assert centers.shape == (80, 32, 2)
    np.testing.assert_allclose(centers[0, 0], [-9.75, -7.75])
    np.testing.assert_allclose(centers[79, 0], [29.75, -7.75])  # i runs forward
    np.testing.assert_allclose(centers[0, 31], [-9.75, 7.75])  # j runs to the left
