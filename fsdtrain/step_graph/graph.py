"""A training step as a list of ops over named values, each op as one backend computes it.

Forward and backward pass; the optimiser's update is not in it (see `Backend.update`). It does not
know how the step was captured, nor which backend it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Results = tuple[Tensor | None, ...]
Run = Callable[[Sequence[Tensor]], Results]


@dataclass(frozen=True)
class Operand:
    """Stands in the arguments of an `OpCall` for the value at this place in `GraphOp.inputs`."""

    place: int


@dataclass(frozen=True, kw_only=True)
class OpCall:
    """What an op calls, as plain data, so that a script can call it again.

    Args:
        target: path below torch.ops: "aten.convolution.default".
        arguments: numbers, strings, None, dtypes, lists of these, and `Operand`.
        keywords: as `arguments`.
        stores: how the backend rounds each result, in the backend's own words, which
            `Backend.store` takes (JSON); None: it is left as it is.
    """

    target: str
    arguments: tuple[object, ...]
    keywords: Mapping[str, object] = field(default_factory=dict)
    stores: tuple[Mapping[str, object] | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GraphOp:
    """One op.

    Args:
        name: unique in the step, and the same in every capture of the same module.
        op: "aten.convolution", "fsdtrain.bev_pool".
        phase: of the step.
        layer: module path; "" where not known.
        line: "file.py:12" of the user's code; "" where not known.
        inputs: names of the values that it reads, in order; one may come twice.
        outputs: names of its results; None where one is no tensor or is not used.
        is_move: whether it only views, copies, casts or converts the format of what it reads.
        is_elementwise: whether each element depends on one element of every operand.
        formats: of its results as the backend stores them: "float32", "bf16", "cfloat8_1_4_3".
        run: from its inputs to its results, as the backend computes and stores them; changes none
            of its inputs, and gives the same bits for the same inputs.
        run_exactly: the same op in double precision from float32 or double inputs, its floating
            results in double; nothing is rounded to a format. Random numbers are those of `run`.
        call: what `run` calls and stores; None: it cannot be told.
        shapes: of its results, also of those that are not used; () where not known.
        dtypes: of its results, likewise.
    """

    name: str
    op: str
    phase: Literal["forward", "backward"]
    layer: str
    line: str
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]
    is_move: bool
    is_elementwise: bool
    formats: tuple[str | None, ...]
    run: Run
    run_exactly: Run
    call: OpCall | None = None
    shapes: tuple[tuple[int, ...] | None, ...] = ()
    dtypes: tuple[torch.dtype | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepGraph:
    """A captured step.

    Args:
        ops: in an order in which they can run.
        tensors: the values that no op gives: weights and buffers by their names in the module, the
            batch, constants. Nothing may write into them.
        weights: names of the trained weights among `tensors`.
        loss: name of the value.
        gradients: weight -> name of the value of its gradient.
        outputs: all values that the step gives: the loss, losses and outputs of heads.
    """

    ops: tuple[GraphOp, ...]
    tensors: Mapping[str, Tensor]
    weights: tuple[str, ...]
    loss: str
    gradients: Mapping[str, str]
    outputs: tuple[str, ...]


def run_freely(graph: StepGraph, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Every value of the step, as the backend computes it; `tensors` replaces some given ones."""
    values = {**graph.tensors, **(tensors or {})}
    for op in graph.ops:
        results = op.run([values[name] for name in op.inputs])
        values |= {
            name: result
            for name, result in zip(op.outputs, results, strict=True)
            if name is not None and result is not None
        }
    return values
