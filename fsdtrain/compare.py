"""`fsdtrain compare`: do two hardware paths train the same, and what does each cost?

Two live backends, or two folders of finished runs. The recipe only: one step on one batch, the
costs of a step, whole trainings, then the verdict and its pages.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from torch.utils import _pytree

from fsdtrain.backend import Backend, load_backend
from fsdtrain.build import build_datamodule, build_network, find_data, hash_data, move_step
from fsdtrain.comparison.configs import config_differences
from fsdtrain.comparison.folders import check_comparable, find_runs
from fsdtrain.comparison.one_step import (
    SideStep,
    bisect_step,
    capture_sides,
    compare_one_step,
    write_step_repro,
)
from fsdtrain.comparison.performance import compare_performance
from fsdtrain.comparison.record import (
    SIDES,
    CompareRecord,
    NumericsComparison,
    PerformanceComparison,
    Side,
    SwappedSet,
    TrainingComparison,
    TunedRecipe,
)
from fsdtrain.comparison.seeds import train_and_compare
from fsdtrain.comparison.training import compare_training
from fsdtrain.comparison.tune_step import tune_step
from fsdtrain.comparison.verdict import conclude
from fsdtrain.data.assignment import Share
from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.checkpoints import load_weights
from fsdtrain.engine.loggers import quiet_logs
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.optimizer import build_optimizer
from fsdtrain.engine.run_record import (
    Manifest,
    make_manifest,
    prepare_run_folder,
    read_manifest,
    write_json,
)
from fsdtrain.engine.step import TrainingStep
from fsdtrain.errors import UserError
from fsdtrain.fit import fit
from fsdtrain.hydra_app import command_line, name_side
from fsdtrain.ops.table import OpTable
from fsdtrain.report.compare_summary import compare_summary
from fsdtrain.report.compare_text import write_compare_texts
from fsdtrain.report.compare_trace import write_compare_trace
from fsdtrain.report.pages import write_compare_page
from fsdtrain.settings import (
    CompareSettings,
    RunSettings,
    Settings,
    read_compare_settings,
    read_settings,
)
from fsdtrain.step_graph.capture import trace_step

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> int:
    """Hydra's entry; returns the exit code."""
    settings = read_compare_settings(config)
    quiet_logs()
    prepare_run_folder(settings.run_dir)
    if settings.a_dir is not None and settings.b_dir is not None:
        record = compare_folders(settings, settings.a_dir, settings.b_dir)
    else:
        record = compare_backends(settings, config)
    write_json(settings.run_dir / "compare.json", record)
    Console().print(compare_summary(record))
    for path in write_compare_texts(record, settings.run_dir):
        logger.info("written: %s", path)
    if settings.page:
        logger.info("page: %s", write_compare_page(settings.run_dir))
    return record.verdict.exit_code


def compare_folders(settings: CompareSettings, a_dir: Path, b_dir: Path) -> CompareRecord:
    """Compare finished runs, which may have been made elsewhere.

    Raises:
        UserError: they cannot be compared.
    """
    a_runs, b_runs = find_runs(a_dir), find_runs(b_dir)
    differences = check_comparable(a_runs, b_runs, allow=settings.allow)
    training = compare_training(
        a_runs,
        b_runs,
        metric=settings.metric,
        margin=settings.margin,
        target=settings.target_loss,
    )
    return CompareRecord(
        a_name=str(a_dir),
        b_name=str(b_dir),
        a_manifest=read_manifest(a_runs[0]),
        b_manifest=read_manifest(b_runs[0]),
        config_differences=differences,
        verdict=conclude(numerics=None, training=training, performance=None),
        training=training,
    )


@dataclass(frozen=True, kw_only=True)
class _Live:
    """A side before anything runs; `name` is for people."""

    name: str
    backend: Backend
    settings: Settings
    config_yaml: str


def compare_backends(settings: CompareSettings, config: DictConfig) -> CompareRecord:
    """Compare two backends on the same model, data and seeds.

    Raises:
        UserError: a backend is not available, or its step cannot be captured or trained.
    """
    if settings.data.frames == "h264":
        raise UserError(
            "data.frames=h264: compare takes a step by itself, whose batches no device decodes; "
            "use data.frames=i420 here, or compare two folders of finished runs"
        )
    started_at = datetime.now(UTC)
    a, b = (_load(config, side, settings) for side in SIDES)
    train, val = find_data(settings.data)
    data_sha256 = hash_data(train, val)
    manifests = [
        make_manifest(
            command=command_line(),
            started_at=started_at.isoformat(timespec="seconds"),
            seed=settings.seed,
            backend=each.backend.name,
            device=each.backend.device_name(),
            origin=each.backend.value_origin,
            config_yaml=each.config_yaml,
            data_sha256=data_sha256,
        )
        for each in (a, b)
    ]
    found = _compare_step(settings, a, b, train, val)
    training = _compare_training(settings, config) if settings.num_seeds else None
    return _record(a, b, manifests, found, training)


@dataclass(frozen=True, kw_only=True)
class _StepFindings:
    numerics: NumericsComparison | None = None
    bisected: SwappedSet | None = None
    tuned: TunedRecipe | None = None
    performance: PerformanceComparison | None = None


