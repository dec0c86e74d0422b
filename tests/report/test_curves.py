from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdtrain.engine.metrics_file import Curve
from fsdtrain.errors import UserError
from fsdtrain.report.curve_picture import curves_png, nice_ticks
from fsdtrain.report.curves import (
    arrange_panels,
    smoothed_or_none,
    thin_indices,
)


def make_curve(values: list[float]) -> Curve:
    return Curve(steps=np.arange(len(values)), values=np.array(values, dtype=np.float64))


def test_panels_gather_training_validation_and_baselines_of_a_quantity() -> None:
    columns = [
        "lr",
        "val/vehicle_iou",
        "val/vehicle_iou_baseline_camera_blind",
        "train/bce",
        "train/loss",
        "val/loss",
        "samples_per_step",
        "val/vehicle_iou_baseline_constant_prior",
    ]
    panels = arrange_panels({name: make_curve([1.0]) for name in columns})
    assert [(panel.section, panel.quantity) for panel in panels] == [
        ("Training", "loss"),
        ("Training", "bce"),
        ("Validation", "vehicle_iou"),
        ("Schedule and speed", "lr"),
        ("Schedule and speed", "samples_per_step"),
    ]
    assert [(one.role, one.label) for one in panels[2].series] == [
        ("baseline", "camera blind"),
        ("baseline", "constant prior"),
        ("val", "val"),
    ]
    assert sorted(one.column for panel in panels for one in panel.series) == sorted(columns)


def test_step_and_epoch_means_of_one_metric_share_a_panel() -> None:
    names = ["train/loss_step", "train/loss_epoch", "train/time_per_step"]
    panels = arrange_panels({name: make_curve([1.0]) for name in names})
    assert {panel.quantity: [one.label for one in panel.series] for panel in panels} == {
        "loss": ["train, by step", "train, by epoch"],
        "time_per_step": ["train"],
    }


def test_the_learning_rates_of_all_parameter_groups_share_a_panel() -> None:
    names = ["lr-AdamW/pg1", "lr-AdamW/pg2"]
    (panel,) = arrange_panels({name: make_curve([1.0]) for name in names})
    assert panel.quantity == "lr"
    assert [one.label for one in panel.series] == ["AdamW/pg1", "AdamW/pg2"]


def test_few_points_are_not_smoothed() -> None:
    assert smoothed_or_none(make_curve([1.0] * 39)) is None
    assert smoothed_or_none(make_curve([1.0] * 40)) is not None


@pytest.mark.parametrize("length", [1, 2, 100, 101, 5003])
def test_thinning_keeps_ends_spikes_and_gaps(length: int) -> None:
    rng = np.random.default_rng(length)
    values = rng.normal(size=length)
    spike, gap = int(rng.integers(length)), int(rng.integers(length))
    values[spike] = 99.0
    if gap != spike:
        values[gap] = np.nan
    kept = thin_indices(values, 100)
    assert {0, length - 1, spike, gap} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= 100 + 3


@pytest.mark.parametrize("seed", range(5))
def test_ticks_are_round_and_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = float(rng.normal() * 10.0 ** rng.integers(-4, 5))
    high = low + float(rng.uniform(0.01, 9) * 10.0 ** rng.integers(-4, 5))
    ticks = nice_ticks(low, high, 4)
    assert 1 <= len(ticks) <= 6
    assert all(low - 1e-6 * (high - low) <= tick <= high + 1e-6 * (high - low) for tick in ticks)


def test_the_picture_shows_every_series_in_its_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    curves = {
        "train/loss": make_curve([1.0, np.nan, *rng.normal(size=300)]),
        "val/iou": make_curve([0.1, 0.4]),
        "val/iou_baseline_prior": make_curve([0.2, 0.2]),
        "lr": make_curve([0.1]),
        "val/never": make_curve([np.nan, np.inf]),
    }
    curves_png(curves, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1500, 18 + 2 * (270 + 18))
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for tone in [(10, 102, 178), (196, 80, 10), (0, 121, 92), (140, 151, 161)]:
        assert (np.abs(pixels - tone).max(axis=-1) < 12).sum() > 20, tone


def test_no_curves_still_give_a_picture(tmp_path: Path) -> None:
    curves_png({}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_a_picture_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        curves_png({}, tmp_path / "missing" / "curves.png")
