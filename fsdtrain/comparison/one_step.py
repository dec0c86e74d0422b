"""One training step on one batch, on both sides: its numbers, and what explains a difference.

It does not know how a side was configured, nor how findings look.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fsdtrain.backend import Backend
from fsdtrain.comparison.bisect import bisect
from fsdtrain.comparison.numerics import compare_numerics
from fsdtrain.comparison.record import NumericsComparison, SwappedSet
from fsdtrain.comparison.repro import write_repro
from fsdtrain.comparison.script import SideBackend
from fsdtrain.comparison.weight_update import MakeOptimizer, compare_with
from fsdtrain.step_graph.capture import capture_step
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
    """The step as the reference and both sides compute it, cut into units that correspond."""

    reference: StepGraph
    a: StepGraph
    b: StepGraph
    aligned: AlignedSteps


def capture_sides(reference: nn.Module, batch: Any, a: SideStep, b: SideStep) -> CapturedSteps:
    """Capture the step three times; `reference` is the plain one, on the CPU.

    Raises:
        BackendError: it is no static graph.
    """
    logger.info("capturing the step: the reference, a and b")
    graph = capture_step(reference, batch, who="the reference")
    graph_a = a.backend.step_graph(a.step, a.batch)
    graph_b = b.backend.step_graph(b.step, b.batch)
    return CapturedSteps(
        reference=graph, a=graph_a, b=graph_b, aligned=align_steps(graph, graph_a, graph_b)
    )


def compare_one_step(
    captured: CapturedSteps,
    reference: nn.Module,
    a: SideStep,
    b: SideStep,
    make_optimizer: MakeOptimizer,
) -> NumericsComparison:
    """Forward, backward, gradients and the first update.

    Raises:
        UserError: it is NaN or infinite.
    """
    logger.info("comparing %d ops in both modes", len(captured.aligned.units))
    sides = {"a": (a.step, a.backend), "b": (b.step, b.backend)}
    return compare_numerics(
        captured.reference,
        captured.a,
        captured.b,
        updates=compare_with(reference, sides, make_optimizer),
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