def _load(config: DictConfig, side: Side, settings: CompareSettings) -> _Live:
    of_side, config_yaml = _as_fit(config, side, settings.seed, settings.run_dir)
    backend = load_backend(of_side.backend["name"], of_side.backend_options)
    return _Live(
        name=name_side(side, backend.name),
        backend=backend,
        settings=of_side,
        config_yaml=config_yaml,
    )


def _as_fit(config: DictConfig, side: Side, seed: int, run_dir: Path) -> tuple[Settings, str]:
    """The settings with which `fit` trains this side, and their YAML.

    From the configuration, for a backend may take its seed from the run's.
    """
    alone = OmegaConf.masked_copy(config, list(RunSettings.__struct_fields__))
    with open_dict(alone):
        alone.backend = config[side]
        alone.seed = seed
        alone.run_dir = str(run_dir)
    return read_settings(alone), OmegaConf.to_yaml(alone, resolve=True)


def _compare_step(
    settings: CompareSettings, a: _Live, b: _Live, train: str, val: str
) -> _StepFindings:
    """One step on the first training batch."""
    if not (settings.numerics or settings.performance or settings.tune):
        return _StepFindings()
    seed_everything(settings.seed, workers=True, verbose=False)
    reference = TrainingStep(build_network(settings.model, OpTable()))
    if settings.ckpt_path is not None:
        load_weights(DrivingModule(reference, settings.training), settings.ckpt_path)
    datamodule = build_datamodule(a.settings, reference.network, train, val)
    batch = next(iter(datamodule.loader("train", Share(batch_size=settings.data.batch_size))))
    on_a, on_b = (_on_side(each, reference, batch) for each in (a, b))

    numerics = bisected = None
    if settings.numerics:
        make_optimizer = partial(build_optimizer, training=settings.training)
        captured = capture_sides(reference, batch, on_a, on_b, make_optimizer)
        numerics = compare_one_step(captured)
        bisected = bisect_step(captured) if settings.bisect else None
        if settings.repro is not None:
            folder = settings.run_dir / "repro"
            script = write_step_repro(captured, numerics, settings.repro, folder, a=on_a, b=on_b)
            logger.info("run it with: python %s", script)
    return _StepFindings(
        numerics=numerics,
        bisected=bisected,
        tuned=_tune(settings, reference, batch, on_b) if settings.tune else None,
        performance=_profile(settings, on_a, on_b) if settings.performance else None,
    )


def _on_side(side: _Live, reference: TrainingStep, batch: ClipBatch) -> SideStep:
    step = TrainingStep(build_network(side.settings.model, side.backend.op_table()))
    step.load_state_dict(reference.state_dict())
    move_step(step, side.backend)
    return SideStep(
        backend=side.backend,
        options=side.settings.backend_options,
        step=step,
        batch=_pytree.tree_map(side.backend.to_device, batch),
    )


def _tune(
    settings: CompareSettings, reference: TrainingStep, batch: ClipBatch, b: SideStep
) -> TunedRecipe:
    """--tune: of side b's formats."""
    return tune_step(
        b.backend,
        b.step,
        b.batch,
        reference=trace_step(reference, batch, who="the reference").graph(),
        make_optimizer=partial(build_optimizer, training=settings.training),
    )


def _profile(settings: CompareSettings, *steps: SideStep) -> PerformanceComparison:
    """The costs of a step; the weights are of no further use."""
    profiles = []
    for side, each in zip(SIDES, steps, strict=True):
        logger.info("profiling a step of %s: %s", side, each.backend.name)
        each.backend.compile_step(each.step)
        optimizer = build_optimizer(
            each.step, settings.training, is_fused=each.backend.fuses_optimizer
        )
        profiles.append(each.backend.profile_step(each.step, each.batch, optimizer))
    a, b = profiles
    if settings.trace:
        written = write_compare_trace(a, b, settings.run_dir / "trace.json")
        logger.info("trace for ui.perfetto.dev: %s", written.path)
        if written.left_out:
            logger.warning("the trace is without %s", written.left_out)
    return compare_performance(a, b, num_samples=settings.data.batch_size)


def _compare_training(settings: CompareSettings, config: DictConfig) -> TrainingComparison:
    return train_and_compare(
        lambda side, seed, run_dir: _as_fit(config, side, seed, run_dir),
        fit,
        seeds=range(settings.seed, settings.seed + settings.num_seeds),
        folder=settings.run_dir,
        metric=settings.metric,
        margin=settings.margin,
        target=settings.target_loss,
    )


def _record(
    a: _Live,
    b: _Live,
    manifests: Sequence[Manifest],
    found: _StepFindings,
    training: TrainingComparison | None,
) -> CompareRecord:
    a_manifest, b_manifest = manifests
    return CompareRecord(
        a_name=a.name,
        b_name=b.name,
        a_manifest=a_manifest,
        b_manifest=b_manifest,
        config_differences=config_differences(a.config_yaml, b.config_yaml),
        verdict=conclude(numerics=found.numerics, training=training, performance=found.performance),
        numerics=found.numerics,
        bisected=found.bisected,
        tuned=found.tuned,
        training=training,
        performance=found.performance,
    )
