"""Compares the numbers of one training step on two sides, op by op, with a reference.

Teacher-forced, every unit of the step gets the reference's values, so that an error is local; in
the free run every side gets its own, and errors add up. The reference computes each op in double
precision from values rounded to float32. It does not know how a step is captured.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor

from fsdtrain.comparison.lockstep import SIDES, UnitEvidence, run_in_lockstep
from fsdtrain.comparison.record import (
    Errors,
    NumericsComparison,
    Outcome,
    Side,
    StoredTensor,
    TensorComparison,
    TensorKind,
)
from fsdtrain.comparison.rows import Row, UnitRows, of_weight
from fsdtrain.comparison.updates import Updates, compare_updates
from fsdtrain.errors import UserError
from fsdtrain.step_graph.graph import StepGraph
from fsdtrain.step_graph.units import AlignedSteps, Unit, align_steps

REFERENCE: Final = "the same step, each op in float64, its results rounded to float32"
# Rows of the record: some 600 bytes each, so that it stays below 4 MB.
MAX_ROWS: Final = 6000
MAX_WORST: Final = 1000
_BROKEN: Final = Errors(is_bitwise_equal=False, share_within=0.0)


def compare_numerics(
    reference: StepGraph,
    a: StepGraph,
    b: StepGraph,
    *,
    updates: Updates | None = None,
    previous: Mapping[str, Tensor] | None = None,
    aligned: AlignedSteps | None = None,
    max_rows: int = MAX_ROWS,
) -> NumericsComparison:
    """Compare one step on one batch.

    Args:
        reference: the plain float32 step, see `step_graph.capture`.
        a: the same step as side a computes it, with the same weights and batch.
        b: as side b does.
        updates: the optimiser's step on all sides; None: it is not compared.
        previous: weights in the step before by name, to tell a stale weight from other faults.
        aligned: of these three graphs, if it is there already.
        max_rows: of the record; what is furthest within its band is left out first.

    Raises:
        UserError: the loss or a gradient is NaN or infinite in the first step; it names the first
            op and the side.
    """
    aligned = aligned or align_steps(reference, a, b)
    run = _Run(reference, {"a": a, "b": b}, aligned, previous or {})
    rows = list(run.rows())
    run.refuse_what_is_not_finite()
    rows += run.gradient_rows()
    if updates is not None:
        gradients = {
            name: {weight: run.kept[name][weight] for weight in run.kept[name]}
            for name in ("reference", *SIDES)
        }
        rows += compare_updates(updates, gradients, formats=run.gradient_formats, order=len(rows))
    return _summarise(rows, aligned, max_rows=max_rows, num_units=len(aligned.units))


class _Run:
    """One pass over the units, and what has to be remembered of it."""

    def __init__(
        self,
        reference: StepGraph,
        sides: Mapping[Side, StepGraph],
        aligned: AlignedSteps,
        previous: Mapping[str, Tensor],
    ) -> None:
        self.reference = reference
        self.sides = sides
        self.units = aligned.units
        self.previous = previous
        self.weights_of: dict[str, list[str]] = {}
        for weight, value in reference.gradients.items():
            self.weights_of.setdefault(value, []).append(weight)
        self.kept: dict[str, dict[str, Tensor]] = {"reference": {}, "a": {}, "b": {}}
        self.gradient_formats: dict[Side, dict[str, str]] = {"a": {}, "b": {}}
        self.not_finite: dict[str, str] = {}  # run -> the first unit, in words
        self.spoilt: list[str] = []  # runs whose loss or gradients are not finite
        self.gradients: dict[str, list[Row]] = {}

    def rows(self) -> Iterator[Row]:
        """Of all units; those of gradients are kept for later."""
        honest: dict[Side, dict[str, float]] = {"a": {}, "b": {}}
        results = {self.reference.loss, *self.reference.gradients.values()}
        for evidence in run_in_lockstep(self.units, self.reference.tensors, results):
            made = UnitRows(evidence=evidence, previous=self.previous, honest_snr_db=honest)
            is_move = all(op.is_move for op in evidence.unit.sides["reference"].ops)
            for name in evidence.unit.outputs:
                self._look(evidence, name, is_result=name in results)
                kind: TensorKind = evidence.unit.phase
                if name == self.reference.loss:
                    kind = "loss"
                pair = made.forced(name, kind), made.free(name, kind)
                for weight in self.weights_of.get(name, ()):
                    self._keep(evidence, name, weight)
                    self.gradients[weight] = [of_weight(row, weight, 0) for row in pair]
                yield from (row for row in pair if not is_move or row.excess_db > 0)

    def _look(self, evidence: UnitEvidence, name: str, *, is_result: bool) -> None:
        """Note the first value of each run that is not finite where the reference's is."""
        runs = {"reference": evidence.reference[name]}
        runs |= {side: evidence.free[side][name] for side in SIDES}
        is_expected = not _is_finite(runs["reference"])
        for run, value in runs.items():
            if _is_finite(value):
                continue
            has_nan = value.is_floating_point() and bool(value.isnan().any())
            if has_nan or not is_expected:
                self.not_finite.setdefault(run, describe(evidence.unit))
            if is_result:
                self.spoilt.append(run)

    def refuse_what_is_not_finite(self) -> None:
        """Raise a UserError for a step that has no result."""
        for run in self.spoilt:
            where = self.not_finite.get(run, "the loss")
            who = "the reference" if run == "reference" else f"side {run}"
            raise UserError(
                f"{who} is NaN or infinite from the first step on, first in {where}: there is "
                "nothing to compare; look at the batch and the weights, or at that op"
            )

    def _keep(self, evidence: UnitEvidence, name: str, weight: str) -> None:
        self.kept["reference"][weight] = evidence.reference[name]
        for side in SIDES:
            if weight in self.sides[side].gradients:
                self.kept[side][weight] = evidence.free[side][name]
                formats = evidence.unit.sides[side].formats
                self.gradient_formats[side][weight] = formats[name] or "float32"

    def gradient_rows(self) -> Iterator[Row]:
        """One row a mode and weight, in the order of the weights; also of gradients that lack."""
        order = len(self.units)
        for number, weight in enumerate(self.reference.gradients):
            missing = tuple(side for side in SIDES if weight not in self.sides[side].gradients)
            made = self.gradients.get(weight, [])
            if not made:
                yield _lacking(weight, missing or SIDES, order + number)
                continue
            for row in made:
                tensor = msgspec.structs.replace(row.tensor, order=order + number)
                if missing:
                    tensor = _without(tensor, missing)
                yield Row(tensor=tensor, excess_db=math.inf if missing else row.excess_db)


