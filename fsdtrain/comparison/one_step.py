"""One training step on one batch, on both sides: its numbers, and what explains a difference.

It does not know how a side was configured, nor how findings look.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fsdtrain.backend import Backend
from fsdtrain.comparison.bisect import bisect
from fsdtrain.comparison.numerics import compare_numerics
from fsdtrain.comparison.record import NumericsComparison, SwappedSet
from fsdtrain.comparison.repro import write_repro
from fsdtrain.comparison.script import SideBackend
from fsdtrain.comparison.updates import Updates
from fsdtrain.comparison.weight_update import MakeOptimizer, compare_with
from fsdtrain.step_graph.capture import trace_step
from fsdtrain.step_graph.graph import StepGraph
from fsdtrain.step_graph.units import AlignedSteps, align_steps

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SideStep:
    """A side of a comparison.

    Args:
        backend: that computes the step.
        options: that it was loaded with.
        step: with that backend's ops; the same weights on both sides.
        batch: what `step` takes, where the backend computes.
    """

    backend: Backend
    options: Mapping[str, object]
    step: nn.Module
    batch: Any


@dataclass(frozen=True, kw_only=True)
class CapturedSteps:
    """The step as the reference and both sides compute it, cut into units that correspond.

    Args:
        reference: with the weights that are compared.
        a: as it was captured, before the first update.
        b: likewise.
        aligned: the three.
        updates: the update behind the step.
        previous: weights in the step before by name.
    """

    reference: StepGraph
    a: StepGraph
    b: StepGraph
    aligned: AlignedSteps
    updates: Updates
    previous: Mapping[str, Tensor]


def capture_sides(
    reference: nn.Module, batch: Any, a: SideStep, b: SideStep, make_optimizer: MakeOptimizer
) -> CapturedSteps:
    """Capture the step three times, and go on to the second step, with the first one's batch.

    What a side kept of its weights when it was captured is stale by then.

    Args:
        reference: the plain step, on the CPU; it and the sides' stay as they are.
        batch: what it takes.
        a: with the same weights.
        b: likewise.
        make_optimizer: of a step's weights.

    Raises:
        BackendError: it is no static graph.
    """
    logger.info("capturing the step: the reference, a and b")
    graph = trace_step(reference, batch, who="the reference").graph()
    graph_a = a.backend.step_graph(a.step, a.batch)
    graph_b = b.backend.step_graph(b.step, b.batch)
    sides = {"a": (a.step, a.backend), "b": (b.step, b.backend)}
    updates = compare_with(reference, batch, sides, make_optimizer)
    weights = {name: updates.before[name] for name in graph.weights}
    moved = replace(graph, tensors={**graph.tensors, **weights})
    return CapturedSteps(
        reference=moved,
        a=graph_a,
        b=graph_b,
        aligned=align_steps(moved, graph_a, graph_b),
        updates=updates,
        previous={name: graph.tensors[name] for name in graph.weights},
    )


def compare_one_step(captured: CapturedSteps) -> NumericsComparison:
    """Forward, backward, gradients and the update.

    Raises:
        UserError: it is NaN or infinite.
    """
    logger.info("comparing %d ops in both modes", len(captured.aligned.units))
    return compare_numerics(
        captured.reference,
        captured.a,
        captured.b,
        updates=captured.updates,
        previous=captured.previous,
        aligned=captured.aligned,
    )


def bisect_step(captured: CapturedSteps) -> SwappedSet:
    """The smallest set of ops that explains the difference of b's loss and gradients from a's."""
    logger.info("looking for the smallest set of ops that explains the difference")
    graph = captured.reference
    return bisect(
        captured.aligned.units,
        graph.tensors,
        loss=graph.loss,
        gradients=tuple(graph.gradients.values()),
    )


def write_step_repro(
    captured: CapturedSteps,
    numerics: NumericsComparison,
    op: str,
    folder: Path,
    *,
    a: SideStep,
    b: SideStep,
) -> Path:
    """The script of one op; of several that match the worst.

    Raises:
        UserError: see `write_repro`.
    """
    return write_repro(
        captured.aligned.units,
        _reference_values(captured),
        op,
        folder,
        a=SideBackend(name=a.backend.name, options=a.options),
        b=SideBackend(name=b.backend.name, options=b.options),
        worst=[numerics.tensors[index].name for index in numerics.worst],
    )


def _reference_values(captured: CapturedSteps) -> dict[str, Tensor]:
    """Of the whole step: each op in double, its results rounded to float32."""
    values = dict(captured.reference.tensors)
    for unit in captured.aligned.units:
        exact = unit.sides["reference"].run_exactly(values)
        values |= {
            name: value.float() if value.is_floating_point() else value
            for name, value in exact.items()
        }
    return values
