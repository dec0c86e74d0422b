"""Sums and copies to places that other values say.

    index_add(x, 0, at, y)     loops: rows, columns | places;  y: place, column;  at: place

To its own range of rows every node adds what falls into it; parts of the operand give partial sums,
of which the first holds the tensor that is added to.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import along_all, make_kernel, values_of
from fsdtrain_dojo.lowering.describe.fallback import describe_whole
from fsdtrain_dojo.lowering.describe.indexing import broadcast_at, index_loops
from fsdtrain_dojo.lowering.describe.pointwise import loops_of
from fsdtrain_dojo.lowering.kernel import Access, Block, Loop, Range, Span, Unit, Value, along
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


def describe_embedding_backward(call: OpCall) -> Expansion:
    """embedding_dense_backward: gradients of rows add up, but for the padding row."""
    gradient, at, _, padding, scales_by_count = call.args
    (result,) = call.outputs
    assert result is not None
    if scales_by_count:
        return describe_whole(call)
    rank = len(at.shape)
    loops = (
        Loop("row", result.shape[0]),
        Loop("column", result.shape[1]),
        *(Loop(f"place{d}", size) for d, size in enumerate(at.shape)),
    )
    places = tuple(along(2 + d) for d in range(rank))

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        given, index = tensors[0].flatten(0, rank - 1), tensors[1].flatten()
        (first, end), (left, right) = block.boxes[2]
        is_here = (index >= first) & (index < end) & (index != padding)
        total = torch.zeros(end - first, right - left, dtype=given.dtype)
        return [total.index_add_(0, index[is_here] - first, given[is_here])]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops,
        reads=(Access(gradient.name, (*places, along(1))), Access(at.name, places)),
        writes=(Access(result.name, (along(0), along(1))),),
        flops=gradient.num_elements,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def describe_scatter(call: OpCall) -> Expansion:
    """index_add, scatter_add, scatter, index_copy and index_fill, along one dimension."""
    base, dim, at = call.args[:3]
    source = call.args[3] if len(call.args) > 3 else call.kwargs.get("value")
    (result,) = call.outputs
    assert result is not None
    rank = len(result.shape)
    names = [value.name for value in values_of(call)]
    if not rank or not at.shape or len(set(names)) < len(names) or call.kwargs.get("reduce"):
        return describe_whole(call)
    dim = dim % rank
    is_flat = call.op.startswith("aten.index_")  # the index has one dimension
    is_sum = call.op in _SUMS
    loops = (*loops_of(result.shape), Loop("place", at.shape[0 if is_flat else dim], is_sum))
    own = tuple(along(rank if d == dim else d) for d in range(rank))
    reads = [along_all(base), Access(at.name, (along(rank),) if is_flat else own)]
    source_value = source if isinstance(source, Value) else None
    if source_value is not None:
        reads.append(Access(source_value.name, own if source_value.shape else ()))

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        first, end = block.ranges[dim]
        start = tensors[0]
        if block.ranges[rank][0] > 0:  # the base is added once
            start = torch.zeros_like(start)
        index = tensors[1]
        is_here = (index >= first) & (index < end)
        # What goes elsewhere goes into one more row, which is cut off.
        extra = start.narrow(dim, 0, 1)
        index = torch.where(is_here, index - first, end - first)
        given = tensors[2] if source_value is not None else source
        if isinstance(given, Tensor) and given.ndim == rank and not is_flat:
            given = given[tuple(slice(0, size) for size in index.shape)]
        widened = torch.cat([start, extra], dim)
        filled = call.function(widened, dim, index, given, **_plain_options(call))
        return [filled.narrow(dim, 0, end - first)]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR if is_sum else Unit.MOVE,
        loops=loops,
        reads=tuple(reads),
        writes=(Access(result.name, tuple(map(along, range(rank)))),),
        flops=(source_value or at).num_elements if is_sum else 0,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def _plain_options(call: OpCall) -> dict[str, object]:
    return {name: each for name, each in call.kwargs.items() if name == "alpha"}


def describe_index_put(call: OpCall) -> Expansion:
    """x[i, j] = y or += y; with dimensions in front or behind that are not pointed into."""
    base, listed, given = call.args[:3]
    accumulates = bool(call.args[3]) if len(call.args) > 3 else False
    (result,) = call.outputs
    assert result is not None
    rank = len(result.shape)
    pointed = [d for d, each in enumerate(listed) if each is not None]
    indices = [each for each in listed if each is not None]
    names = [value.name for value in values_of(call)]
    is_mask = any(each.format == "bool" for each in indices)
    if is_mask or len(set(names)) < len(names):
        return describe_whole(call)
    common = np.broadcast_shapes(*(each.shape for each in indices))
    place, loop_of = index_loops(rank, pointed, len(common))
    others = [d for d in range(rank) if d not in pointed]
    # Loops of the result first, then those of the places.
    loops = (
        *loops_of(result.shape),
        *(Loop(f"place{d}", size, accumulates) for d, size in enumerate(common)),
    )
    value_loops = {place + d: rank + d for d in range(len(common))} | {
        loop: dim for dim, loop in loop_of.items()
    }
    num_loops = len(common) + len(others)
    ahead = num_loops - len(given.shape)
    value_spans = tuple(
        Span() if size == 1 else along(value_loops[ahead + d]) for d, size in enumerate(given.shape)
    )

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        ranges = block.ranges
        start = tensors[0]
        if any(first > 0 for first, _ in ranges[rank:]):  # the base is added once
            start = torch.zeros_like(start)
        lengths = [ranges[value_loops[i]][1] - ranges[value_loops[i]][0] for i in range(num_loops)]
        places = range(place, place + len(common))
        values = _places_first(tensors[1].expand(lengths), places)
        points = []
        for point, dim in zip(tensors[2:], pointed, strict=True):
            flat = point.expand([lengths[i] for i in places]).flatten()
            points.append(torch.where(flat < 0, flat + result.shape[dim], flat))
        order = [*pointed, *others]
        filled = _put(
            start.permute(order), [ranges[dim] for dim in pointed], points, values, accumulates
        )
        return [filled.permute([order.index(dim) for dim in range(rank)]).contiguous()]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR if accumulates else Unit.MOVE,
        loops=loops,
        reads=(
            along_all(base),
            Access(given.name, value_spans),
            *(broadcast_at(each, rank, len(common)) for each in indices),
        ),
        writes=(along_all(result),),
        flops=math.prod(common) * math.prod(result.shape[d] for d in others) if accumulates else 0,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def _places_first(values: Tensor, places: Sequence[int]) -> Tensor:
    """With the dimensions of the places in front, and those as one."""
    moved = values.movedim(list(places), list(range(len(places))))
    return moved.reshape(-1, *moved.shape[len(places) :])


def _put(
    base: Tensor,
    ranges: Sequence[Range],
    points: Sequence[Tensor],
    values: Tensor,
    accumulates: bool,
) -> Tensor:
    """`base`, which holds `ranges` of its first dimensions, with the values that belong there."""
    is_here = torch.ones_like(points[0], dtype=torch.bool)
    for point, (first, end) in zip(points, ranges, strict=True):
        is_here &= (point >= first) & (point < end)
    at = tuple((point - first)[is_here] for point, (first, _) in zip(points, ranges, strict=True))
    return base.contiguous().index_put(at, values[is_here].to(base.dtype), accumulate=accumulates)


_SUMS = ("aten.index_add", "aten.scatter_add")
RULES: dict[str, Describe] = {
    "aten.embedding_dense_backward": describe_embedding_backward,
    **dict.fromkeys(
        (*_SUMS, "aten.scatter", "aten.index_copy", "aten.index_fill"), describe_scatter
    ),
    **dict.fromkeys(("aten.index_put", "aten._unsafe_index_put"), describe_index_put),
}
