"""Rank a result's assumptions by how far each moves the step time: a chart, and the figures.

A bar reaches from the step time with the assumption at one end of its range to that at the other.
"""

from dataclasses import dataclass

from fsdtrain.report.amounts import in_seconds
from fsdtrain.report.charts.chart import PROFILE_SOURCE, Chart, axis, layout, plain
from fsdtrain.report.table import Cell, Column, Table, make_table
from fsdtrain.step_profile import Assumption, StepProfile

MAX_BARS = 15
UNITS = {"count": "", "share": "", "1/cycle": " per cycle"}
MIN_SWING = 1e-4  # of the step time; less is no bar
COLUMNS = (
    Column(heading="assumption", is_code=True),
    Column(heading="value", is_number=True),
    Column(heading="range"),
    Column(heading="step time over the range"),
    Column(heading="change", is_number=True, hint="of the step time, both ways"),
    Column(heading="confidence", is_choice=True),
)


@dataclass(frozen=True, kw_only=True)
class Tornado:
    """The chart of the assumptions that matter, or None, and the table of all."""

    chart: Chart | None
    table: Table


def make_tornado(profile: StepProfile) -> Tornado | None:
    """Chart and table, or None where no assumption is known."""
    if not profile.assumptions:
        return None
    ranked = sorted(profile.assumptions, key=lambda each: -_swing_s(each, profile.step_time_s))
    judged = [
        each
        for each in ranked
        if _swing_s(each, profile.step_time_s) > MIN_SWING * profile.step_time_s
    ]
    table = make_table(
        "Assumptions, those that matter most first", COLUMNS,
        [_row(each, profile.step_time_s) for each in ranked],
        sorted_by="change", page_size=15, source=PROFILE_SOURCE,
        note="Each can be set: backend.machine.<name>=<value>. Without a change: it moves the step "
        "time by nothing to speak of, or was not varied.",
    )  # fmt: skip
    return Tornado(chart=_chart(judged[:MAX_BARS], profile) if judged else None, table=table)


def _chart(judged: list[Assumption], profile: StepProfile) -> Chart:
    step_s = profile.step_time_s
    ends = [_times_s(each, step_s) for each in judged]
    names = [plain(each.name) for each in judged]
    return Chart(
        title="Step time over the range of each assumption",
        figure={
            "data": [
                {
                    "type": "bar", "orientation": "h", "y": names,
                    "base": [float(f"{min(times):.6g}") for times in ends],
                    "x": [float(f"{max(times) - min(times):.6g}") for times in ends],
                    "text": [_change(each, step_s) for each in judged],
                    "textposition": "outside", "cliponaxis": False,
                    "textfont": {"color": "@soft"},
                    "customdata": [
                        f"{_times(each)}<br>{_change(each, step_s)} over {_between(each)}<br>"
                        f"{plain(each.confidence)}: {plain(_short(each.source))}"
                        for each in judged
                    ],
                    "hovertemplate": "<b>%{y}</b><br>%{customdata}<extra></extra>",
                    "marker": {"color": "@s6", "line": {"width": 0, "color": "@s6"}},
                }
            ],
            "layout": layout(
                x=axis("step time", ticksuffix="s", exponentformat="SI", minexponent=1),
                y=axis(autorange="reversed", type="category", ticksuffix=" "),
                bargap=0.35, hovermode="closest", margin={"l": 40, "r": 96, "t": 18, "b": 24},
                shapes=[
                    {"type": "line", "x0": step_s, "x1": step_s, "yref": "paper", "y0": 0, "y1": 1,
                     "line": {"color": "@ink", "width": 1.5}}
                ],
                annotations=[
                    {"x": step_s, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False,
                     "text": in_seconds(step_s), "font": {"size": 11, "color": "@ink"}}
                ],
            ),
        },
        summary="Step time over the range of each assumption: "
        + "; ".join(f"{each.name} {_change(each, step_s)}" for each in judged)
        + ".",
        origin=profile.origin, source=PROFILE_SOURCE,
        note=f"The line is the step time, {in_seconds(step_s)}.",
        height_px=70 + 27 * len(judged), is_wide=True,
    )  # fmt: skip


def _row(assumption: Assumption, step_s: float) -> tuple[Cell, ...]:
    unit = UNITS.get(assumption.unit, f" {assumption.unit}")
    swing = _swing_s(assumption, step_s)
    return (
        Cell(assumption.name, small=(assumption.source,)),
        Cell(f"{assumption.value:g}{unit}", assumption.value),
        Cell(_between(assumption)),
        Cell(_times(assumption)),
        Cell(_change(assumption, step_s), swing or None),
        Cell(assumption.confidence),
    )


def _times_s(assumption: Assumption, step_s: float) -> tuple[float, ...]:
    """The step times that are known, the result itself among them."""
    tried = (assumption.step_time_at_low_s, assumption.step_time_at_high_s)
    return (step_s, *(time for time in tried if time is not None))


def _swing_s(assumption: Assumption, step_s: float) -> float:
    times = _times_s(assumption, step_s)
    return max(times) - min(times)


def _between(assumption: Assumption) -> str:
    if assumption.low is None or assumption.high is None:
        return ""
    return f"{assumption.low:g} to {assumption.high:g}"


def _times(assumption: Assumption) -> str:
    at_ends = (assumption.step_time_at_low_s, assumption.step_time_at_high_s)
    return " to ".join(in_seconds(time) for time in at_ends if time is not None)


def _change(assumption: Assumption, step_s: float) -> str:
    """-8% to +20%: of the step time; an end that changes nothing is left out."""
    if not step_s:
        return ""
    times = _times_s(assumption, step_s)
    ends = (min(times) / step_s - 1, max(times) / step_s - 1)
    return " to ".join(f"{change:+.1%}" for change in ends if abs(change) >= MIN_SWING)


def _short(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:87]}..."
