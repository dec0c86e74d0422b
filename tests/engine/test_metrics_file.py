from pathlib import Path

import numpy as np
import pytest

from fsdtrain.engine.metrics_file import Curve, read_curves, smooth
from fsdtrain.errors import DataError, UserError


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
