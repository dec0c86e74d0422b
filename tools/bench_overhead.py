"""Measures what the framework adds to a training step: Lightning, loggers, callbacks, our module.

    python tools/bench_overhead.py [overrides, e.g. model=small data.batch_size=2] [--blocks 30]

Copies of one model train on the same batches from memory. One is driven by a bare loop: forward,
backward, clip, AdamW, schedule, and the moving average of the weights if the configuration has one;
one by `build_trainer`, as `fit` does it; and one by the bare loop again, which shows how far two
equal things stand apart here. They take turns in blocks of a few steps in one process, because a
machine's speed drifts. Besides the time by the clock the CPU time of the process is shown, which
other programs disturb less.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fsdtrain.backend import load_backend
from fsdtrain.build import build_network
from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.collate import Sample, collate
from fsdtrain.data.schema import Box3d
from fsdtrain.engine.loggers import quiet_logs
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import TrainingStep
from fsdtrain.engine.trainer import build_trainer
from fsdtrain.heads.head import TargetBuilder
from fsdtrain.hydra_app import compose_config
from fsdtrain.settings import TrainingSettings, read_settings

GOAL = 1.02  # for steps of MIN_STEP_S and more
MIN_STEP_S = 0.1
NUM_BATCHES = 4  # different ones, in turn
BARE, FRAMEWORK, BARE_AGAIN = "bare", "framework", "bare again"


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One training step, batch in hand to the next request for one."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Parse the arguments, train both copies in turn, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the fit configuration")
    parser.add_argument("--blocks", type=int, default=30, help="turns of each copy")
    parser.add_argument("--steps", type=int, default=5, help="steps a turn")
    parser.add_argument("--cameras", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = read_settings(compose_config("fit", ["run_dir=.", *options.overrides]))
    backend = load_backend(settings.backend["name"], settings.backend_options)
    # The first block warms all up; in the last one the trainer stops before it asks again.
    num_blocks = options.blocks + 2
    num_steps = num_blocks * options.steps
    training = msgspec.structs.replace(
        settings.training,
        max_steps=num_steps,
        validate_every_steps=num_steps,  # training steps are measured, not validation
        monitor="val/loss",
    )

    torch.manual_seed(settings.seed)
    step = TrainingStep(build_network(settings.model, backend.op_table()))
    loops = {name: BareLoop(copy.deepcopy(step), training) for name in (BARE, BARE_AGAIN)}
    heads = DrivingModule(step, training).heads()
    batches = [
        make_batch(
            [head.target_builder() for _, head in heads],
            batch_size=settings.data.batch_size,
            num_frames=settings.model.num_frames,
            image_size=settings.model.image_size,
            num_cameras=options.cameras,
            seed=seed,
        )
        for seed in range(NUM_BATCHES)
    ]
    turns = TurnsLoader(batches, loops, blocks=num_blocks, steps=options.steps)
    quiet_logs()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(training, backend, Path(folder), first_step=0)
        trainer.fit(DrivingModule(step, training), turns, BatchesLoader(batches[:1]))
    print(f"{options.threads} threads, {sum(p.numel() for p in step.parameters()) / 1e6:.3f} M "
          f"parameters, batch {settings.data.batch_size}, {options.cameras} cameras")  # fmt: skip
    report({name: blocks[1 : num_blocks - 1] for name, blocks in turns.blocks_by_name.items()})


class BareLoop:
    """Plain PyTorch, written out: what a step costs without any framework."""

    def __init__(self, step: TrainingStep, training: TrainingSettings) -> None:
        self.step = step.train()
        self.training = training
        parameters = list(step.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step_number: 1 - step_number / (training.max_steps + 1)
        )
        self.average: nn.Module | None = None
        if training.ema_decay is not None:
            average = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(step, multi_avg_fn=average, use_buffers=True)

    def run(self, batch: ClipBatch) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.step(batch).loss.backward()
        if self.training.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.step.parameters(), self.training.gradient_clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if isinstance(self.average, AveragedModel):
            self.average.update_parameters(self.step)


@dataclass(frozen=True)
class BatchesLoader:
    """For the one validation at the end, which is not measured."""

    batches: Sequence[ClipBatch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ClipBatch]:
        return iter(self.batches)


class TurnsLoader:
    """Lightning's loader; between the blocks of its steps it lets the bare loops have their turns.

    A step of the framework lasts from the moment it gets a batch until it asks for the next one.
    """

    def __init__(
        self,
        batches: Sequence[ClipBatch],
        loops: Mapping[str, BareLoop],
        *,
        blocks: int,
        steps: int,
    ) -> None:
        self.batches, self.loops = batches, loops
        self.blocks, self.steps = blocks, steps
        self.blocks_by_name: dict[str, list[list[StepTime]]] = {
            name: [] for name in (BARE, FRAMEWORK, BARE_AGAIN)
        }

    def __len__(self) -> int:
        return self.blocks * self.steps

    def __iter__(self) -> Iterator[ClipBatch]:
        for block in range(self.blocks):
            numbers = range(block * self.steps, (block + 1) * self.steps)
            chosen = [self.batches[number % len(self.batches)] for number in numbers]
            self._run_bare(BARE, chosen)
            times: list[StepTime] = []
            for batch in chosen:
                started = _now()
                yield batch
                times.append(_since(started))
            self.blocks_by_name[FRAMEWORK].append(times)
            self._run_bare(BARE_AGAIN, chosen)

    def _run_bare(self, name: str, batches: Sequence[ClipBatch]) -> None:
        times: list[StepTime] = []
        for batch in batches:
            started = _now()
            self.loops[name].run(batch)
            times.append(_since(started))
        self.blocks_by_name[name].append(times)


def _now() -> StepTime:
    return StepTime(wall_s=time.perf_counter(), cpu_s=time.process_time())


def _since(started: StepTime) -> StepTime:
    now = _now()
    return StepTime(wall_s=now.wall_s - started.wall_s, cpu_s=now.cpu_s - started.cpu_s)


def make_batch(
    builders: Sequence[TargetBuilder],
    *,
    batch_size: int,
    num_frames: int,
    image_size: tuple[int, int],
    num_cameras: int,
    seed: int,
) -> ClipBatch:
    """Noise from cameras all around, on an ego that drives straight on past one parked car."""
    rng = np.random.default_rng(seed)
    height, width = image_size
    intrinsics = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]])
    poses = np.tile(np.eye(4), (num_cameras, 1, 1))
    for camera, yaw in enumerate(2 * np.pi * np.arange(num_cameras) / num_cameras):
        # Columns: the camera's right, down and forward in ego axes.
        poses[camera, :3, :3] = np.array(
            [[np.sin(yaw), 0, np.cos(yaw)], [-np.cos(yaw), 0, np.sin(yaw)], [0, -1, 0]]
        )
        poses[camera, :3, 3] = (0.0, 0.0, 1.6)

    def drive(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        places = np.tile(np.eye(4), (len(seconds), 1, 1))
        places[:, 0, 3] = 8.0 * seconds
        return places

    samples = []
    for row in range(batch_size):
        car = Box3d(
            category="car", track_id="a", center_m=(rng.uniform(-10, 10), 3.0, 0.8),
            size_m=(4.5, 1.9, 1.6), rotation_wxyz=(1.0, 0.0, 0.0, 0.0),
            velocity_mps=(0.0, 0.0, 0.0), visibility=1.0,
        )  # fmt: skip
        seconds = np.linspace(0.0, 0.2 * (num_frames - 1), num_frames)
        future = np.linspace(0.2, 4.8, 24)
        shape = (num_frames, num_cameras, height, width, 3)
        window = ClipWindow(
            clip_id=f"noise-{row}",
            frames=rng.integers(0, 256, shape, dtype=np.uint8),
            intrinsics_N33=np.tile(intrinsics, (num_cameras, 1, 1)),
            camera_to_ego_N44=poses,
            timestamps_s_T=seconds,
            ego_to_world_T44=drive(seconds),
            speed_mps=8.0,
            yaw_rate_radps=0.0,
            future_s_F=future,
            future_ego_to_world_F44=drive(seconds[-1] + future),
            boxes=((car,),) * num_frames,
            lanes=None,
            occupancy=None,
        )
        targets = {name: value for build in builders for name, value in build(window).items()}
        samples.append(Sample(window=window, targets=targets, clip_index=row))
    return collate(samples)


def report(blocks_by_name: Mapping[str, list[list[StepTime]]]) -> None:
    """Medians of the blocks' medians, and the spread of the ratio of neighbouring blocks."""
    for clock in ("wall_s", "cpu_s"):
        medians = {
            name: [statistics.median(getattr(step, clock) for step in block) for block in blocks]
            for name, blocks in blocks_by_name.items()
        }
        step_s = statistics.median(medians[BARE])
        print(f"MEASURED {clock.removesuffix('_s')} time: {step_s * 1e3:.2f} ms a bare step")
        for name in (FRAMEWORK, BARE_AGAIN):
            ratios = [b / a for a, b in zip(medians[BARE], medians[name], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            # The standard error of a median, its spread taken from the quartiles.
            error = 1.25 * (high - low) / 1.35 / len(ratios) ** 0.5
            more_s = statistics.median(medians[name]) - step_s
            print(
                f"  {name:10} / bare: {middle:.4f} +- {error:.4f} (quartiles {low:.4f} .. "
                f"{high:.4f}, {len(ratios)} blocks), {more_s * 1e3:+.2f} ms"
            )
        if step_s < MIN_STEP_S:
            print(f"  steps below {MIN_STEP_S} s: the goal of {GOAL} is not for these")


if __name__ == "__main__":
    main()
