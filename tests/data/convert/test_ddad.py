"""The DGP converter against a data set whose geometry is known, and against DDAD's own boxes.

DDAD gives every box a second time, in each camera's frame: nothing of that is read by the
converter, so that it checks frames, extrinsics and moments independently.
"""

import json

import numpy as np
import pytest

from fsdtrain.data.convert.ddad import convert_ddad
from fsdtrain.data.convert.dgp import parse_timestamp_ns
from fsdtrain.data.geometry import (
    invert_pose,
    pose_matrix,
    project_points,
    rotation_matrix,
    transform_points,
)
from fsdtrain.data.verify import verify_shards
from fsdtrain.data.video import decode_h264
from fsdtrain.errors import DataError, UserError


def convert_mini(mini_dgp, tmp_path, read_all, **options):
    source = mini_dgp.write(tmp_path / "source")
    convert_ddad(source, tmp_path / "out", **options)
    (clip,) = read_all(tmp_path / "out")
    return clip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("2019-06-27T14:30:25.002790Z", 1_561_645_825_002_790_000),
        ("2019-06-27T14:30:25.5Z", 1_561_645_825_500_000_000),
        ("2019-06-27T14:30:25.000000001Z", 1_561_645_825_000_000_001),
        # DDAD's ten-fold clock: the same moment as file 15616458250027900.npz says.
        ("2464-11-12T01:04:10.027900Z", 1_561_645_825_002_790_000),
    ],
)
def test_timestamps(text, expected):
    assert parse_timestamp_ns(text, where="here") == expected


@pytest.mark.parametrize(
    "text", ["", "2019-06-27 14:30:25Z", "2019-06-27T14:30:25", "2019-13-27T14:30:25Z"]
)
def test_bad_timestamps(text):
    with pytest.raises(DataError, match="here: timestamp"):
        parse_timestamp_ns(text, where="here")


def test_ego_frame_and_kinematics(mini_dgp, tmp_path, read_all):
    clip = convert_mini(mini_dgp, tmp_path, read_all)

    assert clip.meta.cameras == ("camera_01", "camera_02")
    assert clip.meta.frame_rate_hz == 10.0
    assert clip.frames.reference_ns == clip.frames.camera_ns["camera_02"]
    assert clip.frames.reference_ns[0] == 1_561_645_825_020_000_000
    for name, expected in mini_dgp.CAMERA_TO_VEHICLE.items():
        found = pose_matrix(clip.rig.cameras[name.lower()].camera_to_ego)
        # The vehicle's origin was 0.3 m above the ground, the ego's lies on it.
        above_ground = expected.copy()
        above_ground[2, 3] -= mini_dgp.GROUND_M
        np.testing.assert_allclose(found, above_ground, atol=0.01)
    for number, state in enumerate(clip.ego.states):
        moment = number * mini_dgp.PERIOD_S + mini_dgp.LAG_S
        vehicle = mini_dgp.vehicle_to_world(moment)
        ego = pose_matrix(state.ego_to_world)
        np.testing.assert_allclose(ego[:3, :3], vehicle[:3, :3], atol=1e-9)
        np.testing.assert_allclose(
            ego[:3, 3], vehicle[:3, 3] + [0, 0, mini_dgp.GROUND_M], atol=0.01
        )
        np.testing.assert_allclose(state.velocity_mps, [10, 0, 0], atol=1e-6)
        assert state.yaw_rate_radps == pytest.approx(0, abs=1e-9)


def test_boxes_stand_where_they_are_at_the_cameras_moment(mini_dgp, tmp_path, read_all):
    clip = convert_mini(mini_dgp, tmp_path, read_all)

    assert [len(boxes) for boxes in clip.labels.boxes] == [2, 3, 2]
    for number, boxes in enumerate(clip.labels.boxes):
        moment = number * mini_dgp.PERIOD_S + mini_dgp.LAG_S
        ego_to_world = pose_matrix(clip.ego.states[number].ego_to_world)
        for box in boxes:
            track = int(box.track_id)
            expected = mini_dgp.box_to_world(track, moment)
            np.testing.assert_allclose(
                transform_points(ego_to_world, np.array(box.center_m)), expected[:3, 3], atol=1e-6
            )
            np.testing.assert_allclose(
                ego_to_world[:3, :3] @ rotation_matrix(box.rotation_wxyz),
                expected[:3, :3],
                atol=1e-6,
            )
            assert box.size_m == mini_dgp.BOX_SIZE
            assert box.category == ("pedestrian" if track == 3 else "bus")
            # Box 2 drives along world y, which is the ego's forward; box 3 is seen once.
            velocity = {1: (0, 0, 0), 2: (5, 0, 0), 3: None}[track]
            assert box.velocity_mps == (
                None if velocity is None else pytest.approx(velocity, abs=1e-5)
            )


