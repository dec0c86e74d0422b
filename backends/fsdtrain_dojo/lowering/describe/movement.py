"""Views: what an op's result takes from where.

Loops are the dimensions of the result, all divisible. Where a result's dimensions are those of the
operand in another order, shifted or strided, boxes are exact; where dimensions are merged or split,
a box holds the rows between the first and the last element that is needed.

    y = x.view(6, 4), x of (2, 3, 4)     x: i // 3, all 3, j     exact where i begins at a multiple
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.picking import (
    Source,
    ends,
    moved,
    moving_kernel,
    strides_of,
)
from fsdtrain_dojo.lowering.kernel import Span, Value, along
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


def describe_view(call: OpCall) -> Expansion:
    """view, reshape: the same elements in the same order."""
    source, result = ends(call)
    return moved(call, result, reshaped(source, result.shape))


def reshaped(source: Value, shape: Sequence[int]) -> Source:
    """`source` in another shape of as many elements."""
    spans: list[Span] = [Span()] * len(source.shape)
    groups = list(_common_groups(source.shape, shape))
    for inner, outer in groups:
        steps = dict(zip(outer, strides_of([shape[d] for d in outer]), strict=True))
        strides = strides_of([source.shape[d] for d in inner])
        for place, (dim, stride) in enumerate(zip(inner, strides, strict=True)):
            if place == 0:
                spans[dim] = Span(tuple(steps.items()), divide=stride)
            else:
                size = source.shape[dim]
                terms = tuple(each for each in steps.items() if each[1] % (stride * size))
                spans[dim] = Span(terms, divide=stride, modulo=size)

    def indices(places: Sequence[Tensor]) -> list[Tensor]:
        found = [torch.zeros((), dtype=torch.int64)] * len(source.shape)
        for inner, outer in groups:
            strides = strides_of([shape[d] for d in outer])
            number = sum((places[d] * s for d, s in zip(outer, strides, strict=True)), _ZERO)
            sizes = [source.shape[d] for d in inner]
            for dim, stride, size in zip(inner, strides_of(sizes), sizes, strict=True):
                found[dim] = number // stride % size
        return found

    return Source(value=source, spans=tuple(spans), indices=indices)


def describe_permute(call: OpCall) -> Expansion:
    """permute, transpose, t: the dimensions in another order."""
    source, result = ends(call)
    rank = len(source.shape)
    order = list(range(rank))
    if call.op == "aten.permute":
        order = [dim % rank for dim in call.args[1]]
    elif rank > 1:
        first, second = call.args[1:3] if call.op == "aten.transpose" else (0, -1)
        order[first], order[second] = order[second], order[first]
    if call.op == "aten.numpy_T":
        order = order[::-1] if rank > 2 else order
    loop_of = [order.index(dim) for dim in range(rank)]
    spans = tuple(map(along, loop_of))
    chosen = Source(value=source, spans=spans, indices=lambda at: [at[i] for i in loop_of])
    return moved(call, result, chosen)


def describe_expand(call: OpCall) -> Expansion:
    """expand: dimensions of one element are repeated, new ones come in front."""
    source, result = ends(call)
    ahead = len(result.shape) - len(source.shape)
    sizes = list(enumerate(source.shape))
    spans = tuple(Span() if size == 1 else along(ahead + dim) for dim, size in sizes)

    def indices(at: Sequence[Tensor]) -> list[Tensor]:
        return [_ZERO if size == 1 else at[ahead + dim] for dim, size in sizes]

    return moved(call, result, Source(value=source, spans=spans, indices=indices))


def describe_slice(call: OpCall) -> Expansion:
    """Slice and select: a part of one dimension."""
    source, result = ends(call)
    dim = (call.args[1] if len(call.args) > 1 else 0) % len(source.shape)
    if call.op == "aten.select":
        return moved(call, result, _selected(source, dim, call.args[2] % source.shape[dim]))
    start, _, step = slice_indices(call.args[1:], source.shape[dim])
    return moved(call, result, _sliced(source, dim, start, step))


def describe_pieces(call: OpCall) -> Expansion:
    """split, split_with_sizes, unbind: a kernel for each part that somebody reads."""
    source = call.args[0]
    assert isinstance(source, Value)
    is_unbind = call.op == "aten.unbind"
    dim = (call.args[1 if is_unbind else 2] if len(call.args) > (1 if is_unbind else 2) else 0) % (
        len(source.shape)
    )
    kernels, start = [], 0
    # A part that nobody reads has no value; its length is known from the arguments.
    lengths = [1] * source.shape[dim] if is_unbind else _lengths(call.args[1], source.shape[dim])
    for number, (result, length) in enumerate(zip(call.outputs, lengths, strict=True)):
        if result is not None:
            part = _selected(source, dim, number) if is_unbind else _sliced(source, dim, start, 1)
            kernels.append(moving_kernel(call, result, [part], suffix=f".{number}"))
        start += length
    return Expansion(kernels=tuple(kernels))


def describe_window_view(call: OpCall) -> Expansion:
    """unfold: overlapping windows of a dimension, in a new last one."""
    source, result = ends(call)
    rank = len(source.shape)
    dim, step = call.args[1] % rank, call.args[3]

    def indices(at: Sequence[Tensor]) -> list[Tensor]:
        return [at[d] * step + at[-1] if d == dim else at[d] for d in range(rank)]

    spans = tuple(Span(((d, step), (rank, 1))) if d == dim else along(d) for d in range(rank))
    return moved(call, result, Source(value=source, spans=spans, indices=indices))


def describe_diagonal(call: OpCall) -> Expansion:
    """diagonal: two dimensions at once, in a new last one."""
    source, result = ends(call)
    rank = len(source.shape)
    given, defaults = list(call.args[1:]), [0, 0, 1]
    offset, first, second = given + defaults[len(given) :]
    first, second = first % rank, second % rank
    others = [dim for dim in range(rank) if dim not in (first, second)]
    last = len(result.shape) - 1
    shift = {first: max(-offset, 0), second: max(offset, 0)}

    def indices(at: Sequence[Tensor]) -> list[Tensor]:
        return [
            at[last] + shift[dim] if dim in shift else at[others.index(dim)] for dim in range(rank)
        ]

    spans = tuple(
        Span(((last, 1),), low=shift[dim], high=shift[dim])
        if dim in shift
        else along(others.index(dim))
        for dim in range(rank)
    )
    return moved(call, result, Source(value=source, spans=spans, indices=indices))


_ZERO = torch.zeros((), dtype=torch.int64)


def _common_groups(
    inner: Sequence[int], outer: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions of two shapes that hold equally many elements."""
    mine = [dim for dim, size in enumerate(inner) if size != 1]
    theirs = [dim for dim, size in enumerate(outer) if size != 1]
    while mine and theirs:
        left, right = [mine.pop(0)], [theirs.pop(0)]
        while (a := math.prod(inner[d] for d in left)) != (b := math.prod(outer[d] for d in right)):
            if a < b:
                left.append(mine.pop(0))
            else:
                right.append(theirs.pop(0))
        yield left, right


