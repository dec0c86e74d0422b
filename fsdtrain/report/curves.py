"""Read the curves of a run from metrics.csv and sort them into panels, one quantity a panel.

It does not know how a panel is drawn: `html.py` and `curve_picture.py` do, each in its way.

metrics.csv is what Lightning's CSVLogger writes: a `step` and an `epoch` column and one sparse
column a metric, for instance `train/loss`, `val/vehicle_iou`, `val/vehicle_iou_baseline_prior`.
"""

import csv
import io
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsdtrain.errors import DataError, UserError

Role = Literal["train", "val", "baseline", "other"]
Section = Literal["Training", "Validation", "Schedule and speed"]

INDEX_COLUMNS = frozenset({"step", "epoch"})
SECTIONS: tuple[Section, ...] = ("Training", "Validation", "Schedule and speed")

# Lightning's LearningRateMonitor names its columns lr-<optimiser>[/pg<n>]: one quantity.
COLUMN_PATTERN = re.compile(
    r"(?:(?P<phase>train|val|test)/)?(?P<quantity>.+?)(?:_baseline_(?P<baseline>.+))?"
)
# Below this many points a smoothed curve says no more than the points do.
MIN_POINTS_TO_SMOOTH = 40


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One logged scalar: `steps` increase strictly, `values` may hold NaN and infinities."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve of a panel; `column` is its name in metrics.csv."""

    label: str
    role: Role
    column: str
    curve: Curve


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Every curve of one quantity: training, validation, and its baselines."""

    quantity: str
    section: Section
    series: tuple[Series, ...]


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


def arrange_panels(curves: Mapping[str, Curve]) -> list[Panel]:
    """One panel a quantity, in the order of `SECTIONS`; the total loss comes first."""
    found: dict[str, list[Series]] = {}
    phases: dict[str, set[str]] = {}
    for column, curve in curves.items():
        name, reduced = _split_reduction(column, curves)
        match = COLUMN_PATTERN.fullmatch(name)
        assert match is not None, "the pattern takes any non-empty name"
        series = _series(match, reduced, column, curve)
        quantity = "lr" if match["quantity"].startswith("lr-") else match["quantity"]
        found.setdefault(quantity, []).append(series)
        phases.setdefault(quantity, set()).add(match["phase"] or "")
    panels = [
        Panel(
            quantity=quantity,
            section=_section(phases[quantity]),
            # Drawn in this order: what matters most lies on top.
            series=tuple(sorted(series, key=lambda one: _DRAWING_ORDER[one.role])),
        )
        for quantity, series in found.items()
    ]
    return sorted(
        panels,
        key=lambda panel: (SECTIONS.index(panel.section), panel.quantity != "loss", panel.quantity),
    )


_DRAWING_ORDER: dict[Role, int] = {"baseline": 0, "other": 1, "train": 2, "val": 3}


def _split_reduction(column: str, columns: Collection[str]) -> tuple[str, str]:
    """Lightning logs x_step and x_epoch where a metric is wanted by step and as an epoch's mean."""
    name, _, reduced = column.rpartition("_")
    if reduced in {"step", "epoch"} and {f"{name}_step", f"{name}_epoch"} <= set(columns):
        return name, reduced
    return column, ""


def _series(match: re.Match[str], reduced: str, column: str, curve: Curve) -> Series:
    label = match["phase"] or match["quantity"].removeprefix("lr-").replace("_", " ")
    role: Role = "other"
    if match["baseline"]:
        label, role = match["baseline"].replace("_", " "), "baseline"
    elif match["phase"] == "train":
        role = "train"
    elif match["phase"]:
        role = "val"
    if reduced:
        label = f"{label}, by {reduced}"
    return Series(label=label, role=role, column=column, curve=curve)


def _section(phases: set[str]) -> Section:
    if "train" in phases:
        return "Training"
    return "Validation" if phases & {"val", "test"} else "Schedule and speed"


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


def smoothed_or_none(curve: Curve) -> NDArray[np.float64] | None:
    """The curve smoothed over about a thirtieth of its points; None where there are too few."""
    if len(curve.values) < MIN_POINTS_TO_SMOOTH:
        return None
    return smooth(curve.values, 1 + len(curve.values) / 80)


def thin_indices(values: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """At most about `limit` indices that keep the look of a long curve.

    Of every bucket they hold the lowest, the highest and the first non-finite value, so that
    neither a spike nor a NaN is lost; the first and the last point stay.
    """
    if len(values) <= limit:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for bucket in np.array_split(np.arange(len(values)), max(limit // 2, 1)):
        finite = np.isfinite(values[bucket])
        if finite.any():
            usable = bucket[finite]
            kept.add(int(usable[np.argmin(values[usable])]))
            kept.add(int(usable[np.argmax(values[usable])]))
        if not finite.all():
            kept.add(int(bucket[~finite][0]))
    return np.array(sorted(kept), dtype=np.int64)
