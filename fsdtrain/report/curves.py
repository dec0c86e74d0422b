"""Sort the curves of a run into panels, one quantity a panel.

It does not know how a panel is drawn: `html.py` and `curve_picture.py` do, each in its way.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsdtrain.engine.metrics_file import Curve, smooth

Role = Literal["train", "val", "baseline", "other"]
Section = Literal["Training", "Validation", "Schedule and speed"]

SECTIONS: tuple[Section, ...] = ("Training", "Validation", "Schedule and speed")

# Lightning's LearningRateMonitor names its columns lr-<optimiser>[/pg<n>]: one quantity.
COLUMN_PATTERN = re.compile(
    r"(?:(?P<phase>train|val|test)/)?(?P<quantity>.+?)(?:_baseline_(?P<baseline>.+))?"
)
# Below this many points a smoothed curve says no more than the points do.
MIN_POINTS_TO_SMOOTH = 40


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
