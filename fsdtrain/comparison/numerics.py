"""Compares the numbers of one training step on two sides, op by op, with a reference.

Teacher-forced, every unit of the step gets the reference's values, so that an error is local; in
the free run every side gets its own, and errors add up. The reference computes each op in double
precision from values rounded to float32. It does not know how a step is captured.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor

from fsdtrain.comparison.lockstep import UnitEvidence, run_in_lockstep
from fsdtrain.comparison.record import (
    SIDES,
    Errors,
    NumericsComparison,
    Side,
    StoredTensor,
    TensorComparison,
    TensorKind,
)
from fsdtrain.comparison.rows import Row, UnitRows, of_weight
from fsdtrain.comparison.summary import describe, summarise
from fsdtrain.comparison.updates import Updates, compare_updates
from fsdtrain.errors import UserError
from fsdtrain.step_graph.graph import StepGraph
from fsdtrain.step_graph.units import AlignedSteps, align_steps

# Rows of the record: some 900 bytes each, so that it stays below 5 MB.
MAX_ROWS: Final = 5000
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
        UserError: the loss or a gradient is NaN or infinite; it names the first op and the side.
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
    return summarise(rows, aligned, max_rows=max_rows, num_units=len(aligned.units))


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
                f"{who} is NaN or infinite, first in {where}: there is nothing to compare; look "
                "at the batch and the weights, or at that op"
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
