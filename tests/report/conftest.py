"""A run folder as `fit` leaves it, with made-up but plausible contents."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fsdtrain.backend import TensorNumerics
from fsdtrain.engine.numerics_record import append_reading
from fsdtrain.engine.run_record import Figure, Manifest, Results, write_json

NUM_STEPS = 600

CONFIG = """\
# @package _global_
seed: 7
data:
  source: null          # no shards given: a synthetic fleet is made
  cameras: [front, left, right, rear]
model:
  name: hydra-bev
  preset: tiny
training:
  max_steps: 600  # optimiser steps
  learning_rate: 3.0e-3
"""

FIGURES = (
    Figure(
        name="vehicle_iou",
        value=0.3712,
        unit="",
        better="higher",
        origin="MEASURED",
        description="Vehicle IoU summed over the held-out set at 0.5",
        baselines={"constant_prior": 0.1283, "camera_blind": 0.1307},
    ),
    Figure(
        name="path_fde_2s_turn",
        value=0.5218,
        unit="m",
        better="lower",
        origin="MEASURED",
        description="Distance of the likeliest path at 2 s, on clips that turn",
        baselines={"constant_velocity": 1.314, "constant_turn_rate": 0.611},
    ),
    Figure(
        name="path_minade",
        value=0.283,
        unit="m",
        better="lower",
        origin="EMULATED",
        description="Mean distance of the best of three modes",
        baselines={"constant_velocity": 0.641},
    ),
    Figure(
        name="step_time",
        value=0.000612,
        unit="s",
        better="lower",
        origin="MODELLED",
        description="One optimiser step of the whole model",
    ),
)


def make_manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "command": "fit",
        "started_at": "2026-11-22T09:12:44Z",
        "seed": 7,
        "backend": "cpu",
        "device": "AMD EPYC 7B13, 2 cores",
        "origin": "MEASURED",
        "config_sha256": "9f2c" * 16,
        "data_sha256": "51ab" * 16,
        "packages": {"fsdtrain": "0.1.0", "torch": "2.13.0+cpu", "lightning": "2.6.1"},
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "num_threads": 2,
        "git_revision": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": True,
    }
    return Manifest(**(fields | changes))  # type: ignore[arg-type]  # a table of fields for tests


def write_metrics(path: Path, rng: np.random.Generator) -> None:
    """Sparse rows as CSVLogger writes them: training rows, then a validation row an epoch."""
    header = ["epoch", "lr", "step", "train/loss", "train/path_wta", "train/vehicle_bce"]
    header += ["val/loss", "val/path_fde_2s", "val/path_fde_2s_baseline_constant_velocity"]
    header += ["val/vehicle_iou", "val/vehicle_iou_baseline_camera_blind"]
    header += ["val/vehicle_iou_baseline_constant_prior", "samples_per_second"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for step in range(0, NUM_STEPS, 2):
            done = step / NUM_STEPS
            bce = 0.09 + 0.6 * np.exp(-6 * done) + rng.normal(0, 0.015)
            path_loss = 0.2 + 1.8 * np.exp(-9 * done) * (1 + rng.normal(0, 0.15))
            writer.writerow(
                {
                    "step": step,
                    "epoch": step // 100,
                    "lr": 3e-3 * np.sin(np.pi * min(done + 0.02, 1.0)),
                    "train/loss": bce + path_loss,
                    "train/path_wta": path_loss,
                    "train/vehicle_bce": bce,
                    "samples_per_second": 41 + rng.normal(0, 1.5),
                }
            )
            if step % 100 == 98:
                writer.writerow(
                    {
                        "step": step + 1,
                        "epoch": step // 100,
                        "val/loss": 0.37 + 2.0 * np.exp(-7 * done),
                        "val/path_fde_2s": 0.52 + 2 * np.exp(-5 * done),
                        "val/path_fde_2s_baseline_constant_velocity": 1.314,
                        "val/vehicle_iou": 0.38 * (1 - np.exp(-4 * done)),
                        "val/vehicle_iou_baseline_camera_blind": 0.1307,
                        "val/vehicle_iou_baseline_constant_prior": 0.1283,
                    }
                )


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., Path]:
    """Call it for a run folder; `manifest` fields and `figures` may be replaced."""

    def make(*, figures: tuple[Figure, ...] = FIGURES, **manifest: object) -> Path:
        folder = tmp_path / "2026-11-22_09-12-44"
        (folder / "pictures").mkdir(parents=True)
        write_json(folder / "manifest.json", make_manifest(**manifest))
        results = Results(split="val", num_clips=64, num_skipped_clips=1, figures=tuple(figures))
        write_json(folder / "results.json", results)
        (folder / "config.yaml").write_text(CONFIG)
        write_metrics(folder / "metrics.csv", np.random.default_rng(3))
        for number in range(2):
            picture = Image.new("RGB", (320, 120), (60, 90, 120))
            ImageDraw.Draw(picture).ellipse((20, 20, 90, 90), fill=(200, 40 * number, 60))
            picture.save(folder / "pictures" / f"clip-{number}.png")
        return folder

    return make


@pytest.fixture
def add_readings(make_tensor_numerics: Callable[..., TensorNumerics]) -> Callable[..., Path]:
    """`add_readings(folder, layer=..., ...)` -> the folder, with readings of steps 99, 199, 299.

    Three activations of 20, 25 and 30 dB, 20 weights, a gradient that underflows more and more,
    and a master weight in FP32, which loses nothing. `changes` hold for all of them.
    """

    def add(folder: Path, **changes: object) -> Path:
        for number, step in enumerate((99, 199, 299)):
            tensors = [
                *({"layer": f"net.{n}", "snr_db": 20.0 + 5 * n} for n in range(3)),
                *({"layer": f"net.{n}", "role": "weight", "snr_db": 31.0} for n in range(20)),
                {
                    "layer": "net.head", "role": "activation_gradient", "snr_db": 14.0 - 8 * number,
                    "underflowed_share": 0.3 * number, "bias": 9 + number,
                },
                {
                    "layer": "net.head", "role": "master_weight", "format": "fp32", "bias": None,
                    "snr_db": None, "representable_exponents": (-149, 127),
                },
            ]  # fmt: skip
            append_reading(
                folder,
                step=step,
                origin="EMULATED",
                tensors=[make_tensor_numerics(**(one | changes)) for one in tensors],
            )
        return folder

    return add
