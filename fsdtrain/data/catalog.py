"""The list of clips a source holds: every shard's index read once, checked as a set.

It knows no pixels and no order; `assignment.py` decides who reads which clip when.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fsdtrain.data.schema import IndexClip
from fsdtrain.data.shard import find_shards, read_index
from fsdtrain.errors import DataError, UserError


@dataclass(frozen=True, kw_only=True)
class CatalogClip:
    """One clip and the shard that holds it."""

    shard: str
    entry: IndexClip


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """All clips of one source, in the order of shards and of clips within them."""

    source: str
    cameras: tuple[str, ...]  # of every window, in this order
    clips: tuple[CatalogClip, ...]

    @property
    def scenes(self) -> frozenset[str]:
        """The drives the clips were cut from."""
        return frozenset(clip.entry.scene for clip in self.clips)


def open_catalog(source: str, *, cameras: Sequence[str] | None, min_frames: int) -> Catalog:
    """Read the indices of all shards of `source` (see `find_shards`).

    Args:
        source: folder, shard or pattern.
        cameras: which cameras, in which order; None takes all, which every clip must have alike.
        min_frames: stored frames that a window needs.

    Raises:
        UserError: no shards or no clips there; clips without the cameras or too short.
        DataError: an index is broken, or two clips share an id.
    """
    clips = tuple(
        CatalogClip(shard=shard, entry=entry)
        for shard in find_shards(source)
        for entry in read_index(shard).clips
    )
    if not clips:
        raise UserError(f"the shards at {source} hold no clips")
    shard_of: dict[str, str] = {}
    for clip in clips:
        other = shard_of.setdefault(clip.entry.clip_id, clip.shard)
        if other != clip.shard:
            raise DataError(
                f"shard {clip.shard}: clip {clip.entry.clip_id!r}: clip_id: stands in {other} too"
            )
    short = [clip for clip in clips if clip.entry.num_frames < min_frames]
    if short:
        raise UserError(
            f"{source}: {len(short)} of {len(clips)} clips are shorter than a window of "
            f"{min_frames} frames, the first is {short[0].entry.clip_id!r} with "
            f"{short[0].entry.num_frames}; lower model.num_frames or data.frame_stride"
        )
    return Catalog(source=source, cameras=_common_cameras(source, clips, cameras), clips=clips)


def _common_cameras(
    source: str, clips: Sequence[CatalogClip], cameras: Sequence[str] | None
) -> tuple[str, ...]:
    wanted = clips[0].entry.cameras if cameras is None else tuple(cameras)
    if not wanted or len(set(wanted)) != len(wanted):
        raise UserError(f"data.cameras={list(wanted)} is empty or repeats a name")
    for clip in clips:
        found = clip.entry.cameras
        if cameras is None and set(found) != set(wanted):
            shared = [
                name for name in wanted if all(name in other.entry.cameras for other in clips)
            ]
            raise UserError(
                f"{source}: clip {clip.entry.clip_id!r} has cameras {', '.join(found)}, clip "
                f"{clips[0].entry.clip_id!r} has {', '.join(wanted)}; choose data.cameras among "
                f"those all clips have: {', '.join(shared) or 'none'}"
            )
        lacking = [name for name in wanted if name not in found]
        if lacking:
            raise UserError(
                f"{source}: clip {clip.entry.clip_id!r} lacks camera {', '.join(lacking)}; it has "
                f"{', '.join(found)}; choose data.cameras among them"
            )
    return wanted
