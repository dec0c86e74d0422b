"""Run folders made by hand, as `fit` would leave them."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fsdtrain.engine.run_record import Figure, Manifest, Results, write_json

LOG_EVERY = 2


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    losses: Sequence[float] = (3.0, 2.0, 1.0),
    norms: Sequence[float] | None = None,
    final: float = 0.5,
    metric: str = "vehicle_iou",
    data: str = "d" * 64,
    backend: str = "cpu",
    **changes: Any,
) -> Path:
    """A finished run whose losses were logged every second step; `changes`: of its config."""
    folder.mkdir(parents=True)
    config = {
        "data.batch_size": 4, "training.max_steps": LOG_EVERY * len(losses),
        "training.accumulate_batches": 1, "training.log_every_steps": LOG_EVERY,
        "training.early_stop_patience": None, "training.learning_rate": 3e-3,
        "training.monitor": "val/vehicle_iou", "backend.name": backend, "seed": seed,
        "run_dir": str(folder),
    }  # fmt: skip
    text = as_yaml(config | {name.replace("__", "."): value for name, value in changes.items()})
    (folder / "config.yaml").write_text(text)
    manifest = Manifest(
        command="fsdtrain fit", started_at="2026-01-01T00:00:00+00:00", seed=seed, backend=backend,
        device="a CPU", origin="MEASURED", config_sha256=hashlib.sha256(text.encode()).hexdigest(),
        data_sha256=data, packages={"torch": "2.13.0"}, python="3.11", platform="Linux",
        num_threads=1, git_revision=None, git_dirty=None,
    )  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    write_metrics(folder, losses, norms)
    figure = Figure(
        name=metric, value=final, unit="", better="higher", origin="MEASURED", description="",
    )  # fmt: skip
    results = Results(split="val", num_clips=4, num_skipped_clips=0, figures=(figure,))
    write_json(folder / "results.json", results)
    return folder


def write_metrics(folder: Path, losses: Sequence[float], norms: Sequence[float] | None) -> None:
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        names = ["epoch", "step", "train/loss"] + (["train/gradient_norm"] if norms else [])
        rows.writerow(names)
        for number, loss in enumerate(losses):
            step = LOG_EVERY * (number + 1) - 1
            rows.writerow([0, step, loss] + ([norms[number]] if norms else []))


def as_yaml(fields: dict[str, Any]) -> str:
    """Dotted names -> the nested YAML that Hydra composes."""
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        *groups, last = name.split(".")
        inside = nested
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[last] = value
    return msgspec.yaml.encode(nested).decode()
