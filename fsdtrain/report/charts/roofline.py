"""Roofline: a machine's roofs and a step's ops, FLOP/s over FLOP a byte, both by decades.

An op stands at the traffic of that level which takes the longest for it, so that it lies below the
roof of that level.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fsdtrain.report.amounts import in_seconds, percent, with_prefix
from fsdtrain.report.charts.chart import (
    PROFILE_SOURCE,
    SYMBOLS,
    Chart,
    LegendEntry,
    PlotlyPart,
    axis,
    layout,
    plain,
    series_color,
)
from fsdtrain.report.profile_text import UNKNOWN_BOUND, op_title
from fsdtrain.step_profile import OpProfile, Rooflines, StepProfile

MAX_OPS = 400  # the slowest; more cannot be told apart
MIN_PX, MAX_PX = 6.0, 34.0  # of a marker
NUM_DECADES = 7  # of rates; what is slower does not matter and sits on the axis


@dataclass(frozen=True, kw_only=True)
class _Point:
    op: OpProfile
    level: str
    intensity: float
    rate: float


def make_roofline(profile: StepProfile, places: Mapping[str, int]) -> Chart | None:
    """The chart, or None where roofs or ops are not known; `places`: of bounds among colours."""
    rooflines = profile.rooflines
    if rooflines is None or not rooflines.flops_per_s or not rooflines.bytes_per_s:
        return None
    known = [point for op in profile.ops if (point := _place(op, rooflines)) is not None]
    points = known[:MAX_OPS]
    if not points:
        return None
    peak = max(rooflines.flops_per_s.values())
    ridges = [peak / bandwidth for bandwidth in rooflines.bytes_per_s.values()]
    intensities = [*(point.intensity for point in points), *ridges]
    x = (math.log10(min(intensities)) - 0.3, math.log10(max(intensities)) + 0.6)
    lowest = math.log10(min(point.rate for point in points)) - 0.3
    y = (max(lowest, math.log10(peak) - NUM_DECADES), math.log10(peak) + 0.5)
    data = _roofs(rooflines, x, y)
    legend: list[LegendEntry] = []
    bounds = dict.fromkeys(point.op.bound_by or UNKNOWN_BOUND for point in points)
    for bound in sorted(bounds, key=lambda each: places.get(each, 0)):
        of_bound = [point for point in points if (point.op.bound_by or UNKNOWN_BOUND) == bound]
        place = places.get(bound, 0)
        legend.append(
            LegendEntry(
                label=bound, color=series_color(place), traces=(len(data),),
                symbol=SYMBOLS[place % len(SYMBOLS)], value=str(len(of_bound)),
            )
        )  # fmt: skip
        data.append(_ops(of_bound, bound, place, profile, 10 ** y[0]))
    return Chart(
        title="Roofline",
        figure={
            "data": data,
            "layout": layout(
                x=axis("FLOP a byte", type="log", range=list(x), **_decades(x, _plain)),
                y=axis("FLOP/s", type="log", range=list(y),
                       **_decades(y, lambda rate: with_prefix(rate, ""))),
                hovermode="closest", annotations=_labels(rooflines, x, y),
            ),
        },
        summary=f"FLOP a second over FLOP a byte: {len(points)} ops below "
        f"{len(rooflines.bytes_per_s)} bandwidths and {len(set(rooflines.flops_per_s.values()))} "
        "peak rates.",
        origin=profile.origin, source=PROFILE_SOURCE,
        note="A marker is an op, its area the time it takes. It stands at the traffic of the level "
        f"that takes the longest for it.{_note(profile, known)}",
        legend=tuple(legend) if set(bounds) != {UNKNOWN_BOUND} else (), height_px=420,
    )  # fmt: skip


def _decades(ends: tuple[float, float], text_of: Callable[[float], str]) -> PlotlyPart:
    """Ticks at powers of ten, at every other one where there are many."""
    powers = list(range(math.ceil(ends[0]), math.floor(ends[1]) + 1))
    powers = powers[len(powers) % 2 :: 2] if len(powers) > 8 else powers
    return {
        "tickmode": "array", "tickvals": [float(f"1e{power}") for power in powers],
        "ticktext": [text_of(float(f"1e{power}")) for power in powers],
    }  # fmt: skip


def _plain(value: float) -> str:
    """0.1, 1, 1,000: an intensity has no prefix."""
    if value < 1e-3:
        return f"10<sup>{round(math.log10(value))}</sup>"
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _place(op: OpProfile, rooflines: Rooflines) -> _Point | None:
    if not op.flops or not op.alone:
        return None
    known = {
        level: num_bytes / rooflines.bytes_per_s[level]
        for level, num_bytes in op.bytes_by_level.items()
        if num_bytes and level in rooflines.bytes_per_s
    }
    if not known:
        return None
    level = max(known, key=lambda each: known[each])
    return _Point(
        op=op,
        level=level,
        intensity=op.flops / op.bytes_by_level[level],
        rate=op.flops / op.alone,
    )


def _roofs(
    rooflines: Rooflines, x: tuple[float, float], y: tuple[float, float]
) -> list[PlotlyPart]:
    """A slope for each level up to the highest peak, and a level line for each peak."""
    peak = max(rooflines.flops_per_s.values())
    lines = []
    for level, bandwidth in rooflines.bytes_per_s.items():
        first = max(10 ** x[0], 10 ** y[0] / bandwidth)
        text = plain(f"{level}: {with_prefix(bandwidth, 'B/s')}")
        lines.append(_line(text, (first, peak / bandwidth), (bandwidth * first, peak), 1.3))
    widest = max(rooflines.bytes_per_s.values())
    for rate, names in _formats(rooflines).items():
        text = plain(f"{', '.join(names)}: {with_prefix(rate, 'FLOP/s')}")
        lines.append(_line(text, (max(rate / widest, 10 ** x[0]), 10 ** x[1]), (rate, rate), 1.8))
    return lines


def _line(text: str, x: tuple[float, float], y: tuple[float, float], width: float) -> PlotlyPart:
    """Points along the line as well, for there the reader's cursor finds it."""
    shares = [number / 12 for number in range(13)]
    return {
        "type": "scatter", "mode": "lines", "line": {"color": "@soft", "width": width},
        "x": [float(f"{x[0] ** (1 - s) * x[1] ** s:.5g}") for s in shares],
        "y": [float(f"{y[0] ** (1 - s) * y[1] ** s:.5g}") for s in shares],
        "name": text, "hovertemplate": f"{text}<extra></extra>",
    }  # fmt: skip


