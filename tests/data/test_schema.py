import math

import msgspec
import pytest

from fsdtrain.data.schema import (
    CLIP_ID_PATTERN,
    Box3d,
    Clip,
    ClipMeta,
    EgoTrack,
    Labels,
    Pose,
    Rig,
    decode_json,
    encode_json,
    validate_clip,
)
from fsdtrain.errors import DataError


@pytest.fixture(scope="module")
def clip(make_clip) -> Clip:
    return make_clip(num_frames=3)


def changed(value, path: list, new):
    """A copy of nested structs, tuples and dicts with one value replaced."""
    step, rest = path[0], path[1:]
    if isinstance(value, dict):
        return value | {step: changed(value[step], rest, new) if rest else new}
    if isinstance(value, tuple):
        items = list(value)
        items[step] = changed(items[step], rest, new) if rest else new
        return tuple(items)
    return msgspec.structs.replace(
        value, **{step: changed(getattr(value, step), rest, new) if rest else new}
    )


def test_a_good_clip_passes_and_its_parts_survive_json(clip):
    assert validate_clip(clip, where="w") is clip
    for part in (clip.meta, clip.rig, clip.frames, clip.ego, clip.labels):
        assert decode_json(encode_json(part), type(part), where="w") == part


STATE = ["ego", "states", 1]
BOX = ["labels", "boxes", 0, 0]
CAMERA = ["rig", "cameras", "front"]


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (["meta", "version"], 2, "meta.version: is 2, this reader knows 1"),
        (["meta", "clip_id"], "a/b", "meta.clip_id"),
        (["meta", "clip_id"], "", "meta.clip_id"),
        (["meta", "num_frames"], 0, "meta.num_frames: is 0"),
        (["meta", "num_frames"], 4, "frames.reference_ns: has 3 frames"),
        (["meta", "frame_rate_hz"], math.nan, "meta.frame_rate_hz"),
        (["meta", "cameras"], (), "meta.cameras"),
        (["meta", "cameras"], ("front", "front"), "meta.cameras"),
        (["meta", "cameras"], ("front", "Rear"), "meta.cameras: 'Rear'"),
        (["meta", "cameras"], ("front",), "rig.cameras: has camera rear"),
        (["meta", "cameras"], ("front", "rear", "side"), "rig.cameras: lacks camera side"),
        (["meta", "annotations"], ("boxes", "lanes"), "labels.occupancy: is present"),
        (["video"], {"front": b""}, "video: lacks camera rear"),
        ([*CAMERA, "fx"], math.inf, "rig.cameras.front.fx"),
        ([*CAMERA, "fy"], 0.0, "rig.cameras.front.fx/fy"),
        ([*CAMERA, "width"], 1, "rig.cameras.front.width/height"),
        ([*CAMERA, "height"], 20_000, "rig.cameras.front.width/height"),
        ([*CAMERA, "model"], "opencv", "rig.cameras.front.distortion: has 0 values"),
        ([*CAMERA, "distortion"], (math.nan,), "rig.cameras.front.distortion"),
        (
            [*CAMERA, "camera_to_ego", "translation_m"],
            (0.0, math.nan, 0.0),
            "rig.cameras.front.camera_to_ego.translation_m",
        ),
        ([*CAMERA, "camera_to_ego", "rotation_wxyz"], (1.0, 1.0, 0.0, 0.0), "norm 1.41421"),
        (["frames", "reference_ns"], (1, 2), "frames.reference_ns: has 2"),
        (["frames", "camera_ns", "rear", 2], 0, "frames.camera_ns.rear: does not increase"),
        ([*STATE, "ego_to_world", "translation_m", 0], math.nan, "ego.states.1..ego_to_world"),
        ([*STATE, "ego_to_world", "rotation_wxyz"], (0.0,) * 4, "must be a unit quaternion"),
        ([*STATE, "velocity_mps", 2], -math.inf, "ego.states.1..velocity_mps"),
        ([*STATE, "acceleration_mps2", 0], math.nan, "ego.states.1..acceleration_mps2"),
        ([*STATE, "yaw_rate_radps"], math.nan, "ego.states.1..yaw_rate_radps"),
        ([*STATE, "timestamp_ns"], 0, "ego.states: timestamps do not increase"),
        (["ego", "states"], (), "ego.states: is empty"),
        (["labels", "version"], 2, "labels.version"),
        (["labels", "boxes"], (), "labels.boxes: has 0 frames"),
        (["labels", "boxes"], None, "labels.boxes: is missing"),
        ([*BOX, "size_m", 1], 0.0, r"labels.boxes\[0\]\[0\].size_m"),
        ([*BOX, "center_m", 0], math.nan, r"labels.boxes\[0\]\[0\].center_m"),
        ([*BOX, "velocity_mps"], (math.nan, 0.0, 0.0), "velocity_mps"),
        ([*BOX, "visibility"], 1.5, "visibility"),
        ([*BOX, "rotation_wxyz"], (2.0, 0.0, 0.0, 0.0), "norm 2"),
        (["labels", "lanes", 0, "points_m", 1], (0.0, math.inf, 0.0), "labels.lanes.0..points_m"),
        (["labels", "occupancy", "frame_index"], 3, "labels.occupancy.frame_index"),
        (["labels", "occupancy", "shape"], (4, 8, 3), "runs: cover 64 voxels, the shape has 96"),
        (["labels", "occupancy", "shape"], (2**10, 2**10, 2**10), "labels.occupancy.shape"),
        (["labels", "occupancy", "runs", 0, 1], 0, "shorter than one voxel"),
        (["labels", "occupancy", "runs", 0, 0], 2, "outside -1..1"),
        (["labels", "occupancy", "voxel_size_m"], math.nan, "voxel_size_m"),
    ],
)
def test_every_inconsistency_is_named(clip, path, new, message):
    with pytest.raises(DataError, match=message) as error:
        validate_clip(changed(clip, path, new), where="shard s: clip c")
    assert str(error.value).startswith("shard s: clip c: ")


