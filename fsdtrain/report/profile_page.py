"""Gather what the page of a profile shows from its run folder, as plain text and places.

It knows the files of the run folder, neither how figures were found nor how the page looks. What a
backend cannot tell is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsdtrain.engine.profile_record import read_profile
from fsdtrain.engine.run_record import Manifest, read_manifest
from fsdtrain.report.amounts import in_seconds, percent, plain_number, with_prefix
from fsdtrain.report.charts.bars import make_stacked_bars
from fsdtrain.report.charts.chart import PROFILE_SOURCE, Chart
from fsdtrain.report.charts.heat_map import levels_of, make_heat_map, slice_labels
from fsdtrain.report.charts.memory import make_memory
from fsdtrain.report.charts.roofline import make_roofline
from fsdtrain.report.charts.tornado import Tornado, make_tornado
from fsdtrain.report.palette import NUM_SERIES
from fsdtrain.report.profile_cards import Card, make_cards, make_meters
from fsdtrain.report.profile_text import (
    UNKNOWN_BOUND,
    OpColumn,
    op_columns,
    op_title,
    time_by_bound,
    total_by_bound,
)
from fsdtrain.report.run_page import Fact, manifest_facts
from fsdtrain.report.table import Cell, Column, Table, make_table
from fsdtrain.step_profile import HeatMap, OpProfile, ScaleProfile, StepProfile

# The places of what a machine model names among colours, patterns and symbols, so that a bound
# looks the same on every page; other names take the remaining ones in turn.
PLACES = {
    "matrix": 0, "HBM": 1, "vector": 2, "link": 3, "SRAM port": 4, "network": 5, "latency": 6,
    "imbalance": 7,
}  # fmt: skip
HINTS = {
    "share": "of the time of all ops",
    "peak": "share of the machine's peak rate",
    "roof": "the least time that the roofline allows, as a share of the op's",
}
# What matters most stands beside the name, where a phone shows it; others come as they are.
FIRST_COLUMNS = ("op", "time", "share", "bound", "phase")
CODE_COLUMNS = ("op", "shapes")


@dataclass(frozen=True, kw_only=True)
class ScaleTable:
    """Headings and cells of the table of larger machines."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True, kw_only=True)
class ProfilePage:
    """Everything that profile.html.j2 shows."""

    title: str
    run_name: str
    manifest: Manifest
    profile: StepProfile
    num_clips: int
    verdict: str
    cards: tuple[Card, ...]
    has_bounds: bool
    time_by_bound: Chart
    energy_by_bound: Chart | None
    busy: tuple[Card, ...]
    roofline: Chart | None
    memory: Chart | None
    heat_maps: tuple[Chart, ...]
    map_levels: tuple[str, ...]
    map_labels: tuple[str, ...]
    ops: Table
    tornado: Tornado | None
    scale: ScaleTable | None
    facts: tuple[tuple[str, tuple[Fact, ...]], ...]


def collect_profile_page(run_dir: Path) -> ProfilePage:
    """Read the run folder into what the page shows; UserError where there is no profile."""
    manifest, record = read_manifest(run_dir), read_profile(run_dir)
    profile = record.profile
    totals = total_by_bound(profile)
    places = choose_places(totals)
    maps = tuple(chart for each in profile.heat_maps if (chart := make_heat_map(each, profile)))
    name = run_dir.resolve().name
    return ProfilePage(
        title=f"{name} - fsdtrain profile",
        run_name=name,
        manifest=manifest,
        profile=profile,
        num_clips=record.num_clips,
        verdict=_verdict(profile, totals),
        cards=tuple(make_cards(record)),
        has_bounds=set(totals) != {UNKNOWN_BOUND},
        time_by_bound=_time_chart(profile, places),
        energy_by_bound=_energy_chart(profile, places),
        busy=make_meters(profile),
        roofline=make_roofline(profile, places),
        memory=make_memory(profile),
        heat_maps=maps,
        map_levels=tuple(_level_names(profile.heat_maps)),
        map_labels=tuple(_map_labels(profile)),
        ops=_ops_table(profile, places),
        tornado=make_tornado(profile),
        scale=_scale_table(profile.scale),
        facts=manifest_facts(manifest),
    )


def _verdict(profile: StepProfile, totals: dict[str, float]) -> str:
    """What the step takes, and what most of it waits for."""
    text = f"A step takes {in_seconds(profile.step_time_s)}"
    total_s = sum(totals.values())
    if total_s and set(totals) != {UNKNOWN_BOUND}:
        bound = max(totals, key=lambda each: totals[each])
        text += f"; {percent(totals[bound] / total_s)} of its ops' time is bound by {bound}"
    if profile.utilisation is not None:
        text += f"; it reaches {percent(profile.utilisation)} of the peak rate"
    return f"{text}."


