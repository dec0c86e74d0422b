"""Make the synthetic fleet: shards of rendered driving video, once, and find them again.

Scenes are independent, so they are made by several processes and written in their order: the
bytes do not depend on how many. A set appears under its name only when it is whole.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import resources
from multiprocessing import get_context
from pathlib import Path

import platformdirs
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from fsdtrain.data.schema import Clip
from fsdtrain.data.shard import write_shards
from fsdtrain.data.synthetic.scene_clip import ClipSpec, make_clip
from fsdtrain.data.synthetic.world import Split
from fsdtrain.errors import UserError

logger = logging.getLogger(__name__)

# What the bytes of a set follow from, beside its parameters.
_SOURCES = ("schema.py", "geometry.py", "video.py", "shard.py")


@dataclass(frozen=True, kw_only=True)
class SyntheticFleet:
    """The parameters of a set; equal parameters give equal shards."""

    num_train_scenes: int = 384
    num_val_scenes: int = 64
    seed: int = 0
    num_cameras: int = 5  # 1..8, evenly around
    image_height: int = 48  # pixels, even
    image_width: int = 96
    fov_deg: float = 90.0  # horizontal, of the nominal rig
    rig_jitter: float = 1.0  # spread of mounting, lens and exposure between vehicles; 0 = none
    frames_per_clip: int = 6
    frame_rate_hz: float = 5.0
    samples: int = 2  # rays per pixel and direction
    crf: int = 18  # x264 quality, lower is better and larger
    clips_per_shard: int = 64

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_train_scenes", 1, 10**6),
            ("num_val_scenes", 1, 10**6),
            ("seed", 0, 2**63),
            ("num_cameras", 1, 8),
            ("image_height", 16, 4096),
            ("image_width", 16, 4096),
            ("fov_deg", 20.0, 140.0),
            ("rig_jitter", 0.0, 3.0),
            ("frames_per_clip", 1, 1000),
            ("frame_rate_hz", 0.5, 60.0),
            ("samples", 1, 8),
            ("crf", 0, 51),
            ("clips_per_shard", 1, 10**6),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"synthetic fleet: {name} is {value}, must be {low}..{high}")
        if self.image_height % 2 or self.image_width % 2:
            raise UserError(
                f"synthetic fleet: image size {self.image_height}x{self.image_width} must be even "
                "both ways, H.264 stores colour at half resolution"
            )

    @property
    def clip_spec(self) -> ClipSpec:
        """What its clips have in common."""
        return ClipSpec(
            seed=self.seed,
            num_cameras=self.num_cameras,
            image_height=self.image_height,
            image_width=self.image_width,
            fov_deg=self.fov_deg,
            rig_jitter=self.rig_jitter,
            num_frames=self.frames_per_clip,
            frame_rate_hz=self.frame_rate_hz,
            samples=self.samples,
            crf=self.crf,
        )


@dataclass(frozen=True, kw_only=True)
class FleetPaths:
    """Folders of finished shards."""

    train: Path
    val: Path

    @staticmethod
    def under(folder: Path) -> "FleetPaths":
        """The two splits of a set in `folder`."""
        return FleetPaths(train=folder / "train", val=folder / "val")


def fleet_digest(fleet: SyntheticFleet) -> str:
    """16 hex digits of the parameters and of the generator's own source code."""
    digest = hashlib.sha256(json.dumps(asdict(fleet), sort_keys=True).encode())
    package = resources.files("fsdtrain.data")
    files = [package / name for name in _SOURCES]
    files += sorted(
        (file for file in (package / "synthetic").iterdir() if file.name.endswith(".py")),
        key=lambda file: file.name,
    )
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def cached_fleet(
    fleet: SyntheticFleet, *, progress: bool = True, num_processes: int | None = None
) -> FleetPaths:
    """The set in the user's cache folder; made there first if it is not yet.

    Two processes may ask at once: both make it, one is kept.
    """
    folder = Path(platformdirs.user_cache_dir("fsdtrain")) / "fleets" / fleet_digest(fleet)
    if not folder.is_dir():
        logger.info("making a synthetic fleet in %s", folder)
        _make_whole(fleet, folder, progress, num_processes, may_exist=True)
    else:
        logger.info("using the synthetic fleet in %s", folder)
    return FleetPaths.under(folder)


def make_fleet(
    fleet: SyntheticFleet,
    out_dir: Path,
    *,
    progress: bool = True,
    num_processes: int | None = None,
) -> FleetPaths:
    """Write `out_dir`/train/*.tar and `out_dir`/val/*.tar; all of it or nothing.

    Args:
        fleet: what to make.
        out_dir: must not exist yet, or be empty.
        progress: show a bar.
        num_processes: workers; None for one a core. The result does not depend on it.

    Raises:
        UserError: `out_dir` is taken or cannot be written.
    """
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} is not empty; delete it or choose another folder")
    _make_whole(fleet, out_dir, progress, num_processes, may_exist=False)
    return FleetPaths.under(out_dir)


def _make_whole(
    fleet: SyntheticFleet,
    folder: Path,
    progress: bool,
    num_processes: int | None,
    *,
    may_exist: bool,
) -> None:
    """Make the set in a temporary sibling of `folder`, then rename it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to {folder.parent}: {error.strerror}; mend the permissions or choose "
            "another folder"
        ) from error
    try:
        _write_splits(fleet, partial, progress, num_processes)
        partial.chmod(0o755)  # mkdtemp's folder is the owner's alone
        try:
            partial.rename(folder)
        except OSError as error:
            if not (may_exist and folder.is_dir()):
                raise UserError(f"cannot create {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_splits(
    fleet: SyntheticFleet, folder: Path, progress: bool, num_processes: int | None
) -> None:
    splits: tuple[tuple[Split, int], ...] = (
        ("train", fleet.num_train_scenes),
        ("val", fleet.num_val_scenes),
    )
    jobs = [(split, index) for split, count in splits for index in range(count)]
    columns = (
        TextColumn("synthetic fleet"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("scenes"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("render", total=len(jobs))
        clips = _make_clips(fleet.clip_spec, jobs, num_processes)
        try:
            for split, count in splits:
                counted = _count(clips, count, bar, task)
                write_shards(
                    counted, folder / split, prefix=split, clips_per_shard=fleet.clips_per_shard
                )
        finally:
            clips.close()


def _count(clips: Iterator[Clip], count: int, bar: Progress, task: TaskID) -> Iterator[Clip]:
    for _ in range(count):
        yield next(clips)
        bar.advance(task)


def _make_clips(
    spec: ClipSpec, jobs: Sequence[tuple[Split, int]], num_processes: int | None
) -> Generator[Clip]:
    """The clips in the order of `jobs`; with more than one process, a few are made ahead."""
    num = min(num_processes or _count_cores(), len(jobs))
    if num == 1:
        for split, index in jobs:
            yield make_clip(spec, split, index)
        return
    # Spawned, not forked: the parent may hold threads of torch. Workers leave Ctrl-C to it.
    executor = ProcessPoolExecutor(
        num,
        mp_context=get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        pending: deque[Future[Clip]] = deque()
        for split, index in jobs:
            pending.append(executor.submit(make_clip, spec, split, index))
            if len(pending) >= 4 * num:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _count_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
