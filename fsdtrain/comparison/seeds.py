"""Trains both sides with every seed, in this process, as if each run had one of its own.

Starting a process costs more than a tenth of a short training, so runs share this one, and what a
run leaves in it is put back after each. A seed gives the bits that `fit` gives by itself. It does
not know how a run is configured or trained: both are handed to it.

    <folder>/a/seed_0   <folder>/b/seed_0   <folder>/a/seed_1   ...
"""

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import torch

from fsdtrain.comparison.configs import read_fields
from fsdtrain.comparison.record import SIDES, Side, TrainingComparison
from fsdtrain.comparison.training import compare_training
from fsdtrain.engine.run_record import Results
from fsdtrain.errors import UserError
from fsdtrain.settings import Settings

logger = logging.getLogger(__name__)

NOT_COMPARED = ("run_dir", "resume")  # when a folder is asked whether it holds this very run


class Prepare(Protocol):
    """(side, seed, run_dir) -> the settings of that run, and its composed configuration."""

    def __call__(self, side: Side, seed: int, run_dir: Path) -> tuple[Settings, str]: ...


class Train(Protocol):
    """`fsdtrain.fit.fit`."""

    def __call__(self, settings: Settings, *, config_yaml: str) -> Results: ...


@dataclass(frozen=True, kw_only=True)
class TrainedSeeds:
    """The run folders of both sides by seed; `training_s` is of the `num_trained` made now."""

    a: tuple[Path, ...]
    b: tuple[Path, ...]
    training_s: float
    num_trained: int


def train_and_compare(
    prepare: Prepare,
    train: Train,
    *,
    seeds: Sequence[int],
    folder: Path,
    metric: str | None = None,
    margin: float | None = None,
    target: float | None = None,
) -> TrainingComparison:
    """Run `run_seeds`, then `compare_training`; `overhead_share` is of all that is not training.

    Raises:
        UserError: see both.
    """
    started = time.perf_counter()
    trained = run_seeds(prepare, train, seeds=seeds, folder=folder)
    found = compare_training(trained.a, trained.b, metric=metric, margin=margin, target=target)
    passed = time.perf_counter() - started
    if trained.num_trained < len(SIDES) * len(seeds):
        return found  # what the others took is not known
    return msgspec.structs.replace(found, overhead_share=passed / trained.training_s - 1)


def run_seeds(
    prepare: Prepare, train: Train, *, seeds: Sequence[int], folder: Path
) -> TrainedSeeds:
    """Train every seed on both sides, seed by seed, so that an interruption leaves whole pairs.

    A run that is complete is left as it is, and one that was interrupted goes on.

    Args:
        prepare: of each run.
        train: what trains and writes the run folder.
        seeds: each once.
        folder: of the comparison.

    Raises:
        UserError: a training fails, needs several processes, or a folder holds another run.
    """
    if len(set(seeds)) != len(seeds) or not seeds:
        raise UserError(f"seeds={list(seeds)}: give at least one seed, and each once")
    folders: dict[Side, list[Path]] = {side: [] for side in SIDES}
    training_s, num_trained = 0.0, 0
    for seed in seeds:
        for side in SIDES:
            run_dir = folder / side / f"seed_{seed}"
            folders[side].append(run_dir)
            settings, config_yaml = prepare(side, seed, run_dir)
            _check_devices(settings, side)
            unfinished = _find_unfinished(settings, config_yaml)
            if unfinished is None:
                logger.info("side %s, seed %d: complete already in %s", side, seed, run_dir)
                continue
            logger.info("training side %s, seed %d", side, seed)
            started = time.perf_counter()
            try:
                with _as_in_its_own_process():
                    train(unfinished, config_yaml=config_yaml)
            except UserError as error:
                raise UserError(f"side {side}, seed {seed}: {error}") from error
            training_s += time.perf_counter() - started
            num_trained += 1
    return TrainedSeeds(
        a=tuple(folders["a"]),
        b=tuple(folders["b"]),
        training_s=training_s,
        num_trained=num_trained,
    )


def _check_devices(settings: Settings, side: Side) -> None:
    devices = settings.backend.get("devices", 1)
    if devices != 1:
        raise UserError(
            f"side {side}: backend.devices={devices}: a comparison trains in one process; train "
            "both sides with fit, one folder a seed, and compare the two folders"
        )


def _find_unfinished(settings: Settings, config_yaml: str) -> Settings | None:
    """The settings to train with: anew, or from the last checkpoint; None: nothing is left to do.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    run_dir = settings.run_dir
    if not (run_dir / "manifest.json").exists():
        return settings
    _check_same_run(run_dir, config_yaml)
    if (run_dir / "results.json").exists():
        return None
    if (run_dir / "checkpoints" / "last.ckpt").exists():
        return msgspec.structs.replace(settings, resume="last", ckpt_path=None)
    (run_dir / "manifest.json").unlink()  # `fit` would not write over a run
    return settings


def _check_same_run(run_dir: Path, config_yaml: str) -> None:
    path = run_dir / "config.yaml"
    there = read_fields(path.read_text(encoding="utf-8"), path) if path.exists() else {}
    asked = read_fields(config_yaml, "the configuration")
    other = [
        field
        for field in dict.fromkeys((*asked, *there))
        if field not in NOT_COMPARED and asked.get(field) != there.get(field)
    ]
    if other:
        raise UserError(
            f"{run_dir} holds a run of another configuration ({', '.join(other[:5])}): choose "
            "another run_dir, or ask for the same comparison again to go on with it"
        )


@contextmanager
def _as_in_its_own_process() -> Iterator[None]:
    """Put back what a training sets for the whole process, and free what it holds.

    Lightning and the backends set environment variables (seeds, cuBLAS's workspace) and switches of
    torch. Compiled steps are forgotten: the next run captures its own, as it would by itself.
    """
    environment = dict(os.environ)
    _reset_torch()  # a comparison has run steps before
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        _reset_torch()


def _reset_torch() -> None:
    """Torch's switches as a new process has them."""
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        torch.cuda.empty_cache()
