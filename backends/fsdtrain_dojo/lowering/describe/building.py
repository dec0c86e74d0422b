"""What all describers of ops share: the tensors among a call's arguments, and kernels named so.

Knows no op.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.kernel import Access, Kernel, Span, Value, ValueKind, along
from fsdtrain_dojo.lowering.op_call import OpCall


def stored_as(dtype: torch.dtype) -> tuple[str, int]:
    """(format, bytes of an element) of tensors that no recipe has a say in."""
    name = "fp32" if dtype is torch.float32 else str(dtype).removeprefix("torch.")
    return name, dtype.itemsize


def values_of(call: OpCall) -> tuple[Value, ...]:
    """The tensors among the arguments: positional ones first, lists unrolled, repeats kept."""
    return (*_values(call.args), *_values(tuple(call.kwargs.values())))


def _values(arguments: Sequence[Any]) -> Iterator[Value]:
    for each in arguments:
        if isinstance(each, Value):
            yield each
        elif isinstance(each, list | tuple):
            yield from _values(each)


def call_with(call: OpCall, tensors: Mapping[str, Tensor]) -> Any:
    """What the op gives for these tensors, by names of values."""

    def fill(argument: Any) -> Any:
        if isinstance(argument, Value):
            return tensors[argument.name]
        if isinstance(argument, list | tuple):
            return [fill(each) for each in argument]
        return argument

    kwargs = {name: fill(each) for name, each in call.kwargs.items()}
    return call.function(*map(fill, call.args), **kwargs)


def make_kernel(call: OpCall, *, suffix: str = "", **fields: Any) -> Kernel:
    """A kernel of this op: its name, phase, layer and line are the call's.

    Args:
        call: the op.
        suffix: of the name, ".dx", where the op becomes several kernels.
        fields: the other fields of `Kernel`.
    """
    return Kernel(
        name=call.name + suffix,
        op=call.op,
        call=call.name,
        phase=call.phase,
        layer=call.layer,
        line=call.line,
        **fields,
    )


def intermediate(call: OpCall, suffix: str, shape: Sequence[int]) -> Value:
    """An FP32 value that only the kernels of this op know."""
    return Value(
        name=call.name + suffix,
        shape=tuple(shape),
        format="fp32",
        element_bytes=4,
        kind=ValueKind.ACTIVATION,
    )


def along_all(value: Value, *, first_loop: int = 0) -> Access:
    """Access to one element of `value` a point: its dimensions are loops, one after another."""
    return Access(value.name, tuple(along(first_loop + d) for d in range(len(value.shape))))


def broadcast(value: Value, num_loops: int) -> Access:
    """Access to `value` broadcast, from the right, to a result whose dimensions are the loops."""
    ahead = num_loops - len(value.shape)
    spans = (
        Span() if size == 1 else along(ahead + dimension)
        for dimension, size in enumerate(value.shape)
    )
    return Access(value.name, tuple(spans))
