"""Faults that are put into an op of a captured step, to see whether they are found."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fsdtrain.comparison.number_formats import find_format, grid_of, round_to, store_as
from fsdtrain.step_graph.graph import GraphOp, Results, StepGraph

# From an op's inputs and its result, before that is stored, to what it gives instead.
Change = Callable[[Tensor], Tensor]


def with_fault(graph: StepGraph, name: str, change: Change) -> StepGraph:
    """The step, an op of which gives something else; stored in the format of the op."""
    return with_op(graph, changed(op_of(graph, name), change))


def op_of(graph: StepGraph, name: str) -> GraphOp:
    return next(op for op in graph.ops if op.name == name)


def with_op(graph: StepGraph, op: GraphOp) -> StepGraph:
    return replace(graph, ops=tuple(op if each.name == op.name else each for each in graph.ops))


def changed(op: GraphOp, change: Change) -> GraphOp:
    """An op whose floating results are changed."""

    def run(inputs: Sequence[Tensor]) -> Results:
        return tuple(
            result
            if result is None or not result.is_floating_point()
            else store_as(change(result), format).to(result.dtype)
            for result, format in zip(op.run(inputs), op.formats, strict=True)
        )

    return replace(op, run=run)


def reading(op: GraphOp, number: int, value: Tensor) -> GraphOp:
    """An op that reads another value as one of its inputs."""

    def run(inputs: Sequence[Tensor]) -> Results:
        others = list(inputs)
        others[number] = value.to(inputs[number].dtype)
        return op.run(others)

    return replace(op, run=run)


def along_another_axis(op: GraphOp, i: int, j: int) -> GraphOp:
    """An op of one input, whose axes i and j are taken for each other."""

    def run(inputs: Sequence[Tensor]) -> Results:
        first = inputs[0]
        result = op.run([first.transpose(i, j).contiguous(), *inputs[1:]])[0]
        assert result is not None
        return (result.transpose(i, j).contiguous() if result.ndim == first.ndim else result,)

    return replace(op, run=run)


def in_1_5_2(value: Tensor) -> Tensor:
    numbers = value.double().flatten().numpy()
    amax = float(abs(numbers).max(initial=0.0))
    rounded = round_to(numbers, grid_of(find_format("cfloat8_1_5_2"), amax))
    return torch.from_numpy(rounded).reshape(value.shape).to(value.dtype)


def shifted(value: Tensor) -> Tensor:
    return value + 1e-3 * value.square().mean().sqrt()


def reordered(value: Tensor) -> Tensor:
    """Rows read as columns: the two largest axes are taken for each other."""
    i, j = sorted(sorted(range(value.ndim), key=lambda axis: -value.shape[axis])[:2])
    return value.transpose(i, j).reshape(value.shape)
