"""The folder of a run as `fit` writes it, made up but plausible, whole or as it grows."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sample_compare import make_side_manifest

from fsdtrain.engine.run_record import Figure, Results, write_json

NUM_STEPS = 600
HEADER = (
    "epoch", "step", "train/loss", "train/gradient_norm", "val/loss", "val/vehicle_iou",
    "val/vehicle_iou_baseline_camera_blind", "samples_per_second",
)  # fmt: skip
CONFIG = f"""\
seed: 7
model:
  preset: tiny
training:
  max_steps: {NUM_STEPS}  # optimiser steps
  learning_rate: 3.0e-3
"""
FIGURES = (
    Figure(
        name="vehicle_iou", value=0.3712, unit="", better="higher", origin="MEASURED",
        description="Vehicle IoU summed over the held-out set at 0.5",
        baselines={"constant_prior": 0.1283, "camera_blind": 0.1307},
    ),
    Figure(
        name="step_time", value=0.000612, unit="s", better="lower", origin="MODELLED",
        description="One optimiser step of the whole model",
    ),
)  # fmt: skip


def metrics_rows(num_steps: int = NUM_STEPS) -> Iterator[dict[str, float]]:
    """Sparse rows: training every second step, validation every hundred."""
    rng = np.random.default_rng(3)
    for step in range(0, num_steps, 2):
        done = step / NUM_STEPS
        yield {
            "epoch": step // 100, "step": step, "train/loss": 0.3 + 2 * np.exp(-6 * done)
            + rng.normal(0, 0.03), "train/gradient_norm": float(np.exp(rng.normal(0, 0.3))),
            "samples_per_second": 41 + rng.normal(0, 1.5),
        }  # fmt: skip
        if step % 100 == 98:
            yield {
                "epoch": step // 100, "step": step + 1, "val/loss": 0.4 + 2 * np.exp(-6 * done),
                "val/vehicle_iou": 0.38 * (1 - np.exp(-4 * done)),
                "val/vehicle_iou_baseline_camera_blind": 0.1307,
            }  # fmt: skip


def write_metrics(path: Path, num_steps: int = NUM_STEPS) -> None:
    """Write metrics.csv as it stands after `num_steps` steps."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(metrics_rows(num_steps))


def start_run(folder: Path) -> Path:
    """What is there before the first step: manifest.json and config.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "manifest.json", make_side_manifest("cpu", "AMD EPYC, 2 cores", "MEASURED"))
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def write_run(folder: Path) -> Path:
    """A run that has finished."""
    start_run(folder)
    write_metrics(folder / "metrics.csv")
    results = Results(split="val", num_clips=64, num_skipped_clips=1, figures=FIGURES)
    write_json(folder / "results.json", results)
    (folder / "pictures").mkdir(exist_ok=True)
    picture = Image.new("RGB", (320, 120), (60, 90, 120))
    ImageDraw.Draw(picture).ellipse((20, 20, 90, 90), fill=(200, 40, 60))
    picture.save(folder / "pictures" / "clip-0.png")
    return folder