def test_images_and_calibration_scale_together(mini_dgp, tmp_path, read_all):
    clip = convert_mini(mini_dgp, tmp_path, read_all, max_width=33)
    camera = clip.rig.cameras["camera_01"]
    assert (camera.width, camera.height) == (32, 24)
    # Half the size of the source; its pixel centres were whole numbers.
    assert (camera.fx, camera.fy) == (25.0, 27.5)
    assert (camera.cx, camera.cy) == (31.5 / 2, 23.5 / 2)
    frames = decode_h264(
        clip.video["camera_01"], num_frames=3, size=None, where="", stored_size=(24, 32)
    )
    for number, frame in enumerate(frames):
        assert np.abs(frame.mean(axis=(0, 1)) - (40 * number, 80, 120)).max() < 4


def test_without_lidar_ground_the_origin_stays(mini_dgp, tmp_path, read_all):
    mini_dgp.points = mini_dgp.points[:100]
    clip = convert_mini(mini_dgp, tmp_path, read_all)
    assert clip.rig.cameras["camera_02"].camera_to_ego.translation_m[2] == pytest.approx(1.2)


def test_a_camera_that_misses_a_sample_is_left_out(mini_dgp, tmp_path, read_all):
    mini_dgp.scene()["samples"][1]["datum_keys"].remove("CAMERA_01-1")
    assert convert_mini(mini_dgp, tmp_path, read_all).meta.cameras == ("camera_02",)


def test_a_scene_with_an_unannotated_sample_has_no_boxes(mini_dgp, tmp_path, read_all):
    mini_dgp.scene()["data"][0]["datum"]["point_cloud"]["annotations"] = {}
    clip = convert_mini(mini_dgp, tmp_path, read_all)
    assert clip.labels.boxes is None
    assert clip.meta.annotations == ()


