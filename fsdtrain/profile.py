"""`fsdtrain profile`: where one training step's time goes on a backend, op by op.

The same configuration as `fit`, on one batch of its training data; nothing is kept of the training.
It does not know how a backend finds its figures: some measure, some model, and each says which.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn
from torch.utils import _pytree

from fsdtrain.backend import Backend, load_backend
from fsdtrain.build import build_datamodule, build_network, find_data, hash_data
from fsdtrain.data.assignment import Share
from fsdtrain.engine.loggers import quiet_logs
from fsdtrain.engine.optimizer import build_optimizer
from fsdtrain.engine.run_record import prepare_run_folder, read_json, write_json
from fsdtrain.engine.step import TrainingStep
from fsdtrain.errors import UserError
from fsdtrain.evaluate import record_run
from fsdtrain.report.profile_text import explanations, ops_table, summary
from fsdtrain.settings import ProfileSettings, read_profile_settings
from fsdtrain.step_profile import StepProfile

logger = logging.getLogger(__name__)

NUM_SHOWN_OPS = 20  # in the terminal; profile.json has all


RECORD_VERSION: Final = 2


class ProfileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """profile.json: one profile, and what it is of."""

    schema: Literal["fsdtrain-profile"] = "fsdtrain-profile"
    version: Literal[2] = RECORD_VERSION
    num_clips: int  # of the batch
    profile: StepProfile


def run(config: DictConfig) -> None:
    """Hydra's entry: settings once, then plain values."""
    settings = read_profile_settings(config)
    profile(settings, config_yaml=OmegaConf.to_yaml(config, resolve=True))


def profile(settings: ProfileSettings, *, config_yaml: str) -> StepProfile:
    """Profile one step on the first training batch; print it and write it into the run folder."""
    started_at = datetime.now(UTC)
    quiet_logs()
    run_dir = prepare_run_folder(settings.run_dir)
    seed_everything(settings.seed, workers=True, verbose=False)

    backend = load_backend(settings.backend["name"], settings.backend_options)
    network = build_network(settings.model, backend.op_table())
    train, val = find_data(settings.data)
    datamodule = build_datamodule(settings, network, train, val)
    step = TrainingStep(network)
    _move(step, backend)
    backend.compile_step(step)
    optimizer = build_optimizer(step, settings.training)
    loader = datamodule.loader("train", Share(batch_size=settings.data.batch_size))
    batch: Any = _pytree.tree_map(backend.to_device, next(iter(loader)))

    record_run(settings, backend, run_dir, started_at, config_yaml, hash_data(train))
    found = backend.profile_step(step, batch, optimizer)
    record = ProfileRecord(num_clips=settings.data.batch_size, profile=found)
    write_json(run_dir / "profile.json", record)
    _print(record, explain=settings.explain)
    if backend.value_origin == "EMULATED" and found.origin == "MEASURED":
        logger.warning("these are the emulation's times on this host, not the emulated machine's")
    logger.info("all %d ops: %s", len(found.ops), run_dir / "profile.json")
    return found


def read_profile(run_dir: Path) -> ProfileRecord:
    """The profile in a run folder; UserError where it is missing or of another schema."""
    path = run_dir / "profile.json"
    header = read_json(path, _Header)
    if header.version != RECORD_VERSION:
        raise UserError(
            f"{path} is version {header.version} of the record, and this fsdtrain reads version "
            f"{RECORD_VERSION}: profile the step again"
        )
    return read_json(path, ProfileRecord)


class _Header(msgspec.Struct):
    schema: Literal["fsdtrain-profile"]
    version: int


def _move(step: nn.Module, backend: Backend) -> None:
    for tensor in (*step.parameters(), *step.buffers()):
        tensor.data = backend.to_device(tensor.data)


def _print(record: ProfileRecord, *, explain: str | None) -> None:
    found = record.profile
    console = Console()
    console.print(ops_table(found, num_samples=record.num_clips, num_shown=NUM_SHOWN_OPS))
    console.print(summary(found))
    if explain is not None:
        console.print(explanations(found, explain))
