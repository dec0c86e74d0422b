"""The words and figures of a profile for the terminal: the table of ops, a summary, explanations.

It does not know how the figures were found. The page of a profile is in `profile_page.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fsdtrain.report.amounts import in_seconds, percent, with_prefix
from fsdtrain.step_profile import PHASES, OpProfile, ScaleRow, StepProfile

UNKNOWN_BOUND = "not known"
MAX_EXPLAINED = 20
WIDE_COLUMNS = 110  # of a terminal
FOLDED_WIDTHS = {
    "op": 12,
    "layer": 12,
    "shapes": 10,
    "bound": 9,
}  # columns of text; narrower is not read


def op_title(op: OpProfile) -> str:
    """The name without the namespace that nearly all ops share."""
    return op.name.removeprefix("aten::")


@dataclass(frozen=True, kw_only=True)
class OpColumn:
    """One column of the table of ops; `cell` gives "" where the backend cannot tell.

    `value`, of a column of numbers, is what it is sorted by.
    """

    heading: str
    cell: Callable[[OpProfile], str]
    value: Callable[[OpProfile], float | None] | None = None

    @property
    def is_number(self) -> bool:
        return self.value is not None


def op_columns(ops: Sequence[OpProfile]) -> list[OpColumn]:
    """The columns that say something of at least one op."""
    total_s = sum(op.time_s for op in ops)
    has_peak = any(op.utilisation is not None for op in ops)  # says more than the rate
    has_calls = any(op.num_calls > 1 for op in ops)
    num_types = len({op.dtype for op in ops})
    columns = (
        OpColumn(heading="op", cell=op_title),
        OpColumn(heading="layer", cell=lambda op: op.layer or ""),
        OpColumn(heading="shapes", cell=lambda op: op.shapes),
        OpColumn(heading="phase", cell=lambda op: op.phase or ""),
        OpColumn(heading="type", cell=lambda op: op.dtype if num_types > 1 else ""),
        OpColumn(
            heading="calls",
            cell=lambda op: str(op.num_calls) if has_calls else "",
            value=lambda op: op.num_calls,
        ),
        OpColumn(heading="time", cell=lambda op: in_seconds(op.time_s), value=lambda op: op.time_s),
        OpColumn(
            heading="share",
            cell=lambda op: percent(op.time_s / total_s) if total_s else "",
            value=lambda op: op.time_s,
        ),
        OpColumn(
            heading="FLOP/s",
            cell=lambda op: with_prefix(_rate(op) or 0.0, "") if not has_peak and _rate(op) else "",
            value=_rate,
        ),
        OpColumn(
            heading="peak",
            cell=lambda op: _percent(op.utilisation),
            value=lambda op: op.utilisation,
        ),
        OpColumn(heading="roof", cell=lambda op: _percent(_of_roofline(op)), value=_of_roofline),
        OpColumn(heading="bound", cell=lambda op: op.bound_by or ""),
    )
    return [column for column in columns if any(column.cell(op) for op in ops)]


def _rate(op: OpProfile) -> float | None:
    return op.flops / op.alone if op.flops and op.alone else None


def _of_roofline(op: OpProfile) -> float | None:
    return op.roofline_s / op.alone if op.roofline_s is not None and op.alone else None


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share)


def ops_table(
    profile: StepProfile, *, num_samples: int, num_shown: int, width: int = WIDE_COLUMNS
) -> Table:
    """The slowest ops, their shares and what the backend knows of each.

    On a terminal of less than WIDE_COLUMNS, an op with a layer goes without shapes and type.
    """
    # One title for all rows: a profile's figures have one origin.
    table = Table(
        title=f"{profile.backend}, one step of {num_samples} clips: "
        f"{in_seconds(profile.step_time_s)} ({profile.origin})\n{profile.device}",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 0),
        pad_edge=False,
        caption="peak: share of the peak rate; roof: share of what the roofline allows"
        if any(op.utilisation is not None for op in profile.ops)
        else None,
        caption_justify="left",
    )
    columns = op_columns(profile.ops)
    if width < WIDE_COLUMNS and any(op.layer for op in profile.ops):
        columns = [column for column in columns if column.heading not in ("shapes", "type")]
    for column in columns:
        table.add_column(
            column.heading,
            justify="right" if column.is_number else "left",
            no_wrap=column.is_number or column.heading == "phase",
            overflow="fold",
            min_width=FOLDED_WIDTHS.get(column.heading),
        )
    for op in profile.ops[:num_shown]:
        # Text, not markup: names and shapes may hold brackets.
        table.add_row(*(Text(column.cell(op)) for column in columns))
    return table


def time_by_bound(profile: StepProfile) -> dict[str, dict[str, float]]:
    """Seconds by phase and by what bounds the ops; the largest bound of the step first."""
    totals: dict[str, float] = {}
    for op in profile.ops:
        bound = op.bound_by or UNKNOWN_BOUND
        totals[bound] = totals.get(bound, 0.0) + op.time_s
    bounds = sorted(totals, key=lambda bound: -totals[bound])
    found: dict[str, dict[str, float]] = {}
    for phase in (*PHASES, None):
        times = {
            bound: sum(
                op.time_s
                for op in profile.ops
                if op.phase == phase and (op.bound_by or UNKNOWN_BOUND) == bound
            )
            for bound in bounds
        }
        if any(times.values()):
            found[phase or "step"] = {bound: time for bound, time in times.items() if time}
    return found


def summary_lines(profile: StepProfile) -> list[tuple[str, str]]:
    """(what, figure) of the whole step; what the backend cannot tell is left out."""
    lines = [("step", f"{in_seconds(profile.step_time_s)}, {profile.origin}")]
    by_phase: dict[str, float] = {}
    for op in profile.ops:
        if op.phase is not None:
            by_phase[op.phase] = by_phase.get(op.phase, 0.0) + op.time_s
    if by_phase:
        lines.append(("ops", _times({phase: by_phase.get(phase, 0.0) for phase in PHASES})))
    outside_s = profile.step_time_s - sum(op.time_s for op in profile.ops)
    if outside_s > 0.005 * profile.step_time_s:
        lines.append(("outside of ops", in_seconds(outside_s)))
    if profile.flops:
        text = with_prefix(profile.flops, "FLOP")
        if profile.utilisation is not None and profile.peak_flops_per_s:
            text += f", {percent(profile.utilisation)} of the peak of "
            text += with_prefix(profile.peak_flops_per_s, "FLOP/s")
        lines.append(("work", text))
    if profile.roofline_s is not None and profile.step_time_s:
        share = percent(profile.roofline_s / profile.step_time_s)
        lines.append(("roofline", f"{in_seconds(profile.roofline_s)}, {share} of the step"))
    bounds = total_by_bound(profile)
    if set(bounds) != {UNKNOWN_BOUND}:
        lines.append(("limited by", _times(bounds)))
    if profile.busy_s:
        busy = {name: seconds / profile.step_time_s for name, seconds in profile.busy_s.items()}
        ranked = sorted(busy.items(), key=lambda item: -item[1])
        lines.append(("busy", ", ".join(f"{name} {percent(share)}" for name, share in ranked)))
    if profile.data_wait_s is not None:
        share = percent(profile.data_wait_s / (profile.step_time_s + profile.data_wait_s))
        lines.append(("waits for data", f"{in_seconds(profile.data_wait_s)} more, {share}"))
    for use in profile.memory:
        text = with_prefix(use.peak_bytes, "B")
        if use.capacity_bytes:
            text += f" of {with_prefix(use.capacity_bytes, 'B')}"
            text += f" ({percent(use.peak_bytes / use.capacity_bytes)})"
        lines.append((f"{use.name}, at most", text))
    if profile.energy_j is not None:
        watts = profile.energy_j / profile.step_time_s if profile.step_time_s else 0.0
        text = f"{with_prefix(profile.energy_j, 'J')}, {with_prefix(watts, 'W')} on average"
        if profile.power_limit_watts:
            text += f" of {with_prefix(profile.power_limit_watts, 'W')}"
        lines.append(("energy", text))
    lines += _sensitivity_lines(profile)
    if profile.scale is not None:
        lines += [("on all of it", scale_line(row)) for row in profile.scale.rows]
    return lines


def _sensitivity_lines(profile: StepProfile) -> list[tuple[str, str]]:
    """The constant in doubt that moves the step time most."""
    for each in profile.assumptions:
        low, high = each.step_time_at_low_s, each.step_time_at_high_s
        if low is not None and high is not None and low != high:
            text = f"{each.name}, {each.low:g} to {each.high:g}: {in_seconds(low)} to "
            return [("rests most on", text + in_seconds(high))]
    return []


def scale_line(row: ScaleRow) -> str:
    """One placement of replicas in words."""
    text = f"{row.placement}: {in_seconds(row.step_time_s)} a step"
    if row.efficiency is not None:
        text += f", {percent(row.efficiency)} efficient"
    rate = row.num_samples / row.step_time_s if row.step_time_s else 0.0
    return f"{text}, {rate:,.0f} samples/s"


def total_by_bound(profile: StepProfile) -> dict[str, float]:
    """Seconds by what bounds the ops, the largest first."""
    found: dict[str, float] = {}
    for times in time_by_bound(profile).values():
        for bound, seconds in times.items():
            found[bound] = found.get(bound, 0.0) + seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _times(times: Mapping[str, float]) -> str:
    total_s = sum(times.values()) or 1.0
    return ", ".join(
        f"{name} {in_seconds(seconds)} ({percent(seconds / total_s)})"
        for name, seconds in times.items()
    )


def summary(profile: StepProfile) -> Group:
    """The lines below the table, then the notes."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for what, text in summary_lines(profile):
        table.add_row(what, Text(text))
    return Group(table, *(Text(f"! {note}") for note in profile.notes))


