"""Results that are put together: joined tensors, pads, gradients in their place among zeros.

    y = cat([a, b]), 3 and 2 long     loop i;  a: i;  b: i - 3;  y: i

Each operand is read where the result's box covers it, which for many nodes is nowhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.movement import slice_indices
from fsdtrain_dojo.lowering.describe.picking import Source, ends, moving_kernel
from fsdtrain_dojo.lowering.kernel import Span, Value, along
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


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
    source, result = ends(call)
    pads = call.args[1]
    value = call.args[2] if len(call.args) > 2 else 0
    before = [0] * len(source.shape)
    for number in range(len(pads) // 2):
        before[-1 - number] = pads[2 * number]
    return Expansion(kernels=(moving_kernel(call, result, [_placed(source, before)], fill=value),))


def describe_slice_backward(call: OpCall) -> Expansion:
    """slice_backward and select_backward: the gradient in its place among zeros."""
    source, result = ends(call)
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
    start, _, step = slice_indices([dim, *call.args[at:]], result.shape[dim])
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


RULES: dict[str, Describe] = {
    **dict.fromkeys(("aten.cat", "aten.stack"), describe_cat),
    "aten.constant_pad_nd": describe_pad,
    **dict.fromkeys(("aten.slice_backward", "aten.select_backward"), describe_slice_backward),
    **dict.fromkeys(("aten.slice_scatter", "aten.select_scatter"), describe_slice_scatter),
}
