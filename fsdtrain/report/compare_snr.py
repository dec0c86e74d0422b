"""The chart of SNR over the order of the step: both sides, teacher-forced and free-running.

It does not know where the figures come from. Tensors that are bitwise equal have no SNR and are
left out of the lines; the chart says how many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fsdtrain.comparison.record import Errors, Mode, TensorComparison
from fsdtrain.report.charts.chart import (
    Chart,
    Dash,
    LegendEntry,
    PlotlyPart,
    axis,
    layout,
    numbers,
    plain,
)
from fsdtrain.report.compare_words import tensor_title
from fsdtrain.report.curves import thin_indices

MAX_POINTS = 1500  # a line; more cannot be told apart on a screen
COLORS = {"a": "@s0", "b": "@s1"}
DASHES: dict[Mode, Dash] = {"teacher_forced": "solid", "free_running": "dot"}
STEP_KINDS = ("forward", "loss", "backward")


@dataclass(frozen=True, kw_only=True)
class SnrSeries:
    """One line of the chart."""

    side: Literal["a", "b"]
    mode: Mode


def make_snr_chart(
    series: Sequence[SnrSeries],
    tensors: Sequence[TensorComparison],
    *,
    names: Mapping[str, str],
    origin: str,
    source: str,
) -> Chart:
    """SNR against the reference by place in the step, the bands, and what is outside of them."""
    data: list[PlotlyPart] = []
    legend: list[LegendEntry] = []
    num_bitwise = 0
    said = []
    for one in series:
        all_rows = _rows_of(tensors, one.mode)
        num_bitwise += sum(_errors_of(row, one.side).is_bitwise_equal for row in all_rows)
        rows = [row for row in all_rows if _errors_of(row, one.side).snr_db is not None]
        if not rows:
            continue
        values = [_errors_of(row, one.side).snr_db or 0.0 for row in rows]
        mode = one.mode.replace("_", "-")
        lowest = min(values)
        said.append(f"{one.side} {mode}: at least {lowest:.1f} dB")
        label = f"{one.side}: {names[one.side]}, {mode}"
        legend.append(
            LegendEntry(
                label=label, color=COLORS[one.side], traces=(len(data),), dash=DASHES[one.mode],
                value=f"min {lowest:.1f} dB",
            )
        )  # fmt: skip
        data.append(_line(rows, values, one, label))
    bands = _bands(tensors)
    if bands is not None:
        legend.append(LegendEntry(label="band", color="@neutral", traces=(len(data),), dash="dash"))
        data.append(bands)
    outside = _outside(tensors)
    if outside is not None:
        legend.append(
            LegendEntry(label="outside of its band", color="@bad", traces=(len(data),), symbol="x")
        )
        data.append(outside)
    left_out = (
        f"Without the {num_bitwise:,} tensors that are bitwise equal to the reference."
        if num_bitwise
        else ""
    )
    return Chart(
        title="SNR over the step", origin=origin, source=source, note=left_out,
        figure={
            "data": data,
            "layout": layout(
                x=axis("place in the step: forward, loss, backward", tickformat=",d"),
                y=axis("SNR against the reference, dB"), hovermode="closest",
            ),
        },
        summary=f"SNR in decibels by place in the step. {'; '.join(said)}.",
        legend=tuple(legend), height_px=340, is_wide=True,
    )  # fmt: skip


def _rows_of(tensors: Sequence[TensorComparison], mode: Mode) -> list[TensorComparison]:
    rows = [row for row in tensors if row.mode == mode and row.kind in STEP_KINDS]
    return sorted(rows, key=lambda row: row.order)


def _errors_of(row: TensorComparison, side: str) -> Errors:
    return row.a if side == "a" else row.b


def _line(
    rows: Sequence[TensorComparison], values: Sequence[float], one: SnrSeries, label: str
) -> PlotlyPart:
    kept = thin_indices(np.array(values), MAX_POINTS)
    return {
        "type": "scatter", "mode": "lines", "name": plain(label),
        "x": [rows[at].order for at in kept], "y": numbers([values[at] for at in kept]),
        "line": {"color": COLORS[one.side], "dash": DASHES[one.mode], "width": 1.8},
        "customdata": [plain(tensor_title(rows[at])) for at in kept],
        "hovertemplate": f"<b>%{{customdata}}</b><br>%{{y:.1f}} dB, {plain(label)}<extra></extra>",
    }  # fmt: skip


def _bands(tensors: Sequence[TensorComparison]) -> PlotlyPart | None:
    rows = [row for row in _rows_of(tensors, "teacher_forced") if row.band_snr_db is not None]
    # Only where it changes: it is a staircase.
    kept = [
        row
        for at, row in enumerate(rows)
        if at in (0, len(rows) - 1)
        or row.band_snr_db != rows[at - 1].band_snr_db
        or row.band_snr_db != rows[at + 1].band_snr_db
    ]
    if not kept:
        return None
    return {
        "type": "scatter", "mode": "lines", "name": "band", "x": [row.order for row in kept],
        "y": [row.band_snr_db for row in kept], "hoverinfo": "skip",
        "line": {"color": "@neutral", "dash": "dash", "width": 1, "shape": "hv"}, "opacity": 0.7,
    }  # fmt: skip


def _outside(tensors: Sequence[TensorComparison]) -> PlotlyPart | None:
    rows = [row for row in tensors if row.outside and row.kind in STEP_KINDS][:MAX_POINTS]
    if not rows:
        return None
    texts = [
        f"{tensor_title(row)}, {row.mode.replace('_', '-')}: {row.finding or 'outside'}"
        for row in rows
    ]
    values = [min(_known(row), default=0.0) for row in rows]
    return {
        "type": "scatter", "mode": "markers", "name": "outside of its band",
        "x": [row.order for row in rows], "y": numbers(values),
        "marker": {"color": "@bad", "symbol": "x", "size": 9},
        "customdata": [plain(text) for text in texts],
        "hovertemplate": "<b>%{customdata}</b><br>%{y:.1f} dB<extra></extra>",
    }  # fmt: skip


def _known(row: TensorComparison) -> list[float]:
    found = [_errors_of(row, side).snr_db for side in row.outside]
    return [value for value in found if value is not None]
