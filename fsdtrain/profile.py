"""`fsdtrain profile`: where one training step's time goes on a backend, op by op.

The same configuration as `fit`, on one batch of its training data; nothing is trained. It does not
know how a backend finds its figures: some measure, some model, and each figure says which.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils import _pytree

from fsdtrain.backend import Backend, OpProfile, StepProfile, load_backend
from fsdtrain.build import build_datamodule, build_network, find_data, hash_data
from fsdtrain.data.assignment import Share
from fsdtrain.engine.loggers import quiet_logs
from fsdtrain.engine.run_record import prepare_run_folder, read_json, write_json
from fsdtrain.engine.step import TrainingStep
from fsdtrain.evaluate import record_run
from fsdtrain.settings import Settings, read_settings

logger = logging.getLogger(__name__)

NUM_SHOWN_OPS = 20  # in the terminal; profile.json has all


class ProfileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """profile.json: one profile, and what it is of."""

    schema: Literal["fsdtrain-profile"] = "fsdtrain-profile"
    version: Literal[1] = 1
    num_clips: int  # of the batch
    profile: StepProfile


def run(config: DictConfig) -> None:
    """Hydra's entry: settings once, then plain values."""
    profile(read_settings(config), config_yaml=OmegaConf.to_yaml(config, resolve=True))


def profile(settings: Settings, *, config_yaml: str) -> StepProfile:
    """Profile one step on the first training batch; writes profile.json, prints the slowest ops."""
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
    loader = datamodule.loader("train", Share(batch_size=settings.data.batch_size))
    batch: Any = _pytree.tree_map(backend.to_device, next(iter(loader)))

    record_run(settings, backend, run_dir, started_at, config_yaml, hash_data(train))
    found = backend.profile_step(step, batch)
    record = ProfileRecord(num_clips=settings.data.batch_size, profile=found)
    write_json(run_dir / "profile.json", record)
    Console().print(profile_table(record))
    if backend.value_origin == "EMULATED" and found.origin == "MEASURED":
        logger.warning("these are the emulation's times on this host, not the emulated machine's")
    logger.info("all %d ops: %s", len(found.ops), run_dir / "profile.json")
    return found


def read_profile(run_dir: Path) -> ProfileRecord:
    """The profile in a run folder; UserError where it is missing or of another schema."""
    return read_json(run_dir / "profile.json", ProfileRecord)


def _move(step: nn.Module, backend: Backend) -> None:
    for tensor in (*step.parameters(), *step.buffers()):
        tensor.data = backend.to_device(tensor.data)


def profile_table(record: ProfileRecord) -> Table:
    """The slowest ops, their shares and what the backend knows of each."""
    found = record.profile
    # One title for all rows: a profile's figures have one origin.
    table = Table(
        title=f"{found.backend}, one step of {record.num_clips} clips: "
        f"{1e3 * found.step_time_s:.1f} ms ({found.origin})\n{found.device}",
        box=box.SIMPLE_HEAD,
    )
    total_s = sum(op.time_s for op in found.ops)
    columns = {
        "op": [op.name.removeprefix("aten::") for op in found.ops],
        "shapes": [op.shapes for op in found.ops],
        "type": [op.dtype for op in found.ops],
        "calls": [str(op.num_calls) for op in found.ops],
        "ms": [f"{1e3 * op.time_s:.2f}" for op in found.ops],
        "share": [f"{op.time_s / total_s:.1%}" if total_s else "" for op in found.ops],
        "GFLOP/s": [_rate(op) for op in found.ops],
        "bound by": [op.bound_by or "" for op in found.ops],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    for name in shown:
        is_number = name in ("calls", "ms", "share", "GFLOP/s")
        table.add_column(
            name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    for row in list(zip(*shown.values(), strict=True))[:NUM_SHOWN_OPS]:
        table.add_row(*row)
    return table


def _rate(op: OpProfile) -> str:
    return "" if op.flops is None or not op.time_s else f"{op.flops / op.time_s / 1e9:.1f}"
