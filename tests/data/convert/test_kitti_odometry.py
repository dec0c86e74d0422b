import numpy as np
import pytest
from PIL import Image

from fsdtrain.data.convert.kitti_odometry import convert_kitti_odometry
from fsdtrain.data.geometry import invert_pose, pose_matrix, project_points
from fsdtrain.data.verify import verify_shards
from fsdtrain.data.video import decode_h264
from fsdtrain.errors import DataError, UserError

NUM_FRAMES = 7
SIZE = (65, 33)
P = np.array([[40.0, 0, 30.0, 0], [0, 42.0, 16.0, 0], [0, 0, 1, 0]])


def words(matrix):
    return " ".join(f"{value:.9e}" for value in np.ravel(matrix))


def camera_pose(n):
    """Camera 0 -> first camera 0: 1.2 m ahead a frame on a left bend, a little uphill."""
    yaw = 0.02 * n
    pose = np.eye(4)[:3]
    # A left turn is about camera y (down) in the negative sense.
    pose[:, :3] = [[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]]
    pose[:, 3] = [-0.01 * n * n, -0.05 * n, 1.2 * n]
    return pose


@pytest.fixture
def drive(tmp_path):
    folder = tmp_path / "07"
    (folder / "image_0").mkdir(parents=True)
    for n in range(NUM_FRAMES):
        Image.new("L", SIZE, 20 * n).save(folder / "image_0" / f"{n:06d}.png")
    (folder / "poses.txt").write_text("\n".join(words(camera_pose(n)) for n in range(NUM_FRAMES)))
    (folder / "calib.txt").write_text(f"P0: {words(P)}\nP1: {words(P)}\n")
    return folder


def test_ego_frame(drive, tmp_path, read_all):
    convert_kitti_odometry(drive, tmp_path / "out", clip_frames=3)
    clips = read_all(tmp_path / "out")

    assert [clip.meta.num_frames for clip in clips] == [3, 3, 1]
    assert {clip.meta.scene for clip in clips} == {"07"}
    assert all(clip.meta.has_ego_motion for clip in clips)
    states = clips[0].ego.states
    assert len(states) == NUM_FRAMES  # the track reaches beyond the clip
    for n, state in enumerate(states):
        # Camera right, down, forward to ego forward, left, up.
        right, down, forward = camera_pose(n)[:, 3]
        # The first ego frame is the world; the ego's origin is 1.65 m below the camera and turns
        # about it in the plane only.
        assert state.ego_to_world.translation_m == pytest.approx((forward, -right, -down), abs=1e-6)
        assert state.yaw_rate_radps == pytest.approx(0.2, abs=1e-6)
    assert states[3].velocity_mps[0] == pytest.approx(12.0, abs=0.1)
    assert clips[1].frames.reference_ns == (300_000_000, 400_000_000, 500_000_000)


def test_points_project_where_the_source_says(drive, tmp_path, read_all):
    """World points through pose and P directly, and through the converted clip."""
    convert_kitti_odometry(drive, tmp_path / "out", clip_frames=NUM_FRAMES)
    (clip,) = read_all(tmp_path / "out")
    rng = np.random.default_rng(4)
    points = rng.uniform((-8, -2, 15), (8, 1, 40), (20, 3))  # in the first camera's frame
    in_world = points[:, [2, 0, 1]] * (1, -1, -1) + (0, 0, 1.65)
    for n in range(NUM_FRAMES):
        pose = np.vstack([camera_pose(n), [0, 0, 0, 1]])
        homogeneous = P @ np.linalg.inv(pose) @ np.vstack([points.T, np.ones(20)])
        expected = (homogeneous[:2] / homogeneous[2]).T + 0.5
        world_to_ego = invert_pose(pose_matrix(clip.ego.states[n].ego_to_world))
        in_ego = in_world @ world_to_ego[:3, :3].T + world_to_ego[:3, 3]
        found, _ = project_points(clip.rig.cameras["front"], in_ego)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_odd_sizes_are_cropped_and_grey_is_kept(drive, tmp_path, read_all):
    convert_kitti_odometry(drive, tmp_path / "out", clip_frames=NUM_FRAMES)
    (clip,) = read_all(tmp_path / "out")
    camera = clip.rig.cameras["front"]
    assert (camera.width, camera.height) == (64, 32)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (40.0, 42.0, 30.5, 16.5)
    frames = decode_h264(clip.video["front"], num_frames=NUM_FRAMES, size=None, where="")
    for n, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - 20 * n).max() <= 3


