import errno
import io
import os
import resource
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import numpy as np
import pytest
import webdataset

from fsdtrain.data import shard as shard_module
from fsdtrain.data import store
from fsdtrain.data.shard import (
    INDEX_SUFFIX,
    ShardWriter,
    find_shards,
    read_clip,
    read_index,
    write_shards,
)
from fsdtrain.data.video import decode_h264
from fsdtrain.errors import DataError, UserError


@pytest.fixture(scope="module")
def clips(make_clip):
    return [make_clip(clip_id=f"clip-{n}", seed=n, num_frames=3 + n) for n in range(5)]


@pytest.fixture
def shard(clips, tmp_path):
    (path,) = write_shards(clips[:3], tmp_path, prefix="s", clips_per_shard=8)
    return str(path)


def read_all(shard: str) -> list[object]:
    return [read_clip(shard, entry) for entry in read_index(shard).clips]


def rewrite_index(shard: str, change) -> None:
    """Apply `change` to the index as plain JSON data."""
    with open(shard + INDEX_SUFFIX, "rb") as file:
        index = msgspec.json.decode(file.read())
    change(index)
    with open(shard + INDEX_SUFFIX, "wb") as file:
        file.write(msgspec.json.encode(index))


def test_written_clips_come_back_equal(clips, tmp_path):
    paths = write_shards(clips, tmp_path / "set", prefix="train", clips_per_shard=2)

    assert [path.name for path in paths] == [f"train-{n:06d}.tar" for n in range(3)]
    shards = find_shards(str(tmp_path / "set"))
    assert shards == [str(path) for path in paths]
    assert [clip for shard in shards for clip in read_all(shard)] == clips
    assert sorted(os.listdir(tmp_path / "set")) == sorted(
        name for path in paths for name in (path.name, path.name + INDEX_SUFFIX)
    )


