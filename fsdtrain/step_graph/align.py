"""Which op of one captured step is which op of another.

Both are steps of one module: an op has a counterpart of the same phase, layer, kind and shape that
reads the same values, seen through ops that only move data or that one side alone has. Their order
matters only where nothing else tells two of them apart. It does not run anything.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from fsdtrain.step_graph.graph import GraphOp, StepGraph, run_freely

# Ops that libraries have under another name, with results in the same order.
_SAME = {
    "aten.cudnn_batch_norm": "aten._native_batch_norm_legit_functional",
    "aten.miopen_batch_norm": "aten._native_batch_norm_legit_functional",
    "aten.native_batch_norm": "aten._native_batch_norm_legit_functional",
    "aten.cudnn_batch_norm_backward": "aten.native_batch_norm_backward",
    "aten.miopen_batch_norm_backward": "aten.native_batch_norm_backward",
}
_NARROW = {torch.bfloat16, torch.float16}
_Key = tuple[str, str, str, tuple[int, ...] | None]


@dataclass(frozen=True)
class IndexedGraph:
    """A step, and where each of its values is made."""

    graph: StepGraph

    @cached_property
    def producers(self) -> dict[str, tuple[int, int]]:
        """Value -> number of the op, and of its result."""
        return {
            name: (number, place)
            for number, op in enumerate(self.graph.ops)
            for place, name in enumerate(op.outputs)
            if name is not None
        }

    @cached_property
    def countable(self) -> list[int]:
        """Numbers of the ops that are more than a move or a constant."""
        return [n for n, op in enumerate(self.graph.ops) if op.inputs and not op.is_move]

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Of all values.

        Kernels do not always give the dtype that was predicted for narrow operands (statistics of
        norms), so that a step with such is run once.
        """
        predicted = {
            name: dtype
            for op in self.graph.ops
            for name, dtype in zip(op.outputs, op.dtypes, strict=False)
            if name is not None and dtype is not None
        }
        if _NARROW.isdisjoint(predicted.values()) and len(predicted) == len(self.producers):
            return predicted | {name: each.dtype for name, each in self.graph.tensors.items()}
        return {name: each.dtype for name, each in run_freely(self.graph).items()}

    def shape(self, value: str) -> tuple[int, ...] | None:
        """Of a value; None where not known."""
        if value in self.graph.tensors:
            return tuple(self.graph.tensors[value].shape)
        number, place = self.producers[value]
        return _shape(self.graph.ops[number], place)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Counterparts of a reference's values in another capture.

    Args:
        values: reference value -> that of the other side.
        ops: numbers of reference ops -> those of the other side.
    """

    values: Mapping[str, str]
    ops: Mapping[int, int]


def align(reference: IndexedGraph, other: IndexedGraph) -> Alignment:
    """Find the counterparts.

    What the step gives, loss and gradients, corresponds by what it is, whichever op made it.
    """
    ops = _match_ops(reference, other)
    values = {
        mine: theirs
        for first, second in ops.items()
        for mine, theirs in _pairs(reference.graph.ops[first], other.graph.ops[second])
    }
    return Alignment(values=values | _match_results(reference, other), ops=ops)


def _match_results(reference: IndexedGraph, other: IndexedGraph) -> dict[str, str]:
    mine, theirs = reference.graph, other.graph
    pairs = [(mine.loss, theirs.loss)]
    pairs += [
        (name, theirs.gradients[weight])
        for weight, name in mine.gradients.items()
        if weight in theirs.gradients
    ]
    if len(mine.outputs) == len(theirs.outputs):
        pairs += list(zip(mine.outputs, theirs.outputs, strict=True))
    found: dict[str, str] = {}
    for first, second in pairs:
        is_made = first in reference.producers and second in other.producers
        if is_made and first not in found and reference.shape(first) == other.shape(second):
            found[first] = second
    return found


def _match_ops(reference: IndexedGraph, other: IndexedGraph) -> dict[int, int]:
    """Those that read the very same first, then one after the other those that nearly do."""
    matching = _Matching(reference, other)
    matching.match_exactly()
    while matching.match_nearly():
        matching.match_exactly()
    return matching.found


class _Matching:
    """Ops of two steps while their counterparts are found."""

    def __init__(self, reference: IndexedGraph, other: IndexedGraph) -> None:
        self.mine, self.theirs = reference.graph.ops, other.graph.ops
        keys = {_key(self.mine[number]) for number in reference.countable}
        self.candidates: dict[_Key, list[int]] = {}
        for number in other.countable:
            self.candidates.setdefault(_key(self.theirs[number]), []).append(number)
        keys &= self.candidates.keys()
        shared = reference.graph.tensors.keys() & other.graph.tensors.keys()
        self.my_origins = _find_origins(reference, keys, shared)
        self.their_origins = _find_origins(other, keys, shared)
        self.counterpart = {name: name for name in shared}
        self.known = set(shared)  # of the other side's values, those that are a counterpart
        self.left = [n for n in reference.countable if _key(self.mine[n]) in keys]
        self.found: dict[int, int] = {}

    def match_exactly(self) -> None:
        """All pairs that read counterparts and nothing else."""
        for number in list(self.left):
            read = _read(self.mine[number], self.my_origins)
            wanted = {self.counterpart.get(each) for each in read}
            if wanted and None not in wanted:
                self._take_first(number, wanted)

    def match_nearly(self) -> bool:
        """One pair that shares something of what it reads, or of which nothing is known."""
        for number in self.left:
            read = _read(self.mine[number], self.my_origins)
            wanted = {self.counterpart[each] for each in read if each in self.counterpart}
            shares = [
                (_share(wanted, self._their_read(each) & self.known), -each)
                for each in self.candidates[_key(self.mine[number])]
            ]
            best = max(shares, default=(0.0, 0))
            if best[0] > 0:
                self._take(number, -best[1])
                return True
        return False

    def _take_first(self, number: int, wanted: set[str | None]) -> None:
        for candidate in self.candidates[_key(self.mine[number])]:
            if self._their_read(candidate) == wanted:
                self._take(number, candidate)
                return

    def _their_read(self, number: int) -> set[str]:
        return _read(self.theirs[number], self.their_origins)

    def _take(self, number: int, candidate: int) -> None:
        self.found[number] = candidate
        self.left.remove(number)
        self.candidates[_key(self.mine[number])].remove(candidate)
        for name, theirs in _pairs(self.mine[number], self.theirs[candidate]):
            self.counterpart[name] = theirs
            self.known.add(theirs)


def _share(first: set[str], second: set[str]) -> float:
    """Of both that is in each; all, where nothing is known of either."""
    union = first | second
    return len(first & second) / len(union) if union else 1.0


def _find_origins(
    indexed: IndexedGraph, keys: Collection[_Key], shared: Collection[str]
) -> dict[str, frozenset[str]]:
    """Value -> the values that it comes from, of ops that may have a counterpart, or given ones."""
    origins = {name: frozenset([name] if name in shared else []) for name in indexed.graph.tensors}
    forward = {op.name: op for op in indexed.graph.ops if op.phase == "forward"}
    for op in indexed.graph.ops:
        is_counted = bool(op.inputs) and not op.is_move and _key(op) in keys
        through = frozenset[str]().union(*(origins[each] for each in op.inputs))
        first = _first_time(op, forward)
        for place, name in enumerate(op.outputs):
            if name is None:
                continue
            again = None if first is None else first.outputs[place]
            if again is not None:
                origins[name] = origins[again]
            else:
                origins[name] = frozenset([name]) if is_counted else through
    return origins


def _first_time(op: GraphOp, forward: Mapping[str, GraphOp]) -> GraphOp | None:
    """The op of the forward pass that checkpointing computes once more in `op`, if it does.

    How much is computed again may differ between sides; it is the same number.
    """
    name, _, number = op.name.rpartition(".")
    first = forward.get(name)
    is_again = (
        op.phase == "backward"
        and number.isdecimal()
        and first is not None
        and (first.op, first.layer, first.shapes) == (op.op, op.layer, op.shapes)
    )
    return first if is_again else None


def _read(op: GraphOp, origins: Mapping[str, frozenset[str]]) -> set[str]:
    return set().union(*(origins[each] for each in op.inputs))


def _key(op: GraphOp) -> _Key:
    return op.phase, op.layer, _SAME.get(op.op, op.op), _shape(op, 0)


def _shape(op: GraphOp, place: int) -> tuple[int, ...] | None:
    return op.shapes[place] if place < len(op.shapes) else None


def _pairs(mine: GraphOp, theirs: GraphOp) -> list[tuple[str, str]]:
    """Results of two ops that correspond."""
    return [
        (first, second)
        for place, (first, second) in enumerate(zip(mine.outputs, theirs.outputs, strict=False))
        if first is not None and second is not None and _shape(mine, place) == _shape(theirs, place)
    ]


def describe_unmatched(indexed: IndexedGraph, matched: Collection[int], who: str) -> Sequence[str]:
    """In words, the ops without a counterpart, equal ones once."""
    words = [
        f"{who} alone: {op.op} in {op.layer or 'no layer'} ({op.phase})"
        for op in (indexed.graph.ops[n] for n in indexed.countable if n not in matched)
    ]
    return [
        f"{each}, {words.count(each)} times" if words.count(each) > 1 else each
        for each in dict.fromkeys(words)
    ]