def test_scaling_takes_the_calibration_along(drive, tmp_path, read_all):
    convert_kitti_odometry(drive, tmp_path / "out", clip_frames=NUM_FRAMES, max_width=40)
    camera = read_all(tmp_path / "out")[0].rig.cameras["front"]
    assert (camera.width, camera.height) == (40, 20)
    np.testing.assert_allclose(
        (camera.fx, camera.fy, camera.cx, camera.cy),
        (40 * 40 / 65, 42 * 20 / 33, 30.5 * 40 / 65, 16.5 * 20 / 33),
    )


def test_the_layout_without_prefixes_and_last_newline(drive, tmp_path, read_all):
    (drive / "calib.txt").write_text(f"{words(P)}\n{words(2 * P)}")
    convert_kitti_odometry(drive, tmp_path / "out")
    assert read_all(tmp_path / "out")[0].rig.cameras["front"].fx == 40.0


def test_the_official_layout(drive, tmp_path, read_all):
    """sequences/07 and poses/07.txt, a colour camera 0.4 m right of camera 0, a file of times."""
    folder = tmp_path / "dataset" / "sequences" / "07"
    folder.parent.mkdir(parents=True)
    drive.rename(folder)
    (folder / "image_0").rename(folder / "image_2")
    (tmp_path / "dataset" / "poses").mkdir()
    (folder / "poses.txt").rename(tmp_path / "dataset" / "poses" / "07.txt")
    shifted = P.copy()
    shifted[0, 3] = -0.4 * P[0, 0]
    (folder / "calib.txt").write_text(f"P0: {words(P)}\nP2: {words(shifted)}\nTr: 1\n")
    (folder / "times.txt").write_text("\n".join(f"{0.103 * n:e}" for n in range(NUM_FRAMES)))

    convert_kitti_odometry(folder, tmp_path / "out")

    (clip,) = read_all(tmp_path / "out")
    position = clip.rig.cameras["front"].camera_to_ego.translation_m
    assert position == pytest.approx((0.0, -0.4, 1.65))
    assert clip.frames.reference_ns[2] == 206_000_000


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("poses.txt", "1 2 3", "line 1: must be 12 finite numbers, has 3"),
        ("poses.txt", words(2 * camera_pose(0)), "line 1: is not a rotation"),
        ("poses.txt", words(camera_pose(0)), "7 images, 1 poses"),
        ("poses.txt", "nan " * 12, "line 1: must be 12 finite"),
        ("calib.txt", "", "no projection of camera 0"),
        ("calib.txt", f"P0: {words(P + 1)}", "not the projection of a rectified camera"),
        ("calib.txt", "P0: one two", "could not convert"),
    ],
)
def test_broken_files_are_named(drive, tmp_path, name, text, problem):
    (drive / name).write_text(text)
    with pytest.raises(DataError, match=problem):
        convert_kitti_odometry(drive, tmp_path / "out")


def test_missing_things_are_named(drive, tmp_path):
    with pytest.raises(UserError, match="no KITTI odometry sequence"):
        convert_kitti_odometry(tmp_path, tmp_path / "out")
    (drive / "image_0" / "000003.png").write_bytes(b"garbage")
    with pytest.raises(DataError, match="000003.png: is not an image"):
        convert_kitti_odometry(drive, tmp_path / "out")
    (drive / "calib.txt").unlink()
    with pytest.raises(DataError, match="calib.txt: cannot be read"):
        convert_kitti_odometry(drive, tmp_path / "out")


def test_the_real_sequence(shared_data, tmp_path, read_all):
    source = shared_data("kitti_odom_51")
    convert_kitti_odometry(source, tmp_path / "out", clip_frames=20, max_width=400)
    assert verify_shards(str(tmp_path / "out")).faults == ()
    clips = read_all(tmp_path / "out")
    assert [clip.meta.num_frames for clip in clips] == [20, 20, 11]

    states = clips[0].ego.states
    track = np.array([state.ego_to_world.translation_m for state in states])
    length = np.hypot(*np.diff(track[:, :2], axis=0).T).sum()
    assert length == pytest.approx(60.0, abs=3.0)
    assert track[-1, 0] == pytest.approx(length, abs=1.0)  # nearly straight ahead
    # Poses survive: where the ground point 1.65 m below the camera went, from the file itself.
    rows = np.loadtxt(source / "poses.txt").reshape(-1, 3, 4)
    ends = [(clip.ego.states[0], first) for clip, first in zip(clips, (0, 20, 40), strict=True)]
    for state, first in ends:
        right, down, forward = rows[first, :, 3] + 1.65 * (rows[first, :, 1] - (0, 1, 0))
        assert state.ego_to_world.translation_m == pytest.approx((forward, -right, -down), abs=1e-6)
    camera = clips[0].rig.cameras["front"]
    assert (camera.width, camera.height) == (400, 120)
    assert camera.fx == pytest.approx(707.0912 * 400 / 1226)
    assert camera.cx == pytest.approx((601.8873 + 0.5) * 400 / 1226)
