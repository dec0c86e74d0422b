"""`compare --bisect`: the smallest set of ops that makes b's gradients and loss differ from a's.

Hierarchical delta debugging: the layers first, then the ops within them. A set explains the
difference if with it alone the step differs nearly as much as with all of b, and without it hardly
any more; so effects that hide each other, or that show only together, are found. It does not know
what a unit computes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from torch import Tensor

from fsdtrain.comparison.hybrid import Difference, HybridRuns
from fsdtrain.comparison.minimise import Minimised, minimise
from fsdtrain.comparison.record import RankedUnit, SwappedSet
from fsdtrain.errors import UserError
from fsdtrain.step_graph.units import Unit

MIN_SHARE: Final = 0.9
MAX_RUNS: Final = 200
MAX_NAMES: Final = 12  # of a set that is still small; and no more than half of all, or
_FEW: Final = 3
_LEAST_RUNS: Final = 10
_MAX_PARTS: Final = 16  # that a large layer is cut into at once
_KEPT_FOR_RANKING: Final = 0.25  # of the runs


def bisect(
    units: Sequence[Unit],
    tensors: Mapping[str, Tensor],
    *,
    loss: str,
    gradients: Iterable[str] = (),
    min_share: float = MIN_SHARE,
    max_runs: int = MAX_RUNS,
) -> SwappedSet:
    """The smallest set found, without any one of which it explains too little.

    Args:
        units: of the step, in an order in which they can run; see `find_units`.
        tensors: weights, batch and constants.
        loss: name of the value.
        gradients: names of the values; those that no unit gives are left out.
        min_share: of the whole difference that the set is to explain.
        max_runs: of the step.

    Raises:
        UserError: `min_share` or `max_runs` is out of range.
    """
    if not 0 < min_share <= 1:
        raise UserError(f"bisect: min_share={min_share}: must be above 0 and at most 1")
    if max_runs < _LEAST_RUNS:
        raise UserError(f"bisect: max_runs={max_runs}: must be at least {_LEAST_RUNS}")
    made = {name for unit in units for name in unit.outputs}
    # A gradient that one side lacks has no counterpart; the comparison of both sides names it.
    wanted = [loss, *dict.fromkeys(name for name in gradients if name in made)]
    runs = HybridRuns(units, tensors, wanted=wanted)
    difference = Difference(runs.values("a"), runs.values("b"), loss=loss)
    if difference.whole == 0:
        return SwappedSet(
            unit="op",
            names=(),
            explained_share=1.0,
            num_runs=runs.num_runs,
            sentence="b's gradients and loss are a's: there is no difference to explain",
            difference=0.0,
            num_units=len(runs.numbers),
            num_unit_runs=runs.num_unit_runs,
        )
    return _Search(runs, difference, min_share, max_runs).find()


@dataclass(frozen=True)
class _Group:
    """Units that are swapped together: a module with all that is in it, a layer, or one unit."""

    name: str
    label: str
    numbers: tuple[int, ...]
    depth: int  # how many parts of the path it stands for
    is_unit: bool = False


class _Search:
    """One search, with what its runs have given."""

    def __init__(
        self, runs: HybridRuns, difference: Difference, min_share: float, max_runs: int
    ) -> None:
        self.runs = runs
        self.difference = difference
        self.min_share = min_share
        # Without the set there may be left what errors that are independent of it leave.
        self.max_left = math.sqrt(1 - min_share**2)
        self.max_runs = max_runs
        self.shares = {frozenset[int](): 0.0, frozenset(runs.numbers): 1.0}

    def find(self) -> SwappedSet:
        """Layers, then ops; the largest ones where no small set is enough."""
        candidates = self.runs.find_unequal()
        if not self._explains(candidates):  # some are only unequal in a mixture of both sides
            candidates = self.runs.numbers
        layers = self._layers(candidates)
        kept = max(2, int(_KEPT_FOR_RANKING * self.max_runs))
        few = self._minimise(layers, num_kept=kept)
        if few.is_large:
            return self._rank(candidates)
        units = [self._group(number) for number in sorted(_numbers(few.items))]
        fewer = self._minimise(units, num_kept=2)
        if fewer.is_large:
            return self._found(few.items, "layer", few.is_minimal, len(layers))
        return self._found(fewer.items, "op", fewer.is_minimal, len(self.runs.numbers))

    def _minimise(self, groups: Sequence[_Group], *, num_kept: int) -> Minimised[_Group]:
        """The fewest that explain it; is_large as well where the runs were not enough to tell."""
        max_size = min(MAX_NAMES, max(_FEW, len(groups) // 2))
        found = minimise(
            groups,
            lambda part: self._explains(_numbers(part)),
            may_go_on=lambda: self._can_run(num_kept),
            max_size=max_size,
        )
        return replace(found, is_large=found.is_large or len(found.items) > max_size)

    def _share(self, numbers: Iterable[int]) -> float:
        swapped = frozenset(numbers)
        if swapped not in self.shares:
            self.shares[swapped] = self.difference.share(self.runs.run(swapped))
        return self.shares[swapped]

    def _explains(self, numbers: Iterable[int]) -> bool:
        swapped = frozenset(numbers)
        if not self.min_share <= self._share(swapped) < math.inf:
            return False
        return self._share(frozenset(self.runs.numbers) - swapped) <= self.max_left

    def _can_run(self, num_kept: int) -> bool:
        """Whether another set can be tested, which takes up to two runs."""
        return self.runs.num_runs + 2 + num_kept <= self.max_runs

    def _group(self, number: int) -> _Group:
        unit = self.runs.units[number]
        return _Group(unit.name, describe_unit(unit), (number,), 0, is_unit=True)

    def _layers(self, numbers: Iterable[int]) -> list[_Group]:
        found: dict[str, list[int]] = {}
        for number in numbers:
            found.setdefault(self.runs.units[number].layer, []).append(number)
        return [
            _Group(layer, layer or "outside of all layers", tuple(members), 0)
            for layer, members in found.items()
        ]

    def _found(
        self, groups: Sequence[_Group], unit: Literal["op", "layer"], is_minimal: bool, total: int
    ) -> SwappedSet:
        share = self._share(_numbers(groups))
        alone: list[RankedUnit] = []
        for group in groups:
            if self._can_run(0):
                alone.append(RankedUnit(name=group.name, share=_finite(self._share(group.numbers))))
        alone.sort(key=lambda each: -each.share)
        names = "; ".join(group.label for group in groups)
        verb = "explains" if len(groups) == 1 else "together explain"
        sentence = (
            f"{names} {verb} {_percent(share)} of the difference {self._of_what()}: {len(groups)} "
            f"of {total} {unit}s, run as b does with all else as a does"
        )
        if len(groups) > 1 and len(alone) == len(groups):
            sentence += f"; no one of them alone explains more than {_percent(alone[0].share)}"
        if not is_minimal:
            sentence += f"; fewer may be enough: the {self.max_runs} runs that are allowed are used"
        return self._result(groups, unit, share, sentence, is_minimal=is_minimal, ranking=alone)

    def _rank(self, candidates: Sequence[int]) -> SwappedSet:
        """The largest groups of all, the modules taken apart from the largest one on."""
        ranked = [_Group("", "the whole step", tuple(candidates), 0)]
        while True:
            ranked.sort(key=lambda group: (-self._share(group.numbers), group.numbers))
            place = next((i for i, each in enumerate(ranked[:MAX_NAMES]) if not each.is_unit), None)
            if place is None:
                break
            parts = self._take_apart(ranked[place])
            if self.runs.num_runs + len(parts) + 2 > self.max_runs:
                break
            ranked[place : place + 1] = parts
        largest = ranked[:MAX_NAMES]
        unit: Literal["op", "layer"] = "op" if place is None else "layer"
        total = len(self.runs.numbers) if unit == "op" else len(ranked)
        return self._spread(largest, ranked, unit, total)

    def _take_apart(self, group: _Group) -> list[_Group]:
        """By the next part of the path; a layer into its units."""
        paths = {number: self.runs.units[number].layer.split(".") for number in group.numbers}
        if all(len(path) <= group.depth for path in paths.values()):
            return self._split_layer(group)
        found: dict[str, list[int]] = {}
        for number, path in paths.items():
            found.setdefault(".".join(path[: group.depth + 1]), []).append(number)
        return [
            _Group(path, path or "outside of all layers", tuple(members), group.depth + 1)
            for path, members in found.items()
        ]

    def _split_layer(self, group: _Group) -> list[_Group]:
        units = [self._group(number) for number in group.numbers]
        if len(units) <= _MAX_PARTS:
            return units
        edges = [len(units) * part // _MAX_PARTS for part in range(_MAX_PARTS + 1)]
        return [
            _Group(
                f"{units[low].name} to {units[high - 1].name}",
                f"{units[low].label} to {units[high - 1].label}",
                group.numbers[low:high],
                group.depth,
            )
            if high - low > 1
            else units[low]
            for low, high in zip(edges, edges[1:], strict=False)
        ]

    def _spread(
        self,
        largest: Sequence[_Group],
        ranked: Sequence[_Group],
        unit: Literal["op", "layer"],
        total: int,
    ) -> SwappedSet:
        share = self._share(_numbers(largest))
        left = self._share(frozenset(self.runs.numbers) - _numbers(largest))
        what = "ops" if unit == "op" else "parts of the model"
        even = math.sqrt(len(largest) / total)
        sentence = (
            f"no small set explains the difference {self._of_what()}: the {len(largest)} largest "
            f"of {total} {what} give {_percent(share)} of it as b does them (as many of an even "
            f"spread: {_percent(even)}), and {_percent(left)} is there without them; the largest "
            f"is {largest[0].label} with {_percent(self._share(largest[0].numbers))}"
        )
        ranking = [
            RankedUnit(name=group.label, share=_finite(self._share(group.numbers)))
            for group in ranked
        ]
        return self._result(
            largest, unit, share, sentence, is_spread=True, is_minimal=False, ranking=ranking
        )

    def _of_what(self) -> str:
        if self.difference.counts_non_finite:
            return "(where one side is not finite and the other is)"
        return f"(relative L2 distance of all gradients and the loss, {self.difference.whole:.2e})"

    def _result(
        self,
        groups: Sequence[_Group],
        unit: Literal["op", "layer"],
        share: float,
        sentence: str,
        *,
        is_minimal: bool,
        ranking: Sequence[RankedUnit],
        is_spread: bool = False,
    ) -> SwappedSet:
        return SwappedSet(
            unit=unit,
            names=tuple(group.name if unit == "op" else group.label for group in groups),
            explained_share=_finite(share),
            num_runs=self.runs.num_runs,
            sentence=sentence,
            difference=None if self.difference.counts_non_finite else self.difference.whole,
            is_spread=is_spread,
            is_minimal=is_minimal,
            num_units=len(self.runs.numbers),
            num_unit_runs=self.runs.num_unit_runs,
            ranking=tuple(ranking),
        )


def describe_unit(unit: Unit) -> str:
    """As in "network.backbone.stem.0 convolution (forward, blocks.py:12)"."""
    op = unit.op.rpartition(".")[2]
    place = f"{unit.phase}, {unit.line}" if unit.line else unit.phase
    return f"{unit.layer} {op} ({place})".lstrip()


def _numbers(groups: Iterable[_Group]) -> frozenset[int]:
    return frozenset(number for group in groups for number in group.numbers)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if math.isfinite(share) else "infinitely much"


def _finite(share: float) -> float:
    """JSON has no infinity."""
    return min(share, 1e9)
