"""Runs a step on all sides at once, unit by unit, so that few of its values are held at a time.

Runs that go on side by side: the reference; each side from the reference's values (teacher-forced);
each side from its own (free); and for each side an honest machine, which rounds as the side's
formats say and errs nowhere else (`teacher.run_honestly`). It does not judge anything.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdtrain.comparison.number_formats import find_format
from fsdtrain.comparison.record import SIDES, Side
from fsdtrain.comparison.teacher import (
    UnitRun,
    formats_of,
    noise_of_float32,
    run_honestly,
    run_side,
)
from fsdtrain.step_graph.units import Unit


@dataclass(frozen=True, kw_only=True)
class UnitEvidence:
    """Everything that a unit gave. All by the reference's names.

    Args:
        unit: that ran.
        order: its place in the step.
        values: of the reference, that it read.
        exact: its results from these in double.
        reference: the same, rounded to float32.
        forced: each side, from `values`.
        free: each side, from its own values.
        honest: what an honest machine of the side's formats has in the free run.
    """

    unit: Unit
    order: int
    values: Mapping[str, Tensor]
    exact: Mapping[str, Tensor]
    reference: Mapping[str, Tensor]
    forced: Mapping[Side, UnitRun]
    free: Mapping[Side, Mapping[str, Tensor]]
    honest: Mapping[Side, Mapping[str, Tensor]]

    def noise_rms(self) -> Mapping[str, float]:
        """See `teacher.noise_of_float32`; it costs two runs of the unit in double."""
        return noise_of_float32(self.unit.sides["reference"], self.values, self.exact)


def run_in_lockstep(
    units: Sequence[Unit], tensors: Mapping[str, Tensor], kept: Collection[str]
) -> Iterator[UnitEvidence]:
    """Run the units.

    Args:
        units: in an order in which they can run.
        tensors: what no unit gives, by the reference's names.
        kept: names of values that no unit may forget.
    """
    last_reader = {name: order for order, unit in enumerate(units) for name in unit.inputs}
    kinds = {side: _formats_of_side(units, side) for side in SIDES}
    runs: dict[str, dict[str, Tensor]] = {
        name: dict(tensors) for name in ("reference", *SIDES, *kinds.values())
    }
    for order, unit in enumerate(units):
        values = {name: runs["reference"][name] for name in unit.inputs}
        exact = unit.sides["reference"].run_exactly(values)
        reference = {name: _narrow(value) for name, value in exact.items()}
        forced = {
            side: run_side(unit.sides[side], values, reference=unit.sides["reference"], exact=exact)
            for side in SIDES
        }
        free = {side: _run_freely(unit, side, runs[side], forced[side]) for side in SIDES}
        honest = {
            kind: run_honestly(unit.sides[side], runs[kind], reference=unit.sides["reference"])
            for side, kind in kinds.items()
        }
        yield UnitEvidence(
            unit=unit,
            order=order,
            values=values,
            exact=exact,
            reference=reference,
            forced=forced,
            free=free,
            honest={side: honest[kind] for side, kind in kinds.items()},
        )
        for name, results in (("reference", reference), *free.items(), *honest.items()):
            runs[name] |= results
        _forget(
            runs.values(),
            [
                n
                for n in (*unit.inputs, *unit.outputs)
                if n not in kept and last_reader.get(n, order) <= order
            ],
        )


def _formats_of_side(units: Sequence[Unit], side: Side) -> str:
    """Names the honest machine of a side; sides whose every format is float32 share one."""
    found = {each for unit in units for each in formats_of(unit.sides[side])}
    bits = {find_format(each).mantissa_bits for each in found}
    return "honest float32" if min(bits, default=23) >= 23 else f"honest {side}"


def _run_freely(
    unit: Unit, side: Side, values: Mapping[str, Tensor], forced: UnitRun
) -> dict[str, Tensor]:
    missing = [name for name, store in forced.results.items() if store.stored is None]
    if missing:  # the run goes on without them
        return {name: torch.zeros_like(forced.results[name].exact).float() for name in unit.outputs}
    return unit.run(side, values)


def _narrow(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _forget(runs: Collection[dict[str, Tensor]], names: Collection[str]) -> None:
    for values in runs:
        for name in names:
            values.pop(name, None)
