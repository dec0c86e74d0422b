"""Check shards to the last byte and report every fault found, rather than the first.

    folder      tars without index, indexes without tar, half-written *.partial
    tar         headers, padding and end mark; members that the index does not know
    index       against itself, the tar's size, the tar's headers
    members     CRC-32, JSON and schema, the clip as a whole, index against meta
    video       every frame of every camera decodes, in the calibrated size

Reads through `store.py`, a member at a time, so that memory stays bounded whatever the shard says.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fsdtrain.data import store
from fsdtrain.data.schema import (
    MAX_FRAMES,
    MAX_MEMBER_BYTES,
    Clip,
    ClipMeta,
    EgoTrack,
    FrameTimes,
    IndexClip,
    Labels,
    Rig,
    ShardIndex,
    Struct,
    decode_json,
    validate_clip,
)
from fsdtrain.data.shard import INDEX_SUFFIX, MAX_INDEX_BYTES, read_index, video_member
from fsdtrain.data.tar_walk import TarMember, walk_tar
from fsdtrain.data.video import decode_h264
from fsdtrain.errors import UserError

TAR_SUFFIX = ".tar"
PARTIAL_SUFFIX = ".partial"
# All pixels of a frame are decoded whatever the size asked for; small is cheap to scale to.
DECODED_SIZE = (16, 16)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong, and where."""

    shard: str
    clip: str | None
    field: str
    problem: str

    def __str__(self) -> str:
        clip = "" if self.clip is None else f" clip {self.clip!r}:"
        return f"{self.shard}:{clip} {self.field}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """All faults, and how much was looked at. `num_frames` counts images over all cameras."""

    faults: tuple[Fault, ...]
    num_shards: int
    num_clips: int
    num_frames: int


def verify_shards(source: str) -> VerifyReport:
    """Verify a folder, one .tar or a brace pattern of them, local or remote.

    Raises:
        UserError: there is nothing at `source`.
    """
    shards = store.find_files(source, TAR_SUFFIX)
    faults = [] if source.endswith(TAR_SUFFIX) else list(_leftovers(source, shards))
    if not shards and not faults:
        raise UserError(
            f"no shards (*.tar) at {source}; give a folder, a .tar file or a brace pattern"
        )
    reports = [verify_shard(shard) for shard in shards]
    return VerifyReport(
        faults=(*faults, *(fault for report in reports for fault in report.faults)),
        num_shards=len(shards),
        num_clips=sum(report.num_clips for report in reports),
        num_frames=sum(report.num_frames for report in reports),
    )


def verify_shard(shard: str) -> VerifyReport:
    """Verify one tar and its index."""
    faults: list[Fault] = []
    index, index_faults = _read_index(shard)
    faults += index_faults
    in_tar: dict[str, TarMember] = {}
    try:
        for member in walk_tar(shard):
            if member.name in in_tar:
                faults.append(_fault(shard, None, member.name, "stands twice in the tar"))
            in_tar[member.name] = member
    except UserError as error:
        faults.append(_fault(shard, None, "tar", error))
    if index is None:
        return VerifyReport(faults=tuple(faults), num_shards=1, num_clips=0, num_frames=0)
    known = {member.name for clip in index.clips for member in clip.members}
    faults += [
        _fault(shard, None, name, "is in the tar, but not in the index")
        for name in in_tar
        if name not in known
    ]
    # The index's own faults, repeated clips and members among them, are in `faults` already.
    for entry in {entry.clip_id: entry for entry in index.clips}.values():
        faults += _verify_clip(shard, entry, in_tar)
    return VerifyReport(
        faults=tuple(faults),
        num_shards=1,
        num_clips=len(index.clips),
        num_frames=sum(entry.num_frames * len(entry.cameras) for entry in index.clips),
    )


def _leftovers(folder: str, shards: list[str]) -> Iterator[Fault]:
    for path in store.find_files(folder, PARTIAL_SUFFIX):
        yield _fault(path, None, "file", "is a half-written leftover; delete it")
    for path in store.find_files(folder, TAR_SUFFIX + INDEX_SUFFIX):
        if path.removesuffix(INDEX_SUFFIX) not in shards:
            yield _fault(path, None, "file", "is an index without its tar")


def _read_index(shard: str) -> tuple[ShardIndex | None, list[Fault]]:
    """The index as far as it parses, and what is wrong with it."""
    path = shard + INDEX_SUFFIX
    where = "index"
    try:
        if not store.exists(path):
            return None, [_fault(shard, None, where, "is missing: not completely written")]
        num_bytes = store.size_bytes(path)
        if num_bytes > MAX_INDEX_BYTES:
            return None, [_fault(shard, None, where, f"has {num_bytes} bytes, too many to read")]
        data = store.read_range(path, 0, num_bytes, where=where)
        index = decode_json(data, ShardIndex, where=where)
    except UserError as error:
        return None, [_fault(shard, None, where, error)]
    try:
        read_index(shard)
    except UserError as error:
        return index, [_fault(shard, None, where, error)]
    return index, []


def _verify_clip(shard: str, entry: IndexClip, in_tar: Mapping[str, TarMember]) -> list[Fault]:
    faults: list[Fault] = []
    bodies: dict[str, bytes] = {}
    for member in {member.name: member for member in entry.members}.values():
        problem = None
        body = b""
        found = in_tar.get(member.name)
        if found is None:
            problem = "is in the index, but no readable member of the tar"
        elif (found.offset, found.size_bytes) != (member.offset, member.size_bytes):
            problem = (
                f"lies at {found.offset}, {found.size_bytes} bytes; the index says "
                f"{member.offset}, {member.size_bytes} bytes"
            )
        elif not 0 < member.size_bytes <= MAX_MEMBER_BYTES:
            problem = f"has {member.size_bytes} bytes, must be 1..{MAX_MEMBER_BYTES}"
        else:
            body, problem = _read_body(shard, found, member.crc32)
        if problem is None:
            bodies[member.name] = body
        else:
            faults.append(_fault(shard, entry.clip_id, member.name, problem))
    return faults + _verify_contents(shard, entry, bodies)


def _read_body(shard: str, member: TarMember, crc32: int) -> tuple[bytes, str | None]:
    end = member.offset + member.size_bytes
    try:
        body = store.read_range(shard, member.offset, end, where=member.name)
    except UserError as error:
        return b"", str(error)
    actual = zlib.crc32(body)
    if actual != crc32:
        return b"", f"checksum {actual:08x} differs from the index's {crc32:08x}"
    return body, None


_Part = TypeVar("_Part", bound=Struct)


def _verify_contents(shard: str, entry: IndexClip, bodies: Mapping[str, bytes]) -> list[Fault]:
    """What the bodies say; one that is missing from `bodies` has been reported already."""
    faults: list[Fault] = []

    def parse(part: str, kind: type[_Part]) -> _Part | None:
        data = bodies.get(f"{entry.clip_id}.{part}.json")
        if data is None:
            return None
        try:
            return decode_json(data, kind, where=part)
        except UserError as error:
            faults.append(_fault(shard, entry.clip_id, part, error))
            return None

    meta = parse("meta", ClipMeta)
    rig = parse("rig", Rig)
    frames = parse("frames", FrameTimes)
    ego = parse("ego", EgoTrack)
    labels = parse("labels", Labels)
    if meta is not None:
        faults += [
            _fault(
                shard,
                entry.clip_id,
                f"meta.{field}",
                f"is {getattr(meta, field)!r}, the index says {getattr(entry, field)!r}",
            )
            for field in ("clip_id", "scene", "num_frames", "cameras")
            if getattr(meta, field) != getattr(entry, field)
        ]
    videos = {camera: bodies.get(video_member(entry.clip_id, camera)) for camera in entry.cameras}
    present = {camera: data for camera, data in videos.items() if data is not None}
    if meta and rig and frames and ego and labels and len(present) == len(videos):
        clip = Clip(meta=meta, rig=rig, frames=frames, ego=ego, labels=labels, video=present)
        try:
            validate_clip(clip, where="clip")
        except UserError as error:
            faults.append(_fault(shard, entry.clip_id, "clip", error))
    # A count beyond the format's, reported with the index, must not cost memory here.
    num_frames = min(max(entry.num_frames, 1), MAX_FRAMES)
    for camera, data in present.items():
        calibration = rig.cameras.get(camera) if rig is not None else None
        try:
            decode_h264(
                data,
                num_frames=num_frames,
                size=DECODED_SIZE,
                where=camera,
                stored_size=(calibration.height, calibration.width) if calibration else None,
            )
        except UserError as error:
            faults.append(_fault(shard, entry.clip_id, camera, error))
    return faults


def _fault(shard: str, clip: str | None, field: str, problem: str | UserError) -> Fault:
    """A fault; an error's own naming of the place is not repeated."""
    text = str(problem)
    for prefix in (f"shard {shard}: ", f"clip {clip!r}: ", f"{field}: "):
        text = text.removeprefix(prefix)
    return Fault(shard=shard, clip=clip, field=field, problem=text)
