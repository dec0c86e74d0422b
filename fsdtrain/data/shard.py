"""Shards on disk: clips into WebDataset tars with an index, and single clips out of them.

Knows the tar layout and where bytes lie; what a clip means is `schema.py`'s business, pixels are
`video.py`'s. Shards are untrusted: nothing is unpickled, no shell is started, every read is
bounded, has an expected length (a short body is an error, never an end) and a CRC-32.

    <name>.tar              written as <name>.tar.partial, synced, renamed
    <name>.tar.index.json   written last: without it the shard was not finished
"""

import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec
import webdataset

from fsdtrain.data import store
from fsdtrain.data.atomic import PartialFile, naming_path, write_atomically
from fsdtrain.data.schema import (
    CAMERA_NAME_PATTERN,
    CLIP_ID_PATTERN,
    MAX_FRAMES,
    MAX_MEMBER_BYTES,
    SCHEMA_VERSION,
    Clip,
    ClipMeta,
    EgoTrack,
    FrameTimes,
    IndexClip,
    IndexMember,
    Labels,
    Rig,
    ShardIndex,
    Struct,
    decode_json,
    encode_json,
    validate_clip,
)
from fsdtrain.errors import DataError, UserError

INDEX_SUFFIX = ".index.json"
MAX_CLIP_BYTES = 2**30
MAX_INDEX_BYTES = 2**30
# Tar headers and padding between two members of one clip; long names take three extra blocks.
MAX_GAP_BYTES = 8 * 512
TAR_BLOCK_BYTES = 512

_Part = TypeVar("_Part", bound=Struct)
_Value = TypeVar("_Value")
_JSON_MEMBERS = ("meta", "rig", "frames", "ego", "labels")


def video_member(clip_id: str, camera: str) -> str:
    """The tar member that holds a camera's stream."""
    return f"{clip_id}.{camera}.h264"


def expected_members(clip_id: str, cameras: Sequence[str]) -> list[str]:
    """The members of one clip, in the order they lie in the tar."""
    names = [f"{clip_id}.{part}.json" for part in _JSON_MEMBERS]
    return names + [video_member(clip_id, camera) for camera in cameras]


