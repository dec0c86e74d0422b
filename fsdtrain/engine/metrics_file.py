"""metrics.csv: every scalar that a run has logged, by optimiser step.

It is what Lightning's CSVLogger writes: a `step` and an `epoch` column and one sparse column a
metric, for instance `train/loss`, `val/vehicle_iou`, `val/vehicle_iou_baseline_prior`.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsdtrain.errors import DataError, UserError

INDEX_COLUMNS = frozenset({"step", "epoch"})


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One logged scalar: `steps` increase strictly, `values` may hold NaN and infinities."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def read_curves(path: Path) -> dict[str, Curve]:
    """The curves of a metrics.csv by column, in the order of the columns.

    An empty cell is no value. A step logged twice (a resumed run) keeps its later value. A last
    line without its newline was cut off while it was written, and is left out.

    Raises:
        UserError: the file cannot be read.
        DataError: a cell is not a number or the `step` column is missing; names line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    whole_lines = text[: text.rfind("\n") + 1]
    rows = csv.reader(io.StringIO(whole_lines))
    header = next(rows, [])
    if not header:
        return {}
    if "step" not in header:
        raise DataError(f"{path}: no column 'step' among {', '.join(header)}")
    points: dict[str, dict[int, float]] = {name: {} for name in header if name not in INDEX_COLUMNS}
    for line, row in enumerate(rows, start=2):
        cells = dict(zip(header, row, strict=False))
        if not cells.get("step"):
            continue
        step = _whole_number(cells["step"], f"{path}:{line}: step")
        for name, values in points.items():
            if cells.get(name):
                values[step] = _number(cells[name], f"{path}:{line}: {name}")
    return {name: _curve(values) for name, values in points.items() if values}


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{where}: {text[:40]!r} is not a number") from error


def _whole_number(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DataError(f"{where}: {text[:40]!r} is not a whole number") from error


def _curve(points: Mapping[int, float]) -> Curve:
    steps = sorted(points)
    return Curve(
        steps=np.array(steps, dtype=np.int64),
        values=np.array([points[step] for step in steps], dtype=np.float64),
    )


def smooth(values: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Centred Gaussian mean with a standard deviation of `width` points, so that it does not lag.

    A value that is not finite is passed over and stays NaN in its place.
    """
    reach = int(np.ceil(3 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    is_finite = np.isfinite(values)
    total = np.convolve(np.where(is_finite, values, 0.0), kernel)[reach:-reach]
    weight = np.convolve(is_finite.astype(np.float64), kernel)[reach:-reach]
    return np.where(is_finite, total / np.where(is_finite, weight, 1.0), np.nan)
