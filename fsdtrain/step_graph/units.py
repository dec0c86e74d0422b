"""Three captures of one step, cut into units whose results correspond on all sides.

    reference   conv -> relu             unit "convolution": conv | cast, conv | conv
    a           cast -> conv -> relu  => unit "relu":        relu | relu       | copy, relu
    b           conv -> copy -> relu

A unit holds, for each side, all ops between values that correspond and its own results: moves,
casts, format conversions and what one side alone has; computed anew in each unit that reads them.
It does not judge the results.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fsdtrain.step_graph.align import IndexedGraph, align, describe_unmatched
from fsdtrain.step_graph.graph import GraphOp, Run, StepGraph

Side = Literal["reference", "a", "b"]
SIDES: tuple[Side, ...] = ("reference", "a", "b")


@dataclass(frozen=True, kw_only=True)
class UnitSide:
    """How one side computes a unit.

    Args:
        ops: in order; one of them, mostly the last, is the unit's own.
        names: the side's name of each value that the ops read from elsewhere -> the reference's.
        constants: what they read that no other side has, by the side's name.
        results: the side's name of each result -> the reference's; one may have several.
        formats: of the results, by the reference's names.
        dtypes: of what is read, by the side's names.
        device: where the side computes.
    """

    ops: tuple[GraphOp, ...]
    names: Mapping[str, str]
    constants: Mapping[str, Tensor]
    results: Sequence[tuple[str, str]]
    formats: Mapping[str, str | None]
    dtypes: Mapping[str, torch.dtype]
    device: torch.device

    def run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The results by the reference's names, as the side computes and stores them.

        Args:
            values: by the reference's names; brought to the side's dtypes and device.
        """
        found = dict(self.constants)
        for name, of_reference in self.names.items():
            found[name] = values[of_reference].to(device=self.device, dtype=self.dtypes[name])
        return self._collect(found, [op.run for op in self.ops])

    def run_exactly(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same in double precision, nothing rounded, from values of any precision."""
        given = {
            name: values[of_reference].to(self.device) for name, of_reference in self.names.items()
        }
        return self._collect({**self.constants, **given}, [op.run_exactly for op in self.ops])

    def _collect(self, found: dict[str, Tensor], runs: Sequence[Run]) -> dict[str, Tensor]:
        for op, run in zip(self.ops, runs, strict=True):
            results = run([found[name] for name in op.inputs])
            found |= {
                name: result
                for name, result in zip(op.outputs, results, strict=True)
                if name is not None and result is not None
            }
        return {of_reference: found[name] for name, of_reference in self.results}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A piece of the step that every side computes; named after the reference's op.

    Args:
        name: of the reference's op.
        op: "aten.convolution".
        layer: module path; "" where not known.
        line: "file.py:12" of the user's code; "" where not known.
        phase: of the step.
        is_elementwise: whether each element depends on one element of every operand.
        inputs: the reference's names of what any side reads.
        outputs: the reference's names of the results.
        sides: how each computes it.
    """

    name: str
    op: str
    layer: str
    line: str
    phase: Literal["forward", "backward"]
    is_elementwise: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sides: Mapping[Side, UnitSide]

    def run(self, side: Side, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs as a side computes them from `values`, all by the reference's names."""
        return self.sides[side].run(values)


@dataclass(frozen=True, kw_only=True)
class AlignedSteps:
    """The units in an order in which they can run, and in words what has no counterpart."""

    units: tuple[Unit, ...]
    unmatched: tuple[str, ...]


def find_units(reference: StepGraph, a: StepGraph, b: StepGraph) -> tuple[Unit, ...]:
    """The units of three captures of one step, in an order in which they can run."""
    return align_steps(reference, a, b).units


def run_units(
    units: Iterable[Unit], side_of: Callable[[Unit], Side], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every value of a run in which each unit is computed as the chosen side does.

    Args:
        units: in order.
        side_of: which side that is.
        tensors: what no unit gives: weights, batch, constants, by the reference's names.
    """
    values = dict(tensors)
    for unit in units:
        values |= unit.run(side_of(unit), values)
    return values


def align_steps(reference: StepGraph, a: StepGraph, b: StepGraph) -> AlignedSteps:
    """Cut three captures of one step into units.

    Args:
        reference: gives the names.
        a: a capture of the same module with the same weights and batch.
        b: another one.
    """
    indexed = {"reference": IndexedGraph(reference), "a": IndexedGraph(a), "b": IndexedGraph(b)}
    of_a = align(indexed["reference"], indexed["a"])
    of_b = align(indexed["reference"], indexed["b"])
    common = [
        name
        for op in reference.ops
        for name in op.outputs
        if name in of_a.values and name in of_b.values and name is not None
    ]
    results = {reference.loss, *reference.gradients.values(), *reference.outputs}
    while True:
        cutters = [
            _Cutter("reference", indexed["reference"], reference, {n: n for n in common}),
            _Cutter("a", indexed["a"], reference, {n: of_a.values[n] for n in common}),
            _Cutter("b", indexed["b"], reference, {n: of_b.values[n] for n in common}),
        ]
        wanted = set(common)
        units = [
            _make_unit(op, outputs, cutters)
            for op in reference.ops
            if (outputs := [n for n in op.outputs if n is not None and n in wanted])
        ]
        ordered, cyclic = _order(units)
        if not cyclic:
            break
        # A pair that goes against the others' order is none.
        wrong = next((u for u in cyclic if results.isdisjoint(u.outputs)), cyclic[0])
        common = [name for name in common if name not in wrong.outputs]
    made = {unit.name for unit in ordered}
    numbers = {n for n, op in enumerate(reference.ops) if op.name in made}
    unmatched = [
        *describe_unmatched(indexed["reference"], numbers, "reference"),
        *describe_unmatched(indexed["a"], {of_a.ops[n] for n in numbers if n in of_a.ops}, "a"),
        *describe_unmatched(indexed["b"], {of_b.ops[n] for n in numbers if n in of_b.ops}, "b"),
    ]
    return AlignedSteps(units=tuple(ordered), unmatched=tuple(unmatched))


class _Cutter:
    """Cuts one side into what each unit takes of it.

    Args:
        side: which one.
        indexed: its step.
        reference: the step that gives the names.
        names: the reference's value -> the side's, of all values that correspond.
    """

    def __init__(
        self, side: Side, indexed: IndexedGraph, reference: StepGraph, names: Mapping[str, str]
    ) -> None:
        self.side = side
        self.indexed = indexed
        self.names = names
        self.of_reference = {mine: name for name, mine in reversed(list(names.items()))}
        self.given = {
            name
            for name, tensor in indexed.graph.tensors.items()
            if name in reference.tensors and reference.tensors[name].shape == tensor.shape
        }
        self.device = next(iter(indexed.graph.tensors.values())).device

    def cut(self, outputs: Sequence[str]) -> UnitSide:
        """What computes the outputs, which have the reference's names."""
        graph = self.indexed.graph
        targets = [self.names[name] for name in outputs]
        numbers: set[int] = set()
        read: dict[str, str] = {}
        constants: dict[str, Tensor] = {}
        waiting = list(targets)
        while waiting:
            name = waiting.pop()
            if name in self.of_reference and name not in targets:
                read[name] = self.of_reference[name]
            elif name in graph.tensors:
                if name in self.given:
                    read[name] = name
                else:
                    constants[name] = graph.tensors[name]
            elif self.indexed.producers[name][0] not in numbers:
                number = self.indexed.producers[name][0]
                numbers.add(number)
                waiting += graph.ops[number].inputs
        return UnitSide(
            ops=tuple(graph.ops[number] for number in sorted(numbers)),
            names=read,
            constants=constants,
            results=tuple(zip(targets, outputs, strict=True)),
            formats={name: self._format(mine) for name, mine in zip(outputs, targets, strict=True)},
            dtypes={name: self.indexed.dtypes[name] for name in read},
            device=self.device,
        )

    def _format(self, name: str) -> str | None:
        number, place = self.indexed.producers[name]
        return self.indexed.graph.ops[number].formats[place]


def _make_unit(op: GraphOp, outputs: Sequence[str], cutters: Sequence[_Cutter]) -> Unit:
    sides = {cutter.side: cutter.cut(outputs) for cutter in cutters}
    return Unit(
        name=op.name,
        op=op.op,
        layer=op.layer,
        line=op.line,
        phase=op.phase,
        is_elementwise=op.is_elementwise,
        inputs=tuple(dict.fromkeys(n for side in SIDES for n in sides[side].names.values())),
        outputs=tuple(outputs),
        sides=sides,
    )


def _order(units: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
    """The units so that none reads what comes later, as near to the given order as can be.

    The second list holds a circle of units that depend on each other, if there is one.
    """
    maker = {name: number for number, unit in enumerate(units) for name in unit.outputs}
    needs = [{maker[name] for name in unit.inputs if name in maker} for unit in units]
    readers: list[list[int]] = [[] for _ in units]
    for number, needed in enumerate(needs):
        for each in needed:
            readers[each].append(number)
    missing = [len(needed) for needed in needs]
    ready = [number for number, count in enumerate(missing) if count == 0]
    ordered: list[int] = []
    while ready:
        number = heapq.heappop(ready)
        ordered.append(number)
        for reader in readers[number]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    left = set(range(len(units))) - set(ordered)
    circle: list[int] = []
    current = min(left, default=None)
    while current is not None and current not in circle:
        circle.append(current)
        current = min(needs[current] & left)
    if current is not None:
        circle = circle[circle.index(current) :]
    return [units[number] for number in ordered], [units[number] for number in sorted(circle)]