def describe(unit: Unit) -> str:
    """A unit for people: layer, op, phase, line."""
    return _words(unit.layer, unit.op, unit.phase, unit.line) or unit.name


def _words(layer: str, op: str, phase: str, line: str) -> str:
    short = op.rpartition(".")[2].strip("_").replace("_", " ")
    where = f"{phase}, {line}" if line else phase
    return f"{layer} {short} ({where})".strip()


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    return math.isfinite(float(value.sum(dtype=torch.float64)))


def _lacking(weight: str, missing: Sequence[Side], order: int) -> Row:
    nothing = StoredTensor(format="float32")
    tensor = TensorComparison(
        mode="teacher_forced",
        kind="gradient",
        name=weight,
        op="",
        layer=weight.rpartition(".")[0],
        line="",
        shape=(),
        order=order,
        a_stored=nothing,
        b_stored=nothing,
        a=_BROKEN,
        b=_BROKEN,
        between=_BROKEN,
    )
    return Row(tensor=_without(tensor, missing), excess_db=math.inf)


def _without(tensor: TensorComparison, missing: Sequence[Side]) -> TensorComparison:
    return msgspec.structs.replace(
        tensor,
        a=_BROKEN if "a" in missing else tensor.a,
        b=_BROKEN if "b" in missing else tensor.b,
        between=_BROKEN,
        outside=tuple(missing),
        finding="; ".join(f"{side} is missing" for side in missing),
    )


def _summarise(
    rows: Sequence[Row], aligned: AlignedSteps, *, max_rows: int, num_units: int
) -> NumericsComparison:
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
            f"{len(rows) - len(kept):,} of {len(rows):,} rows, all within their bands, are left out"
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
    chosen = {*order[: max_rows - 1], *([] if first is None else [first])}
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
    found = [_least_snr_db(row.tensor) for row in rows if row.tensor.mode == "teacher_forced"]
    known = [snr for snr in found if snr is not None]
    median = f", median {statistics.median(known):.0f} dB" if known else ""
    return f"All {num_units:,} ops are within the bands of their formats on both sides{median}."


def _least_snr_db(tensor: TensorComparison) -> float | None:
    return min(_known(each.snr_db for each in (tensor.a, tensor.b)), default=None)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
