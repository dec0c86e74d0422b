"""`fsdtrain profile`: where one training step's time goes on a backend, op by op.

The same configuration as `fit`, on one batch of its training data; nothing is kept of the training.
It does not know how a backend finds its figures: some measure, some model, and each says which.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text
from torch.utils import _pytree

from fsdtrain.backend import Backend, installed_backends, load_backend
from fsdtrain.build import build_datamodule, build_network, find_data, hash_data, move_step
from fsdtrain.data.assignment import Share
from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.loader import ClipLoader
from fsdtrain.engine.loggers import quiet_logs
from fsdtrain.engine.optimizer import build_optimizer
from fsdtrain.engine.profile_record import ProfileRecord
from fsdtrain.engine.run_record import prepare_run_folder, write_json
from fsdtrain.engine.step import TrainingStep
from fsdtrain.errors import UserError
from fsdtrain.evaluate import record_run
from fsdtrain.report.html import write_profile_page
from fsdtrain.report.profile_text import explanations, ops_table, summary
from fsdtrain.report.trace import write_trace
from fsdtrain.settings import ProfileSettings, read_profile_settings
from fsdtrain.step_profile import StepProfile

logger = logging.getLogger(__name__)

NUM_SHOWN_OPS = 20  # in the terminal; profile.json has all
NUM_TIMED_BATCHES = 8
MAX_LOADING_S = 3.0  # of batches that are timed
PREFETCHED = 2  # batches that each worker has ready, as torch does it


def run(config: DictConfig) -> None:
    """Hydra's entry: settings once, then plain values."""
    settings = read_profile_settings(config)
    profile(settings, config_yaml=OmegaConf.to_yaml(config, resolve=True))


def profile(settings: ProfileSettings, *, config_yaml: str) -> StepProfile:
    """Profile one step on the first training batch; print it and write it into the run folder."""
    if settings.data.frames == "h264":
        raise UserError(
            "profile measures a step by itself, whose batches no device has decoded: data.frames="
            "h264 is for fit and validate; use data.frames=i420 here"
        )
    started_at = datetime.now(UTC)
    quiet_logs()
    run_dir = prepare_run_folder(settings.run_dir)
    seed_everything(settings.seed, workers=True, verbose=False)

    backend, warning = _load(settings)
    network = build_network(settings.model, backend.op_table())
    train, val = find_data(settings.data)
    datamodule = build_datamodule(settings, network, train, val)
    step = TrainingStep(network)
    move_step(step, backend)
    backend.compile_step(step)
    optimizer = build_optimizer(step, settings.training, is_fused=backend.fuses_optimizer)
    loader = datamodule.loader("train", Share(batch_size=settings.data.batch_size))
    batches = _endlessly(loader)
    batch: Any = _pytree.tree_map(backend.to_device, next(batches))

    record_run(settings, backend, run_dir, started_at, config_yaml, hash_data(train))
    found = backend.profile_step(step, batch, optimizer)
    if warning:
        found = replace(found, notes=(warning, *found.notes))
    if backend.value_origin == found.origin == "MEASURED":
        wait_s = _data_wait(batches, settings.data.num_workers, found.step_time_s)
        found = replace(found, data_wait_s=wait_s)
    num_clips = settings.data.batch_size
    # The timeline is long; whoever wants it asks for the trace.
    record = ProfileRecord(num_clips=num_clips, profile=replace(found, timeline=()))
    write_json(run_dir / "profile.json", record)
    _print(found, num_clips=num_clips, explain=settings.explain)
    if backend.value_origin == "EMULATED" and found.origin == "MEASURED":
        logger.warning("these are the emulation's times on this host, not the emulated machine's")
    logger.info("all %d ops: %s", len(found.ops), run_dir / "profile.json")
    if settings.page:
        logger.info("page: %s", write_profile_page(run_dir))
    if settings.trace:
        _trace(found, run_dir)
    return found


def _load(settings: ProfileSettings) -> tuple[Backend, str]:
    """The backend that is asked for, and "".

    Where it is not available but names one that models its machine: that one, and a warning, which
    has been printed.
    """
    name = settings.backend["name"]
    installed = installed_backends()
    entry = installed.get(name)
    substitute = None
    if entry is not None and entry.backend_class is not None:
        substitute = entry.backend_class.modelled_substitute()
    if entry is None or entry.availability.is_available or substitute is None:
        return load_backend(name, settings.backend_options), ""
    if substitute.backend not in installed:
        return load_backend(name, settings.backend_options), ""
    warning = (
        f"Backend {name} is not available here: {entry.availability.detail}. These figures are "
        f"MODELLED, not measured: of {substitute.machine}, by backend {substitute.backend}. "
        f"{substitute.hint}"
    )
    Console().print(Text(warning, style="bold yellow"))
    return load_backend(substitute.backend, substitute.options), warning


def _endlessly(loader: ClipLoader) -> Iterator[ClipBatch]:
    while True:
        yield from loader


def _data_wait(batches: Iterator[ClipBatch], num_workers: int, step_time_s: float) -> float:
    """Seconds that each step waits for its batch: workers load while a step runs, else nobody."""
    for _ in range(PREFETCHED * num_workers):
        next(batches)  # they were made while the step was profiled
    started, num_batches = time.perf_counter(), 0
    while num_batches < NUM_TIMED_BATCHES and time.perf_counter() - started < MAX_LOADING_S:
        next(batches)
        num_batches += 1
    batch_s = (time.perf_counter() - started) / num_batches
    return max(0.0, batch_s - step_time_s) if num_workers else batch_s


def _print(found: StepProfile, *, num_clips: int, explain: str | None) -> None:
    console = Console()
    table = ops_table(found, num_samples=num_clips, num_shown=NUM_SHOWN_OPS, width=console.width)
    console.print(table)
    console.print(summary(found))
    if explain is not None:
        console.print(explanations(found, explain))


def _trace(found: StepProfile, run_dir: Path) -> None:
    written = write_trace(found, run_dir / "trace.json")
    logger.info("trace for ui.perfetto.dev: %s", written.path)
    if written.left_out:
        logger.warning("the trace is without %s", written.left_out)
