"""Fixtures of the engine's tests: a tiny model in training; Lightning's switches put back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from fsdtrain.backend import Backend, load_backend
from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import TrainingStep
from fsdtrain.engine.trainer import build_trainer
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.settings import TrainingSettings

Train = Callable[..., tuple[Trainer, DrivingModule]]


@dataclass(frozen=True)
class Batches:
    """A loader of batches that are there already; a list, Lightning would take for many loaders."""

    batches: Sequence[ClipBatch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ClipBatch]:
        return iter(self.batches)


@pytest.fixture(autouse=True)
def deterministic_switch() -> Iterator[None]:
    """`Trainer(deterministic=True)` switches the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def train(make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch]) -> Train:
    """`train(training, run_dir, batches, ...)` -> the Trainer and the module, after fitting."""

    def _train(
        training: TrainingSettings,
        run_dir: Path,
        *,
        batches: Sequence[ClipBatch] | None = None,
        datamodule: FleetDataModule | None = None,
        network: HydraBev | None = None,
        callbacks: tuple[Callback, ...] = (),
        ckpt_path: Path | None = None,
        first_step: int = 0,
        backend: Backend | None = None,
    ) -> tuple[Trainer, DrivingModule]:
        module = DrivingModule(TrainingStep(network or make_network()), training)
        backend = backend or load_backend("cpu", {})
        trainer = build_trainer(training, backend, run_dir, first_step=first_step)
        trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]  # Lightning's, untyped
        loaders: dict[str, Any] = {"datamodule": datamodule}
        if datamodule is None:
            given = [make_batch(seed=seed) for seed in range(10)] if batches is None else batches
            loaders = {
                "train_dataloaders": Batches(given),
                "val_dataloaders": Batches([make_batch(seed=100)]),
            }
        trainer.fit(module, **loaders, ckpt_path=ckpt_path, weights_only=True)
        return trainer, module

    return _train
