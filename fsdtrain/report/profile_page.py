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
from fsdtrain.report.heat_map import HeatMapView, make_heat_map
from fsdtrain.report.memory_plot import MemoryPlot, make_memory_plot
from fsdtrain.report.profile_cards import Card, make_cards, make_meters
from fsdtrain.report.profile_text import (
    UNKNOWN_BOUND,
    op_columns,
    op_title,
    time_by_bound,
    total_by_bound,
)
from fsdtrain.report.roofline_plot import RooflinePlot, make_roofline
from fsdtrain.report.run_page import Fact, manifest_facts
from fsdtrain.report.tornado import Tornado, make_tornado
from fsdtrain.step_profile import OpProfile, ScaleProfile, StepProfile

NUM_WORST_OPS = 30
MAX_OPS = 500  # on the page; profile.json has all
# The colours of what a machine model names; other names take the remaining ones in turn.
TONES = {
    "matrix": "t0", "vector": "t1", "SRAM port": "t2", "link": "t3", "HBM": "t4", "network": "t5",
    "latency": "t6", "imbalance": "t7", UNKNOWN_BOUND: "t8",
}  # fmt: skip
OTHER_TONES = ("t0", "t1", "t4", "t3", "t2", "t5", "t7", "t6")


@dataclass(frozen=True, kw_only=True)
class BoundPart:
    """One part of a stacked bar; `percent` is of the longest bar."""

    name: str
    tone: str
    percent: float
    text: str


@dataclass(frozen=True, kw_only=True)
class PhaseBar:
    """The time of one phase, by what bounds its ops."""

    name: str
    time: str
    parts: tuple[BoundPart, ...]


@dataclass(frozen=True, kw_only=True)
class LegendPart:
    """One bound over all phases."""

    name: str
    tone: str
    time: str
    share: str


@dataclass(frozen=True, kw_only=True)
class OpRow:
    """One op; `cells` go with the page's headings."""

    title: str
    places: tuple[str, ...]
    tone: str
    cells: tuple[str, ...]
    reasons: tuple[str, ...]


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
    cards: tuple[Card, ...]
    phase_bars: tuple[PhaseBar, ...]
    bounds: tuple[LegendPart, ...]
    busy: tuple[Card, ...]
    roofline: RooflinePlot | None
    memory: MemoryPlot | None
    heat_maps: tuple[HeatMapView, ...]
    op_headings: tuple[tuple[str, bool], ...]  # text, whether a number
    worst_ops: tuple[OpRow, ...]
    other_ops: tuple[OpRow, ...]
    ops_note: str
    tornado: Tornado | None
    scale: ScaleTable | None
    tones: dict[str, str]
    facts: tuple[tuple[str, tuple[Fact, ...]], ...]


def collect_profile_page(run_dir: Path) -> ProfilePage:
    """Read the run folder into what the page shows; UserError where there is no profile."""
    manifest, record = read_manifest(run_dir), read_profile(run_dir)
    profile = record.profile
    totals = total_by_bound(profile)
    tones = choose_tones(totals)
    bounds = _legend(totals, tones)
    columns = op_columns(profile.ops)[1:]  # the name heads the row
    columns = [column for column in columns if column.heading != "layer"]
    rows = [
        _op_row(op, tuple(column.cell(op) for column in columns), tones)
        for op in profile.ops[:MAX_OPS]
    ]
    name = run_dir.resolve().name
    return ProfilePage(
        title=f"{name} - fsdtrain profile",
        run_name=name,
        manifest=manifest,
        profile=profile,
        num_clips=record.num_clips,
        cards=tuple(make_cards(record)),
        phase_bars=_phase_bars(time_by_bound(profile), tones),
        bounds=bounds if set(totals) != {UNKNOWN_BOUND} else (),
        busy=make_meters(profile),
        roofline=make_roofline(profile),
        memory=make_memory_plot(profile),
        heat_maps=tuple(view for each in profile.heat_maps if (view := make_heat_map(each))),
        op_headings=tuple((column.heading, column.is_number) for column in columns),
        worst_ops=tuple(rows[:NUM_WORST_OPS]),
        other_ops=tuple(rows[NUM_WORST_OPS:]),
        ops_note=f"the slowest {MAX_OPS} of {len(profile.ops):,}; profile.json has all"
        if len(profile.ops) > MAX_OPS
        else f"{len(profile.ops):,} ops",
        tornado=make_tornado(profile),
        scale=_scale_table(profile.scale),
        tones=tones,
        facts=manifest_facts(manifest),
    )


def choose_tones(bounds: Sequence[str] | dict[str, float]) -> dict[str, str]:
    """A colour class for every bound: its own, or one that no other bound here has."""
    if set(bounds) == {UNKNOWN_BOUND}:
        return {UNKNOWN_BOUND: TONES["matrix"]}  # nothing to be told apart
    known = {bound: TONES[bound] for bound in bounds if bound in TONES}
    free = [tone for tone in OTHER_TONES if tone not in known.values()] or list(OTHER_TONES)
    others = [bound for bound in bounds if bound not in TONES]
    return known | {bound: free[number % len(free)] for number, bound in enumerate(others)}


def _phase_bars(
    by_phase: dict[str, dict[str, float]], tones: dict[str, str]
) -> tuple[PhaseBar, ...]:
    longest_s = max((sum(times.values()) for times in by_phase.values()), default=0.0) or 1.0
    return tuple(
        PhaseBar(
            name=phase,
            time=in_seconds(sum(times.values())),
            parts=tuple(
                BoundPart(
                    name=bound,
                    tone=tones[bound],
                    percent=round(100 * seconds / longest_s, 3),
                    text=f"{bound}: {in_seconds(seconds)}, "
                    f"{percent(seconds / sum(times.values()))} of {phase}",
                )
                for bound, seconds in times.items()
            ),
        )
        for phase, times in by_phase.items()
    )


def _legend(totals: dict[str, float], tones: dict[str, str]) -> tuple[LegendPart, ...]:
    total_s = sum(totals.values()) or 1.0
    return tuple(
        LegendPart(
            name=bound,
            tone=tones[bound],
            time=in_seconds(seconds),
            share=percent(seconds / total_s),
        )
        for bound, seconds in totals.items()
    )


def _op_row(op: OpProfile, cells: tuple[str, ...], tones: dict[str, str]) -> OpRow:
    return OpRow(
        title=op_title(op),
        places=tuple(part for part in (op.layer, op.line) if part),
        tone=tones[op.bound_by] if op.bound_by else "",
        cells=cells,
        reasons=op.explanation,
    )


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
