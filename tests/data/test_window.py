import math

import msgspec
import numpy as np
import pytest

from fsdtrain.data.geometry import pose_matrix, project_points, yaw_quaternion
from fsdtrain.data.schema import EgoState, EgoTrack, Lane, Pose
from fsdtrain.data.video import decode_h264, encode_h264
from fsdtrain.data.view import cut_view
from fsdtrain.data.window import WindowShape, base_views, cut_window, ego_pose_at
from fsdtrain.errors import DataError, UserError

SHAPE = WindowShape(num_frames=3, image_size=(24, 32))


def test_the_last_window_holds_the_last_frames_at_training_resolution(make_clip):
    clip = make_clip(num_frames=7)
    window = cut_window(clip, SHAPE, where="w")
    assert window.clip_id == clip.meta.clip_id
    assert window.frames.shape == (3, 2, 24, 32, 3)
    assert window.frames.dtype == np.uint8
    for camera, name in enumerate(clip.meta.cameras):
        expected = decode_h264(clip.video[name], num_frames=7, size=(24, 32), where="v")[4:]
        np.testing.assert_array_equal(window.frames[:, camera], expected)
    np.testing.assert_allclose(window.timestamps_s_T, [0.0, 0.1, 0.2], atol=1e-12)
    assert window.boxes == clip.labels.boxes[4:]
    assert window.lanes == clip.labels.lanes
    assert window.occupancy == clip.labels.occupancy


def test_stride_and_start_choose_frames_times_boxes_and_poses(make_clip):
    clip = make_clip(num_frames=9)
    shape = WindowShape(num_frames=3, image_size=(48, 64), frame_stride=2)
    window = cut_window(clip, shape, where="w", first_frame=1)
    stored = decode_h264(clip.video["rear"], num_frames=9, size=None, where="v")
    np.testing.assert_array_equal(window.frames[:, 1], stored[[1, 3, 5]])
    np.testing.assert_allclose(window.timestamps_s_T, [0.0, 0.2, 0.4], atol=1e-12)
    assert window.boxes == tuple(clip.labels.boxes[index] for index in (1, 3, 5))
    for row, index in enumerate((1, 3, 5)):
        expected = pose_matrix(clip.ego.states[index].ego_to_world)
        np.testing.assert_allclose(window.ego_to_world_T44[row], expected, atol=1e-12)
    assert window.occupancy is None  # it belongs to the clip's last frame
    assert window.future_s_F[0] == pytest.approx(0.1)
    assert len(window.future_s_F) == 9 + 20 - 6


def test_kinematics_are_interpolated_between_states(make_clip):
    clip = make_clip(num_frames=2)
    start, end = clip.frames.reference_ns

    def state(timestamp_ns: int, yaw: float, speed: float) -> EgoState:
        return EgoState(
            timestamp_ns=timestamp_ns,
            ego_to_world=Pose(rotation_wxyz=yaw_quaternion(yaw), translation_m=(speed, yaw, 0.0)),
            velocity_mps=(speed, 0.0, 0.0),
            acceleration_mps2=(0.0, 0.0, 0.0),
            yaw_rate_radps=yaw,
        )

    states = (state(start, 0.0, 2.0), state(end - 30, 0.4, 6.0), state(end + 10, 0.8, 10.0))
    clip = msgspec.structs.replace(clip, ego=EgoTrack(states=states))
    window = cut_window(clip, WindowShape(num_frames=2, image_size=(24, 32)), where="w")
    assert window.speed_mps == pytest.approx(9.0)  # three quarters of the way
    assert window.yaw_rate_radps == pytest.approx(0.7)
    last = window.ego_to_world_T44[-1]
    np.testing.assert_allclose(last[:3, 3], [9.0, 0.7, 0.0])
    assert math.atan2(last[1, 0], last[0, 0]) == pytest.approx(0.7)
    np.testing.assert_allclose(window.future_s_F, [1e-8])
    np.testing.assert_array_equal(
        window.future_ego_to_world_F44[0], pose_matrix(states[2].ego_to_world)
    )


def test_without_ego_motion_nothing_moves_and_nothing_is_known(make_clip):
    window = cut_window(make_clip(has_ego_motion=False), SHAPE, where="w", first_frame=0)
    np.testing.assert_array_equal(window.ego_to_world_T44, np.tile(np.eye(4), (3, 1, 1)))
    assert window.speed_mps == window.yaw_rate_radps == 0.0
    assert len(window.future_s_F) == len(window.future_ego_to_world_F44) == 0
    assert window.lanes is None  # they cannot be moved to an earlier frame


def test_unannotated_clips_have_no_labels(make_clip):
    window = cut_window(make_clip(annotations=()), SHAPE, where="w")
    assert (window.boxes, window.lanes, window.occupancy) == (None, None, None)


