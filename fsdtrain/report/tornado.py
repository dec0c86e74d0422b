"""Rank a result's assumptions by how far each moves the step time, as bars about the result.

It does not know HTML: bars are in percent of the width that they are drawn in.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fsdtrain.report.amounts import in_seconds
from fsdtrain.step_profile import Assumption, StepProfile

MAX_BARS = 15
UNITS = {"count": "", "share": "", "1/cycle": " per cycle"}
MIN_SWING = 1e-4  # of the step time; less is no bar


@dataclass(frozen=True, kw_only=True)
class AssumptionRow:
    """One assumption in words, and its bar: left edge and width."""

    name: str
    value: str
    between: str
    confidence: str
    source: str
    bar: tuple[float, float] | None = None
    times: str = ""
    swing: str = ""


@dataclass(frozen=True, kw_only=True)
class Tornado:
    """The assumptions that matter, the largest swing first; the others in their own order."""

    rows: tuple[AssumptionRow, ...]
    others: tuple[AssumptionRow, ...]
    result_percent: float  # where the step time itself stands
    result: str


def make_tornado(profile: StepProfile) -> Tornado | None:
    """The chart, or None where no assumption is known."""
    if not profile.assumptions:
        return None
    times = {each.name: _times_s(each, profile.step_time_s) for each in profile.assumptions}
    swings = {name: max(of) - min(of) for name, of in times.items()}
    ranked = sorted(profile.assumptions, key=lambda each: -swings[each.name])
    judged = [each for each in ranked if swings[each.name] > MIN_SWING * profile.step_time_s][
        :MAX_BARS
    ]
    low = min([profile.step_time_s, *(time for each in judged for time in times[each.name])])
    high = max([profile.step_time_s, *(time for each in judged for time in times[each.name])])

    def place(time_s: float) -> float:
        return round(100 * (time_s - low) / (high - low), 2) if high > low else 50.0

    shown = {each.name for each in judged}
    return Tornado(
        rows=tuple(_judged_row(each, times[each.name], profile, place) for each in judged),
        others=tuple(_row(each) for each in profile.assumptions if each.name not in shown),
        result_percent=place(profile.step_time_s),
        result=in_seconds(profile.step_time_s),
    )


def _times_s(assumption: Assumption, step_time_s: float) -> tuple[float, ...]:
    """The step times that are known, the result itself among them."""
    tried = (assumption.step_time_at_low_s, assumption.step_time_at_high_s)
    return (step_time_s, *(time for time in tried if time is not None))


def _row(assumption: Assumption) -> AssumptionRow:
    has_range = assumption.low is not None and assumption.high is not None
    unit = UNITS.get(assumption.unit, f" {assumption.unit}")
    return AssumptionRow(
        name=assumption.name,
        value=f"{assumption.value:g}{unit}",
        between=f"{assumption.low:g} to {assumption.high:g}" if has_range else "",
        confidence=assumption.confidence,
        source=assumption.source,
    )


def _judged_row(
    assumption: Assumption,
    times_s: tuple[float, ...],
    profile: StepProfile,
    place: Callable[[float], float],
) -> AssumptionRow:
    plain = _row(assumption)
    left, right = place(min(times_s)), place(max(times_s))
    at_ends = (assumption.step_time_at_low_s, assumption.step_time_at_high_s)
    return AssumptionRow(
        name=plain.name,
        value=plain.value,
        between=plain.between,
        confidence=plain.confidence,
        source=plain.source,
        bar=(left, round(right - left, 2)),
        times=" to ".join(in_seconds(time) for time in at_ends if time is not None),
        swing=_change(times_s, profile.step_time_s),
    )


def _change(times_s: tuple[float, ...], step_time_s: float) -> str:
    """-8% to +20%: of the step time; an end that changes nothing is left out."""
    if not step_time_s:
        return ""
    ends = (min(times_s) / step_time_s - 1, max(times_s) / step_time_s - 1)
    return " to ".join(f"{change:+.1%}" for change in ends if abs(change) >= MIN_SWING)
