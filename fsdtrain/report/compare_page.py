"""Gather what compare.html shows from compare.json, as plain text, charts and tables.

It does not know how the comparison was made, nor HTML: `templates/compare.html.j2` says how the
page looks.
"""

from dataclasses import dataclass
from pathlib import Path

from fsdtrain.comparison.record import (
    CompareRecord,
    ConfigDifference,
    Outcome,
    SwappedSet,
    TunedRecipe,
    read_comparison,
)
from fsdtrain.report.amounts import in_seconds, percent
from fsdtrain.report.compare_costs import CostView, make_cost_view
from fsdtrain.report.compare_numerics import NumericsView, make_numerics_view
from fsdtrain.report.compare_training import TrainingView, make_training_view
from fsdtrain.report.compare_words import as_sentence, telling_differences
from fsdtrain.report.run_page import Fact, manifest_facts
from fsdtrain.report.table import Cell, Column, Table, make_table
from fsdtrain.step_profile import Origin

TONES: dict[Outcome, str] = {"same": "good", "different": "bad", "open": "open"}
MAX_DIFFERENCES = 12  # above the fold
HEADINGS = {0: "The same", 1: "Different"}


@dataclass(frozen=True, kw_only=True)
class CheckView:
    """One check of the verdict card."""

    name: str
    tone: str
    text: str


@dataclass(frozen=True, kw_only=True)
class SideFacts:
    """The manifest of one side."""

    title: str
    origin: str
    topics: tuple[tuple[str, tuple[Fact, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class ComparePage:
    """Everything that compare.html.j2 shows."""

    title: str
    record: CompareRecord
    tone: str
    heading: str
    checks: tuple[CheckView, ...]
    differences: tuple[ConfigDifference, ...]
    more_differences: tuple[ConfigDifference, ...]
    numerics: NumericsView | None
    bisected: SwappedSet | None
    ranking: Table | None
    tuned: TunedRecipe | None
    tuned_steps: Table | None
    training: TrainingView | None
    costs: CostView | None
    sides: tuple[SideFacts, ...]
    sections: tuple[tuple[str, str], ...]


def collect_compare_page(folder: Path) -> ComparePage:
    """Read a comparison's folder into what its page shows.

    Raises:
        UserError: compare.json is missing, or of another schema or version.
    """
    return make_compare_page(read_comparison(folder))


def make_compare_page(record: CompareRecord) -> ComparePage:
    """The page of a comparison."""
    is_open = all(check.outcome == "open" for check in record.verdict.checks)
    numerics, training = make_numerics_view(record), make_training_view(record)
    costs = make_cost_view(record)
    differences = telling_differences(record)
    has_attribution = record.bisected is not None or record.tuned is not None
    sections = (
        ("verdict", "Verdict", True),
        ("numerics", "Numerics", numerics is not None),
        ("formats", "Formats", numerics is not None),
        ("attribution", "Attribution", has_attribution),
        ("training", "Training", training is not None),
        ("performance", "Performance", costs is not None),
        ("sides", "Sides", True),
    )
    return ComparePage(
        title=f"{record.a_name} against {record.b_name} - fsdtrain comparison",
        record=record,
        tone="open" if is_open else TONES["same" if record.verdict.exit_code == 0 else "different"],
        heading="No verdict" if is_open else HEADINGS[record.verdict.exit_code],
        checks=tuple(
            CheckView(name=one.name, tone=TONES[one.outcome], text=as_sentence(one.sentence))
            for one in record.verdict.checks
        ),
        differences=tuple(differences[:MAX_DIFFERENCES]),
        more_differences=tuple(differences[MAX_DIFFERENCES:]),
        numerics=numerics,
        bisected=record.bisected,
        ranking=_ranking_table(record.bisected),
        tuned=record.tuned,
        tuned_steps=_tuned_table(record.tuned, record.b_manifest.origin),
        training=training,
        costs=costs,
        sides=tuple(
            SideFacts(
                title=f"{side}: {name}", origin=manifest.origin, topics=manifest_facts(manifest)
            )
            for side, name, manifest in (
                ("a", record.a_name, record.a_manifest),
                ("b", record.b_name, record.b_manifest),
            )
        ),
        sections=tuple((id_, text) for id_, text, is_shown in sections if is_shown),
    )


def _ranking_table(bisected: SwappedSet | None) -> Table | None:
    if bisected is None or not bisected.ranking:
        return None
    columns = (
        Column(heading=bisected.unit, is_code=True),
        Column(heading="by itself", is_number=True, hint="share of the whole difference"),
    )
    cells = [
        [Cell(one.name, is_warned=one.name in bisected.names), Cell(percent(one.share), one.share)]
        for one in bisected.ranking
    ]
    note = "Each by itself as b does it, all else as a. Shares of several do not add up."
    return make_table("Shares of the difference", columns, cells, note=note, source="compare.json")


def _tuned_table(tuned: TunedRecipe | None, origin: Origin) -> Table | None:
    if tuned is None or not tuned.steps:
        return None
    columns = (
        Column(heading="role", is_code=True),
        Column(heading="from", is_code=True),
        Column(heading="to", is_code=True),
        Column(heading="gradients then, dB", is_number=True),
        Column(heading="step time then", is_number=True),
        Column(heading="cost", is_number=True, hint="of this and all changes above it"),
    )
    cells = []
    for step in tuned.steps:
        after, before = step.step_time_s, step.step_time_before_s
        cost = None if after is None or not before else after / before - 1
        snr = step.gradient_snr_db
        cells.append(
            [
                Cell(step.role), Cell(step.from_format), Cell(step.to_format),
                Cell("not known") if snr is None
                else Cell(f"{snr:.1f}", snr, small=(origin,)),
                Cell("not known") if after is None
                else Cell(in_seconds(after), after, small=(step.origin,)),
                Cell("not known") if cost is None
                else Cell(f"{100 * cost:+.1f} %", cost, small=(step.origin,)),
            ]
        )  # fmt: skip
    return make_table(
        "Wider formats that reach the margin", columns, cells, source="compare.json",
        note="Each row is a change on top of those above it.",
    )  # fmt: skip
