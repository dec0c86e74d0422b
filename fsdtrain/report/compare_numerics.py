"""What the page of a comparison shows of its tensors: tables, SNR over the step, number formats.

It does not know HTML. SNR is of a side against the reference but where a heading says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fsdtrain.comparison.record import (
    CompareRecord,
    Errors,
    NumericsComparison,
    StoredTensor,
    TensorComparison,
)
from fsdtrain.report.amounts import percent
from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.compare_snr import SnrSeries, make_snr_chart
from fsdtrain.report.compare_words import as_sentence, decibels, ranked_rows, tensor_title
from fsdtrain.report.layer_tree import LayerTree, make_layer_tree
from fsdtrain.report.table import Cell, Column, Table, make_table

NUM_WORST = 20
MAX_DETAILED = 1500  # tensors; of more, the errors of each would make the page heavy
SOURCE = "compare.json"
PARAMETER_KINDS = ("gradient", "update")
SideName = Literal["a", "b"]

TENSOR_COLUMNS = (
    Column(heading="tensor", is_code=True),
    Column(heading="kind", is_choice=True),
    Column(heading="mode", is_choice=True, hint="teacher-forced: the op got the reference's "
           "inputs, so the error is its own; free-running: errors of earlier ops are in it"),
    Column(heading="format of b", is_choice=True),
    Column(heading="SNR of a, dB", is_number=True, hint="of a against the reference"),
    Column(heading="SNR of b, dB", is_number=True, hint="of b against the reference"),
    Column(heading="b against a, dB", is_number=True),
    Column(heading="band, dB", is_number=True, hint="the least SNR that is expected"),
    Column(heading="over band, dB", is_number=True, hint="SNR of the worse side less the band"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NumericsView:
    """The numerics of a comparison, ready to be set."""

    numerics: NumericsComparison
    sentence: str
    notes: tuple[str, ...]
    first_divergence: str
    worst: Table
    parameters: Table | None
    all_tensors: Table
    snr: Chart
    tree: LayerTree
    formats: Table
    origins: str


def make_numerics_view(record: CompareRecord) -> NumericsView | None:
    """Everything on the tensors; None: they were not compared."""
    numerics = record.numerics
    if numerics is None:
        return None
    origins = f"{record.a_manifest.origin} against {record.b_manifest.origin}"
    rows = numerics.tensors
    ranked = ranked_rows(numerics)
    first = numerics.first_divergence
    is_detailed = len(rows) <= MAX_DETAILED
    parameters = [row for row in ranked if row.kind in PARAMETER_KINDS]
    return NumericsView(
        numerics=numerics,
        sentence=as_sentence(numerics.sentence),
        notes=tuple(map(as_sentence, numerics.notes)),
        first_divergence="" if first is None else _where(rows[first]),
        worst=_tensor_table("The worst tensors", ranked[:NUM_WORST], has_details=True),
        parameters=_parameter_table(parameters) if parameters else None,
        all_tensors=_tensor_table(
            "All tensors",
            ranked,
            has_details=is_detailed,
            note="" if is_detailed else "compare.csv has all errors of each.",
        ),
        snr=make_snr_chart(
            [SnrSeries(side=side, mode=mode) for side in ("a", "b")
             for mode in ("teacher_forced", "free_running")],
            rows, names={"a": record.a_name, "b": record.b_name}, origin=record.b_manifest.origin,
            source=SOURCE,
        ),
        tree=make_layer_tree(rows),
        formats=_format_table(record, rows),
        origins=origins,
    )  # fmt: skip


def _where(row: TensorComparison) -> str:
    line = f", {row.line}" if row.line else ""
    finding = row.finding or f"outside of the band on {' and '.join(row.outside)}"
    return f"{tensor_title(row)}{line}: {finding} ({row.mode.replace('_', '-')})"


def _tensor_table(
    caption: str, rows: Sequence[TensorComparison], *, has_details: bool, note: str = ""
) -> Table:
    cells = [_tensor_cells(row, has_details=has_details) for row in rows]
    return make_table(
        caption, TENSOR_COLUMNS, cells, note=note, source=SOURCE, details_label="errors"
    )


def _tensor_cells(row: TensorComparison, *, has_details: bool) -> list[Cell]:
    outside = f"outside of its band: {' and '.join(row.outside)}" if row.outside else ""
    small = tuple(text for text in (row.finding or outside, row.line) if text)
    worse = [errors.snr_db for errors in (row.a, row.b) if errors.snr_db is not None]
    over = None if row.band_snr_db is None or not worse else min(worse) - row.band_snr_db
    return [
        Cell(
            tensor_title(row), small=small, details=_details(row) if has_details else (),
            is_warned=bool(row.outside or row.finding),
        ),
        Cell(row.kind), Cell(row.mode.replace("_", "-")), Cell(row.b_stored.format),
        *(_snr_cell(errors) for errors in (row.a, row.b, row.between)),
        _number(row.band_snr_db, ".0f"), _number(over, "+.1f"),
    ]  # fmt: skip


def _snr_cell(errors: Errors) -> Cell:
    # What is bitwise equal has no finite SNR: it is the best.
    value = float("1e9") if errors.is_bitwise_equal else errors.snr_db
    return Cell(decibels(errors).removesuffix(" dB"), value, is_warned=errors.nan_share > 0)


def _number(value: float | None, form: str) -> Cell:
    return Cell("", None) if value is None else Cell(format(value, form), value)


def _details(row: TensorComparison) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape)) or "a number"
    band = "no band" if row.band_snr_db is None else f"expected {row.band_snr_db:.0f} dB or more"
    return (
        f"a against the reference: {errors_in_words(row.a)}",
        f"b against the reference: {errors_in_words(row.b)}",
        f"b against a: {errors_in_words(row.between)}",
        f"a stores {_stored_in_words(row.a_stored)}; b stores {_stored_in_words(row.b_stored)}",
        f"{row.op or row.kind} {row.name}, {shape}, place {row.order} in the step; {band}",
    )


def errors_in_words(errors: Errors) -> str:
    """Every figure of a pair that is known."""
    if errors.is_bitwise_equal:
        return "bitwise equal"
    parts = [
        None if errors.snr_db is None else f"SNR {errors.snr_db:.2f} dB",
        None if errors.cosine is None else f"cosine {errors.cosine:.7g}",
        None if errors.max_over_rms is None else f"max |d| / RMS {errors.max_over_rms:.3g}",
        None if errors.share_within is None else f"{percent(errors.share_within)} within tolerance",
        None if errors.scale is None else f"best scale {errors.scale:.6g}",
        None if errors.pearson is None else f"Pearson {errors.pearson:.7g}",
        f"{percent(errors.nan_share)} not finite" if errors.nan_share else None,
    ]
    if errors.ulps is not None:
        ulps = errors.ulps
        parts.append(f"ULP {ulps.p50:g} (median), {ulps.p99:g} (99 %), {ulps.max:g} (max)")
    return ", ".join(part for part in parts if part) or "no figure"


def _stored_in_words(stored: StoredTensor) -> str:
    parts = [stored.format]
    if stored.saturated_share is not None:
        parts.append(f"{percent(stored.saturated_share)} saturated")
    if stored.underflowed_share is not None:
        parts.append(f"{percent(stored.underflowed_share)} underflowed")
    return ", ".join(parts)


def _parameter_table(rows: Sequence[TensorComparison]) -> Table:
    columns = (
        Column(heading="parameter", is_code=True),
        Column(heading="kind", is_choice=True),
        Column(heading="mode", is_choice=True),
        Column(heading="SNR of a, dB", is_number=True),
        Column(heading="SNR of b, dB", is_number=True),
        Column(heading="b against a, dB", is_number=True),
        Column(heading="cosine of b", is_number=True),
        Column(heading="scale of b", is_number=True, hint="the factor that fits best"),
    )
    cells = [
        [
            Cell(
                row.name,
                small=(row.finding,) if row.finding else (),
                is_warned=bool(row.outside),
            ),
            Cell(row.kind), Cell(row.mode.replace("_", "-")),
            *(_snr_cell(errors) for errors in (row.a, row.b, row.between)),
            _number(row.b.cosine, ".5f"), _number(row.b.scale, ".4f"),
        ]
        for row in rows
    ]  # fmt: skip
    return make_table("Gradients and updates of the parameters", columns, cells, source=SOURCE)


def _format_table(record: CompareRecord, rows: Sequence[TensorComparison]) -> Table:
    """What each format did to the tensors that are stored in it."""
    groups: dict[tuple[str, SideName, str], list[tuple[TensorComparison, StoredTensor]]] = {}
    for row in rows:
        # In the free run nobody knows what a tensor was before it was stored.
        if row.mode != "teacher_forced":
            continue
        groups.setdefault((row.a_stored.format, "a", row.kind), []).append((row, row.a_stored))
        groups.setdefault((row.b_stored.format, "b", row.kind), []).append((row, row.b_stored))
    columns = (
        Column(heading="format", is_code=True),
        Column(heading="side", is_choice=True),
        Column(heading="kind", is_choice=True),
        Column(heading="tensors", is_number=True),
        Column(heading="saturated at most", is_number=True),
        Column(heading="where", is_code=True),
        Column(heading="underflowed at most", is_number=True),
        Column(heading="there", is_code=True),
    )
    names = {"a": record.a_name, "b": record.b_name}
    cells = [
        [
            Cell(name), Cell(f"{side}: {names[side]}"), Cell(kind), Cell(f"{len(of):,}", len(of)),
            *_worst_share(of, "saturated_share"), *_worst_share(of, "underflowed_share"),
        ]
        for (name, side, kind), of in groups.items()
    ]  # fmt: skip
    cells.sort(key=lambda row: -max(row[4].value or 0.0, row[6].value or 0.0))
    return make_table("Number formats", columns, cells, source=SOURCE)


def _worst_share(
    of: Sequence[tuple[TensorComparison, StoredTensor]], field: str
) -> tuple[Cell, Cell]:
    known = [(getattr(stored, field), row) for row, stored in of]
    known = [each for each in known if each[0] is not None]
    if not known:
        return Cell("not measured"), Cell("")
    share, row = max(known, key=lambda each: each[0])
    return Cell(percent(share), share, is_warned=share > 0.01), Cell(
        tensor_title(row) if share else ""
    )
