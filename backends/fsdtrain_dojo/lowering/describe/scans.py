"""Ops that need all of a dimension at once: sorts, scans, extremes with their places, products.

sort(x, 1)      loops: the dimensions of x, of which the second is never divided
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import along_all, call_with, make_kernel, values_of
from fsdtrain_dojo.lowering.describe.pointwise import is_random
from fsdtrain_dojo.lowering.kernel import Access, Block, Loop, Unit, Value, along, whole
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall

Dims = tuple[int, ...]


def describe_along(call: OpCall) -> Expansion:
    """Ops that need a whole dimension at once: sorts, scans, argmax, products."""
    (source, *_) = values_of(call)
    rank = len(source.shape)
    dims = _whole_dims(call, rank)
    results = [value for value in call.outputs if value is not None]
    indices = [index for index, value in enumerate(call.outputs) if value is not None]
    loops = tuple(
        Loop(f"d{dim}", size, is_splittable=dim not in dims)
        for dim, size in enumerate(source.shape)
    )

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        found = call_with(call, {source.name: tensors[0]})
        return [found[i] for i in indices] if isinstance(found, list | tuple) else [found]

    # Sorts compare each element with the logarithm of the others, the rest looks at it once.
    length = math.prod(source.shape[dim] for dim in dims)
    is_sort = call.op in _SORTS
    weight = max(math.ceil(math.log2(max(length, 2))), 1) if is_sort else 1
    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops,
        reads=(along_all(source),),
        writes=tuple(_along_write(value, source, dims) for value in results),
        flops=weight * source.num_elements,
        specials=2 * source.num_elements if call.op in _EXPONENTIALS else 0,
        compute=compute,
        is_random=is_random(call),
    )
    return Expansion(kernels=(kernel,))


def _along_write(value: Value, source: Value, dims: Dims) -> Access:
    """Loops of the source's dimensions; where the length changes, all of it at the only range."""
    rank = len(source.shape)
    if len(value.shape) == rank:
        sizes = zip(value.shape, source.shape, strict=True)
        spans = tuple(
            along(dim) if mine == given else whole(mine) for dim, (mine, given) in enumerate(sizes)
        )
        return Access(value.name, spans)
    kept = [dim for dim in range(rank) if dim not in dims]
    return Access(value.name, tuple(map(along, kept)))


def _whole_dims(call: OpCall, rank: int) -> Dims:
    """The dimensions that are needed whole."""
    position = {"aten.topk": 2, "aten.kthvalue": 2}.get(call.op, 1)
    given = call.args[position] if len(call.args) > position else call.kwargs.get("dim")
    if call.op in ("aten.topk", "aten.kthvalue", "aten.sort") and not isinstance(given, int):
        given = -1
    if isinstance(given, bool):  # sort.stable gives its dimension by name
        given = call.kwargs.get("dim", -1)
    return reduced_dims(given, rank)


def reduced_dims(given: Any, rank: int) -> Dims:
    """The dimensions that an argument names, all where it names none, ascending."""
    if given is None or isinstance(given, list | tuple) and not given:
        return tuple(range(rank))
    listed = given if isinstance(given, list | tuple) else [given]
    return tuple(sorted({dim % rank for dim in listed})) if rank else ()


_SORTS = ("aten.sort", "aten.topk", "aten.median", "aten.kthvalue", "aten.argsort")
_EXPONENTIALS = ("aten.logsumexp", "aten.logcumsumexp")
_SCANS = "cumsum cumprod cummax cummin prod argmax argmin"
RULES: dict[str, Describe] = dict.fromkeys(
    (*_SORTS, *_EXPONENTIALS, *(f"aten.{name}" for name in _SCANS.split())), describe_along
)
