"""Views, copies, pads and joins: what an op's result takes from where.

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

from fsdtrain_dojo.lowering.describe.building import call_with
from fsdtrain_dojo.lowering.describe.picking import Source, moving_kernel
from fsdtrain_dojo.lowering.kernel import Span, Value, along, whole
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


def describe_view(call: OpCall) -> Expansion:
    """view, reshape: the same elements in the same order."""
    source, result = _ends(call)
    return _one(call, result, reshaped(source, result.shape))


def reshaped(source: Value, shape: Sequence[int]) -> Source:
    """`source` in another shape of as many elements."""
    spans: list[Span] = [Span()] * len(source.shape)
    groups = list(_common_groups(source.shape, shape))
    for inner, outer in groups:
        steps = dict(zip(outer, _strides([shape[d] for d in outer]), strict=True))
        strides = _strides([source.shape[d] for d in inner])
        for place, (dim, stride) in enumerate(zip(inner, strides, strict=True)):
            if place == 0:
                spans[dim] = Span(tuple(steps.items()), divide=stride)
            else:
                spans[dim] = whole(source.shape[dim])

    def indices(places: Sequence[Tensor]) -> list[Tensor]:
        found = [torch.zeros((), dtype=torch.int64)] * len(source.shape)
        for inner, outer in groups:
            strides = _strides([shape[d] for d in outer])
            number = sum((places[d] * s for d, s in zip(outer, strides, strict=True)), _ZERO)
            sizes = [source.shape[d] for d in inner]
            for dim, stride, size in zip(inner, _strides(sizes), sizes, strict=True):
                found[dim] = number // stride % size
        return found

    return Source(value=source, spans=tuple(spans), indices=indices)


def describe_permute(call: OpCall) -> Expansion:
    """permute, transpose, t: the dimensions in another order."""
    source, result = _ends(call)
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
    return _one(call, result, chosen)


def describe_expand(call: OpCall) -> Expansion:
    """expand: dimensions of one element are repeated, new ones come in front."""
    source, result = _ends(call)
    ahead = len(result.shape) - len(source.shape)
    sizes = list(enumerate(source.shape))
    spans = tuple(Span() if size == 1 else along(ahead + dim) for dim, size in sizes)

    def indices(at: Sequence[Tensor]) -> list[Tensor]:
        return [_ZERO if size == 1 else at[ahead + dim] for dim, size in sizes]

    return _one(call, result, Source(value=source, spans=spans, indices=indices))


def describe_slice(call: OpCall) -> Expansion:
    """Slice and select: a part of one dimension."""
    source, result = _ends(call)
    dim = (call.args[1] if len(call.args) > 1 else 0) % len(source.shape)
    if call.op == "aten.select":
        return _one(call, result, _selected(source, dim, call.args[2] % source.shape[dim]))
    start, _, step = _slice(call.args[1:], source.shape[dim])
    return _one(call, result, _sliced(source, dim, start, step))


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


def describe_cat(call: OpCall) -> Expansion:
    """Cat and stack: one operand behind the other."""
    values, (result,) = call.args[0], call.outputs
    assert result is not None
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    dim = given % len(result.shape)
    sources, offset = [], 0
    for value in values:
        if call.op == "aten.stack":
            sources.append(_placed_slice(value, dim, offset))
            offset += 1
        elif value.num_elements:
            sources.append(
                _placed(value, [offset if d == dim else 0 for d in range(len(value.shape))])
            )
            offset += value.shape[dim]
    return Expansion(kernels=(moving_kernel(call, result, sources),))


def describe_pad(call: OpCall) -> Expansion:
    """constant_pad_nd: negative pads cut off."""
    source, result = _ends(call)
    pads = call.args[1]
    value = call.args[2] if len(call.args) > 2 else 0
    before = [0] * len(source.shape)
    for number in range(len(pads) // 2):
        before[-1 - number] = pads[2 * number]
    return Expansion(kernels=(moving_kernel(call, result, [_placed(source, before)], fill=value),))


def describe_slice_backward(call: OpCall) -> Expansion:
    """slice_backward and select_backward: the gradient in its place among zeros."""
    source, result = _ends(call)
    dim = call.args[2] % len(result.shape)
    return Expansion(kernels=(moving_kernel(call, result, [_patch(call, source, result, dim, 3)]),))


def describe_slice_scatter(call: OpCall) -> Expansion:
    """slice_scatter and select_scatter: one tensor in its place within another."""
    (base, source), (result,) = call.args[:2], call.outputs
    assert result is not None
    dim = (call.args[2] if len(call.args) > 2 else 0) % len(result.shape)
    whole_base = _placed(base, [0] * len(base.shape), is_total=True)
    sources = [whole_base, _patch(call, source, result, dim, 3)]
    return Expansion(kernels=(moving_kernel(call, result, sources),))


def describe_turn(call: OpCall) -> Expansion:
    """flip, roll and repeat: indices run backwards or around."""
    source, result = _ends(call)
    rank, ahead = len(source.shape), len(result.shape) - len(source.shape)
    turned = _turned_dims(call, source.shape)

    def indices(at: Sequence[Tensor]) -> list[Tensor]:
        return [
            (turned[dim][0] * at[ahead + dim] + turned[dim][1]) % source.shape[dim]
            if dim in turned
            else at[ahead + dim]
            for dim in range(rank)
        ]

    spans = tuple(
        whole(source.shape[dim]) if dim in turned else along(ahead + dim) for dim in range(rank)
    )
    return _one(call, result, Source(value=source, spans=spans, indices=indices))


def describe_pixel_shuffle(call: OpCall) -> Expansion:
    """pixel_shuffle and pixel_unshuffle: channels become places, and back."""
    source, result = _ends(call)
    factor = call.args[1]
    rank = len(result.shape)
    channel, row, column = rank - 3, rank - 2, rank - 1
    ahead = tuple(map(along, range(channel)))
    area = factor * factor

    def from_channels(at: Sequence[Tensor]) -> list[Tensor]:
        inner = at[row] % factor * factor + at[column] % factor
        places = [at[channel] * area + inner, at[row] // factor, at[column] // factor]
        return [*at[:channel], *places]

    def from_places(at: Sequence[Tensor]) -> list[Tensor]:
        inner = at[channel] % area
        rows = at[row] * factor + inner // factor
        return [*at[:channel], at[channel] // area, rows, at[column] * factor + inner % factor]

    if call.op == "aten.pixel_shuffle":
        spans = (along(channel, area), _by(row, factor), _by(column, factor))
        chosen = Source(value=source, spans=(*ahead, *spans), indices=from_channels)
    else:
        spans = (_by(channel, area), along(row, factor), along(column, factor))
        chosen = Source(value=source, spans=(*ahead, *spans), indices=from_places)
    return _one(call, result, chosen)


def describe_window_view(call: OpCall) -> Expansion:
    """unfold: overlapping windows of a dimension, in a new last one."""
    source, result = _ends(call)
    rank = len(source.shape)
    dim, step = call.args[1] % rank, call.args[3]

    def indices(at: Sequence[Tensor]) -> list[Tensor]:
        return [at[d] * step + at[-1] if d == dim else at[d] for d in range(rank)]

    spans = tuple(Span(((d, step), (rank, 1))) if d == dim else along(d) for d in range(rank))
    return _one(call, result, Source(value=source, spans=spans, indices=indices))


def describe_diagonal(call: OpCall) -> Expansion:
    """diagonal: two dimensions at once, in a new last one."""
    source, result = _ends(call)
    rank = len(source.shape)
    offset, first, second = (*call.args[1:], *(0, 0, 1)[len(call.args) - 1 :])
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
    return _one(call, result, Source(value=source, spans=spans, indices=indices))


def describe_by_number(call: OpCall) -> Expansion:
    """Any other op that moves one tensor, or puts zeros: found by moving numbers from 1 on.

    The numbers are made when the kernel is first computed; every part reads the whole operand.
    """
    source, result = _ends(call)
    table: list[Tensor] = []

    def indices(at: Sequence[Tensor]) -> list[Tensor]:
        if not table:
            numbers = torch.arange(1, source.num_elements + 1).view(source.shape)
            table.append(call_with(call, {source.name: numbers}))
        picked = (table[0][tuple(at)] if at else table[0]) - 1
        strides = _strides(source.shape)
        found = [picked // s % n for s, n in zip(strides, source.shape, strict=True)]
        return [torch.where(picked < 0, -1, each) for each in found]

    spans = tuple(map(whole, source.shape))
    chosen = Source(value=source, spans=spans, indices=indices, is_total=False)
    return _one(call, result, chosen)


_ZERO = torch.zeros((), dtype=torch.int64)


def _ends(call: OpCall) -> tuple[Value, Value]:
    source, (result,) = call.args[0], call.outputs
    assert isinstance(source, Value)
    assert result is not None
    return source, result


def _one(call: OpCall, result: Value, source: Source) -> Expansion:
    return Expansion(kernels=(moving_kernel(call, result, [source]),))


def _by(loop: int, divide: int) -> Span:
    return Span(((loop, 1),), divide=divide)


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]


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


def _slice(arguments: Sequence[Any], size: int) -> tuple[int, int, int]:
    """(start, end, step) of slice's arguments behind the tensor."""
    _, start, end, step = (*arguments, *(0, None, None, 1)[len(arguments) :])
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


