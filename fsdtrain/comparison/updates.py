"""Compares what the optimiser makes of the gradients: the change of every weight, and the moments.

Teacher-forced, all sides get the reference's gradients; in the free run each gets its own. It does
not know any optimiser: an `Updater` runs one.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from fsdtrain.comparison.bands import DEVIATIONS, NOISE_FACTOR, default_snr_db, rounding_noise
from fsdtrain.comparison.errors import (
    as_floats,
    compare_tensors,
    is_bitwise_equal,
    shortened,
)
from fsdtrain.comparison.finding import find_cause
from fsdtrain.comparison.number_formats import FLOAT32, find_format, grid_of, spacing
from fsdtrain.comparison.record import SIDES, Errors, Mode, Side, StoredTensor, TensorComparison
from fsdtrain.comparison.rows import Row
from fsdtrain.comparison.storage import measure_storage

State = Mapping[str, Tensor]
# From gradients by weight to the state after an update: weights by name, moments by "weight.name".
# Each call starts from the same state.
Updater = Callable[[Mapping[str, Tensor]], State]

# Of the arithmetic of an update in float32.
_ARITHMETIC: Final = 1e-4
_FREE_FACTOR: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Updates:
    """The optimiser's step on all sides.

    Args:
        reference: in double precision if it can be; its results are taken as exact.
        a: as side a does it.
        b: as side b does.
        before: the state that all start from; moments that are not in it start from zero.
        formats: of the state on a side, by name, where it is not float32.
    """

    reference: Updater
    a: Updater
    b: Updater
    before: State
    formats: Mapping[Side, Mapping[str, str]] = field(default_factory=dict)


def compare_updates(
    updates: Updates,
    gradients: Mapping[str, Mapping[str, Tensor]],
    *,
    formats: Mapping[Side, Mapping[str, str]],
    order: int,
) -> Iterator[Row]:
    """The rows of all weights and moments, teacher-forced and free.

    Args:
        updates: of all sides.
        gradients: of the free run by "reference", "a" and "b", then by weight.
        formats: of the gradients on a side, by weight.
        order: of the first row.
    """
    run: dict[Side, Updater] = {"a": updates.a, "b": updates.b}
    forced = gradients["reference"]
    exact = updates.reference(forced)
    # What the sides' formats of gradients alone make of the update, at worst.
    rounded = {
        side: updates.reference(
            {n: _a_step_away(each, formats[side].get(n, "float32")) for n, each in forced.items()}
        )
        for side in SIDES
    }
    states = {side: run[side](forced) for side in SIDES}
    own = {side: {**forced, **gradients[side]} for side in SIDES}
    free = {side: run[side](own[side]) for side in SIDES}
    expected = {side: updates.reference(own[side]) for side in SIDES}
    for number, name in enumerate(exact):
        before = updates.before.get(name, torch.zeros_like(exact[name]))
        change = _Change(updates, name, before, order + number)
        yield change.row("teacher_forced", exact, states, rounded)
        yield change.row("free_running", exact, free, expected)


def _a_step_away(gradient: Tensor, format: str) -> Tensor:
    """Each number a step of the format further from zero: no rounding errs more, if at random."""
    number_format = find_format(format)
    if number_format.mantissa_bits >= FLOAT32.mantissa_bits:
        return gradient
    numbers = as_floats(gradient).astype(np.float64)
    grid = grid_of(number_format, float(np.abs(numbers).max(initial=0.0)))
    moved = numbers + np.sign(numbers) * spacing(numbers, grid)
    return torch.from_numpy(moved).reshape(gradient.shape)


class _Change:
    """One weight or moment."""

    def __init__(self, updates: Updates, name: str, before: Tensor, order: int) -> None:
        self.updates = updates
        self.name = name
        self.before = before.double()
        self.order = order

    def row(
        self,
        mode: Mode,
        exact_state: State,
        states: Mapping[Side, State],
        expected: Mapping[Side, State],
    ) -> Row:
        """Of one mode.

        Args:
            mode: which.
            exact_state: the reference's after.
            states: the sides'.
            expected: what gradients of the sides' own make of the reference's.
        """
        exact = exact_state[self.name]
        reference = exact.double() - self.before
        formats = {
            side: self.updates.formats.get(side, {}).get(self.name, "float32") for side in SIDES
        }
        forced = mode == "teacher_forced"
        changes: dict[Side, Tensor | None] = {}
        clauses: dict[Side, str] = {}
        bands, excess = [], [-math.inf]
        for side in SIDES:
            after = states[side].get(self.name)
            changes[side] = None if after is None else after.double().cpu() - self.before
            allowed = self._allowed(exact, expected[side][self.name], side, mode)
            signal = float(reference.square().sum())
            if signal > 0 and allowed > 0:
                bands.append(10 * math.log10(signal / allowed))
            found = changes[side]
            power = math.inf if found is None else float((found - reference).square().sum())
            if not power <= allowed:
                ratio = power / allowed if allowed else math.inf
                excess.append(10 * math.log10(ratio) if math.isfinite(ratio) else math.inf)
                lost = self._lost_moments(exact_state, states[side], side) if forced else ""
                clauses[side] = self._clause(reference, found) + lost
        a, b = changes["a"], changes["b"]
        tensor = TensorComparison(
            mode=mode,
            kind="update",
            name=self.name,
            op="",
            layer=self.name.rpartition(".")[0],
            line="",
            shape=tuple(exact.shape),
            order=self.order,
            a_stored=self._stored(mode, exact, states["a"], formats["a"]),
            b_stored=self._stored(mode, exact, states["b"], formats["b"]),
            a=_compare(reference, a, formats["a"]),
            b=_compare(reference, b, formats["b"]),
            between=_compare(a, b, formats["b"]),
            band_snr_db=shortened(min(bands, default=None)),
            outside=tuple(clauses),
            finding="; ".join(f"{side} {clause}" for side, clause in clauses.items()),
        )
        return Row(tensor=tensor, excess_db=max(excess))

    def _allowed(self, exact: Tensor, expected: Tensor, side: Side, mode: Mode) -> float:
        """Power of the error of the change.

        The weight is computed from moments as they are stored. That a moment is rounded to zero is
        not allowed for: then the step is as long as can be.
        """
        known = self.updates.formats.get(side, {})
        format = known.get(self.name, "float32")
        of_moments = [each for name, each in known.items() if name.startswith(f"{self.name}.")]
        arithmetic = _ARITHMETIC + sum(
            2.0 ** -find_format(each).mantissa_bits for each in of_moments
        )
        numbers = as_floats(exact).astype(np.float64)
        grid = grid_of(find_format(format), float(np.abs(numbers).max(initial=0.0)))
        noise = rounding_noise(numbers, grid)
        change = float((exact.double() - self.before).norm())
        at_random = DEVIATIONS * (noise.power_deviation + noise.largest_power)
        stored = math.sqrt(NOISE_FACTOR * noise.power + at_random)
        by_gradients = float((expected.double() - exact.double()).norm())
        factor = 1.0 if mode == "teacher_forced" else _FREE_FACTOR
        return (stored + factor * by_gradients + arithmetic * change) ** 2

    def _clause(self, reference: Tensor, found: Tensor | None) -> str:
        before = self.updates.before
        if found is not None and not found.any() and self.name in before:
            what = "moment" if self.name.rpartition(".")[0] in before else "weight"
            return f"is zero: it equals the value of the step before (stale {what})"
        return find_cause(reference, found, find_format("float32"))

    def _lost_moments(self, exact: State, state: State, side: Side) -> str:
        """Which moments of a weight the side's formats have made zero, so that its step is long."""
        found = []
        for name, format in self.updates.formats.get(side, {}).items():
            if name.rpartition(".")[0] == self.name and name in exact and name in state:
                share = measure_storage(exact[name], state[name].cpu(), format).underflowed_share
                if share:
                    moment = name.rpartition(".")[2]
                    found.append(f" ({100 * share:.2g} % of its {moment} became zero in {format})")
        return "".join(found)

    def _stored(self, mode: Mode, exact: Tensor, state: State, format: str) -> StoredTensor:
        """In the free run the values before they are stored are the side's own, and not known."""
        after = state.get(self.name)
        if after is None or mode == "free_running":
            return StoredTensor(format=format)
        return measure_storage(exact, after.cpu(), format)


def _compare(reference: Tensor | None, x: Tensor | None, format: str) -> Errors:
    if reference is None or x is None:
        return Errors(is_bitwise_equal=False, share_within=0.0)
    if is_bitwise_equal(reference, x):
        return Errors(is_bitwise_equal=True, max_over_rms=0.0, share_within=1.0)
    tolerance = 10 ** (-default_snr_db(find_format(format)) / 20)
    return compare_tensors(reference, x, tolerance=tolerance)
