"""`fsdtrain validate`, and the last part of `fit`: final figures, example pictures, report.

Three evaluations of the same weights on the same clips: as recorded, with every image zeroed, and
with the images of another clip. A model that looks must fall to about the constant prior in the
last two.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils._pytree import tree_map

from fsdtrain.backend import Backend, load_backend
from fsdtrain.build import build_datamodule, build_network, find_data, hash_data
from fsdtrain.data.batch import ClipBatch, RgbFrames, YuvFrames
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.engine.checkpoints import check_checkpoint, load_weights
from fsdtrain.engine.loggers import quiet_logs
from fsdtrain.engine.metrics_file import read_curves
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.run_record import (
    Figure,
    Results,
    make_manifest,
    prepare_run_folder,
    write_json,
)
from fsdtrain.engine.step import TrainingStep
from fsdtrain.engine.trainer import build_evaluator
from fsdtrain.errors import UserError
from fsdtrain.hydra_app import command_line
from fsdtrain.report.curve_picture import curves_png
from fsdtrain.report.examples import draw_examples
from fsdtrain.report.html import write_report
from fsdtrain.settings import Settings, read_settings
from fsdtrain.step_profile import Origin

logger = logging.getLogger(__name__)

CameraView = Literal["recorded", "camera_blind", "cameras_shuffled"]


@dataclass(frozen=True)
class ViewedLoader:
    """A loader whose images are replaced; calibration, motion and targets stay as they are."""

    loader: Any  # any iterable of ClipBatch with a length
    view: CameraView

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[ClipBatch]:
        before: Any = None
        for batch in self.loader:
            if self.view == "camera_blind":
                yield batch._replace(frames=_blackened(batch.frames))
            elif self.view == "cameras_shuffled":
                # Each clip gets its neighbour's images; the first one those of the batch before.
                last = tree_map(lambda value: value[-1:], batch.frames)
                shifted = tree_map(
                    lambda one, values: torch.cat([one, values[:-1]]),
                    last if before is None else before,
                    batch.frames,
                )
                before = last
                yield batch._replace(frames=shifted)
            else:
                yield batch


def _blackened(frames: Any) -> torch.Tensor | YuvFrames | RgbFrames:
    if isinstance(frames, YuvFrames | RgbFrames):
        nothing = torch.zeros_like(frames.to_rgb_BN34)
        return frames._replace(to_rgb_BN34=nothing, colour_BN34=nothing)
    return torch.zeros_like(frames)


def run(config: DictConfig) -> None:
    """Hydra's entry: settings once, then plain values."""
    validate(read_settings(config), config_yaml=OmegaConf.to_yaml(config, resolve=True))


def validate(settings: Settings, *, config_yaml: str) -> Results:
    """Evaluate the checkpoint `settings.ckpt_path` on the validation shards."""
    if settings.ckpt_path is None:
        raise UserError("validate needs ckpt_path=<checkpoint>, e.g. .../checkpoints/best.ckpt")
    started_at = datetime.now(UTC)
    quiet_logs()
    run_dir = prepare_run_folder(settings.run_dir)
    seed_everything(settings.seed, workers=True, verbose=False)

    backend = load_backend(settings.backend["name"], settings.backend_options)
    check_checkpoint(settings.ckpt_path)  # before the data are made, which takes longer
    network = build_network(settings.model, backend.op_table())
    train, val = find_data(settings.data)
    datamodule = build_datamodule(settings, network, train, val)
    step = TrainingStep(network)
    module = DrivingModule(step, settings.training)
    backend.compile_step(step)
    load_weights(module, settings.ckpt_path)

    record_run(settings, backend, run_dir, started_at, config_yaml, hash_data(val))
    return conclude(
        module, datamodule, backend, run_dir, num_report_clips=settings.num_report_clips
    )


