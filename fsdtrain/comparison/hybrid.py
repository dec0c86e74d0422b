"""Runs of a step in which some units are computed as side b does, and all others as side a.

What a swap does not reach is taken from the runs that are all a or all b. It does not know which
units are of interest, nor what is looked for.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from fsdtrain.comparison.record import Side
from fsdtrain.step_graph.units import Unit

_SIDES: Final[tuple[tuple[Side, Side], ...]] = (("a", "b"), ("b", "a"))  # each with the other
_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class HybridRuns:
    """Runs a step with any set of its units swapped, and counts what that takes.

    Two whole steps of values are held.

    Args:
        units: of the step, in an order in which they can run.
        tensors: what no unit gives.
        wanted: names of the values that are asked for; units that reach none are left out.

    Attributes:
        numbers: of the units that reach a wanted value, in order.
        num_runs: of the step, the first two included.
        num_unit_runs: of single units.
    """

    def __init__(
        self, units: Sequence[Unit], tensors: Mapping[str, Tensor], *, wanted: Collection[str]
    ) -> None:
        self.units = units
        self.wanted = tuple(wanted)
        self.numbers = _reaching(units, self.wanted)
        self.num_runs = 0
        self.num_unit_runs = 0
        self._reached = _find_reached(units, self.numbers)
        self._last_reader = {
            name: number for number in self.numbers for name in units[number].inputs
        }
        self._whole: dict[Side, dict[str, Tensor]] = {}
        for side, _ in _SIDES:
            self._whole[side] = self._run_all(side, tensors)

    def values(self, side: Side) -> dict[str, Tensor]:
        """The wanted values of the run that is all a, or all b."""
        return {name: self._whole[side][name] for name in self.wanted}

    def run(self, swapped: Collection[int]) -> dict[str, Tensor]:
        """The wanted values where these units run as b does, and all others as a."""
        as_b = frozenset(swapped)
        as_a = frozenset(self.numbers) - as_b
        if self._num_reached(as_b) <= self._num_reached(as_a):
            return self._run_from("a", as_b)
        return self._run_from("b", as_a)

    def find_unequal(self) -> tuple[int, ...]:
        """The units whose two sides differ, given the values of the run all a or all b.

        It takes about two runs of the step.
        """
        self.num_runs += 2
        return tuple(number for number in self.numbers if self._is_unequal(number))

    def _is_unequal(self, number: int) -> bool:
        return any(
            not _is_same(result, self._whole[here][name])
            for here, other in _SIDES
            for name, result in self._run_unit(number, other, self._whole[here].__getitem__)
        )

    def _run_all(self, side: Side, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.num_runs += 1
        values = dict(tensors)
        for number in self.numbers:
            values.update(self._run_unit(number, side, values.__getitem__))
        return values

    def _run_from(self, base: Side, swapped: frozenset[int]) -> dict[str, Tensor]:
        """Only what differs from the whole run of side `base`."""
        self.num_runs += 1
        other: Side = "b" if base == "a" else "a"
        whole = self._whole[base]
        changed: dict[str, Tensor] = {}
        for number in self.numbers:
            names = self.units[number].inputs
            if number not in swapped and changed.keys().isdisjoint(names):
                continue
            results = self._run_unit(
                number,
                other if number in swapped else base,
                lambda name: changed[name] if name in changed else whole[name],
            )
            changed.update({name: x for name, x in results if not _is_same(x, whole[name])})
            for name in names:
                if self._last_reader[name] == number and name not in self.wanted:
                    changed.pop(name, None)
        return {name: changed.get(name, whole[name]) for name in self.wanted}

    def _run_unit(
        self, number: int, side: Side, value: Callable[[str], Tensor]
    ) -> Iterable[tuple[str, Tensor]]:
        self.num_unit_runs += 1
        unit = self.units[number]
        return unit.run(side, {name: value(name) for name in unit.inputs}).items()

    def _num_reached(self, swapped: Iterable[int]) -> int:
        reached = 0
        for number in swapped:
            reached |= self._reached[number]
        return reached.bit_count()


class Difference:
    """How far a result is from side a's, as a share of how far side b's is.

    The distance is that of all gradients, relative to the length of a's, and of the loss, relative
    to a's: the root of the sum of both squares. Where one side has infinities or NaN and the other
    has not, it is the number of these elements.

    Args:
        a: the result of side a by name.
        b: that of side b.
        loss: which of them is the loss.

    Attributes:
        whole: the distance of b from a.
        counts_non_finite: whether it is a number of elements.
    """

    def __init__(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, loss: str) -> None:
        self._a = a
        self.counts_non_finite = any(
            not torch.equal(a[name].isfinite(), b[name].isfinite()) for name in a
        )
        lengths = {name: float(_plain(tensor).square().sum()) for name, tensor in a.items()}
        of_gradients = sum(length for name, length in lengths.items() if name != loss)
        self._squares = {
            name: (lengths[loss] if name == loss else of_gradients) or 1.0 for name in a
        }
        self.whole = self._distance(b)

    def share(self, result: Mapping[str, Tensor]) -> float:
        """0: as a; 1: as far as b; infinite: it is not finite where a and b are."""
        return self._distance(result) / self.whole

    def _distance(self, result: Mapping[str, Tensor]) -> float:
        return math.sqrt(sum(self._squared(name, x, self._a[name]) for name, x in result.items()))

    def _squared(self, name: str, x: Tensor, a: Tensor) -> float:
        is_changed = x.isfinite() != a.isfinite()
        if self.counts_non_finite:
            return float(is_changed.sum())
        if is_changed.any():
            return math.inf
        return float((_plain(x) - _plain(a)).square().sum()) / self._squares[name]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _is_same(x: Tensor, y: Tensor) -> bool:
    """In every bit, and in the order in memory, which later sums may depend on."""
    if x is y:
        return True
    if x.dtype != y.dtype or x.shape != y.shape or x.stride() != y.stride():
        return False
    if x.is_floating_point():
        bits = _BITS[x.element_size()]
        return torch.equal(x.view(bits), y.view(bits))
    return torch.equal(x, y)


def _reaching(units: Sequence[Unit], wanted: Iterable[str]) -> tuple[int, ...]:
    names = set(wanted)
    found = []
    for number in reversed(range(len(units))):
        if not names.isdisjoint(units[number].outputs):
            found.append(number)
            names.update(units[number].inputs)
    return tuple(reversed(found))


def _find_reached(units: Sequence[Unit], numbers: Sequence[int]) -> dict[int, int]:
    """Unit -> the units that depend on it and itself, a bit each."""
    readers: dict[str, list[int]] = {}
    for number in numbers:
        for name in units[number].inputs:
            readers.setdefault(name, []).append(number)
    reached: dict[int, int] = {}
    for number in reversed(numbers):
        bits = 1 << number
        for name in units[number].outputs:
            for reader in readers.get(name, ()):
                bits |= reached[reader]
        reached[number] = bits
    return reached
