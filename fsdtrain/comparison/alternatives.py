"""What else an op could have given: with a weight of the step before, along another axis.

It does not compare anything.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

Exactly = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]

# Ops whose result depends on the axis that they run along, and that take any shape. Not those which
# hold sizes or indices of their own: native_group_norm and pooling's backward pass believe them
# unchecked, and would write beyond a tensor of another shape.
_ALONG_AN_AXIS: Final = {
    "aten._softmax", "aten._log_softmax", "aten._softmax_backward_data",
    "aten._log_softmax_backward_data", "aten.sum", "aten.mean", "aten.prod", "aten.amax",
    "aten.amin", "aten.max", "aten.min", "aten.cumsum", "aten.cumprod", "aten.logsumexp",
    "aten.linalg_vector_norm", "aten.norm", "aten.var", "aten.std", "aten.var_mean", "aten.cat",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Context:
    """What else is known where a tensor comes from.

    Args:
        op: "aten._softmax"; "" for what no op gives.
        exactly: the op in double precision; None: not known.
        inputs: that it was given.
        output: which of its results the tensor is.
        earlier: by name of an input of the op, its number among the inputs and its value in the
            step before.
        previous: the tensor's own value in the step before.
    """

    op: str = ""
    exactly: Exactly | None = None
    inputs: tuple[Tensor, ...] = ()
    output: int = 0
    earlier: Mapping[str, tuple[int, Tensor]] = field(default_factory=dict)
    previous: Tensor | None = None


def with_earlier_inputs(context: Context) -> Iterator[tuple[str, Tensor]]:
    """The result with one input as it was in the step before, and that input's name."""
    if context.exactly is None:
        return
    for name, (number, value) in context.earlier.items():
        inputs = list(context.inputs)
        inputs[number] = value
        result = context.exactly(inputs)[context.output]
        if result is not None:
            yield name, result


def along_other_axes(context: Context) -> Iterator[Tensor]:
    """The op of its input with two axes swapped, swapped back or not; of ops that have an axis."""
    if context.exactly is None or not context.inputs:
        return
    if context.op not in _ALONG_AN_AXIS:
        return
    first, *others = context.inputs
    for i, j in itertools.combinations(range(first.ndim), 2):
        swapped = [each.transpose(i, j) if each.shape == first.shape else each for each in others]
        try:
            result = context.exactly([first.transpose(i, j), *swapped])[context.output]
        except (RuntimeError, IndexError):
            continue  # the op cannot take such shapes
        if result is not None:
            yield result
            if result.ndim == first.ndim:
                yield result.transpose(i, j)