def test_the_ego_track_must_cover_the_frames(clip):
    for states in (clip.ego.states[1:], clip.ego.states[:2]):
        with pytest.raises(DataError, match="ego.states: cover"):
            validate_clip(changed(clip, ["ego", "states"], states), where="w")


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (ClipMeta, b"{}", "missing required field"),
        (ClipMeta, b"[1, 2]", "Expected `object`"),
        (ClipMeta, b"\xff\xfe", "meta"),
        (Pose, b'{"rotation_wxyz": [1, 0, 0], "translation_m": [0, 0, 0]}', "length 4"),
        (Pose, b'{"rotation_wxyz": [1, 0, 0, "0"], "translation_m": [0, 0, 0]}', "Expected `float"),
        (Pose, b'{"rotation_wxyz": [1, 0, 0, NaN], "translation_m": [0, 0, 0]}', "meta"),
        (Rig, b'{"cameras": {}, "extra": 1}', "unknown field `extra`"),
        (EgoTrack, b'{"states": null}', "Expected `array`"),
        (Labels, b'{"schema": "other"}', "Invalid enum value"),
        (Labels, b'{"lanes": [{"kind": "kerb", "points_m": []}]}', "lanes"),
        (Box3d, b'{"category": "cat"}', "category"),
    ],
)
def test_json_is_read_strictly(kind, data, message):
    with pytest.raises(DataError, match=message) as error:
        decode_json(data, kind, where="shard s: clip c: meta")
    assert str(error.value).startswith("shard s: clip c: meta: ")


def test_a_non_finite_number_cannot_hide_in_a_file(clip):
    """JSON has no NaN: it would become null, which the types refuse."""
    bad = changed(clip.ego, ["states", 0, "yaw_rate_radps"], math.nan)
    with pytest.raises(DataError, match=r"yaw_rate_radps"):
        decode_json(encode_json(bad), EgoTrack, where="w")


@pytest.mark.parametrize("name", ["a.b", "a/b", "..", "", "a b", "x" * 129, "\u00e4"])
def test_clip_ids_that_would_break_a_tar_are_refused(name):
    assert not CLIP_ID_PATTERN.fullmatch(name)
