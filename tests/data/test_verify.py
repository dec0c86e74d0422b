import shutil
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdtrain.data.shard import INDEX_SUFFIX, read_index, write_shards
from fsdtrain.data.verify import verify_shard, verify_shards
from fsdtrain.errors import UserError


@pytest.fixture(scope="module")
def pristine(make_clip, tmp_path_factory):
    """One shard of two clips; copy it before damaging it."""
    folder = tmp_path_factory.mktemp("pristine")
    clips = [
        make_clip(clip_id=name, seed=seed, num_frames=2, size=(16, 32))
        for seed, name in enumerate(("short", "long" * 30))
    ]
    (path,) = write_shards(clips, folder, prefix="s", clips_per_shard=8)
    return path


@pytest.fixture
def shard(pristine, tmp_path):
    for path in pristine.parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / pristine.name


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name + INDEX_SUFFIX)


def member(shard: Path, name: str):
    members = [member for clip in read_index(str(shard)).clips for member in clip.members]
    return next(member for member in members if member.name == name)


def replace_bytes(path: Path, start: int, data: bytes) -> None:
    body = bytearray(path.read_bytes())
    body[start : start + len(data)] = data
    path.write_bytes(body)


def edit_index(shard: Path, change) -> None:
    index = msgspec.json.decode(index_path(shard).read_bytes())
    change(index)
    index_path(shard).write_bytes(msgspec.json.encode(index))


def forge(shard: Path, name: str, change) -> None:
    """Change a member's body, its length kept, and make the index vouch for it."""
    place = member(shard, name)
    body = shard.read_bytes()[place.offset : place.offset + place.size_bytes]
    forged = change(body)
    assert len(forged) == len(body)
    assert forged != body
    replace_bytes(shard, place.offset, forged)

    def update(index):
        for clip in index["clips"]:
            for entry in clip["members"]:
                if entry["name"] == name:
                    entry["crc32"] = zlib.crc32(forged)

    edit_index(shard, update)


def test_a_whole_shard_has_no_fault(shard):
    report = verify_shards(str(shard.parent))
    assert report.faults == ()
    assert (report.num_shards, report.num_clips, report.num_frames) == (1, 2, 2 * 2 * 2)


def test_nothing_there_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no shards"):
        verify_shards(str(tmp_path))


def test_faults_name_shard_clip_and_member(shard):
    place = member(shard, "short.front.h264")
    replace_bytes(shard, place.offset + 40, b"\xff\x00\xff")

    (fault,) = verify_shards(str(shard)).faults

    assert (fault.shard, fault.clip, fault.field) == (str(shard), "short", "short.front.h264")
    assert str(fault).startswith(f"{shard}: clip 'short': short.front.h264: checksum ")


