"""What a step costs, in metrics.csv: on a backend that can tell its memory."""

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fsdtrain_cpu import CpuBackend
from lightning import Callback, LightningModule, Trainer

from fsdtrain.backend import Backend
from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import TrainingStep
from fsdtrain.engine.trainer import build_trainer
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.settings import TrainingSettings

WAIT_S, STEP_S, VALIDATION_S = 2.0, 30.0, 500.0


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fsdtrain.engine.cost_log.perf_counter", clock)
    return clock


class TellsMemory(CpuBackend):
    def __init__(self) -> None:
        super().__init__()
        self.num_readings = 0

    def read_memory(self) -> Mapping[str, int]:
        self.num_readings += 1
        return {"peak_allocated_bytes": 1000 * self.num_readings}


@dataclass(frozen=True)
class SlowBatches:
    clock: Clock
    batches: tuple[ClipBatch, ...]
    wait_s: float = 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ClipBatch]:
        for batch in self.batches:
            self.clock.now_s += self.wait_s
            yield batch


class SlowStep(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.clock.now_s += STEP_S

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.now_s += VALIDATION_S


def rows_with_costs(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("time/step_s")]


@pytest.fixture
def train_slowly(
    clock: Clock,
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    make_training: Callable[..., TrainingSettings],
    tmp_path: Path,
) -> Callable[[Backend], list[dict[str, str]]]:
    def train(backend: Backend) -> list[dict[str, str]]:
        training = make_training(
            max_steps=6, log_every_steps=2, validate_every_steps=3, accumulate_batches=2
        )
        trainer = build_trainer(training, backend, tmp_path, first_step=0)
        trainer.callbacks.append(SlowStep(clock))  # type: ignore[attr-defined]  # Lightning's, untyped
        module = DrivingModule(TrainingStep(make_network()), training)
        batches = SlowBatches(clock, tuple(make_batch(seed=seed) for seed in range(12)), WAIT_S)
        trainer.fit(module, batches, SlowBatches(clock, (make_batch(seed=99),)))
        return rows_with_costs(tmp_path)

    return train


def test_each_logged_step_has_its_time_wait_and_memory(
    train_slowly: Callable[[Backend], list[dict[str, str]]],
) -> None:
    rows = train_slowly(TellsMemory())
    assert [int(row["step"]) for row in rows] == [1, 3, 5]
    # The first reading was thrown away: it was of what came before.
    assert [float(row["memory/peak_allocated_bytes"]) for row in rows] == [2000, 3000, 4000]
    for row in rows:
        assert float(row["time/data_wait_s"]) == 2 * WAIT_S, "two batches a step"
        assert float(row["time/step_s"]) == 2 * WAIT_S + STEP_S, "and no validation"


def test_a_backend_that_cannot_tell_leaves_no_times(
    train_slowly: Callable[[Backend], list[dict[str, str]]],
) -> None:
    assert train_slowly(CpuBackend()) == []
