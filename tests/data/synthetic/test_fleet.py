"""Whole sets on disk: reproducible, all or nothing, made once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from fsdtrain.data import video
from fsdtrain.data.geometry import interpolate_pose, pose_matrix
from fsdtrain.data.schema import Clip, encode_json, validate_clip
from fsdtrain.data.shard import find_shards, read_clip, read_index
from fsdtrain.data.synthetic import fleet as fleet_module
from fsdtrain.data.synthetic import scene_clip
from fsdtrain.data.synthetic.fleet import SyntheticFleet, cached_fleet, fleet_digest, make_fleet
from fsdtrain.data.synthetic.world import Split
from fsdtrain.errors import UserError

TINY = SyntheticFleet(
    num_train_scenes=5,
    num_val_scenes=2,
    num_cameras=2,
    image_height=32,
    image_width=48,
    frames_per_clip=3,
    clips_per_shard=3,
    samples=1,
)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet") / "set"
    make_fleet(TINY, folder, progress=False, num_processes=1)
    return folder


def test_the_bytes_do_not_depend_on_the_number_of_processes(made: Path, tmp_path: Path) -> None:
    make_fleet(TINY, tmp_path / "set", progress=False, num_processes=2)
    assert _bytes(tmp_path / "set") == _bytes(made)


def test_a_set_is_shards_of_both_splits_that_read_back(made: Path) -> None:
    assert [Path(path).name for path in find_shards(str(made / "train"))] == [
        "train-000000.tar",
        "train-000001.tar",
    ]
    scenes: dict[str, set[str]] = {}
    for split, count in (("train", 5), ("val", 2)):
        entries = [
            (shard, entry)
            for shard in find_shards(str(made / split))
            for entry in read_index(shard).clips
        ]
        assert len(entries) == count
        scenes[split] = {entry.scene for _, entry in entries}
        clip = read_clip(*entries[-1])
        assert clip.meta.split == split
        assert clip.meta.source == "synthetic"
        for camera, data in clip.video.items():
            frames = video.decode_h264(data, num_frames=3, size=None, where=camera)
            assert frames.shape == (3, 32, 48, 3)
    assert len(scenes["train"]) == 5
    assert not scenes["train"] & scenes["val"]


def test_video_shows_what_was_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[list[np.ndarray]] = []
    encode = video.encode_h264

    def keep(frames: list[np.ndarray], *, frame_rate_hz: float, crf: int) -> bytes:
        rendered.append(frames)
        return encode(frames, frame_rate_hz=frame_rate_hz, crf=crf)

    monkeypatch.setattr(scene_clip, "encode_h264", keep)
    spec = replace(TINY, image_height=48, image_width=96, rig_jitter=0.0).clip_spec
    clip = scene_clip.make_clip(spec, "val", 0)
    for (camera, data), frames in zip(clip.video.items(), rendered, strict=True):
        decoded = video.decode_h264(data, num_frames=3, size=None, where=camera)
        error = decoded.astype(np.float64) - np.array(frames)
        assert np.sqrt((error**2).mean()) < 9.0


def test_a_clip_follows_its_own_ego_track() -> None:
    clip = scene_clip.make_clip(TINY.clip_spec, "train", 4)
    validate_clip(clip, where="test")
    states = clip.ego.states
    assert states[0].timestamp_ns == clip.frames.reference_ns[0]
    assert states[-1].timestamp_ns >= clip.frames.reference_ns[-1] + 3_000_000_000
    for before, here, after in zip(states, states[1:], states[2:], strict=False):
        seconds = (after.timestamp_ns - before.timestamp_ns) / 1e9
        moved = np.subtract(after.ego_to_world.translation_m, before.ego_to_world.translation_m)
        to_world = pose_matrix(here.ego_to_world)[:3, :3]
        assert to_world @ here.velocity_mps == pytest.approx(moved / seconds, abs=0.2)
        gained = pose_matrix(after.ego_to_world)[:3, :3] @ after.velocity_mps
        gained = gained - pose_matrix(before.ego_to_world)[:3, :3] @ before.velocity_mps
        assert to_world @ here.acceleration_mps2 == pytest.approx(gained / seconds, abs=1e-3)
        # Half of the turn lies half-way.
        middle = interpolate_pose(before.ego_to_world, after.ego_to_world, 0.5)
        assert middle[:2, :2] == pytest.approx(to_world[:2, :2], abs=0.02)


def _fail_on(bad: int, error: BaseException) -> object:
    make = scene_clip.make_clip

    def make_or_fail(spec: scene_clip.ClipSpec, split: Split, index: int) -> Clip:
        if split == "train" and index == bad:
            raise error
        return make(spec, split, index)

    return make_or_fail


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("out of something")])
def test_an_interrupted_set_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(fleet_module, "make_clip", _fail_on(3, error))
    with pytest.raises(type(error)):
        make_fleet(TINY, tmp_path / "set", progress=False, num_processes=1)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_makes_a_set_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    small = replace(TINY, num_train_scenes=1, num_val_scenes=1, num_cameras=1)
    paths = cached_fleet(small, progress=False, num_processes=1)
    assert paths.train.parent == tmp_path / "fsdtrain" / "fleets" / fleet_digest(small)
    first = _bytes(paths.train.parent)

    def refuse(*_: object) -> None:
        raise AssertionError("made twice")

    with monkeypatch.context() as patch:
        patch.setattr(fleet_module, "make_clip", refuse)
        assert cached_fleet(small, progress=False) == paths
    assert _bytes(paths.train.parent) == first
    assert [path.name for path in paths.train.parent.parent.iterdir()] == [fleet_digest(small)]


def test_two_makers_of_one_cached_set_keep_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    small = replace(TINY, num_train_scenes=1, num_val_scenes=1, num_cameras=1)
    make = fleet_module._write_splits

    def be_overtaken(*arguments: object) -> None:
        make(*arguments)  # type: ignore[arg-type]  # passed through
        monkeypatch.setattr(fleet_module, "_write_splits", make)
        cached_fleet(small, progress=False, num_processes=1)

    monkeypatch.setattr(fleet_module, "_write_splits", be_overtaken)
    paths = cached_fleet(small, progress=False, num_processes=1)
    assert len(find_shards(str(paths.val))) == 1
    assert [path.name for path in paths.train.parent.parent.iterdir()] == [fleet_digest(small)]


def test_every_parameter_changes_the_digest() -> None:
    digests = {fleet_digest(SyntheticFleet())}
    changes: dict[str, float] = {
        "num_train_scenes": 3, "num_val_scenes": 3, "seed": 5, "num_cameras": 3,
        "image_height": 64, "image_width": 64, "fov_deg": 70.0, "rig_jitter": 0.5,
        "frames_per_clip": 4, "frame_rate_hz": 10.0, "samples": 1, "crf": 30, "clips_per_shard": 9,
    }  # fmt: skip
    assert set(changes) == set(SyntheticFleet.__dataclass_fields__)
    for name, value in changes.items():
        digests.add(fleet_digest(replace(SyntheticFleet(), **{name: value})))  # type: ignore[arg-type]
    assert len(digests) == len(changes) + 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_cameras", 9), ("num_train_scenes", 0), ("image_width", 97), ("crf", 99), ("seed", -1)],
)
def test_impossible_parameters_are_refused(field: str, value: int) -> None:
    with pytest.raises(UserError, match=field if field != "image_width" else "32x97"):
        replace(TINY, **{field: value})


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        make_fleet(TINY, tmp_path, progress=False, num_processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        make_fleet(TINY, tmp_path / "file" / "set", progress=False, num_processes=1)


def test_clips_serialise_compactly() -> None:
    clip = scene_clip.make_clip(TINY.clip_spec, "val", 1)
    sizes = {
        name: len(encode_json(part)) for name, part in (("labels", clip.labels), ("ego", clip.ego))
    }
    assert sizes["labels"] < 80_000
    assert sizes["ego"] < 20_000
