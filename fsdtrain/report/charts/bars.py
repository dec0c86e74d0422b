"""Bars: stacked ones by what they are made of, and a waterfall from one amount to another.

They lie on their side, so that names can be read, on a phone as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsdtrain.report.amounts import percent
from fsdtrain.report.charts.chart import (
    PATTERNS,
    Chart,
    LegendEntry,
    PlotlyPart,
    axis,
    layout,
    numbers,
    plain,
    series_color,
)

ROW_PX = 40
MARGINS_PX = 46
PREFIXED = ("s", "B", "J", "W", "FLOP", "B/s", "FLOP/s")  # units that take ms, GB


def make_stacked_bars(
    title: str,
    bars: Mapping[str, Mapping[str, float]],
    *,
    text_of: Callable[[float], str],
    origin: str,
    source: str,
    unit: str = "",
    note: str = "",
    places: Mapping[str, int] | None = None,
    has_legend: bool = True,
) -> Chart:
    """One bar a name, made of parts: {"forward": {"matrix": 0.01, "HBM": 0.02}}.

    Args:
        title: the heading.
        bars: amounts by bar and by part.
        text_of: an amount in words, for hovering and the legend.
        origin: of the amounts.
        source: of the amounts.
        unit: of the amounts; "s", "B" and the like get a prefix, others head the axis.
        note: below the chart.
        places: of the parts among the colours and patterns, so that several charts agree; None:
            in the order in which they come.
        has_legend: False where there is one part alone.
    """
    names = dict.fromkeys(part for of in bars.values() for part in of)
    places = places or {part: number for number, part in enumerate(names)}
    totals = {part: sum(of.get(part, 0.0) for of in bars.values()) for part in names}
    parts = sorted(totals, key=lambda part: -totals[part])
    words = (
        f"{name} {text_of(sum(of.values()))}"
        + (f", most of it {max(of, key=lambda part: of[part])}" if of else "")
        for name, of in bars.items()
    )
    return Chart(
        title=title,
        figure={
            "data": [_stacked(part, bars, places[part], text_of) for part in parts],
            "layout": layout(
                x=_amounts(unit),
                y=axis(autorange="reversed", type="category", ticksuffix=" "),
                barmode="stack", bargap=0.28, hovermode="closest",
            ),
        },
        summary=f"{title}: {'; '.join(words)}.",
        origin=origin, source=source, note=note,
        legend=_parts_legend(totals, parts, places, text_of) if has_legend else (),
        height_px=MARGINS_PX + ROW_PX * max(len(bars), 1),
    )  # fmt: skip


def _stacked(
    part: str,
    bars: Mapping[str, Mapping[str, float]],
    place: int,
    text_of: Callable[[float], str],
) -> PlotlyPart:
    """The pieces of one part in all bars."""
    amounts = [of.get(part, 0.0) for of in bars.values()]
    shares = [
        f"{text_of(amount)}, {percent(amount / (sum(of.values()) or 1.0))} of {plain(name)}"
        for amount, (name, of) in zip(amounts, bars.items(), strict=True)
    ]
    return {
        "type": "bar", "orientation": "h", "name": plain(part),
        "y": [plain(name) for name in bars], "x": numbers(amounts), "customdata": shares,
        "marker": _fill(place),
        "hovertemplate": f"<b>{plain(part)}</b><br>%{{customdata}}<extra></extra>",
    }  # fmt: skip


def _parts_legend(
    totals: Mapping[str, float],
    parts: Sequence[str],
    places: Mapping[str, int],
    text_of: Callable[[float], str],
) -> tuple[LegendEntry, ...]:
    """Each part with its share of all bars."""
    whole = sum(totals.values()) or 1.0
    return tuple(
        LegendEntry(
            label=part, color=series_color(places[part]), traces=(number,),
            value=f"{percent(totals[part] / whole)}, {text_of(totals[part])}",
            pattern=PATTERNS[places[part] % len(PATTERNS)],
        )
        for number, part in enumerate(parts)
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Change:
    """One step of a waterfall: what it is, and by how much it changes the amount."""

    label: str
    amount: float
    text: str = ""


def make_waterfall(
    title: str,
    start: tuple[str, float],
    changes: Sequence[Change],
    end: tuple[str, float],
    *,
    text_of: Callable[[float], str],
    origin: str,
    source: str,
    unit: str = "",
    note: str = "",
) -> Chart:
    """From `start` over each change to `end`; the caller sees to it that they add up."""
    names = [start[0], *(each.label for each in changes), end[0]]
    amounts = [start[1], *(each.amount for each in changes), end[1]]
    texts = [
        text_of(start[1]),
        *(each.text or _signed(each.amount, text_of) for each in changes),
        text_of(end[1]),
    ]
    trace: PlotlyPart = {
        "type": "waterfall", "orientation": "h", "y": [plain(name) for name in names],
        "x": numbers(amounts), "text": [plain(text) for text in texts],
        "measure": ["absolute", *("relative" for _ in changes), "total"],
        "textposition": "auto", "cliponaxis": False,
        "outsidetextfont": {"color": "@ink"}, "insidetextfont": {"color": "@card"},
        "hovertemplate": "<b>%{y}</b><br>%{text}<extra></extra>",
        "connector": {"line": {"color": "@line", "width": 1}},
        "totals": {"marker": {"color": "@neutral"}},
        "decreasing": {"marker": {"color": "@s0"}},
        "increasing": {"marker": {"color": "@s1"}},
    }  # fmt: skip
    return Chart(
        title=title,
        figure={
            "data": [trace],
            "layout": layout(
                x=_amounts(unit),
                y=axis(autorange="reversed", type="category", ticksuffix=" "),
                bargap=0.3, hovermode="closest", margin={"l": 40, "r": 76, "t": 10, "b": 24},
            ),
        },
        summary=f"{title}: "
        + "; ".join(f"{name} {text}" for name, text in zip(names, texts, strict=True))
        + ".",
        origin=origin, source=source, note=note, height_px=MARGINS_PX + 32 * len(names),
    )  # fmt: skip


def make_grouped_bars(
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    text_of: Callable[[float], str],
    origin: str,
    source: str,
    unit: str = "",
    note: str = "",
    is_log: bool = False,
) -> Chart:
    """Bars side by side: {"a": amounts by group, "b": ...}; None: not known, no bar."""
    data: list[PlotlyPart] = []
    legend: list[LegendEntry] = []
    for number, (label, amounts) in enumerate(series.items()):
        texts = ["not known" if amount is None else text_of(amount) for amount in amounts]
        data.append(
            {
                "type": "bar", "orientation": "h", "name": plain(label),
                "y": [plain(name) for name in groups], "x": numbers(amounts), "text": texts,
                "textposition": "none", "marker": _fill(number),
                "hovertemplate": f"<b>%{{y}}</b>, {plain(label)}<br>%{{text}}<extra></extra>",
            }
        )  # fmt: skip
        pattern = PATTERNS[number % len(PATTERNS)]
        legend.append(
            LegendEntry(label=label, color=series_color(number), traces=(number,), pattern=pattern)
        )
    x = _amounts(unit, **({"type": "log", "dtick": 1} if is_log else {}))
    return Chart(
        title=title,
        figure={
            "data": data,
            "layout": layout(
                x=x, y=axis(autorange="reversed", type="category", ticksuffix=" "),
                barmode="group", bargap=0.25, bargroupgap=0.08, hovermode="closest",
            ),
        },
        summary=f"{title}: "
        + "; ".join(
            f"{name}: "
            + ", ".join(
                f"{label} {'not known' if amounts[at] is None else text_of(amounts[at] or 0.0)}"
                for label, amounts in series.items()
            )
            for at, name in enumerate(groups)
        )
        + ".",
        origin=origin, source=source, note=note, legend=tuple(legend),
        height_px=MARGINS_PX + (14 + 20 * len(series)) * max(len(groups), 1),
    )  # fmt: skip


def _amounts(unit: str, **changes: Any) -> PlotlyPart:
    if unit not in PREFIXED:
        return axis(unit, rangemode="tozero", nticks=6, **changes)
    return axis(
        rangemode="tozero", ticksuffix=unit, exponentformat="SI", minexponent=1, nticks=6, **changes
    )  # fmt: skip


def _fill(place: int) -> PlotlyPart:
    pattern = PATTERNS[place % len(PATTERNS)]
    return {
        "color": series_color(place),
        "line": {"color": "@card", "width": 1},
        "pattern": {"shape": pattern, "fgcolor": "@card/0.6", "fillmode": "overlay", "size": 7}
        if pattern
        else {"shape": ""},
    }


def _signed(amount: float, text_of: Callable[[float], str]) -> str:
    return f"{'+' if amount >= 0 else '-'}{text_of(abs(amount))}"