def slice_indices(arguments: Sequence[Any], size: int) -> tuple[int, int, int]:
    """(start, end, step) of slice's arguments behind the tensor."""
    defaults: list[Any] = [0, None, None, 1]
    _, start, end, step = [*arguments, *defaults[len(arguments) :]]
    first, last, by = slice(start, end, step).indices(size)
    return first, last, by


def _lengths(given: int | Sequence[int], size: int) -> list[int]:
    if isinstance(given, int):
        return [min(given, size - start) for start in range(0, size, given)]
    return list(given)


def _sliced(source: Value, dim: int, start: int, step: int) -> Source:
    spans = tuple(
        Span(((d, step if d == dim else 1),), low=start * (d == dim), high=start * (d == dim))
        for d in range(len(source.shape))
    )
    return Source(
        value=source,
        spans=spans,
        indices=lambda at: [at[d] * step + start if d == dim else at[d] for d in range(len(at))],
    )


def _selected(source: Value, dim: int, index: int) -> Source:
    """The other dimensions at one index of `dim`."""

    def loop(d: int) -> int:
        return d - (d > dim)

    rank = len(source.shape)
    spans = tuple(Span(low=index, high=index) if d == dim else along(loop(d)) for d in range(rank))
    return Source(
        value=source,
        spans=spans,
        indices=lambda at: [_ZERO + index if d == dim else at[loop(d)] for d in range(rank)],
    )


RULES: dict[str, Describe] = {
    **dict.fromkeys(
        ("aten.view", "aten._unsafe_view", "aten.reshape", "aten.unsqueeze", "aten.squeeze",
         "aten.view_copy"),
        describe_view,
    ),
    **dict.fromkeys(
        ("aten.permute", "aten.transpose", "aten.t", "aten.numpy_T"), describe_permute
    ),
    "aten.expand": describe_expand,
    "aten.expand_copy": describe_expand,
    **dict.fromkeys(("aten.slice", "aten.select"), describe_slice),
    **dict.fromkeys(
        (
            "aten.split", "aten.split_with_sizes", "aten.unsafe_split",
            "aten.unsafe_split_with_sizes", "aten.unbind",
        ),
        describe_pieces,
    ),
    "aten.unfold": describe_window_view,
    "aten.diagonal": describe_diagonal,
}  # fmt: skip