@rank_zero_only
def record_run(
    settings: Settings,
    backend: Backend,
    run_dir: Path,
    started_at: datetime,
    config_yaml: str,
    data_sha256: str,
) -> None:
    """Write manifest.json and config.yaml before the work begins."""
    manifest = make_manifest(
        command=command_line(),
        started_at=started_at.isoformat(timespec="seconds"),
        seed=settings.seed,
        backend=backend.name,
        device=backend.device_name(),
        origin=backend.value_origin,
        config_yaml=config_yaml,
        data_sha256=data_sha256,
    )
    write_json(run_dir / "manifest.json", manifest)
    (run_dir / "config.yaml").write_text(config_yaml)


def conclude(
    module: DrivingModule,
    datamodule: FleetDataModule,
    backend: Backend,
    run_dir: Path,
    *,
    num_report_clips: int,
) -> Results:
    """Final figures, pictures and report of the weights that `module` holds now."""
    trainer = build_evaluator(backend, run_dir)
    views: dict[CameraView, dict[str, float]] = {}
    for view in ("recorded", "camera_blind", "cameras_shuffled"):
        logger.info("evaluating: %s", view.replace("_", " "))
        views[view] = _evaluate(trainer, module, datamodule, view)
    results = Results(
        split="val",
        num_clips=datamodule.num_val_clips,
        num_skipped_clips=datamodule.num_skipped,
        figures=tuple(_figures(module, views, backend.value_origin)),
    )
    if trainer.is_global_zero:
        write_json(run_dir / "results.json", results)
        draw_examples(module, datamodule, run_dir / "pictures", num_clips=num_report_clips)
        if (run_dir / "metrics.csv").exists():  # a training run
            curves_png(read_curves(run_dir / "metrics.csv"), run_dir / "curves.png")
        report = write_report(run_dir)
        Console().print(results_table(results))
        logger.info("report: %s", report)
    return results


def _evaluate(
    trainer: Trainer, module: DrivingModule, datamodule: FleetDataModule, view: CameraView
) -> dict[str, float]:
    loader = ViewedLoader(datamodule.val_dataloader(), view)
    (figures,) = trainer.validate(module, dataloaders=loader, verbose=False)
    return {name.removeprefix("val/"): float(value) for name, value in figures.items()}


def _figures(
    module: DrivingModule, views: dict[CameraView, dict[str, float]], origin: Origin
) -> Iterator[Figure]:
    """Every head's figures, each with its baselines: the head's own, and the two blind views."""
    recorded = views["recorded"]
    for head_name, head in module.heads():
        for name, value in recorded.items():
            is_figure = name.startswith(f"{head_name}_") and "_baseline_" not in name
            # NaN: there was nothing to count, e.g. no clip that turns.
            if not is_figure or math.isnan(value):
                continue
            prefix = f"{name}_baseline_"
            baselines = {
                other.removeprefix(prefix): figure
                for other, figure in recorded.items()
                if other.startswith(prefix) and not math.isnan(figure)
            }
            baselines["camera_blind"] = views["camera_blind"][name]
            baselines["cameras_shuffled"] = views["cameras_shuffled"][name]
            yield Figure(
                name=name,
                value=value,
                unit=head.unit,
                better=head.better,
                origin=origin,
                description=head.protocol,
                baselines=baselines,
            )


def results_table(results: Results) -> Table:
    """One block a set of baselines, the figures beside them, for the terminal."""
    table = Table(
        title=f"{results.split}: {results.num_clips} clips, {results.num_skipped_clips} skipped",
        box=box.SIMPLE_HEAD,
    )
    for column in ("figure", "this model", "beside", "", "origin"):
        table.add_column(column, justify="right" if column in ("this model", "") else "left")
    for figure in results.figures:
        own = f"{figure.value:.3f} {figure.unit}"
        rows = list(figure.baselines.items()) or [("", math.nan)]
        for number, (name, value) in enumerate(rows):
            beside = (name.replace("_", " "), "" if math.isnan(value) else f"{value:.3f}")
            is_first = number == 0
            table.add_row(
                f"{figure.name.replace('_', ' ')} ({figure.better} is better)" if is_first else "",
                f"[bold]{own}[/]" if is_first else "",
                *beside,
                figure.origin if is_first else "",
                end_section=number == len(rows) - 1,
            )
    return table
