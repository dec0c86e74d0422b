"""Examines whether `compare` names faults that are put into single ops of hydra-bev tiny.

    python tools/exam_compare.py [--pairs cpu dojo ...] [--ops 20] [--seed 0]

Each fault is put into ops that are chosen at random, on either side, stored as the op stores its
results. Right is a first divergence that names op, side and phase, and whose clause is of the
expected kind. Teacher-forced rows depend on their own unit alone, so that the units that hold the
op are enough to tell it; that all others are within their bands is checked first. Values are
EMULATED on dojo, and computed by PyTorch on cpu; no time is measured but the exam's own.
"""

import argparse
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from exam_compare_steps import PAIRS, hydra_bev, side_graph
from torch import Tensor

from fsdtrain.comparison.lockstep import UnitEvidence
from fsdtrain.comparison.numerics import compare_numerics
from fsdtrain.comparison.record import SIDES, Side
from fsdtrain.comparison.rows import Row, UnitRows
from fsdtrain.comparison.teacher import run_side
from fsdtrain.step_graph.capture import trace_step
from fsdtrain.step_graph.graph import GraphOp, StepGraph
from fsdtrain.step_graph.units import Unit, align_steps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.comparison import faults

SCALES = [1 + 10.0**-exponent for exponent in range(1, 8)]
ALONG_AN_AXIS = ("aten._softmax", "aten.sum", "aten.mean", "aten.cumsum", "aten.amax")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A kind of fault.

    Args:
        name: in the table.
        make: an op with the fault; None: it cannot have it.
        says: what the finding must match.
    """

    name: str
    make: Callable[[GraphOp, StepGraph], GraphOp | None]
    says: str


def of_result(change: faults.Change) -> Callable[[GraphOp, StepGraph], GraphOp | None]:
    """A fault of what an op gives."""
    return lambda op, graph: None if op.is_move else faults.changed(op, change)


def of_many(change: faults.Change) -> faults.Change:
    """Leaves what has too few values to tell an offset from a scale, or bits from chance."""
    return lambda x: change(x) if len(x.unique()) >= 16 else x


def of_phase(
    phase: str, make: Callable[[GraphOp, StepGraph], GraphOp | None]
) -> Callable[[GraphOp, StepGraph], GraphOp | None]:
    """The same, in one phase alone."""
    return lambda op, graph: make(op, graph) if op.phase == phase else None


def dropped_gradient(op: GraphOp, graph: StepGraph) -> GraphOp | None:
    """An op whose result is the gradient of a weight, and is zero."""
    is_gradient = not set(graph.gradients.values()).isdisjoint(op.outputs)
    return faults.changed(op, torch.zeros_like) if is_gradient and not op.is_move else None


def wrong_axis(op: GraphOp, graph: StepGraph) -> GraphOp | None:
    """An op along an axis that takes two axes for each other; shapes are checked where it runs."""
    if op.op not in ALONG_AN_AXIS or not op.shapes or not op.shapes[0]:
        return None
    num_axes = len(op.shapes[0])
    return faults.along_another_axis(op, num_axes - 2, num_axes - 1) if num_axes > 1 else None


def stale_weight(op: GraphOp, graph: StepGraph) -> GraphOp | None:
    """An op that reads a weight of the step before."""
    for number, name in enumerate(op.inputs):
        if name in graph.weights:
            return faults.reading(op, number, earlier(name, graph.tensors[name]))
    return None


def earlier(name: str, weight: Tensor) -> Tensor:
    """A weight before an update of Adam, whose steps have the learning rate's size."""
    signs = torch.randint(0, 2, weight.shape, generator=torch.Generator().manual_seed(len(name)))
    return weight - 1e-2 * (2 * signs - 1)