def test_the_same_clips_give_the_same_bytes(clips, tmp_path):
    for name in ("a", "b"):
        write_shards(clips, tmp_path / name, prefix="s", clips_per_shard=5)
    for file in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# WebDataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_every_member(clips, shard):
    samples = list(webdataset.WebDataset(shard, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["clip-0", "clip-1", "clip-2"]
    for sample, clip in zip(samples, clips, strict=False):
        assert {key for key in sample if not key.startswith("__")} == {
            *("meta.json", "rig.json", "frames.json", "ego.json", "labels.json"),
            *("front.h264", "rear.h264"),
        }
        assert sample["front.h264"] == clip.video["front"]
        assert msgspec.json.decode(sample["meta.json"])["clip_id"] == clip.meta.clip_id


def test_the_index_tells_where_plain_tarfile_finds_the_bytes(make_clip, tmp_path):
    long_id = "x" * 128
    clip = make_clip(clip_id=long_id, cameras=("_under", "y" * 64))
    (path,) = write_shards([clip], tmp_path, prefix="s", clips_per_shard=1)
    index = read_index(str(path))
    with tarfile.open(path) as tar:
        found = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
    assert found == {
        member.name: (member.offset, member.size_bytes)
        for entry in index.clips
        for member in entry.members
    }
    assert read_all(str(path)) == [clip]


def test_chosen_cameras_make_a_whole_clip_in_the_order_asked(clips, shard):
    entry = read_index(shard).clips[1]
    rear = read_clip(shard, entry, cameras=["rear"])
    assert rear.meta.cameras == ("rear",)
    assert set(rear.video) == set(rear.rig.cameras) == set(rear.frames.camera_ns) == {"rear"}
    assert rear.video["rear"] == clips[1].video["rear"]
    assert read_clip(shard, entry, cameras=["rear", "front"]).meta.cameras == ("rear", "front")
    with pytest.raises(DataError, match="lacks side; it has front, rear"):
        read_clip(shard, entry, cameras=["side"])


def test_sources(clips, tmp_path):
    write_shards(clips, tmp_path / "set", prefix="s", clips_per_shard=2)
    names = [str(tmp_path / "set" / f"s-{n:06d}.tar") for n in range(3)]
    assert find_shards(str(tmp_path / "set")) == names
    assert find_shards(names[1]) == [names[1]]
    assert find_shards(str(tmp_path / "set" / "s-{000000..000001}.tar")) == names[:2]
    with pytest.raises(UserError, match="no such file"):
        find_shards(str(tmp_path / "set" / "s-{000002..000003}.tar"))


@pytest.mark.parametrize("what", ["missing", "empty folder", "a file", "unknown://x/y"])
def test_no_shards_at_the_path_is_one_sentence(tmp_path, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    source = {
        "missing": tmp_path / "nowhere",
        "empty folder": tmp_path / "empty",
        "a file": tmp_path / "file",
    }.get(what, what)
    with pytest.raises(UserError, match=str(source)) as error:
        find_shards(str(source))
    assert "\n" not in str(error.value)


def test_a_tar_without_index_was_not_completely_written(clips, tmp_path):
    write_shards(clips, tmp_path, prefix="s", clips_per_shard=3)
    (tmp_path / f"s-000001.tar{INDEX_SUFFIX}").unlink()
    with pytest.raises(DataError, match=r"s-000001\.tar.*not completely written"):
        find_shards(str(tmp_path))


def test_truncation_anywhere_is_found(shard):
    with open(shard, "rb") as file:
        whole = file.read()
    index = read_index(shard)
    for cut in range(0, len(whole), max(1, len(whole) // 37)):
        with open(shard, "wb") as file:
            file.write(whole[:cut])
        with pytest.raises(DataError, match=r"s-000000\.tar: index: size_bytes"):
            read_index(shard)
        # Cut behind the reader's back, after the index was read.
        errors = []
        for entry in index.clips:
            end = entry.members[-1].offset + entry.members[-1].size_bytes
            if end > cut:
                with pytest.raises(DataError, match=f"clip '{entry.clip_id}'.*bytes came"):
                    read_clip(shard, entry)
                errors.append(entry)
        assert errors or cut > index.clips[-1].members[-1].offset


def test_every_flipped_byte_of_a_member_is_found_and_named(shard):
    rng = np.random.default_rng(0)
    with open(shard, "rb") as file:
        whole = file.read()
    index = read_index(shard)
    for _ in range(200):
        entry = index.clips[rng.integers(len(index.clips))]
        member = entry.members[rng.integers(len(entry.members))]
        at = member.offset + int(rng.integers(member.size_bytes))
        flipped = bytearray(whole)
        flipped[at] ^= int(rng.integers(1, 256))
        with open(shard, "wb") as file:
            file.write(flipped)
        with pytest.raises(DataError, match=f"clip '{entry.clip_id}': {member.name}: checksum"):
            read_clip(shard, entry)


def test_flips_that_decoding_alone_misses_are_caught_by_the_checksum(shard):
    rng = np.random.default_rng(1)
    with open(shard, "rb") as file:
        whole = file.read()
    entry = read_index(shard).clips[0]
    (member,) = (m for m in entry.members if m.name.endswith("front.h264"))
    stream = whole[member.offset :][: member.size_bytes]
    good = decode_h264(stream, num_frames=entry.num_frames, size=None, where="v")
    num_missed = 0
    for _ in range(150):
        at, value = int(rng.integers(len(stream))), int(rng.integers(1, 256))
        flipped = bytearray(stream)
        flipped[at] ^= value
        try:
            seen = decode_h264(bytes(flipped), num_frames=entry.num_frames, size=None, where="v")
        except DataError:
            continue
        if np.abs(seen.astype(int) - good).max() <= 8:
            continue
        num_missed += 1
        changed = bytearray(whole)
        changed[member.offset + at] ^= value
        with open(shard, "wb") as file:
            file.write(changed)
        with pytest.raises(DataError, match="checksum"):
            read_clip(shard, entry)
    assert num_missed > 5


def drop_member(index: dict) -> None:
    del index["clips"][1]["members"][-1]


def set_field(path: list, value) -> object:
    def change(index: dict) -> None:
        target = index
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value

    return change


MEMBER = ["clips", 1, "members", 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field(["version"], 2), "version: is 2, this reader knows 1"),
        (set_field(["schema"], "other"), "schema"),
        (set_field(["extra"], 1), "extra"),
        (set_field(["shard"], "t.tar"), "shard: is 't.tar'"),
        (set_field(["size_bytes"], 10240), "size_bytes"),
        (set_field(["num_clips"], 4), "num_clips: is 4"),
        (set_field(["num_frames"], 1), "num_frames: is 1"),
        (set_field(["clips", 1, "clip_id"], "clip-0"), r"clips\[1\].clip_id"),
        (set_field(["clips", 1, "clip_id"], "../x"), "clip_id"),
        (set_field(["clips", 1, "clip_id"], "clip-9"), "clip 'clip-9': index: members"),
        (set_field(["clips", 1, "cameras"], ["front", "Rear!"]), "'Rear!' is not a camera name"),
        (drop_member, r"clip 'clip-1': index: members: lack clip-1\.rear\.h264"),
        (set_field([*MEMBER, "name"], "clip-0.frames.json"), "lack clip-1.frames.json"),
        (set_field([*MEMBER, "size_bytes"], 2**29), "size_bytes"),
        (set_field([*MEMBER, "size_bytes"], 0), "size_bytes"),
        (set_field([*MEMBER, "size_bytes"], -5), "size_bytes"),
        (set_field([*MEMBER, "offset"], -1), "offset"),
        (set_field([*MEMBER, "offset"], 2**40), "offset"),
        (set_field([*MEMBER, "offset"], 1.5), "offset"),
        (set_field([*MEMBER, "crc32"], 0), "clip 'clip-1': clip-1.frames.json: checksum"),
    ],
)
def test_an_index_that_disagrees_is_refused(shard, change, message):
    rewrite_index(shard, change)
    with pytest.raises(DataError, match=message) as error:
        read_all(shard)
    assert "s-000000.tar" in str(error.value)


def test_counts_that_agree_with_each_other_but_not_with_the_clip_are_refused(shard):
    def change(index: dict) -> None:
        index["clips"][2]["num_frames"] += 1
        index["num_frames"] += 2

    rewrite_index(shard, change)
    with pytest.raises(DataError, match=r"clip 'clip-2': meta.num_frames: is 5, the index says 6"):
        read_all(shard)


@pytest.mark.parametrize(
    ("part", "old", "new", "message"),
    [
        ("meta", b'"version":1', b'"version":7', "meta.version: is 7, this reader knows 1"),
        ("meta", b'"fleetclip"', b'"fleetclop"', "meta: "),
        ("meta", b'"num_frames":3', b'"num_frames":0', "meta.num_frames"),
        ("ego", b'"translation_m":[0.0', b'"translation_m":[NaN', "ego: "),
        ("ego", b'"translation_m":[0.0', b'"translation_m":[1e999', "ego: "),
        ("ego", b'"translation_m":[0.0', b'"translation_m":[null', "ego: .*translation_m"),
        ("rig", b'"front"', b'"fronk"', "rig.cameras"),
        ("rig", b'"width":64', b'"width":-4', "rig.cameras.front.width/height"),
        ("frames", b'"reference_ns":[', b'"reference_ns":[5,', "frames.reference_ns"),
        ("labels", b'"version":1', b'"version":3', "labels.version"),
        ("labels", b'"car"', b'"cat"', "labels: "),
        ("labels", b"{", b"[", "labels: "),
    ],
)
def test_bad_fields_with_good_checksums_are_refused(shard, part, old, new, message, monkeypatch):
    """The index vouches for these bytes: the schema has to catch them."""
    read = shard_module._read_members

    def changed(*arguments):
        bodies = read(*arguments)
        name = f"clip-0.{part}.json"
        assert old in bodies[name]
        return bodies | {name: bodies[name].replace(old, new, 1)}

    monkeypatch.setattr(shard_module, "_read_members", changed)
    with pytest.raises(DataError, match=rf"s-000000\.tar: clip 'clip-0': {message}"):
        read_clip(shard, read_index(shard).clips[0])


def test_a_clip_that_breaks_the_format_is_not_written(make_clip, tmp_path):
    good, other = make_clip(), make_clip(clip_id="other")
    bad_meta = msgspec.structs.replace(good.meta, num_frames=0)
    for clip, message in [
        (msgspec.structs.replace(good, meta=bad_meta), "meta.num_frames"),
        (msgspec.structs.replace(good, video={"front": b"x"}), "lacks camera rear"),
        (msgspec.structs.replace(good, video=good.video | {"rear": b""}), "has 0 bytes"),
        (good, "already in this shard"),
    ]:
        with pytest.raises(DataError, match=message):
            write_shards([other, clip, clip], tmp_path, prefix="s", clips_per_shard=3)
        assert os.listdir(tmp_path) == []


def test_an_exception_inside_leaves_nothing(make_clip, tmp_path):
    def clips():
        yield make_clip(clip_id="a")
        yield make_clip(clip_id="b")
        raise KeyError("the converter failed")

    with pytest.raises(KeyError):
        write_shards(clips(), tmp_path, prefix="s", clips_per_shard=5)
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyError):
        write_shards(clips(), tmp_path, prefix="s", clips_per_shard=2)
    assert find_shards(str(tmp_path)) == [str(tmp_path / "s-000000.tar")]


def test_killed_while_writing_leaves_no_shard_and_the_next_run_succeeds(clips, tmp_path):
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from fsdtrain.data.shard import ShardWriter, read_index, read_clip\n"
        "source = sys.argv[1]\n"
        "with ShardWriter(Path(sys.argv[2])) as writer:\n"
        "    writer.write(read_clip(source, read_index(source).clips[0]))\n"
        "    os._exit(9)\n"
    )
    (path,) = write_shards(clips[:1], tmp_path / "from", prefix="s", clips_per_shard=1)
    target = tmp_path / "to" / "t.tar"
    done = subprocess.run([sys.executable, "-c", script, str(path), str(target)], check=False)
    assert done.returncode == 9
    assert os.listdir(tmp_path / "to") == ["t.tar.partial"]
    with pytest.raises(UserError, match="no shards"):
        find_shards(str(tmp_path / "to"))
    with ShardWriter(target) as writer:
        writer.write(clips[1])
    assert sorted(os.listdir(tmp_path / "to")) == ["t.tar", f"t.tar{INDEX_SUFFIX}"]


class FullDisk(io.FileIO):
    """Takes `room` bytes, the last write only in part, then fails as a full disk does."""

    room = 0

    def write(self, data) -> int:
        if FullDisk.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(len(data), FullDisk.room)
        FullDisk.room -= taken
        return super().write(bytes(data)[:taken])


@pytest.mark.parametrize("room", [0, 1, 5000, 12000, 20480])
def test_full_disk_leaves_nothing_and_says_so(clips, tmp_path, monkeypatch, room):
    FullDisk.room = room
    monkeypatch.setattr(
        type(tmp_path), "open", lambda self, mode, buffering=-1: FullDisk(str(self), "w")
    )
    with pytest.raises(UserError, match=r"s-000000\.tar: No space left on device"):
        write_shards(clips[:2], tmp_path, prefix="s", clips_per_shard=8)
    assert os.listdir(tmp_path) == []


def test_no_room_for_the_index_leaves_no_tar(clips, tmp_path, monkeypatch):
    def fail(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shard_module, "write_atomically", fail)
    with pytest.raises(UserError, match="No space left"):
        write_shards(clips[:1], tmp_path, prefix="s", clips_per_shard=8)
    assert os.listdir(tmp_path) == []


def test_an_old_index_never_vouches_for_a_new_tar(clips, tmp_path, monkeypatch):
    path = tmp_path / "s.tar"
    with ShardWriter(path) as writer:
        writer.write(clips[0])

    def fail(path, data):
        raise KeyboardInterrupt  # killed between the two renames

    monkeypatch.setattr(shard_module, "write_atomically", fail)
    monkeypatch.setattr(type(path), "unlink", keep_tar(type(path).unlink))
    with pytest.raises(KeyboardInterrupt), ShardWriter(path) as writer:
        writer.write(clips[1])
    assert os.listdir(tmp_path) == ["s.tar"]
    with pytest.raises(DataError, match="not completely written"):
        find_shards(str(path))


def keep_tar(unlink):
    """What a kill leaves: the clean-up of the tar does not happen."""

    def only_others(path, missing_ok=False):
        if path.suffix != ".tar":
            unlink(path, missing_ok=missing_ok)

    return only_others


def test_a_clip_may_not_ask_for_unbounded_memory(shard, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module, "MAX_CLIP_BYTES", 2000)
    with pytest.raises(DataError, match="clip 'clip-0': index: members: cover more than 2000"):
        read_index(shard)
    with pytest.raises(DataError, match="clip 'clip-3' is larger than 1000"):
        write_shards(clips[3:], tmp_path / "new", prefix="s", clips_per_shard=1)


def test_a_file_size_limit_of_the_system_is_a_user_error(clips, tmp_path):
    """The kernel's own refusal, not a simulated one (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))
    try:
        with pytest.raises(UserError, match="File too large"):
            write_shards(clips[:2], tmp_path, prefix="s", clips_per_shard=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_no_write_access_is_a_user_error(clips, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        write_shards(clips[:1], tmp_path / "file" / "below", prefix="s", clips_per_shard=1)
    if os.path.isdir("/proc/1"):
        with pytest.raises(UserError, match=r"cannot write /proc/x/s-000000\.tar"):
            write_shards(clips[:1], type(tmp_path)("/proc/x"), prefix="s", clips_per_shard=1)


def test_write_shards_refuses_to_mix_runs_and_to_write_nothing(clips, tmp_path):
    with pytest.raises(UserError, match="no clips"):
        write_shards([], tmp_path, prefix="s", clips_per_shard=1)
    with pytest.raises(UserError, match="at least 1"):
        write_shards(clips, tmp_path, prefix="s", clips_per_shard=0)
    write_shards(clips[:1], tmp_path, prefix="s", clips_per_shard=1)
    with pytest.raises(UserError, match="already holds"):
        write_shards(clips, tmp_path, prefix="s", clips_per_shard=1)
    assert len(write_shards(clips, tmp_path, prefix="other", clips_per_shard=5)) == 1


class RangeServer(SimpleHTTPRequestHandler):
    """Serves files with byte ranges; `faults` says what goes wrong with the next bodies."""

    faults: list[str] = []

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        with open(self.translate_path(self.path), "rb") as file:
            body = file.read()
        asked = self.headers.get("Range")
        fault = self.faults.pop(0) if asked and self.faults else None
        if fault == "503":
            self.send_error(503)
            return
        if asked and fault != "ignores range":
            start, end = asked.removeprefix("bytes=").split("-")
            body = body[int(start) : int(end) + 1]
            self.send_response(206)
        else:
            self.send_response(200)
        if fault == "short":
            body = body[:-7]
        self.send_header("Content-Length", str(len(body) + 7 * (fault == "drops")))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = fault == "drops"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "RETRY_DELAY_S", 0.0)
    RangeServer.faults = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeServer, directory=str(tmp_path)))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_remote_shards_are_read_by_ranges_and_faults_that_pass_are_retried(clips, tmp_path, server):
    write_shards(clips, tmp_path, prefix="s", clips_per_shard=3)
    shards = find_shards(server + "/s-{000000..000001}.tar")
    assert shards == [f"{server}/s-{n:06d}.tar" for n in range(2)]
    assert [clip for shard in shards for clip in read_all(shard)] == clips
    entry = read_index(shards[0]).clips[2]
    for fault in ("503", "short", "drops", "ignores range"):
        RangeServer.faults = [fault]
        assert read_clip(shards[0], entry) == clips[2]
        assert RangeServer.faults == []
        RangeServer.faults = [fault] * store.READ_ATTEMPTS
        with pytest.raises(DataError, match=r"s-000000\.tar: clip 'clip-2': cannot read"):
            read_clip(shards[0], entry)
    with pytest.raises(UserError, match="no such file"):
        find_shards(server + "/s-000007.tar")
