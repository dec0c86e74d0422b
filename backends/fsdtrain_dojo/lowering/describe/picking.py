"""Kernels that only move: every element of the result is one of an operand, or a constant.

A `Source` says for indices of the result which indices of an operand they come from. Boxes follow
from its spans, and what is computed is a look-up within the boxes.

    y = cat([a, b]), 3 and 2 long     loop i;  a: i;  b: i - 3, cut to b;  y: i
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import along_all, make_kernel
from fsdtrain_dojo.lowering.describe.nest import indices_of
from fsdtrain_dojo.lowering.describe.pointwise import loops_of, torch_dtype
from fsdtrain_dojo.lowering.kernel import Access, Block, Kernel, Span, Unit, Value
from fsdtrain_dojo.lowering.op_call import Expansion, OpCall

# Indices of the result, a tensor for each dimension that broadcasts to its box -> the same for
# each dimension of the operand. What lies outside of the operand is not taken from it.
Indices = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One operand of a result.

    Args:
        value: the operand.
        spans: of its dimensions, by the loops, which are the dimensions of the result.
        indices: see `Indices`.
        is_total: whether every element of the result comes from here.
        is_taken: of indices of the result, whether their element comes from here; beside this the
            operand's own shape decides.
    """

    value: Value
    spans: tuple[Span, ...]
    indices: Indices
    is_total: bool = True
    is_taken: Callable[[Sequence[Tensor]], Tensor] | None = None


def moving_kernel(
    call: OpCall,
    result: Value,
    sources: Sequence[Source],
    *,
    fill: float = 0,
    suffix: str = "",
) -> Kernel:
    """A kernel that puts a result together; later sources go over earlier ones.

    Args:
        call: the op.
        result: what it gives.
        sources: of its elements.
        fill: of elements that no source gives.
        suffix: of the kernel's name.
    """

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        box = block.boxes[-1]
        places = _places(box)
        out: Tensor | None = None
        if not sources or not sources[0].is_total:
            shape = [end - first for first, end in box]
            out = torch.full(shape, fill, dtype=torch_dtype(result))
        for source, tensor, given in zip(sources, tensors, block.boxes, strict=False):
            out = _pick(source, tensor, given, places, out)
        assert out is not None
        return [out]

    return make_kernel(
        call,
        suffix=suffix,
        unit=Unit.MOVE,
        loops=loops_of(result.shape),
        reads=tuple(Access(source.value.name, source.spans) for source in sources),
        writes=(along_all(result),),
        compute=compute,
    )


def ends(call: OpCall) -> tuple[Value, Value]:
    """Operand and result of an op that has one of each."""
    source, (result,) = call.args[0], call.outputs
    assert isinstance(source, Value)
    assert result is not None
    return source, result


def moved(call: OpCall, result: Value, source: Source) -> Expansion:
    """The one kernel of an op that moves one operand."""
    return Expansion(kernels=(moving_kernel(call, result, [source]),))


def strides_of(shape: Sequence[int]) -> list[int]:
    """How far apart neighbours along each dimension are, in elements."""
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]


def _places(box: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The indices of a box, dimension by dimension, to be broadcast against each other."""
    rank = len(box)
    return [
        indices_of(side).view([-1 if d == dim else 1 for d in range(rank)])
        for dim, side in enumerate(box)
    ]


def _pick(
    source: Source,
    tensor: Tensor,
    box: Sequence[tuple[int, int]],
    places: Sequence[Tensor],
    out: Tensor | None,
) -> Tensor:
    """`out` with those elements in place that this source gives."""
    shape = np.broadcast_shapes(*(place.shape for place in places)) if places else ()
    indices = list(source.indices(places))
    if source.is_total:
        local = [index - first for index, (first, _) in zip(indices, box, strict=True)]
        return _look_up(tensor, local).expand(shape).contiguous()
    assert out is not None
    if tensor.numel() == 0:
        return out
    is_here = torch.ones((), dtype=torch.bool)
    if source.is_taken is not None:
        is_here = source.is_taken(places)
    local = []
    for index, (first, _), size in zip(indices, box, source.value.shape, strict=True):
        is_here = is_here & (index >= 0) & (index < size)
        local.append(index.clamp(0, size - 1) - first)
    clamped = [index.clamp(0, size - 1) for index, size in zip(local, tensor.shape, strict=True)]
    return torch.where(is_here, _look_up(tensor, clamped), out)


def _look_up(tensor: Tensor, indices: list[Tensor]) -> Tensor:
    """Elements of a tensor; square brackets would make numbers of indices without dimensions."""
    if not indices:
        return tensor.clone()
    found: Tensor = torch.ops.aten.index.Tensor(tensor, indices)
    return found
