"""Elements in an order that no view gives: turned, repeated, shuffled.

Indices that run backwards or around need all of their dimension; a shuffle of pixels needs its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import call_with
from fsdtrain_dojo.lowering.describe.picking import Source, ends, moved, strides_of
from fsdtrain_dojo.lowering.kernel import Span, along, whole
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


def describe_turn(call: OpCall) -> Expansion:
    """flip, roll and repeat: indices run backwards or around."""
    source, result = ends(call)
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
    return moved(call, result, Source(value=source, spans=spans, indices=indices))


def describe_roll(call: OpCall) -> Expansion:
    """roll; without dimensions it runs over all elements in order."""
    has_dims = len(call.args) > 2 and call.args[2]
    return describe_turn(call) if has_dims else describe_by_number(call)


def describe_pixel_shuffle(call: OpCall) -> Expansion:
    """pixel_shuffle and pixel_unshuffle: channels become places, and back."""
    source, result = ends(call)
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
    return moved(call, result, chosen)


def describe_by_number(call: OpCall) -> Expansion:
    """Any other op that moves one tensor, or puts zeros: found by moving numbers from 1 on.

    The numbers are made when the kernel is first computed; every part reads the whole operand.
    """
    source, result = ends(call)
    table: list[Tensor] = []

    def indices(at: Sequence[Tensor]) -> list[Tensor]:
        if not table:
            numbers = torch.arange(1, source.num_elements + 1).view(source.shape)
            table.append(call_with(call, {source.name: numbers}))
        picked = (table[0][tuple(at)] if at else table[0]) - 1
        strides = strides_of(source.shape)
        found = [picked // s % n for s, n in zip(strides, source.shape, strict=True)]
        return [torch.where(picked < 0, -1, each) for each in found]

    spans = tuple(map(whole, source.shape))
    chosen = Source(value=source, spans=spans, indices=indices, is_total=False)
    return moved(call, result, chosen)


def _by(loop: int, divide: int) -> Span:
    return Span(((loop, 1),), divide=divide)


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


RULES: dict[str, Describe] = {
    **dict.fromkeys(("aten.flip", "aten.repeat"), describe_turn),
    "aten.roll": describe_roll,
    **dict.fromkeys(("aten.pixel_shuffle", "aten.pixel_unshuffle"), describe_pixel_shuffle),
    **dict.fromkeys(
        ("aten.as_strided", "aten.diag_embed", "aten.rot90", "aten.diagonal_backward"),
        describe_by_number,
    ),
}
