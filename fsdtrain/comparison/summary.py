"""What a comparison of numbers comes to: rows that are kept, the first divergence, one sentence.

It does not know how the rows were found.
"""

import statistics
from collections.abc import Sequence
from typing import Final

from fsdtrain.comparison.record import NumericsComparison, Outcome, TensorComparison
from fsdtrain.comparison.rows import Row
from fsdtrain.step_graph.units import AlignedSteps, Unit

REFERENCE: Final = "the same step, each op in float64, its results rounded to float32"
MAX_WORST: Final = 1000


def summarise(
    rows: Sequence[Row], aligned: AlignedSteps, *, max_rows: int, num_units: int
) -> NumericsComparison:
    """The record of all rows, in their order.

    Args:
        rows: of both modes.
        aligned: the units.
        max_rows: that are kept.
        num_units: that were run.
    """
    kept = _bounded(rows, max_rows)
    tensors = tuple(row.tensor for row in kept)
    first = next(
        (
            number
            for mode in ("teacher_forced", "free_running")
            for number, tensor in enumerate(tensors)
            if tensor.mode == mode and tensor.outside
        ),
        None,
    )
    ranked = sorted(range(len(kept)), key=lambda number: _badness(kept[number]), reverse=True)
    is_same = first is None
    outcome: Outcome = "same" if is_same else "different"
    notes = [
        "Teacher-forced: every op gets the reference's values. Free run: its own side's.",
        "A band is what a machine of these formats gives that errs nowhere else; where formats are "
        "float32, 100 dB, or less where the numbers of the op are ill-conditioned.",
    ]
    if len(kept) < len(rows):
        notes.append(
            f"{len(rows) - len(kept):,} of {len(rows):,} rows are left out: those that are "
            "furthest within their bands"
        )
    return NumericsComparison(
        reference=REFERENCE,
        tensors=tensors,
        first_divergence=first,
        worst=tuple(ranked[:MAX_WORST]),
        outcome=outcome,
        sentence=_sentence(rows, None if first is None else tensors[first], num_units),
        unmatched=aligned.unmatched,
        notes=tuple(notes),
    )


def _bounded(rows: Sequence[Row], max_rows: int) -> list[Row]:
    """In their order, without those that are furthest within their bands."""
    if len(rows) <= max_rows:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda n: _badness(rows[n]), reverse=True)
    first = next((n for n, row in enumerate(rows) if row.tensor.outside), None)
    chosen = set(order[:max_rows])
    if first is not None and first not in chosen:
        chosen = {*order[: max_rows - 1], first}
    return [row for number, row in enumerate(rows) if number in chosen]


def _badness(row: Row) -> tuple[bool, bool, float]:
    """Outside first, teacher-forced before free, then by how far."""
    tensor = row.tensor
    return bool(tensor.outside), tensor.mode == "teacher_forced", row.excess_db


def name_divergence(tensor: TensorComparison) -> str:
    """The first divergence as a sentence without its full stop."""
    if tensor.kind == "gradient":
        where = f"the gradient of {tensor.name}"
    elif tensor.kind == "update":
        where = f"the update of {tensor.name}"
    else:
        phase = tensor.kind if tensor.kind in ("forward", "backward") else "forward"
        where = _words(tensor.layer, tensor.op, phase, tensor.line) or tensor.name
    return "; ".join(f"{clause[0]}: {where} {clause[2:]}" for clause in tensor.finding.split("; "))


def _sentence(rows: Sequence[Row], first: TensorComparison | None, num_units: int) -> str:
    if first is not None:
        num_outside = sum(bool(row.tensor.outside) for row in rows)
        others = f"; {num_outside - 1:,} more tensors are outside of their bands"
        return f"{name_divergence(first)}{others if num_outside > 1 else ''}."
    if all(row.tensor.between.is_bitwise_equal for row in rows):
        return f"a and b are bitwise equal in all {len(rows):,} tensors of {num_units:,} ops."
    return (
        f"All {num_units:,} ops are within the bands of their formats on both sides{_drift(rows)}."
    )


def _drift(rows: Sequence[Row]) -> str:
    """How far errors that add up turn the gradients.

    Bands allow what the formats explain, and no step by itself says how much of it trains the same.
    """
    gradients = [
        row.tensor.between
        for row in rows
        if row.tensor.kind == "gradient" and row.tensor.mode == "free_running"
    ]
    cosines = [1.0 if each.is_bitwise_equal else each.cosine for each in gradients]
    known = [cosine for cosine in cosines if cosine is not None]
    if not known:
        return ""
    return (
        "; rounding errors that add up over the step leave b's gradients a median cosine of "
        f"{statistics.median(known):.4g} with a's, and whether that trains the same only trainings "
        "(num_seeds=5) tell"
    )


def describe(unit: Unit) -> str:
    """A unit for people: layer, op, phase, line."""
    return _words(unit.layer, unit.op, unit.phase, unit.line) or unit.name


def _words(layer: str, op: str, phase: str, line: str) -> str:
    short = op.rpartition(".")[2].strip("_").replace("_", " ")
    where = f"{phase}, {line}" if line else phase
    return f"{layer} {short} ({where})".strip()
