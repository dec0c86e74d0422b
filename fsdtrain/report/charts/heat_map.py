"""A quantity over a machine's grid: the whole step or a slice of it, by node, die or tile.

`maps.js` fills the figure with what the page's controls choose.
"""

import base64

import numpy as np

from fsdtrain.report.amounts import in_seconds, percent, with_prefix
from fsdtrain.report.charts.chart import PROFILE_SOURCE, Chart, PlotlyPart, axis, layout
from fsdtrain.report.palette import heat_scale
from fsdtrain.step_profile import HeatMap, MapLevel, MapSlices, StepProfile

MAX_LINES = 60  # between parts; more would hide what lies below
MIN_PX, MAX_PX = 150, 380  # of the plot


def make_heat_map(found: HeatMap, profile: StepProfile) -> Chart | None:
    """The chart, or None where it has no value, or one that has nothing beside it."""
    values = np.array(
        [[np.nan if value is None else value for value in row] for row in found.rows],
        dtype=np.float64,
    )
    is_there = np.isfinite(values)
    if values.ndim != 2 or values.size < 2 or not is_there.any():
        return None
    rows, columns = values.shape
    mean, top = float(values[is_there].mean()), float(values[is_there].max())
    num_idle = int((values[is_there] == 0).sum())
    idle = f"; {num_idle:,} of {int(is_there.sum()):,} idle" if num_idle else ""
    note = f"Mean {_amount(mean, found.unit)}, largest {_amount(top, found.unit)}{idle}."
    height = min(max(round(360 * rows / columns), MIN_PX), MAX_PX)
    is_strip = rows * 6 < columns
    return Chart(
        title=f"{found.title[:1].upper()}{found.title[1:]}",
        figure=_figure(found, rows, columns, is_strip=is_strip),
        summary=f"{found.title}, {rows} rows and {columns} columns. {note}",
        origin=profile.origin, source=PROFILE_SOURCE, note=note,
        height_px=MIN_PX if is_strip else height,
        maps={
            "whole": [
                [float(f"{value:.4g}") if np.isfinite(value) else None for value in row]
                for row in values.tolist()
            ],
            "unit": found.unit,
            "levels": [
                {"name": level.name, "rows": level.rows, "columns": level.columns}
                for level in levels_of(found)
            ],
            **(_packed(found.slices) if found.slices else {}),
        },
    )  # fmt: skip


def _figure(found: HeatMap, rows: int, columns: int, *, is_strip: bool) -> PlotlyPart:
    """All but the cells; places are square unless they lie in a strip."""
    colors: PlotlyPart = {
        "thickness": 10, "outlinewidth": 0, "len": 0.95, "x": 1.02, "xpad": 2,
        "tickfont": {"size": 11, "color": "@soft"}, "nticks": 4,
        "tickformat": ".0%" if found.unit == "share" else ".2s",
        "ticksuffix": "" if found.unit == "share" else found.unit,
    }  # fmt: skip
    hidden: PlotlyPart = {
        "showgrid": False, "zeroline": False, "showticklabels": False, "ticks": "",
    }  # fmt: skip
    shape: PlotlyPart = {} if is_strip else {"scaleanchor": "x", "constrain": "domain"}
    gap = 1 if columns <= 30 else 0
    return {
        "data": [
            {
                "type": "heatmap", "colorscale": heat_scale(), "hoverongaps": False,
                "colorbar": colors, "xgap": gap, "ygap": gap,
            }
        ],
        "layout": layout(
            x=axis(range=[-0.5, columns - 0.5], constrain="domain", **hidden),
            y=axis(range=[rows - 0.5, -0.5], **hidden, **shape),
            hovermode="closest", margin={"l": 8, "r": 8, "t": 6, "b": 8},
            shapes=_borders(found, rows, columns), dragmode=False,
        ),
    }  # fmt: skip


def levels_of(found: HeatMap) -> tuple[MapLevel, ...]:
    """The levels that a map can be shown at, the smallest first; there is always one."""
    if found.levels:
        return found.levels
    single = MapLevel(name="place", rows=1, columns=1)
    if found.group is None:
        return (single,)
    return (single, MapLevel(name="group", rows=found.group[0], columns=found.group[1]))


def slice_labels(slices: MapSlices, profile: StepProfile) -> list[str]:
    """What the slider says at each place: the whole step, then each slice with its phase."""
    starts = sorted(
        (op.start_s, op.phase) for op in profile.ops if op.phase and op.start_s is not None
    )
    labels = ["whole step"]
    for first_s, last_s in zip(slices.edges_s, slices.edges_s[1:], strict=False):
        middle_s = (first_s + last_s) / 2
        before = [phase for start_s, phase in starts if start_s <= middle_s]
        phase = f", {before[-1]}" if before else ""
        labels.append(f"{in_seconds(first_s) if first_s else '0'} to {in_seconds(last_s)}{phase}")
    return labels


def _packed(slices: MapSlices) -> PlotlyPart:
    return {
        "top": slices.top,
        "slices": [base64.b64encode(cells).decode() for cells in slices.cells],
    }


def _borders(found: HeatMap, rows: int, columns: int) -> list[PlotlyPart]:
    """Between the parts of the grid."""
    if found.group is None:
        return []
    line = {"color": "@card", "width": 1}
    lines: list[PlotlyPart] = [
        {"type": "line", "x0": -0.5, "x1": columns - 0.5, "y0": row - 0.5, "y1": row - 0.5,
         "line": line}
        for row in range(found.group[0], rows, found.group[0])
    ]  # fmt: skip
    lines += [
        {"type": "line", "y0": -0.5, "y1": rows - 0.5, "x0": column - 0.5, "x1": column - 0.5,
         "line": line}
        for column in range(found.group[1], columns, found.group[1])
    ]  # fmt: skip
    return lines if len(lines) <= MAX_LINES else []


def _amount(value: float, unit: str) -> str:
    return percent(value) if unit == "share" else with_prefix(value, unit)