def test_lanes_stay_where_they_are_in_the_world(make_clip):
    clip = make_clip(num_frames=6)
    early = cut_window(clip, SHAPE, where="w", first_frame=0)
    late = cut_window(clip, SHAPE, where="w")

    def in_world(lane: Lane, pose: np.ndarray) -> np.ndarray:
        points = np.array(lane.points_m)
        return points @ pose[:3, :3].T + pose[:3, 3]

    np.testing.assert_allclose(
        in_world(early.lanes[0], early.ego_to_world_T44[-1]),
        in_world(late.lanes[0], late.ego_to_world_T44[-1]),
        atol=1e-9,
    )
    assert early.lanes[0].points_m[0][0] > 2.5  # three frames at 10 m/s ahead


LENSES = {
    "pinhole": {},
    "opencv": {"model": "opencv", "distortion": (-0.15, 0.03, 0.004, -0.003, 0.001)},
    "opencv_fisheye": {"model": "opencv_fisheye", "distortion": (0.03, -0.01, 0.004, -0.001)},
}


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize(
    "shape",
    [
        WindowShape(num_frames=1, image_size=(96, 128)),
        WindowShape(num_frames=1, image_size=(40, 64)),
        WindowShape(num_frames=1, image_size=(48, 48), crop_top=0.25),
        WindowShape(num_frames=1, image_size=(30, 80), crop_top=0.2, crop_bottom=0.1),
    ],
)
def test_pixels_show_what_the_calibration_says(make_clip, paint_sky, shift_of, lens, shape):
    clip = make_clip(num_frames=1, size=(96, 128), seed=3)
    cameras = {
        name: msgspec.structs.replace(camera, **LENSES[lens])
        for name, camera in clip.rig.cameras.items()
    }
    clip = paint_sky(
        msgspec.structs.replace(clip, rig=msgspec.structs.replace(clip.rig, cameras=cameras))
    )
    window = cut_window(clip, shape, where="w")
    for camera in range(2):
        du, dv, error = shift_of(
            window.frames[0, camera],
            window.intrinsics_N33[camera],
            window.camera_to_ego_N44[camera],
        )
        assert abs(du) < 0.1
        assert abs(dv) < 0.1
        assert error < 5.0


def test_a_straightened_lens_puts_points_where_a_pinhole_would(make_clip):
    """Dots at the distorted projections of known points come out at their pinhole projections."""
    clip = make_clip(num_frames=1, size=(96, 128))
    camera = msgspec.structs.replace(clip.rig.cameras["front"], **LENSES["opencv"])
    pinhole = msgspec.structs.replace(camera, model="pinhole", distortion=())
    points = np.array([[9.0, 4.0, 3.0], [9.0, -3.5, 0.2], [9.0, 2.0, 2.2]])
    distorted, _ = project_points(camera, points)
    straight, _ = project_points(pinhole, points)
    assert np.abs(distorted - straight).max() > 1.0  # so the test tells them apart

    rows, columns = np.mgrid[:96, :128] + 0.5
    picture = sum(230 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 6.0) for u, v in distorted)
    frames = np.repeat(np.minimum(picture, 255)[None, :, :, None], 3, axis=-1).astype(np.uint8)
    stored = decode_h264(
        encode_h264(frames, frame_rate_hz=10.0, crf=4), num_frames=1, size=None, where="v"
    )
    views = base_views(clip, WindowShape(num_frames=1, image_size=(96, 128)))
    seen = cut_view(stored, camera, views["front"])[0, ..., 1].astype(float)
    for u, v in straight:
        near = (np.hypot(columns - u, rows - v) < 6) * np.maximum(seen - 30, 0)
        found = ((near * columns).sum() / near.sum(), (near * rows).sum() / near.sum())
        np.testing.assert_allclose(found, (u, v), atol=0.2)


def test_faults_are_named(make_clip):
    clip = make_clip(num_frames=4)
    with pytest.raises(DataError, match=r"w: meta.num_frames: 4 frames hold no window of 5"):
        cut_window(clip, WindowShape(num_frames=5, image_size=(24, 32)), where="w")
    with pytest.raises(DataError, match="begins at 2"):
        cut_window(clip, SHAPE, where="w", first_frame=2)
    other = make_clip(num_frames=5)
    swapped = msgspec.structs.replace(clip, video=other.video)
    with pytest.raises(DataError, match=r"w: video.front: holds 5 frames"):
        cut_window(swapped, SHAPE, where="w")
    small = msgspec.structs.replace(clip, video=make_clip(num_frames=4, size=(32, 32)).video)
    with pytest.raises(DataError, match=r"w: video.front: frame 0 is 32x32, the calibration says"):
        cut_window(small, SHAPE, where="w")
    for bad in ({"num_frames": 0}, {"frame_stride": 0}, {"image_size": (0, 4)}, {"crop_top": 1.0}):
        with pytest.raises(UserError):
            WindowShape(**({"num_frames": 3, "image_size": (24, 32)} | bad))


def test_poses_outside_the_states_are_never_guessed(make_clip):
    clip = make_clip(num_frames=2)
    at_end = ego_pose_at(clip.ego, clip.ego.states[-1].timestamp_ns)
    np.testing.assert_array_equal(at_end, pose_matrix(clip.ego.states[-1].ego_to_world))
    with pytest.raises(IndexError):
        ego_pose_at(clip.ego, clip.ego.states[-1].timestamp_ns + 1)
