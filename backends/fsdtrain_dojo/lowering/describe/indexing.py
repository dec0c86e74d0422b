"""Look-ups: where to read is said by other values.

    index_select(x, 0, at)     loops: places, columns;  x: all rows (gathered), column;  at: place

All of the dimension that is pointed into is needed, of which a share is read.
"""

import math
from collections.abc import Sequence

import numpy as np

from fsdtrain_dojo.lowering.describe.building import along_all, call_with, make_kernel
from fsdtrain_dojo.lowering.describe.fallback import describe_whole
from fsdtrain_dojo.lowering.describe.pointwise import loops_of, torch_dtype
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Span,
    Unit,
    Value,
    along,
    whole,
)
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


def describe_look_up(call: OpCall) -> Expansion:
    """index_select, gather and embedding: one dimension is pointed into."""
    (result,) = call.outputs
    assert result is not None
    if call.op == "aten.embedding":
        source, at, dim = call.args[0], call.args[1], 0
    else:
        source, dim, at = call.args[:3]
        dim = dim % max(len(source.shape), 1)
    if not source.shape or not at.shape:
        return describe_whole(call)
    # Loops of the index: the dimension's place is taken by those of the index.
    if call.op == "aten.gather":
        index_spans = tuple(map(along, range(len(at.shape))))
        loop_of = dict(enumerate(range(len(source.shape))))
    else:
        index_spans = tuple(along(dim + d) for d in range(len(at.shape)))
        loop_of = {d: d if d < dim else d + len(at.shape) - 1 for d in range(len(source.shape))}
    spans = tuple(
        whole(size) if d == dim else along(loop_of[d]) for d, size in enumerate(source.shape)
    )
    num_places = at.shape[dim] if call.op == "aten.gather" else at.num_elements
    kernel = make_kernel(
        call,
        unit=Unit.MOVE,
        loops=loops_of(result.shape),
        reads=(
            Access(
                source.name, spans, is_gathered=True, gathered_share=num_places / source.shape[dim]
            ),
            Access(at.name, index_spans),
        ),
        writes=(along_all(result),),
        compute=lambda tensors, block: [
            call_with(call, {source.name: tensors[0], at.name: tensors[1]})
        ],
    )
    return Expansion(kernels=(kernel,))


def describe_index(call: OpCall) -> Expansion:
    """x[:, i, j]: several dimensions are pointed into at once."""
    source, listed = call.args[:2]
    (result,) = call.outputs
    assert result is not None
    pointed = [d for d, each in enumerate(listed) if each is not None]
    indices = [each for each in listed if each is not None]
    if any(each.format == "bool" for each in indices):
        return describe_whole(call)
    common = np.broadcast_shapes(*(each.shape for each in indices))
    place, loop_of = index_loops(len(source.shape), pointed, len(common))
    spans = tuple(
        whole(size) if d in pointed else along(loop_of[d]) for d, size in enumerate(source.shape)
    )
    share = math.prod(common) / math.prod(source.shape[d] for d in pointed)
    by_name = {each.name: each for each in indices}
    reads = tuple(broadcast_at(each, place, len(common)) for each in by_name.values())
    if source.name in by_name:
        return describe_whole(call)
    kernel = make_kernel(
        call,
        unit=Unit.MOVE,
        loops=loops_of(result.shape),
        reads=(Access(source.name, spans, is_gathered=True, gathered_share=share), *reads),
        writes=(along_all(result),),
        compute=lambda tensors, block: [
            call_with(call, dict(zip((source.name, *by_name), tensors, strict=True)))
        ],
    )
    return Expansion(kernels=(kernel,))


def index_loops(rank: int, pointed: Sequence[int], num_common: int) -> tuple[int, dict[int, int]]:
    """(first loop of the indices, loop of every other dimension) in the result of x[indices].

    The indices' dimensions stand where the first of them was, if those are neighbours; else first.
    """
    are_neighbours = list(pointed) == list(range(pointed[0], pointed[0] + len(pointed)))
    place = pointed[0] if are_neighbours else 0
    others = [dim for dim in range(rank) if dim not in pointed]
    return place, {
        dim: number if number < place else number + num_common for number, dim in enumerate(others)
    }


def broadcast_at(index: Value, first_loop: int, num_loops: int) -> Access:
    """Access to an index, broadcast from the right to a number of loops."""
    ahead = first_loop + num_loops - len(index.shape)
    spans = (Span() if size == 1 else along(ahead + d) for d, size in enumerate(index.shape))
    return Access(index.name, tuple(spans))


def describe_search(call: OpCall) -> Expansion:
    """Bucketize and searchsorted among one sorted row: each element by itself."""
    at, row = call.args[:2] if call.op == "aten.bucketize" else call.args[1::-1]
    (result,) = call.outputs
    assert result is not None
    if not isinstance(at, Value) or len(row.shape) != 1 or call.kwargs.get("sorter") is not None:
        return describe_whole(call)
    depth = max(math.ceil(math.log2(max(row.shape[0], 2))), 1)
    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops_of(result.shape),
        reads=(along_all(at), Access(row.name, (whole(row.shape[0]),))),
        writes=(along_all(result),),
        flops=depth * result.num_elements,
        compute=lambda tensors, block: [
            call_with(call, {at.name: tensors[0], row.name: tensors[1]}).to(torch_dtype(result))
        ],
    )
    return Expansion(kernels=(kernel,))


RULES: dict[str, Describe] = {
    **dict.fromkeys(("aten.index_select", "aten.gather", "aten.embedding"), describe_look_up),
    **dict.fromkeys(("aten.index", "aten._unsafe_index"), describe_index),
    **dict.fromkeys(("aten.bucketize", "aten.searchsorted"), describe_search),
}