def _placed(source: Value, before: Sequence[int], *, is_total: bool = False) -> Source:
    """A tensor at an offset of a result that may be larger."""
    offsets = list(enumerate(before))
    spans = tuple(Span(((d, 1),), low=-offset, high=-offset) for d, offset in offsets)
    return Source(
        value=source,
        spans=spans,
        indices=lambda at: [at[d] - offset for d, offset in offsets],
        is_total=is_total,
    )


def _placed_slice(source: Value, dim: int, index: int) -> Source:
    """A tensor at one index of a dimension that it does not have."""
    rank = len(source.shape)
    loops = [d + (d >= dim) for d in range(rank)]

    return Source(
        value=source,
        spans=tuple(map(along, loops)),
        indices=lambda at: [at[loop] for loop in loops],
        is_total=False,
        is_taken=lambda at: at[dim] == index,
    )


def _patch(call: OpCall, source: Value, result: Value, dim: int, at: int) -> Source:
    """The part that slice or select takes, put back."""
    if "select" in call.op:
        return _placed_slice(source, dim, call.args[at] % result.shape[dim])
    start, _, step = _slice([dim, *call.args[at:]], result.shape[dim])
    spans = tuple(
        Span(((d, 1),), divide=step, low=-start, high=-start) if d == dim else along(d)
        for d in range(len(source.shape))
    )

    def indices(places: Sequence[Tensor]) -> list[Tensor]:
        found = list(places)
        ahead = places[dim] - start
        found[dim] = torch.where(ahead % step == 0, ahead // step, -1)
        return found

    return Source(value=source, spans=spans, indices=indices, is_total=False)


def _turned_dims(call: OpCall, shape: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Dimension -> (sign, offset) of flip, roll or repeat, to be taken modulo its size."""
    rank = len(shape)
    if call.op == "aten.flip":
        return {dim % rank: (-1, shape[dim] - 1) for dim in call.args[1]}
    if call.op == "aten.roll":
        shifts = call.args[1]
        return {dim % rank: (1, -s) for s, dim in zip(shifts, call.args[2], strict=True)}
    repeats = call.args[1][len(call.args[1]) - rank :]
    return {dim: (1, 0) for dim, count in enumerate(repeats) if count != 1}


def describe_roll(call: OpCall) -> Expansion:
    """roll; without dimensions it runs over all elements in order."""
    has_dims = len(call.args) > 2 and call.args[2]
    return describe_turn(call) if has_dims else describe_by_number(call)


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
    **dict.fromkeys(("aten.cat", "aten.stack"), describe_cat),
    "aten.constant_pad_nd": describe_pad,
    **dict.fromkeys(("aten.slice_backward", "aten.select_backward"), describe_slice_backward),
    **dict.fromkeys(("aten.slice_scatter", "aten.select_scatter"), describe_slice_scatter),
    "aten.flip": describe_turn,
    "aten.roll": describe_roll,
    "aten.repeat": describe_turn,
    **dict.fromkeys(("aten.pixel_shuffle", "aten.pixel_unshuffle"), describe_pixel_shuffle),
    "aten.unfold": describe_window_view,
    "aten.diagonal": describe_diagonal,
    **dict.fromkeys(
        (
            "aten.as_strided", "aten.diag_embed", "aten.rot90",
            "aten.diagonal_backward",
        ),
        describe_by_number,
    ),
}  # fmt: skip
