"""Curves over the optimiser step: training, validation and baselines of one quantity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fsdtrain.report.cards import format_value
from fsdtrain.report.charts.chart import (
    DASHES,
    Chart,
    Dash,
    LegendEntry,
    PlotlyPart,
    axis,
    layout,
    numbers,
    plain,
)
from fsdtrain.report.curves import Series, smoothed_or_none, thin_indices

MAX_POINTS = 1500  # a curve; more cannot be told apart on a screen
MARKERS_UP_TO = 60  # points; more would touch


@dataclass(frozen=True, kw_only=True)
class _Style:
    color: str
    dash: Dash
    width: float


def make_lines(
    title: str,
    all_series: Sequence[Series],
    *,
    origin: str,
    source: str,
    steps: tuple[int, int],
    is_wide: bool = False,
    can_be_log: bool = True,
    note: str = "",
) -> Chart:
    """One quantity; the last series lies on top. `steps`: first and last of the run."""
    data: list[PlotlyPart] = []
    legend: list[LegendEntry] = []
    for series, style in zip(all_series, _styles(all_series), strict=True):
        first = len(data)
        data += _traces(series, style, steps)
        legend.append(
            LegendEntry(
                label=series.label, color=style.color, traces=tuple(range(first, len(data))),
                value=format_value(float(series.curve.values[-1])), dash=style.dash,
            )
        )  # fmt: skip
    legend.reverse()  # what lies on top comes first
    lasts = " ".join(f"{entry.label}: last {entry.value}." for entry in legend)
    can_be_log = can_be_log and any(
        (values > 0).any() for values in (series.curve.values for series in all_series)
    )
    return Chart(
        title=title,
        figure={
            "data": data,
            "layout": layout(
                x=axis(tickformat=",d", range=_padded(steps), nticks=7), y=axis(rangemode="normal"),
                hovermode="x unified", hoverdistance=30,
            ),
        },
        summary=f"{title} by optimiser step. {lasts}",
        origin=origin, source=source, note=note, legend=tuple(legend),
        controls=("log",) if can_be_log else (), height_px=300 if is_wide else 220,
        is_wide=is_wide, link="steps",
    )  # fmt: skip


def _padded(steps: tuple[int, int]) -> list[float]:
    """So that markers at the ends are whole."""
    pad = 0.012 * (steps[1] - steps[0])
    return [steps[0] - pad, steps[1] + pad]


def _styles(all_series: Sequence[Series]) -> list[_Style]:
    """By role, so that training is the same everywhere; what shares a role differs in dashes."""
    colors = {"train": ["@s0"], "val": ["@s1"], "baseline": ["@neutral", "@s3", "@s2", "@s4"]}
    counts: dict[str, int] = {}
    found = []
    for series in all_series:
        place = counts.get(series.role, 0)
        counts[series.role] = place + 1
        choice = colors.get(series.role, ["@s2", "@s3", "@s4", "@s6"])
        # Solid is training alone: lines that cross are told apart without their colours.
        first = {"val": DASHES.index("longdash"), "baseline": 1}.get(series.role, 0)
        dash = DASHES[(place + first) % len(DASHES)]
        width = 1.6 if series.role == "baseline" else 2
        found.append(_Style(color=choice[place % len(choice)], dash=dash, width=width))
    return found


def _traces(series: Series, style: _Style, steps: tuple[int, int]) -> list[PlotlyPart]:
    """The curve; where it is long, a pale one of its points and a smoothed one."""
    curve = series.curve
    trace: PlotlyPart = {
        "type": "scatter", "mode": "lines", "name": plain(series.label),
        "line": {"color": style.color, "width": style.width, "dash": style.dash},
        "hovertemplate": "%{y:.4g}",
    }  # fmt: skip
    if series.role == "baseline" and len(curve.values) == 1:
        # Evaluated once, it holds for the whole run.
        ends = [*steps, int(curve.steps[0])]
        return [trace | {"x": sorted(ends), "y": numbers([float(curve.values[0])] * 3)}]
    kept = thin_indices(curve.values, MAX_POINTS)
    x = curve.steps[kept].tolist()
    y = numbers(curve.values[kept].tolist())
    smoothed = smoothed_or_none(curve) if series.role != "baseline" else None
    if smoothed is None:
        if len(x) <= MARKERS_UP_TO and series.role != "baseline":
            marker = {"size": 6, "color": style.color, "line": {"width": 1, "color": "@card"}}
            trace |= {"mode": "lines+markers", "marker": marker}
        return [trace | {"x": x, "y": y}]
    raw = trace | {"x": x, "y": y, "meta": "raw", "opacity": 0.28}
    raw["line"] = trace["line"] | {"width": 1, "dash": "solid"}
    soft = np.where(np.isfinite(smoothed[kept]), smoothed[kept], np.nan)
    texts = [f"{format_value(value)}" for value in curve.values[kept].tolist()]
    return [
        raw,
        trace
        | {
            "x": x, "y": numbers(soft.tolist()), "meta": "smooth", "customdata": texts,
            "hovertemplate": "%{customdata}, smoothed %{y:.4g}",
        },
    ]  # fmt: skip
