"""What the page of a comparison shows of performance: totals, bounds, ops.

It does not know HTML. Figures of different origin may stand in one row; their ratio then says so.
"""

from dataclasses import dataclass

from fsdtrain.comparison.record import CompareRecord, CostRow, PerformanceComparison
from fsdtrain.report.amounts import in_seconds
from fsdtrain.report.charts.bars import Change, make_grouped_bars, make_waterfall
from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.compare_words import amount, as_sentence, ratio_notes, ratio_text
from fsdtrain.report.table import Cell, Column, Table, make_table

NUM_CHANGES = 10
SOURCE = "compare.json"
MAX_LABEL = 34  # letters of an op beside its bar


@dataclass(frozen=True, kw_only=True)
class TotalRow:
    """One quantity; an amount that is not known has no badge."""

    name: str
    a: str
    a_origin: str
    b: str
    b_origin: str
    ratio: str


@dataclass(frozen=True, kw_only=True)
class CostView:
    """The performance of both sides, ready to be set."""

    performance: PerformanceComparison
    totals: tuple[TotalRow, ...]
    ratio_notes: tuple[str, ...]
    sentence: str
    notes: tuple[str, ...]
    bounds: Chart | None
    ops_chart: Chart | None
    ops: Table


def make_cost_view(record: CompareRecord) -> CostView | None:
    """Everything on performance; None: it was not compared."""
    performance = record.performance
    if performance is None:
        return None
    return CostView(
        performance=performance,
        totals=tuple(_total(row) for row in performance.totals),
        ratio_notes=tuple(map(as_sentence, ratio_notes(performance.totals))),
        sentence=as_sentence(performance.sentence),
        notes=tuple(map(as_sentence, performance.notes)),
        bounds=_bounds_chart(record, performance),
        ops_chart=_ops_chart(record, performance),
        ops=_ops_table(performance),
    )


def _total(row: CostRow) -> TotalRow:
    return TotalRow(
        name=row.name[:1].upper() + row.name[1:],
        a=amount(row.a, row.unit),
        a_origin="" if row.a is None else row.a_origin,
        b=amount(row.b, row.unit),
        b_origin="" if row.b is None else row.b_origin,
        ratio=ratio_text(row),
    )


def _origins(performance: PerformanceComparison) -> str:
    a, b = performance.a.origin, performance.b.origin
    return a if a == b else f"{a} against {b}"


def _bounds_chart(record: CompareRecord, performance: PerformanceComparison) -> Chart | None:
    rows = [row for row in performance.bounds if row.unit == "s"]
    if not rows:
        return None
    series = {
        f"a: {record.a_name}, {performance.a.origin}": [row.a for row in rows],
        f"b: {record.b_name}, {performance.b.origin}": [row.b for row in rows],
    }
    known = [value for values in series.values() for value in values if value]
    return make_grouped_bars(
        "Time by what bounds it", [row.name for row in rows], series, unit="seconds",
        text_of=in_seconds, origin=_origins(performance), source=SOURCE,
        is_log=bool(known) and max(known) > 50 * min(known),
    )  # fmt: skip


def _ops_chart(record: CompareRecord, performance: PerformanceComparison) -> Chart | None:
    """A waterfall from a's step to b's; of two origins, shares of each side's own step."""
    rows = [row for row in performance.ops if row.unit == "s"][:NUM_CHANGES]
    if not rows:
        return None
    names = [_short(row.name, number) for number, row in enumerate(rows, start=1)]
    start, end = performance.a.step_time_s, performance.b.step_time_s
    if performance.a.origin != performance.b.origin:
        series = {
            f"a: {record.a_name}, {performance.a.origin}": [_share(row.a, start) for row in rows],
            f"b: {record.b_name}, {performance.b.origin}": [_share(row.b, end) for row in rows],
        }
        return make_grouped_bars(
            "Shares of each side's own step, the ops that differ the most", names, series,
            unit="% of its own step", text_of=lambda value: f"{value:.3g} %",
            origin=_origins(performance), source=SOURCE,
            note="Times of different origin are not subtracted from each other.",
        )  # fmt: skip
    changes = [
        Change(label=name, amount=(row.b or 0.0) - (row.a or 0.0))
        for name, row in zip(names, rows, strict=True)
    ]
    rest = end - start - sum(change.amount for change in changes)
    changes.append(Change(label="all else", amount=rest))
    return make_waterfall(
        "From a's step to b's, the ops that differ the most", ("a", start), changes, ("b", end),
        unit="seconds", text_of=in_seconds, origin=_origins(performance), source=SOURCE,
    )  # fmt: skip


def _share(value: float | None, whole: float) -> float | None:
    return None if value is None or not whole else 100 * value / whole


def _short(name: str, number: int) -> str:
    short = name if len(name) <= MAX_LABEL else f"\u2026{name[-MAX_LABEL:]}"
    # Two ops of one name are two bars.
    return f"{number}. {short}"


def _ops_table(performance: PerformanceComparison) -> Table:
    rows = performance.ops
    is_mixed = performance.a.origin != performance.b.origin
    columns = (
        Column(heading="op", is_code=True),
        Column(heading="a", is_number=True),
        Column(heading="b", is_number=True),
        Column(heading="of a's step", is_number=True),
        Column(heading="of b's step", is_number=True),
        *(() if is_mixed else (Column(heading="b minus a", is_number=True),)),
        Column(heading="b over a", is_number=True),
    )
    wholes = (performance.a.step_time_s, performance.b.step_time_s)
    cells = [
        [
            Cell(row.name, small=(row.detail,) if row.detail else ()),
            _value(row.a, row.unit, row.a_origin), _value(row.b, row.unit, row.b_origin),
            *(
                _share_cell(_share(value, whole) if row.unit == "s" else None)
                for value, whole in zip((row.a, row.b), wholes, strict=True)
            ),
            *(() if is_mixed else (_difference(row),)),
            Cell(ratio_text(row).split(" (")[0], row.ratio),
        ]
        for row in rows
    ]  # fmt: skip
    note = " ".join(as_sentence(text) for text in ratio_notes(rows))
    return make_table("Ops, the largest difference first", columns, cells, note=note, source=SOURCE)


def _share_cell(share: float | None) -> Cell:
    return Cell("") if share is None else Cell(f"{share:.3g} %", share)


def _value(value: float | None, unit: str, origin: str) -> Cell:
    text = amount(value, unit)
    return Cell(text, value, small=() if value is None else (origin,))


def _difference(row: CostRow) -> Cell:
    if row.a is None or row.b is None:
        return Cell("on one side only")
    difference = row.b - row.a
    sign = "+" if difference >= 0 else "-"
    return Cell(f"{sign}{amount(abs(difference), row.unit)}", abs(difference))