def test_all_faults_are_found_not_only_the_first(shard):
    for name in ("short.rear.h264", "short.ego.json", "long" * 30 + ".labels.json"):
        place = member(shard, name)
        replace_bytes(shard, place.offset + place.size_bytes // 2, b"\x00\x01\x02")
    (shard.parent / "t.tar.partial").write_bytes(b"x")

    fields = {(fault.clip, fault.field) for fault in verify_shards(str(shard.parent)).faults}

    assert fields == {
        ("short", "short.rear.h264"),
        ("short", "short.ego.json"),
        ("long" * 30, "long" * 30 + ".labels.json"),
        (None, "file"),
    }


def swap(old: bytes, new: bytes):
    return lambda body: body.replace(old, new, 1)


def scramble_video(body: bytes) -> bytes:
    # Near the end, since FFmpeg rightly ignores the encoder's note (SEI) at the beginning.
    start = len(body) - 300
    return body[:start] + bytes(byte ^ 0xA5 for byte in body[start:])


# What a checksum cannot tell: the index vouches for these bytes.
@pytest.mark.parametrize(
    ("name", "change", "field", "problem"),
    [
        ("short.meta.json", swap(b'"version":1', b'"version":2'), "clip", "version"),
        ("short.meta.json", swap(b'"short"', b'"shirt"'), "meta.clip_id", "shirt"),
        ("short.meta.json", swap(b'"num_frames":2', b'"num_frames":3'), "meta.num_frames", "3"),
        ("short.meta.json", swap(b'"split"', b'"spilt"'), "meta", "spilt"),
        ("short.rig.json", swap(b'"width":32', b'"width":34'), "front", "34"),
        ("short.rig.json", swap(b'"front"', b'"frant"'), "clip", "front"),
        ("short.frames.json", swap(b"}", b"]"), "frames", ""),
        ("short.ego.json", swap(b"rotation_wxyz", b"rotation_wxyy"), "ego", "rotation_wxyy"),
        ("short.labels.json", swap(b'"car"', b'"cat"'), "labels", "cat"),
        ("short.front.h264", scramble_video, "front", ""),
        ("short.front.h264", lambda body: bytes(len(body)), "front", ""),
    ],
)
def test_contents_that_the_checksum_vouches_for(shard, name, change, field, problem):
    forge(shard, name, change)
    faults = verify_shards(str(shard)).faults
    assert any(fault.field == field and problem in fault.problem for fault in faults), faults
    assert {fault.clip for fault in faults} == {"short"}


def test_leftovers_in_the_folder(shard):
    folder = shard.parent
    (folder / "a.tar.partial").touch()
    (folder / "b.tar.index.json.partial").touch()
    shutil.copy(index_path(shard), folder / "c.tar.index.json")
    shutil.copy(shard, folder / "d.tar")

    found = {Path(fault.shard).name: fault.problem for fault in verify_shards(str(folder)).faults}

    assert "half-written" in found["a.tar.partial"]
    assert "half-written" in found["b.tar.index.json.partial"]
    assert "without its tar" in found["c.tar.index.json"]
    assert "not completely written" in found["d.tar"]
    assert shard.name not in found


def test_a_member_that_the_index_does_not_know(shard):
    edit_index(shard, lambda index: index["clips"].pop())
    edit_index(shard, lambda index: index.update(num_clips=1, num_frames=4))
    faults = verify_shards(str(shard)).faults
    assert {fault.problem for fault in faults} == {"is in the tar, but not in the index"}
    assert len(faults) == 7


@pytest.mark.parametrize("num_frames", [0, -1, 3, 10**18])
def test_a_wrong_frame_count_in_the_index_costs_no_memory(shard, num_frames):
    edit_index(shard, lambda index: index["clips"][0].update(num_frames=num_frames))
    faults = verify_shards(str(shard)).faults
    assert "meta.num_frames" in {fault.field for fault in faults}


def verify_bytes(folder: Path, name: str, tar: bytes, index: bytes):
    shard = folder / name
    shard.write_bytes(tar)
    index_path(shard).write_bytes(index)
    return verify_shard(str(shard)).faults


def test_a_flipped_bit_outside_the_members_is_a_fault(pristine, tmp_path):
    """No checksum covers headers, padding and the end mark: they are checked by their form."""
    tar, index = pristine.read_bytes(), index_path(pristine).read_bytes()
    inside = {
        at
        for clip in read_index(str(pristine)).clips
        for m in clip.members
        for at in range(m.offset, m.offset + m.size_bytes)
    }
    outside = [at for at in range(len(tar)) if at not in inside]
    for place in outside[::53]:
        damaged = bytearray(tar)
        damaged[place] ^= 1 << place % 8
        assert verify_bytes(tmp_path, pristine.name, damaged, index), place


fuzz = settings(
    max_examples=150,
    deadline=5000,  # ms: a hang is a failure
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@fuzz
@given(data=st.data())
def test_any_changed_byte_is_a_fault(pristine, tmp_path, data):
    files = [pristine.read_bytes(), index_path(pristine).read_bytes()]
    which = data.draw(st.integers(0, 1))
    damaged = bytearray(files[which])
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    files[which] = bytes(damaged)
    assert verify_bytes(tmp_path, pristine.name, *files)


@fuzz
@given(data=st.data())
def test_any_truncation_is_a_fault(pristine, tmp_path, data):
    files = [pristine.read_bytes(), index_path(pristine).read_bytes()]
    which = data.draw(st.integers(0, 1))
    files[which] = files[which][: data.draw(st.integers(0, len(files[which]) - 1))]
    assert verify_bytes(tmp_path, pristine.name, *files)


@fuzz
@given(tar=st.binary(max_size=4000), index=st.binary(max_size=500))
def test_garbage_is_a_fault(tmp_path, tar, index):
    assert verify_bytes(tmp_path, "s.tar", tar, index)


@fuzz
@given(data=st.data())
def test_garbage_that_the_checksum_vouches_for_does_not_crash(pristine, tmp_path, data):
    """Bodies of random JSON or random video, so that parsers behind the CRC see them."""
    shard = tmp_path / pristine.name
    shutil.copy(pristine, shard)
    shutil.copy(index_path(pristine), index_path(shard))
    names = [m.name for m in read_index(str(pristine)).clips[0].members]
    name = data.draw(st.sampled_from(names))
    place = member(pristine, name)
    start = data.draw(st.integers(0, place.size_bytes - 1))
    noise = data.draw(st.binary(min_size=1, max_size=place.size_bytes - start))

    def change(body: bytes) -> bytes:
        changed = body[:start] + noise + body[start + len(noise) :]
        return changed if changed != body else bytes([body[0] ^ 1]) + body[1:]

    forge(shard, name, change)
    verify_shards(str(shard))  # a change of a digit may be valid: only no crash
