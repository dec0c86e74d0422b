"""Turn series into a chart of the page: what the template says, and the data the script draws.

It does not know what is charted: a quantity of metrics.csv, or a figure of numerics.csv.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsdtrain.report.cards import format_value
from fsdtrain.report.curves import Series, smoothed_or_none, thin_indices

MAX_POINTS = 1500  # a curve; more cannot be told apart on a screen


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """One series of a chart, with its last value; `index` is its place in the data."""

    index: int
    label: str
    column: str
    role: str
    last: str


@dataclass(frozen=True, kw_only=True)
class ChartView:
    """One chart; its data travel apart, as JSON, under the same index."""

    index: int
    title: str
    is_wide: bool
    can_be_log: bool
    summary: str
    legend: tuple[LegendEntry, ...]


def make_chart(
    index: int,
    title: str,
    all_series: Sequence[Series],
    *,
    is_wide: bool = False,
    can_be_log: bool = True,
) -> tuple[ChartView, dict[str, Any]]:
    """(view, data) of the chart whose data have the place `index` in the page's JSON."""
    lasts = [format_value(float(series.curve.values[-1])) for series in all_series]
    view = ChartView(
        index=index,
        title=title,
        is_wide=is_wide,
        can_be_log=can_be_log,
        summary=" ".join(
            f"{series.label}: last {last}." for series, last in zip(all_series, lasts, strict=True)
        ),
        # What lies on top in the drawing comes first in the legend.
        legend=tuple(
            LegendEntry(
                index=number,
                label=series.label,
                column=series.column,
                role=series.role,
                last=lasts[number],
            )
            for number, series in reversed(list(enumerate(all_series)))
        ),
    )
    return view, {"series": [_series_data(series) for series in all_series]}


def _series_data(series: Series) -> dict[str, Any]:
    kept = thin_indices(series.curve.values, MAX_POINTS)
    smoothed = smoothed_or_none(series.curve) if series.role != "baseline" else None
    return {
        "label": series.label,
        "role": series.role,
        "steps": series.curve.steps[kept].tolist(),
        "values": _json_numbers(series.curve.values[kept]),
        "smooth": None if smoothed is None else _json_numbers(smoothed[kept]),
    }


def _json_numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Six significant digits; JSON has no NaN, so null stands for what is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