TIMES = r"is \d\.\d+ times the reference"
FAULTS = [
    Fault(name="scale 1.01, forward", make=of_phase("forward", of_result(lambda x: 1.01 * x)),
          says=TIMES),
    Fault(name="scale 1.01, backward", make=of_phase("backward", of_result(lambda x: 1.01 * x)),
          says=TIMES),
    Fault(name="opposite sign", make=of_result(lambda x: -x), says="has the opposite sign"),
    Fault(name="offset of 1e-3 RMS", make=of_result(of_many(faults.shifted)),
          says="is off by a constant"),
    Fault(name="1-5-2", make=of_result(of_many(faults.in_1_5_2)),
          says=r"resolution of [012] mantissa bits"),
    Fault(name="dropped gradient", make=dropped_gradient, says="is zero"),
    Fault(name="rows read as columns", make=of_result(lambda x: faults.reordered(x)
          if x.ndim > 1 else x), says="another axis order"),
    Fault(name="wrong axis", make=wrong_axis, says="another axis"),
    Fault(name="stale weight", make=stale_weight, says="of the step before"),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A pair of steps, its units, and the reference's values."""

    graphs: dict[Side, StepGraph]
    units: Sequence[Unit]
    values: dict[str, Tensor]
    previous: dict[str, Tensor]

    def first(self, side: Side, op: GraphOp) -> tuple[Row, str] | None:
        """The first row that is outside where a side has this op in place of its own."""
        for unit in self.units:
            if all(each.name != op.name for each in unit.sides[side].ops):
                continue
            ops = tuple(op if each.name == op.name else each for each in unit.sides[side].ops)
            changed = replace(unit.sides[side], ops=ops)
            for row in self.rows(replace(unit, sides={**unit.sides, side: changed})):
                if row.tensor.outside:
                    return row, unit.name
        return None

    def rows(self, unit: Unit) -> Iterator[Row]:
        """The teacher-forced rows of a unit."""
        values = {name: self.values[name] for name in unit.inputs}
        reference = unit.sides["reference"]
        exact = reference.run_exactly(values)
        evidence = UnitEvidence(
            unit=unit,
            order=0,
            values=values,
            exact=exact,
            reference={n: each.float() if each.is_floating_point() else each
                       for n, each in exact.items()},
            forced={side: run_side(unit.sides[side], values, reference=reference, exact=exact)
                    for side in SIDES},
            free={},
            honest={},
        )  # fmt: skip
        made = UnitRows(evidence=evidence, previous=self.previous, honest_snr_db={"a": {}, "b": {}})
        yield from (made.forced(name, unit.phase) for name in unit.outputs)


def main() -> None:
    """Examine all pairs; the exit status is 1 if a healthy pair is called different."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=PAIRS)
    parser.add_argument("--ops", type=int, default=20, help="ops of a fault and pair")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    step, batch = hydra_bev(arguments.seed)
    reference = trace_step(step, batch).graph()
    is_clean = True
    for pair in arguments.pairs:
        graphs = {"a": side_graph("cpu", step, batch), "b": side_graph(pair, step, batch)}
        started = time.process_time()
        found = compare_numerics(reference, graphs["a"], graphs["b"])
        print(
            f"\ncpu against {pair}, healthy: {found.outcome}; {found.sentence} "
            f"({time.process_time() - started:.1f} s of one core)",
            flush=True,
        )
        is_clean &= found.outcome == "same"
        examine(make_bench(reference, graphs), arguments.ops, random.Random(arguments.seed))
    sys.exit(not is_clean)


def make_bench(reference: StepGraph, graphs: dict[Side, StepGraph]) -> Bench:
    """Run the reference once, and keep all of its values."""
    units = align_steps(reference, graphs["a"], graphs["b"]).units
    values = dict(reference.tensors)
    for unit in units:
        exact = unit.sides["reference"].run_exactly(values)
        values |= {n: x.float() if x.is_floating_point() else x for n, x in exact.items()}
    previous = {name: earlier(name, reference.tensors[name]) for name in reference.weights}
    return Bench(graphs=graphs, units=units, values=values, previous=previous)


def examine(bench: Bench, num_ops: int, chance: random.Random) -> None:
    """Print how many of each fault are found, and how small a scale may be."""
    print(f"{'fault':24s}{'ops':>5s}{'op and side':>13s}{'and finding':>13s}  otherwise")
    for fault in FAULTS:
        num_tried = num_named = num_right = 0
        others = []
        for side, op, broken in candidates(bench, fault, chance):
            if num_tried == num_ops:
                break
            is_there, found = try_fault(bench, side, broken)
            if not is_there:
                continue
            num_tried += 1
            if found is None:
                others.append(f"{op.name} ({'/'.join(map(str, op.formats))}): nothing")
                continue
            row, unit = found
            is_named = row.tensor.outside == (side,) and row.tensor.kind == op.phase
            is_named &= unit == op.name or op.name in row.tensor.finding or op.is_move
            num_named += is_named
            is_right = is_named and re.search(fault.says, row.tensor.finding) is not None
            num_right += is_right
            if not is_right:
                others.append(f"{op.name} {list(row.tensor.shape)}: {row.tensor.finding}")
        print(
            f"{fault.name:24s}{num_tried:5d}{num_named:13d}{num_right:13d}",
            "; ".join(others[:4]),
            flush=True,
        )
    print_smallest(bench, num_ops, chance)


def candidates(
    bench: Bench, fault: Fault, chance: random.Random
) -> Iterator[tuple[Side, GraphOp, GraphOp]]:
    """Ops of both sides in random order that can have the fault."""
    known = {each.name for unit in bench.units for each in unit.sides["b"].ops}
    every = [(side, op) for side in SIDES for op in bench.graphs[side].ops if op.name in known]
    for side, op in chance.sample(every, len(every)):
        broken = fault.make(op, bench.graphs[side])
        if broken is not None and any(each is not None for each in op.formats):
            yield side, op, broken


def try_fault(bench: Bench, side: Side, broken: GraphOp) -> tuple[bool, tuple[Row, str] | None]:
    """Whether the fault changes anything, and what is named; shapes may not allow it."""
    try:
        found = bench.first(side, broken)
    except (RuntimeError, IndexError):
        return False, None
    if found is not None:
        return True, found
    healthy = next(op for op in bench.graphs[side].ops if op.name == broken.name)
    return changes_anything(bench, side, healthy, broken), None


def changes_anything(bench: Bench, side: Side, healthy: GraphOp, broken: GraphOp) -> bool:
    """Whether the unit that has the op gives anything else."""
    for unit in bench.units:
        ops = unit.sides[side].ops
        if all(each.name != healthy.name for each in ops):
            continue
        other = replace(
            unit.sides[side], ops=tuple(broken if e.name == healthy.name else e for e in ops)
        )
        right, wrong = unit.sides[side].run(bench.values), other.run(bench.values)
        if any(not torch.equal(right[name], wrong[name]) for name in right):
            return True
    return False


def print_smallest(bench: Bench, num_ops: int, chance: random.Random) -> None:
    """The smallest scale that is named, by format."""
    smallest: dict[str, list[float]] = {}
    fault = Fault(name="", make=of_result(lambda x: 1.1 * x), says="")
    for number, (side, op, broken) in enumerate(candidates(bench, fault, chance)):
        if number == num_ops:
            break
        if not try_fault(bench, side, broken)[0]:
            continue
        least = 0.0
        for scale in SCALES:
            wrong = faults.changed(op, lambda x, scale=scale: scale * x)
            if bench.first(side, wrong) is None:
                break
            least = scale
        smallest.setdefault(str(op.formats[0] or op.formats[-1]), []).append(least)
    for format, found in sorted(smallest.items()):
        counts = {scale: found.count(scale) for scale in sorted(set(found), reverse=True)}
        table = ", ".join(f"{scale:.7g}: {count}" for scale, count in counts.items())
        print(f"smallest scale that is named, {format}: {table} (0: not 1.1 either)")


if __name__ == "__main__":
    main()
