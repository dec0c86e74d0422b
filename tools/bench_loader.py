"""Measures how many clips a second the data plane makes, beside what decoding alone would allow.

    python tools/bench_loader.py [--shards SOURCE] [--image-size 48 96] [--num-frames 2] ...

Without --shards it makes clips of moving noise. Rows are measured in turn, round by round, because
a machine's speed drifts; the figures are medians with their range. Decode only means: the same
streams from memory to RGB at the training resolution, one process per worker, one thread each,
frames thrown away.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fsdtrain.data.augment import Augmentation
from fsdtrain.data.catalog import Catalog, open_catalog
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.schema import (
    CameraCalibration,
    Clip,
    ClipMeta,
    EgoState,
    EgoTrack,
    FrameTimes,
    Labels,
    Pose,
    Rig,
)
from fsdtrain.data.shard import read_clip, write_shards
from fsdtrain.data.video import decode_h264, encode_h264

IDENTITY = Pose(rotation_wxyz=(1.0, 0.0, 0.0, 0.0), translation_m=(0.0, 0.0, 0.0))


def main() -> None:
    """Parse the arguments, measure, print one row a configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", help="folder, shard or pattern; made of noise if left out")
    parser.add_argument("--num-clips", type=int, default=96, help="to make without --shards")
    parser.add_argument("--num-cameras", type=int, default=6, help="to make without --shards")
    parser.add_argument("--stored-size", type=int, nargs=2, default=(48, 96))
    parser.add_argument("--image-size", type=int, nargs=2, default=(48, 96))
    parser.add_argument("--num-frames", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = options.shards or make_noise(Path(folder), options)
        catalog = open_catalog(source, cameras=None, min_frames=options.num_frames)
        rows: dict[str, Callable[[], float]] = {}
        for workers in sorted({max(1, count) for count in options.workers}):
            rows[f"decode only, {workers} processes"] = DecodeOnly(catalog, options, workers)
        for workers in options.workers:
            rows[f"loader, {workers} workers"] = LoaderEpoch(source, options, workers, None)
            rows[f"loader, {workers} workers, augmented"] = LoaderEpoch(
                source, options, workers, Augmentation()
            )
        report(rows, options.rounds, len(catalog.clips))


def report(rows: dict[str, Callable[[], float]], rounds: int, num_clips: int) -> None:
    """Run every row in every round and print medians."""
    figures: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, measure in rows.items():
            figures[name].append(measure())
    print(f"MEASURED clips/s over {num_clips} clips, median of {rounds} [range]")
    for name, values in figures.items():
        low, high = min(values), max(values)
        print(f"{name:36s} {statistics.median(values):9.1f}  [{low:.1f} - {high:.1f}]")


class LoaderEpoch:
    """Clips a second of one epoch; workers start before the clock does."""

    def __init__(
        self,
        source: str,
        options: argparse.Namespace,
        workers: int,
        augmentation: Augmentation | None,
    ) -> None:
        self._loader = FleetDataModule(
            train=source,
            val=None,
            image_size=tuple(options.image_size),
            num_frames=options.num_frames,
            batch_size=options.batch_size,
            num_workers=workers,
            augmentation=augmentation,
        ).train_dataloader()
        for _ in self._loader:
            pass

    def __call__(self) -> float:
        start = time.perf_counter()
        num_clips = sum(len(batch.clip_index_B) for batch in self._loader)
        return num_clips / (time.perf_counter() - start)


class DecodeOnly:
    """Clips a second of decoding the frames a window needs, in that many processes."""

    def __init__(self, catalog: Catalog, options: argparse.Namespace, workers: int) -> None:
        self._clips = [read_clip(clip.shard, clip.entry) for clip in catalog.clips]
        self._size = tuple(options.image_size)
        self._num_frames = options.num_frames
        self._workers = workers

    def __call__(self) -> float:
        ready = multiprocessing.Barrier(self._workers + 1)
        done = multiprocessing.Barrier(self._workers + 1)
        shares = [self._clips[worker :: self._workers] for worker in range(self._workers)]
        processes = [
            multiprocessing.Process(target=self._decode, args=(share, ready, done))
            for share in shares
        ]
        for process in processes:
            process.start()
        ready.wait()
        start = time.perf_counter()
        done.wait()
        seconds = time.perf_counter() - start
        for process in processes:
            process.join()
        return len(self._clips) / seconds

    def _decode(self, clips: list[Clip], ready: object, done: object) -> None:
        ready.wait()  # type: ignore[attr-defined]  # multiprocessing's Barrier is a factory
        for clip in clips:
            for stream in clip.video.values():
                decode_h264(
                    stream,
                    num_frames=clip.meta.num_frames,
                    size=self._size,
                    where=clip.meta.clip_id,
                    frames=range(clip.meta.num_frames - self._num_frames, clip.meta.num_frames),
                )
        done.wait()  # type: ignore[attr-defined]  # as above


def make_noise(folder: Path, options: argparse.Namespace) -> str:
    """Clips that are all noise and nothing else; returns the folder."""
    rng = np.random.default_rng(0)
    write_shards(_noise_clips(rng, options), folder, prefix="noise", clips_per_shard=32)
    return str(folder)


def _noise_clips(rng: np.random.Generator, options: argparse.Namespace) -> Iterator[Clip]:
    height, width = options.stored_size
    cameras = tuple(f"camera_{number}" for number in range(options.num_cameras))
    times = tuple(100_000_000 * frame for frame in range(options.num_frames))
    calibration = CameraCalibration(
        model="pinhole",
        fx=width / 2,
        fy=width / 2,
        cx=width / 2,
        cy=height / 2,
        camera_to_ego=IDENTITY,
        width=width,
        height=height,
    )
    for number in range(options.num_clips):
        yield Clip(
            meta=ClipMeta(
                clip_id=f"noise-{number}",
                source="noise",
                split="train",
                scene=f"noise-{number}",
                cameras=cameras,
                num_frames=options.num_frames,
                frame_rate_hz=10.0,
                has_ego_motion=True,
            ),
            rig=Rig(cameras=dict.fromkeys(cameras, calibration)),
            frames=FrameTimes(reference_ns=times, camera_ns=dict.fromkeys(cameras, times)),
            ego=EgoTrack(
                states=tuple(
                    EgoState(
                        timestamp_ns=100_000_000 * frame,
                        ego_to_world=IDENTITY,
                        velocity_mps=(0.0, 0.0, 0.0),
                        acceleration_mps2=(0.0, 0.0, 0.0),
                        yaw_rate_radps=0.0,
                    )
                    for frame in range(options.num_frames + 40)
                )
            ),
            labels=Labels(),
            video={
                name: encode_h264(_panning(rng, options), frame_rate_hz=10.0) for name in cameras
            },
        )


def _panning(rng: np.random.Generator, options: argparse.Namespace) -> Iterator[np.ndarray]:
    height, width = options.stored_size
    cells = rng.integers(0, 256, (height // 4 + 8, width // 4 + 64, 3)).astype(np.uint8)
    wide = cells.repeat(4, axis=0).repeat(4, axis=1)
    for frame in range(options.num_frames):
        yield wide[frame : frame + height, 3 * frame : 3 * frame + width]


if __name__ == "__main__":
    main()
