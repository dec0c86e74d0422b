from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdtrain.errors import DataError, UserError
from fsdtrain.report.curve_picture import curves_png, nice_ticks
from fsdtrain.report.curves import (
    Curve,
    arrange_panels,
    read_curves,
    smooth,
    smoothed_or_none,
    thin_indices,
)


def make_curve(values: list[float]) -> Curve:
    return Curve(steps=np.arange(len(values)), values=np.array(values, dtype=np.float64))


def read(tmp_path: Path, text: str) -> dict[str, Curve]:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    return read_curves(path)


def test_sparse_columns_become_curves_of_their_own_steps(tmp_path: Path) -> None:
    curves = read(tmp_path, "epoch,step,train/loss,val/iou\n0,0,2.5,\n0,10,1.5,\n0,10,,0.25\n")
    assert list(curves) == ["train/loss", "val/iou"]
    assert curves["train/loss"].steps.tolist() == [0, 10]
    assert curves["train/loss"].values.tolist() == [2.5, 1.5]
    assert curves["val/iou"].steps.tolist() == [10]


def test_the_csv_of_lightning_itself_is_read(tmp_path: Path) -> None:
    from lightning.fabric.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"train/loss": 3.0}, step=0)
    logger.log_metrics({"val/iou": 0.125}, step=4)
    logger.save()
    curves = read_curves(tmp_path / "metrics.csv")
    assert {name: curve.values.tolist() for name, curve in curves.items()} == {
        "train/loss": [3.0],
        "val/iou": [0.125],
    }
    assert curves["val/iou"].steps.tolist() == [4]


@pytest.mark.parametrize("text", ["", "step,epoch\n", "step,epoch,train/loss\n", "step,train/loss"])
def test_nothing_logged_gives_no_curves(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == {}


def test_nan_and_infinity_stay(tmp_path: Path) -> None:
    values = read(tmp_path, "step,a\n0,1\n1,nan\n2,inf\n3,-inf\n4,2\n")["a"].values
    np.testing.assert_array_equal(values, [1, np.nan, np.inf, -np.inf, 2])


def test_a_resumed_run_keeps_the_later_value_and_steps_increase(tmp_path: Path) -> None:
    curve = read(tmp_path, "step,a\n0,1\n5,2\n10,9\n5,3\n10,4\n")["a"]
    assert curve.steps.tolist() == [0, 5, 10]
    assert curve.values.tolist() == [1, 3, 4]


def test_a_line_cut_off_while_it_was_written_is_left_out(tmp_path: Path) -> None:
    curve = read(tmp_path, "step,a\n0,1.25\n1,1.2")["a"]
    assert curve.values.tolist() == [1.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,train/loss\n0,1\n1,oops\n", r"metrics\.csv:3: train/loss: 'oops' is not a number"),
        ("step,train/loss\nx,1\n", r"metrics\.csv:2: step: 'x' is not a whole number"),
        ("step,train/loss\nnan,1\n", r"metrics\.csv:2: step: 'nan' is not a whole number"),
        ("epoch,train/loss\n0,1\n", "no column 'step'"),
    ],
)
def test_what_is_no_metrics_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_curves(tmp_path / "metrics.csv")


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


def test_smoothing_is_the_weighted_mean_of_the_finite_neighbours() -> None:
    rng = np.random.default_rng(11)
    values = rng.normal(size=57)
    values[[5, 20, 21]] = [np.nan, np.inf, np.nan]
    expected = []
    for index, value in enumerate(values):
        near = [
            (np.exp(-0.5 * ((other - index) / 2.5) ** 2), values[other])
            for other in range(len(values))
            if abs(other - index) <= 8 and np.isfinite(values[other])
        ]
        mean = sum(w * v for w, v in near) / sum(w for w, _ in near)
        expected.append(mean if np.isfinite(value) else np.nan)
    np.testing.assert_allclose(smooth(values, 2.5), expected, rtol=1e-12)


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
