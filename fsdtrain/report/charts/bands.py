"""Bands of several runs a side: the mean as a line, the spread around it as an area."""

from collections.abc import Sequence
from dataclasses import dataclass

from fsdtrain.report.cards import format_value
from fsdtrain.report.charts.chart import (
    DASHES,
    Chart,
    LegendEntry,
    PlotlyPart,
    axis,
    layout,
    numbers,
    plain,
    series_color,
)


@dataclass(frozen=True, kw_only=True)
class BandSeries:
    """One side; `mean`, `low` and `high` go with `steps`."""

    label: str
    steps: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def make_bands(
    title: str,
    series: Sequence[BandSeries],
    *,
    y_title: str,
    origin: str,
    source: str,
    note: str = "",
    mark_step: int | None = None,
) -> Chart:
    """Loss bands, the first side in front; `mark_step`: a dashed line across, where they part."""
    data: list[PlotlyPart] = []
    legend: list[LegendEntry] = []
    for place, one in reversed(list(enumerate(series))):
        color, dash = series_color(place), DASHES[place % len(DASHES)]
        steps = list(one.steps)
        data += [
            {
                "type": "scatter", "mode": "lines", "x": steps, "y": numbers(one.low),
                "line": {"width": 0, "color": color}, "hoverinfo": "skip",
            },
            {
                "type": "scatter", "mode": "lines", "x": steps, "y": numbers(one.high),
                "line": {"width": 0, "color": color}, "hoverinfo": "skip", "fill": "tonexty",
                "fillcolor": f"{color}/0.18",
            },
            {
                "type": "scatter", "mode": "lines", "x": steps, "y": numbers(one.mean),
                "name": plain(one.label), "line": {"width": 2.2, "color": color, "dash": dash},
                "customdata": [
                    [format_value(low), format_value(high)]
                    for low, high in zip(one.low, one.high, strict=True)
                ],
                "hovertemplate": "%{y:.4g} (%{customdata[0]} to %{customdata[1]})",
            },
        ]  # fmt: skip
        last = format_value(one.mean[-1]) if one.mean else ""
        traces = (len(data) - 3, len(data) - 2, len(data) - 1)
        legend.append(
            LegendEntry(label=one.label, color=color, traces=traces, value=last, dash=dash)
        )
    figure = layout(
        x=axis("optimiser step", tickformat=",d"), y=axis(y_title), hovermode="x unified"
    )
    if mark_step is not None:
        line = {"color": "@warn", "width": 1.5, "dash": "dot"}
        figure["shapes"] = [
            {"type": "line", "x0": mark_step, "x1": mark_step, "yref": "paper", "y0": 0, "y1": 1,
             "line": line}
        ]  # fmt: skip
    legend.reverse()
    lasts = "; ".join(f"{one.label}: last mean {one.value}" for one in legend)
    return Chart(
        title=title, figure={"data": data, "layout": figure}, origin=origin, source=source,
        summary=f"{title} by optimiser step, mean and spread. {lasts}.", note=note,
        legend=tuple(legend), controls=("log",), height_px=320, is_wide=True, link="steps",
    )  # fmt: skip