def _formats(rooflines: Rooflines) -> dict[float, list[str]]:
    found: dict[float, list[str]] = {}
    for name, rate in rooflines.flops_per_s.items():
        found.setdefault(rate, []).append(name)
    return dict(sorted(found.items(), reverse=True))


def _labels(
    rooflines: Rooflines, x: tuple[float, float], y: tuple[float, float]
) -> list[PlotlyPart]:
    """Peaks are named at their right end, bandwidths at the foot of their slopes."""
    shared: PlotlyPart = {
        "showarrow": False, "font": {"size": 11, "color": "@soft"}, "bgcolor": "@card/0.8",
        "borderpad": 1,
    }  # fmt: skip
    labels = []
    for rate, names in _formats(rooflines).items():
        if math.log10(rate) <= y[0]:
            continue
        text = ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"
        labels.append(
            shared
            | {
                "text": plain(f"{text}: {with_prefix(rate, 'FLOP/s')}"), "x": x[1],
                "y": math.log10(rate), "xanchor": "right", "yanchor": "bottom",
            }
        )  # fmt: skip
    ranked = sorted(rooflines.bytes_per_s.items(), key=lambda item: -item[1])
    for number, (level, bandwidth) in enumerate(ranked):
        # One below the other, so that close slopes do not write over each other.
        share = 0.3 - 0.085 * number
        rate = y[0] + (y[1] - y[0]) * share
        at = rate - math.log10(bandwidth)
        if not x[0] <= at <= x[1]:
            at = x[0]
            rate = at + math.log10(bandwidth)
        labels.append(
            shared
            | {
                "text": plain(f"{level} {with_prefix(bandwidth, 'B/s')}"), "x": at, "y": rate,
                "xanchor": "left", "yanchor": "middle", "xshift": 3,
            }
        )  # fmt: skip
    return labels


def _ops(
    points: Sequence[_Point], bound: str, place: int, profile: StepProfile, floor: float
) -> PlotlyPart:
    longest_s = max(op.time_s for op in profile.ops) or 1.0
    total_s = sum(op.time_s for op in profile.ops) or 1.0
    color = series_color(place)
    return {
        "type": "scatter", "mode": "markers", "name": plain(bound),
        "x": [float(f"{point.intensity:.5g}") for point in points],
        "y": [float(f"{max(point.rate, floor):.5g}") for point in points],
        "customdata": [_words(point, total_s) for point in points],
        "marker": {
            "size": [
                round(max(MAX_PX * math.sqrt(point.op.time_s / longest_s), MIN_PX), 1)
                for point in points
            ],
            "color": f"{color}/0.55", "symbol": SYMBOLS[place % len(SYMBOLS)],
            "line": {"color": color, "width": 1},
        },
        "hovertemplate": "%{customdata}<extra></extra>",
    }  # fmt: skip


def _words(point: _Point, total_s: float) -> str:
    op = point.op
    lines = [f"<b>{plain(op_title(op))}</b>"]
    where = ", ".join(part for part in (op.layer, op.phase) if part)
    if where:
        lines.append(plain(where))
    lines.append(f"{in_seconds(op.time_s)}, {percent(op.time_s / total_s)} of all ops")
    lines.append(
        f"{with_prefix(point.rate, 'FLOP/s')} at {point.intensity:.3g} FLOP a byte of "
        f"{plain(point.level)}"
    )
    if op.bound_by:
        lines.append(f"bound by {plain(op.bound_by)}")
    return "<br>".join(lines)


def _note(profile: StepProfile, known: Sequence[_Point]) -> str:
    text = ""
    left_out = len(profile.ops) - len(known)
    if left_out:
        text += f" {left_out} ops without FLOPs or counted traffic are not shown."
    if len(known) > MAX_OPS:
        text += f" The slowest {MAX_OPS} of {len(known):,} are."
    return text