def matching_ops(profile: StepProfile, wanted: str) -> list[OpProfile]:
    """Ops whose name, layer or line holds `wanted`, the slowest first."""
    return [
        op
        for op in profile.ops
        if any(wanted in text for text in (op.name, op.layer or "", op.line or ""))
    ]


def explanations(profile: StepProfile, wanted: str) -> Group:
    """Why the matching ops run as they do, or that there is none."""
    found = matching_ops(profile, wanted)
    if not found:
        names = ", ".join(dict.fromkeys(op_title(op) for op in profile.ops[:8]))
        return Group(
            Text(f"explain={wanted}: no op's name, layer or line holds this; e.g. {names}")
        )
    parts: list[Text] = []
    for op in found[:MAX_EXPLAINED]:
        where = ", ".join(part for part in (op.phase, op.layer, op.line) if part)
        head = Text(op_title(op), style="bold")
        head.append(f" {op.shapes}: {in_seconds(op.time_s)}", style="not bold")
        head.append(f"  {where}", style="dim")
        parts += [head, *(Text(f"  {reason}") for reason in op.explanation)]
    if len(found) > MAX_EXPLAINED:
        parts.append(Text(f"... and {len(found) - MAX_EXPLAINED} more in profile.json"))
    if not any(op.explanation for op in found):
        parts.append(Text(f"backend {profile.backend} gives no reasons for these"))
    return Group(*parts)
