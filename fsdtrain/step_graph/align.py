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
from fsdtrain.step_graph.matching import (
    Surroundings,
    find_surroundings,
    key,
    match_ops,
    shape_of,
)

_NARROW = {torch.bfloat16, torch.float16}


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
        return shape_of(self.graph.ops[number], place)


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
    ops = match_ops(_surroundings(reference, other), _surroundings(other, reference))
    values = {
        mine: theirs
        for first, second in ops.items()
        for mine, theirs in _pairs(reference.graph.ops[first], other.graph.ops[second])
    }
    return Alignment(values=values | _match_results(reference, other), ops=ops)


def _surroundings(own: IndexedGraph, other: IndexedGraph) -> Surroundings:
    keys = {key(op) for op in map(other.graph.ops.__getitem__, other.countable)}
    return find_surroundings(
        own.graph,
        counted=[n for n in own.countable if key(own.graph.ops[n]) in keys],
        shared=own.graph.tensors.keys() & other.graph.tensors.keys(),
    )


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


def _pairs(mine: GraphOp, theirs: GraphOp) -> list[tuple[str, str]]:
    """Results of two ops that correspond."""
    return [
        (first, second)
        for place, (first, second) in enumerate(zip(mine.outputs, theirs.outputs, strict=False))
        if first is not None
        and second is not None
        and shape_of(mine, place) == shape_of(theirs, place)
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