def damage(change):
    return lambda mini: change(mini.scene(), mini.calibration())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (damage(lambda scene, _: scene["samples"].clear()), "no samples"),
        (damage(lambda scene, _: scene["data"].pop(4)), "names no datum CAMERA_02-1"),
        (damage(lambda scene, _: scene["data"][0].pop("id")), "missing required field `id`"),
        (
            damage(lambda scene, _: scene["data"][1]["id"].update(timestamp="noon")),
            "timestamp 'noon'",
        ),
        (
            damage(lambda scene, _: scene["samples"][2].update(calibration_key="d")),
            "has 2 calibrations",
        ),
        (damage(lambda _, table: table["names"].pop()), "must be as many"),
        (damage(lambda _, table: table["names"].__setitem__(1, "CAMERA_77")), "no sensor"),
        (damage(lambda _, table: table["intrinsics"][1].update(k1=0.1)), "distortion"),
        (
            damage(lambda _, table: table["extrinsics"][1]["rotation"].update(qw=9.0)),
            "not a rigid transform",
        ),
        (
            lambda mini: mini.documents.pop("scene_00/boxes/1.json"),
            "1.json: cannot be read: No such file",
        ),
        (
            lambda mini: mini.documents["scene_00/ontology/o.json"]["items"].pop(),
            "class id 2",
        ),
    ],
)
def test_broken_scenes_are_named(mini_dgp, tmp_path, change, problem):
    change(mini_dgp)
    source = mini_dgp.write(tmp_path / "source")
    with pytest.raises(DataError, match=problem):
        convert_ddad(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [("CAMERA_01-2.png", "CAMERA_01-2.png"), ("LIDAR-1.npz", "LIDAR-1.npz")],
)
@pytest.mark.parametrize("body", [None, b"", b"garbage", 60])
def test_broken_files_are_named(mini_dgp, tmp_path, name, problem, body):
    path = mini_dgp.write(tmp_path / "source") / "scene_00" / name
    if body is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:body] if isinstance(body, int) else body)
    with pytest.raises(DataError, match=problem):
        convert_ddad(tmp_path / "source", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_scene_cut_into_single_samples_keeps_everything(mini_dgp, tmp_path, read_all):
    whole = convert_mini(mini_dgp, tmp_path, read_all)
    convert_ddad(tmp_path / "source", tmp_path / "cut", clip_frames=1)
    parts = list(read_all(tmp_path / "cut"))
    assert len({part.meta.clip_id for part in parts}) == whole.meta.num_frames
    assert {part.meta.scene for part in parts} == {whole.meta.scene}
    assert tuple(part.labels.boxes[0] for part in parts) == whole.labels.boxes
    assert tuple(part.frames.reference_ns[0] for part in parts) == whole.frames.reference_ns
    assert all(part.ego == whole.ego and part.rig == whole.rig for part in parts)


def test_wrong_arguments(mini_dgp, tmp_path):
    source = mini_dgp.write(tmp_path / "source")
    with pytest.raises(UserError, match="no split 'val'; it has train"):
        convert_ddad(source, tmp_path / "out", split="val")
    with pytest.raises(UserError, match="has no scene scene_99; it has scene_00"):
        convert_ddad(source, tmp_path / "out", scenes=["scene_99"])
    with pytest.raises(UserError, match="clip_frames=9: .* has [0-9]+ samples"):
        convert_ddad(source, tmp_path / "out", clip_frames=9)
    with pytest.raises(UserError, match="holds 0 files"):
        convert_ddad(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def ddad(shared_data, tmp_path_factory, read_all):
    out = tmp_path_factory.mktemp("ddad")
    convert_ddad(shared_data("ddad_dgp_2scenes"), out, max_width=480, clips_per_shard=1)
    return {clip.meta.scene: clip for clip in read_all(out)}, out


def test_ddad_shards_are_whole(ddad):
    clips, out = ddad
    assert verify_shards(str(out)).faults == ()
    assert {scene: len(clip.meta.cameras) for scene, clip in clips.items()} == {
        "scene_01": 3,
        "scene_02": 6,
    }
    for clip in clips.values():
        assert clip.meta.frame_rate_hz == pytest.approx(10.0, abs=0.1)
        for camera in clip.rig.cameras.values():
            assert (camera.width, camera.height) == (480, 302)


def test_ddad_ego_frame(ddad):
    """Axes and origin, from what must hold of a car on a road."""
    clips, _ = ddad
    for clip in clips.values():
        front = pose_matrix(clip.rig.cameras["camera_01"].camera_to_ego)
        np.testing.assert_allclose(front[:3, 2], [1, 0, 0], atol=0.08)  # looks ahead
        np.testing.assert_allclose(front[:3, 1], [0, 0, -1], atol=0.08)  # upright
        # Two cars of one make: only above the ground are their cameras equally high.
        assert front[2, 3] == pytest.approx(1.45, abs=0.05)
        left = pose_matrix(clip.rig.cameras["camera_05"].camera_to_ego)
        assert left[1, 2] > 0.5
        assert left[1, 3] > 0.3
    forward, left, up = np.mean(
        [state.velocity_mps for state in clips["scene_02"].ego.states], axis=0
    )
    assert 12 < forward < 14
    assert abs(left) < 0.01
    assert abs(up) < 0.05


@pytest.mark.parametrize("scene", ["scene_01", "scene_02"])
def test_boxes_agree_with_those_annotated_per_camera(ddad, shared_data, scene):
    clip = ddad[0][scene]
    folder = shared_data("ddad_dgp_2scenes") / scene
    (scene_file,) = folder.glob("scene_*.json")
    document = json.loads(scene_file.read_text())
    data = {datum["key"]: datum for datum in document["data"]}
    num_compared = 0
    for frame, sample in enumerate(document["samples"]):
        ours = {box.track_id: box for box in clip.labels.boxes[frame]}
        images = [data[key] for key in sample["datum_keys"] if "image" in data[key]["datum"]]
        lidar_ns = parse_timestamp_ns(sample["id"]["timestamp"], where="")
        lag_s = (clip.frames.reference_ns[frame] - lidar_ns) / 1e9
        for datum in images:
            image = datum["datum"]["image"]
            theirs = json.loads((folder / image["annotations"]["1"]).read_text())["annotations"]
            camera = clip.rig.cameras[datum["id"]["name"].lower()]
            ego_to_camera = invert_pose(pose_matrix(camera.camera_to_ego))
            for annotation in theirs:
                box = ours[str(annotation["instance_id"])]
                place = annotation["box"]["pose"]["translation"]
                expected = np.array([place["x"], place["y"], place["z"]])
                # Theirs stays at the lidar's moment, ours has moved on with its velocity.
                center = np.array(box.center_m) - np.array(box.velocity_mps) * lag_s
                found = transform_points(ego_to_camera, center)
                # Each camera's datum has a pose of its own, millimetres and 0.3 mrad from ours.
                tolerance_m = 0.02 + 4e-4 * np.linalg.norm(expected)
                assert np.linalg.norm(found - expected) < tolerance_m, datum["id"]["name"]
                # And in pixels, by the source's own camera matrix, its images being 1936 wide.
                (u, v), _ = project_points(camera, center)
                x, y = source_pixel(folder, datum["id"]["name"], expected)
                if -480 < u < 960:
                    scale = np.array([480 / 1936, 302 / 1216])
                    assert np.abs((u, v) - np.array([x + 0.5, y + 0.5]) * scale).max() < 1.0
                num_compared += 1
    assert num_compared > 30


def source_pixel(folder, name, point):
    (path,) = (folder / "calibration").glob("*.json")
    table = json.loads(path.read_text())
    lens = table["intrinsics"][table["names"].index(name)]
    x, y, z = point
    return lens["fx"] * x / z + lens["cx"], lens["fy"] * y / z + lens["cy"]


def test_ddad_traffic_moves_as_traffic_does(ddad):
    """The ten-fold clock again: with it, all cars of scene_01 would crawl below 6 km/h."""
    boxes = ddad[0]["scene_01"].labels.boxes[1]
    speeds = np.array([np.hypot(*box.velocity_mps[:2]) for box in boxes if box.velocity_mps])
    moving = speeds[speeds > 1.0]
    assert len(moving) >= 15
    assert 8 < np.median(moving) < 16
    assert moving.max() < 20