def choose_places(bounds: Sequence[str] | dict[str, float]) -> dict[str, int]:
    """A place among the colours for every bound: its own, or one that no other bound here has."""
    known = {bound: PLACES[bound] for bound in bounds if bound in PLACES}
    if set(bounds) == {UNKNOWN_BOUND}:
        return {UNKNOWN_BOUND: 0}  # nothing to be told apart
    free = [place for place in range(NUM_SERIES) if place not in known.values()]
    others = [bound for bound in bounds if bound not in PLACES and bound != UNKNOWN_BOUND]
    beyond = len(free) + NUM_SERIES
    found = known | {
        bound: free[number] if number < len(free) else beyond + number
        for number, bound in enumerate(others)
    }
    return found | ({UNKNOWN_BOUND: NUM_SERIES} if UNKNOWN_BOUND in bounds else {})


def _time_chart(profile: StepProfile, places: dict[str, int]) -> Chart:
    has_bounds = set(total_by_bound(profile)) != {UNKNOWN_BOUND}
    return make_stacked_bars(
        "Time of the ops by what bounds them" if has_bounds else "Time of the ops",
        time_by_bound(profile), text_of=in_seconds, unit="s", origin=profile.origin,
        source=PROFILE_SOURCE, places=places, has_legend=has_bounds,
    )  # fmt: skip


def _energy_chart(profile: StepProfile, places: dict[str, int]) -> Chart | None:
    """Joules of the ops by phase and bound; None where energy or bounds are not known."""
    found: dict[str, dict[str, float]] = {}
    for phase in time_by_bound(profile):
        found[phase] = {}
    for op in profile.ops:
        if op.energy_j and op.bound_by:
            of_phase = found[op.phase or "step"]
            of_phase[op.bound_by] = of_phase.get(op.bound_by, 0.0) + op.energy_j
    if not any(found.values()):
        return None
    return make_stacked_bars(
        "Energy of the ops by what bounds them", found,
        text_of=lambda joules: with_prefix(joules, "J"), unit="J", origin=profile.origin,
        source=PROFILE_SOURCE, places=places, note="Without idle power.",
    )  # fmt: skip


def _level_names(maps: Sequence[HeatMap]) -> list[str]:
    longest = max((levels_of(each) for each in maps), key=len, default=())
    return [level.name for level in longest]


def _map_labels(profile: StepProfile) -> list[str]:
    for each in profile.heat_maps:
        if each.slices is not None:
            return slice_labels(each.slices, profile)
    return []


def _ops_table(profile: StepProfile, places: dict[str, int]) -> Table:
    columns = [column for column in op_columns(profile.ops) if column.heading != "layer"]
    if not columns:
        return make_table("Ops, the slowest first", (), ())
    places_of = {heading: number for number, heading in enumerate(FIRST_COLUMNS)}
    last = len(FIRST_COLUMNS) + 1
    columns.sort(key=lambda each: places_of.get(each.heading, last - each.is_number))
    return make_table(
        "Ops, the slowest first",
        [
            Column(
                heading=column.heading, hint=HINTS.get(column.heading, ""),
                is_number=column.is_number, is_code=column.heading in CODE_COLUMNS,
                is_choice=column.heading in ("phase", "bound"),
            )
            for column in columns
        ],
        [[_cell(op, column, places) for column in columns] for op in profile.ops],
        sorted_by="time",
        source=PROFILE_SOURCE,
        note=" ".join(
            f"{heading.capitalize()}: {hint}."
            for heading, hint in HINTS.items()
            if heading in {column.heading for column in columns}
        ),
    )  # fmt: skip


def _cell(op: OpProfile, column: OpColumn, places: dict[str, int]) -> Cell:
    if column.heading == "op":
        where = " \u00b7 ".join(part for part in (op.layer, op.line) if part)
        return Cell(op_title(op), small=(where,) if where else (), details=op.explanation)
    if column.heading == "bound":
        place = places.get(op.bound_by or "", NUM_SERIES)
        tone = f"s{place}" if place < NUM_SERIES else "neutral"
        return Cell(op.bound_by or "", tone=tone if op.bound_by else "")
    return Cell(column.cell(op), column.value(op) if column.value else None)


def _scale_table(scale: ScaleProfile | None) -> ScaleTable | None:
    if scale is None or not scale.rows:
        return None
    columns = {
        "machine": [row.machine for row in scale.rows],
        "placement": [row.placement for row in scale.rows],
        "replicas": [f"{row.num_replicas:,}" for row in scale.rows],
        "samples a step": [f"{row.num_samples:,}" for row in scale.rows],
        "step": [in_seconds(row.step_time_s) for row in scale.rows],
        "samples a second": [
            plain_number(row.num_samples / row.step_time_s) if row.step_time_s else ""
            for row in scale.rows
        ],
        "all-reduce": [_maybe_seconds(row.all_reduce_s) for row in scale.rows],
        "not hidden": [_maybe_seconds(row.exposed_s) for row in scale.rows],
        "efficiency": [
            "" if row.efficiency is None else percent(row.efficiency) for row in scale.rows
        ],
        "energy a step": [
            "" if row.energy_j is None else with_prefix(row.energy_j, "J") for row in scale.rows
        ],
    }
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    return ScaleTable(
        headings=tuple(shown), rows=tuple(zip(*shown.values(), strict=True)), note=scale.note
    )


def _maybe_seconds(seconds: float | None) -> str:
    return "" if seconds is None else in_seconds(seconds)