class ShardWriter:
    """Context manager that writes one shard; an exception inside leaves neither tar nor index.

    The bytes depend on the clips alone (fixed times and owner). Disk and permission faults become
    UserError naming the path.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._clips: list[IndexClip] = []

    def __enter__(self) -> "ShardWriter":
        with naming_path(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = PartialFile(self._partial)
        self._tar = webdataset.TarWriter(
            self._file,
            user="",
            group="",
            mtime=0,
            encoder=False,
            keep_meta=True,  # a camera name may begin with "_"
            format="PAX_FORMAT",  # names beyond 100 characters
        )
        return self

    def write(self, clip: Clip) -> None:
        """Validate and append one clip.

        Raises:
            DataError: the clip breaks the format, is too large or its id is taken.
            UserError: the disk is full or the like.
        """
        clip_id = clip.meta.clip_id
        validate_clip(clip, where=f"{self._path}: clip {clip_id!r}")
        if any(known.clip_id == clip_id for known in self._clips):
            raise DataError(
                f"{self._path}: clip {clip_id!r}: meta.clip_id is already in this shard"
            )
        parts = (clip.meta, clip.rig, clip.frames, clip.ego, clip.labels)
        bodies = [encode_json(part) for part in parts]
        bodies += [clip.video[camera] for camera in clip.meta.cameras]
        names = expected_members(clip_id, clip.meta.cameras)
        for name, body in zip(names, bodies, strict=True):
            if not 0 < len(body) <= MAX_MEMBER_BYTES:
                raise DataError(
                    f"{self._path}: {name} has {len(body)} bytes, must be 1..{MAX_MEMBER_BYTES}"
                )
        if sum(map(len, bodies)) > MAX_CLIP_BYTES // 2:
            raise DataError(f"{self._path}: clip {clip_id!r} is larger than {MAX_CLIP_BYTES // 2}")
        with naming_path(self._path):
            members = [
                self._write_member(name, body) for name, body in zip(names, bodies, strict=True)
            ]
        self._clips.append(
            IndexClip(
                clip_id=clip_id,
                scene=clip.meta.scene,
                num_frames=clip.meta.num_frames,
                cameras=clip.meta.cameras,
                members=tuple(members),
            )
        )

    def _write_member(self, name: str, body: bytes) -> IndexMember:
        key, _, extension = name.partition(".")
        self._tar.write({"__key__": key, extension: body})
        padded = math.ceil(len(body) / TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
        return IndexMember(
            name=name,
            offset=self._tar.tarstream.offset - padded,
            size_bytes=len(body),
            crc32=zlib.crc32(body),
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._abort()
            return
        try:
            with naming_path(self._path):
                self._finish()
        except BaseException:
            self._abort()
            raise

    def _abort(self) -> None:
        self._file.discard()
        self._tar.close()

    def _finish(self) -> None:
        self._tar.close()
        size_bytes = self._file.finish()
        index = ShardIndex(
            shard=self._path.name,
            size_bytes=size_bytes,
            num_clips=len(self._clips),
            num_frames=sum(clip.num_frames * len(clip.cameras) for clip in self._clips),
            clips=tuple(self._clips),
        )
        index_path = self._path.with_name(self._path.name + INDEX_SUFFIX)
        # An index of an older shard must not vouch for the new tar.
        index_path.unlink(missing_ok=True)
        self._partial.replace(self._path)
        try:
            write_atomically(index_path, encode_json(index))
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise


def write_shards(
    clips: Iterable[Clip], out_dir: Path, *, prefix: str, clips_per_shard: int
) -> list[Path]:
    """Write `<prefix>-000000.tar`, ...; holds one clip in memory at a time.

    A fault leaves the shards finished before it, each whole.

    Raises:
        UserError: no clips, shards of this prefix are there already, or the disk refuses.
        DataError: a clip breaks the format.
    """
    if clips_per_shard < 1:
        raise UserError(f"clips_per_shard is {clips_per_shard}, must be at least 1")
    if next(out_dir.glob(f"{prefix}-*.tar"), None) is not None:
        raise UserError(
            f"{out_dir} already holds shards {prefix}-*.tar; delete them or choose another folder"
        )
    iterator = iter(clips)
    paths: list[Path] = []
    for first in iterator:
        path = out_dir / f"{prefix}-{len(paths):06d}.tar"
        with ShardWriter(path) as writer:
            for clip in chain([first], islice(iterator, clips_per_shard - 1)):
                writer.write(clip)
        paths.append(path)
    if not paths:
        raise UserError(f"there are no clips to write to {out_dir}")
    return paths


def find_shards(source: str) -> list[str]:
    """The finished shards a source stands for, sorted.

    Args:
        source: a folder, one .tar or a brace pattern of them; local or any URL fsspec knows.

    Raises:
        UserError: nothing is there.
        DataError: a tar has no index, so it was not completely written.
    """
    shards = store.find_files(source, ".tar")
    if not shards:
        raise UserError(
            f"no shards (*.tar) at {source}; give a folder, a .tar file or a brace pattern"
        )
    for shard in shards:
        if not store.exists(shard + INDEX_SUFFIX):
            raise DataError(
                f"shard {shard}: has no {INDEX_SUFFIX} beside it, so it was not completely "
                "written; make or fetch it again"
            )
    return shards


def read_index(shard: str) -> ShardIndex:
    """Read and check a shard's index against itself and against the size of the tar.

    Raises:
        DataError: naming shard, clip and field.
        UserError: the store refuses.
    """
    where = f"shard {shard}: index"
    path = shard + INDEX_SUFFIX
    num_bytes = store.size_bytes(path)
    if num_bytes > MAX_INDEX_BYTES:
        raise DataError(f"{where}: has {num_bytes} bytes, at most {MAX_INDEX_BYTES} are read")
    index = decode_json(store.read_range(path, 0, num_bytes, where=where), ShardIndex, where=where)
    if index.version != SCHEMA_VERSION:
        raise DataError(f"{where}: version: is {index.version}, this reader knows {SCHEMA_VERSION}")
    actual = {
        "shard": os.path.basename(shard),
        "size_bytes": store.size_bytes(shard),
        "num_clips": len(index.clips),
        "num_frames": sum(clip.num_frames * len(clip.cameras) for clip in index.clips),
    }
    for field, value in actual.items():
        if getattr(index, field) != value:
            raise DataError(
                f"{where}: {field}: is {getattr(index, field)!r}, the shard itself says {value!r}"
            )
    known: set[str] = set()
    for number, clip in enumerate(index.clips):
        if clip.clip_id in known:
            raise DataError(
                f"{where}: clips[{number}].clip_id: {clip.clip_id!r} stands there twice"
            )
        known.add(clip.clip_id)
        _check_index_clip(clip, index.size_bytes, f"shard {shard}: clip {clip.clip_id!r}: index")
    return index


def _check_index_clip(clip: IndexClip, shard_bytes: int, where: str) -> None:
    if not CLIP_ID_PATTERN.fullmatch(clip.clip_id):
        raise DataError(f"{where}: clip_id: is not letters, digits, '_' and '-'")
    if not 1 <= clip.num_frames <= MAX_FRAMES:
        raise DataError(f"{where}: num_frames: is {clip.num_frames}, must be 1..{MAX_FRAMES}")
    for camera in clip.cameras:
        if not CAMERA_NAME_PATTERN.fullmatch(camera):
            raise DataError(f"{where}: cameras: {camera!r} is not a camera name")
    names = [member.name for member in clip.members]
    expected = expected_members(clip.clip_id, clip.cameras)
    if names != expected:
        missing = sorted(set(expected) - set(names))
        problem = f"lack {', '.join(missing)}" if missing else f"are {names}, must be {expected}"
        raise DataError(f"{where}: members: {problem}")
    end = clip.members[0].offset
    for member in clip.members:
        if not 0 < member.size_bytes <= MAX_MEMBER_BYTES:
            raise DataError(
                f"{where}: {member.name}: size_bytes: is {member.size_bytes}, "
                f"must be 1..{MAX_MEMBER_BYTES}"
            )
        if not 0 <= member.offset - end <= MAX_GAP_BYTES:
            raise DataError(f"{where}: {member.name}: offset: does not follow the member before it")
        end = member.offset + member.size_bytes
    if clip.members[0].offset < TAR_BLOCK_BYTES or end > shard_bytes:
        raise DataError(f"{where}: members: reach outside the shard's {shard_bytes} bytes")
    if end - clip.members[0].offset > MAX_CLIP_BYTES:
        raise DataError(f"{where}: members: cover more than {MAX_CLIP_BYTES} bytes")


def read_clip(shard: str, entry: IndexClip, *, cameras: Sequence[str] | None = None) -> Clip:
    """Read one clip with one ranged read, checked byte by byte and field by field.

    Args:
        shard: path or URL of the tar.
        entry: the clip's entry of `read_index`.
        cameras: read these only, in this order; the clip that comes back knows no others.

    Raises:
        DataError: naming shard, clip and field or member.
    """
    where = f"shard {shard}: clip {entry.clip_id!r}"
    chosen = entry.cameras if cameras is None else tuple(cameras)
    lacking = [camera for camera in chosen if camera not in entry.cameras]
    if lacking:
        raise DataError(
            f"{where}: cameras: lacks {', '.join(lacking)}; it has {', '.join(entry.cameras)}"
        )
    bodies = _read_members(shard, entry, expected_members(entry.clip_id, chosen), where)

    def parse(part: str, kind: type[_Part]) -> _Part:
        name = f"{entry.clip_id}.{part}.json"
        return decode_json(bodies[name], kind, where=f"{where}: {part}")

    meta = parse("meta", ClipMeta)
    for field in ("clip_id", "scene", "num_frames", "cameras"):
        if getattr(meta, field) != getattr(entry, field):
            raise DataError(
                f"{where}: meta.{field}: is {getattr(meta, field)!r}, "
                f"the index says {getattr(entry, field)!r}"
            )
    rig, frames = parse("rig", Rig), parse("frames", FrameTimes)
    if cameras is not None:
        meta = msgspec.structs.replace(meta, cameras=chosen)
        rig = msgspec.structs.replace(rig, cameras=_subset(rig.cameras, chosen))
        frames = msgspec.structs.replace(frames, camera_ns=_subset(frames.camera_ns, chosen))
    clip = Clip(
        meta=meta,
        rig=rig,
        frames=frames,
        ego=parse("ego", EgoTrack),
        labels=parse("labels", Labels),
        video={camera: bodies[video_member(entry.clip_id, camera)] for camera in chosen},
    )
    return validate_clip(clip, where=where)


def _subset(values: Mapping[str, _Value], names: Sequence[str]) -> dict[str, _Value]:
    # A name that is not there is validate_clip's to report.
    return {name: values[name] for name in names if name in values}


def _read_members(
    shard: str, entry: IndexClip, names: Sequence[str], where: str
) -> dict[str, bytes]:
    wanted = [member for member in entry.members if member.name in set(names)]
    start = wanted[0].offset
    end = wanted[-1].offset + wanted[-1].size_bytes
    data = store.read_range(shard, start, end, where=where)
    bodies = {}
    for member in wanted:
        body = data[member.offset - start :][: member.size_bytes]
        if zlib.crc32(body) != member.crc32:
            raise DataError(
                f"{where}: {member.name}: checksum {zlib.crc32(body):08x} differs from the index's "
                f"{member.crc32:08x}: its bytes were changed"
            )
        bodies[member.name] = body
    return bodies
