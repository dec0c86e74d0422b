"""Kernels of the vector unit over plain indices, and arguments of calls by their names.

`make_plain_kernel` is told of each dimension of each value which loop it runs over, and hands its
formula tensors that broadcast over all loops. Knows no op.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import make_kernel
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Block,
    Combine,
    Kernel,
    Loop,
    Range,
    Span,
    Unit,
    Value,
    along,
    whole,
)
from fsdtrain_dojo.lowering.op_call import OpCall

# What one dimension runs over: a loop; an outer and an inner loop, which lie there one after the
# other (the inner one may not be divided); nothing, where all of it is touched at every point; or a
# span, in kernels that are not plain.
Over = int | tuple[int, int] | None | Span
Formula = Callable[[Sequence[Tensor], Block], Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Indexed:
    """A value and what each of its dimensions runs over.

    Args:
        value: the value.
        over: by dimension.
        gathered_share: of a box's elements that are read, where others than loops pick them.
    """

    value: Value
    over: tuple[Over, ...]
    gathered_share: float | None = None


def bind(call: OpCall, names: str, **defaults: Any) -> dict[str, Any]:
    """The arguments of a call by name.

    Args:
        call: whose arguments may be given by position or by keyword, or left out.
        names: of the parameters in the order of the op's schema, separated by spaces.
        defaults: of parameters that may be left out.
    """
    order = names.split()
    assert len(call.args) <= len(order), (call.name, call.op)
    given = dict(zip(order, call.args, strict=False)) | dict(call.kwargs)
    return {name: given[name] if name in given else defaults[name] for name in order}


def make_plain_kernel(
    call: OpCall,
    suffix: str,
    *,
    loops: Sequence[Loop],
    reads: Sequence[Indexed],
    writes: Sequence[Indexed],
    formula: Formula,
    combine: Combine = Combine.SUM,
    flops: int = 0,
    specials: int = 0,
) -> Kernel:
    """A kernel of the vector unit over plain indices.

    Args:
        call: it belongs to.
        suffix: of its name.
        loops: see `Kernel`.
        reads: each dimension of a value runs over the loops in their order.
        writes: the same.
        formula: gets a tensor for each read, with a dimension for each loop, of length 1 where
            the value does not run over it; returns one or several of the same kind.
        combine: see `Kernel`.
        flops: over all points together.
        specials: the same.
    """

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        aligned = [
            _align(tensor, read.over, block.ranges)
            for tensor, read in zip(tensors, reads, strict=True)
        ]
        results = formula(aligned, block)
        results = [results] if isinstance(results, Tensor) else results
        boxes = block.boxes[len(reads) :]
        return [
            result.expand(_expanded(result, write.over, block.ranges)).reshape(box_shape(box))
            for result, write, box in zip(results, writes, boxes, strict=True)
        ]

    return make_kernel(
        call,
        suffix=suffix,
        unit=Unit.VECTOR,
        loops=tuple(loops),
        reads=tuple(index_access(read, loops) for read in reads),
        writes=tuple(index_access(write, loops) for write in writes),
        compute=compute,
        combine=combine,
        flops=flops,
        specials=specials,
    )


def index_access(indexed: Indexed, loops: Sequence[Loop]) -> Access:
    """The access that goes over plain indices."""
    spans = []
    for over, size in zip(indexed.over, indexed.value.shape, strict=True):
        if over is None:
            spans.append(whole(size))
        elif isinstance(over, int):
            spans.append(along(over))
        elif isinstance(over, Span):
            spans.append(over)
        else:
            outer, inner = over
            spans.append(Span(((outer, loops[inner].size), (inner, 1))))
    share = indexed.gathered_share
    return Access(
        indexed.value.name,
        tuple(spans),
        is_gathered=share is not None,
        gathered_share=1.0 if share is None else share,
    )


def broadcast_over(shape: Sequence[int], num_loops: int) -> tuple[Over, ...]:
    """What the dimensions of an operand run over where the last loop is the last dimension."""
    first = num_loops - len(shape)
    return tuple(first + axis if size != 1 else None for axis, size in enumerate(shape))


def box_shape(box: Sequence[Range]) -> tuple[int, ...]:
    """Elements along each dimension of a box."""
    return tuple(int(max(end - first, 0)) for first, end in box)


def indices_of(side: Range) -> Tensor:
    """The indices of a range; of nodes that are computed together, each one's own."""
    first, end = side
    return torch.arange(int(end - first)) + first


def is_all(loops: Sequence[Loop], block: Block) -> bool:
    """Whether a block has all points of a kernel."""
    return block.ranges == tuple((0, loop.size) for loop in loops)


def fill_rest(tensor: Tensor, shape: Sequence[int], box: Sequence[Range]) -> Tensor:
    """A tensor of the whole shape, with zeros around the box where nothing is read."""
    if tensor.shape == tuple(shape):
        return tensor
    filled = tensor.new_zeros(shape)
    filled[tuple(slice(*side) for side in box)] = tensor
    return filled


def num_points(loops: Sequence[Loop]) -> int:
    """Of a nest."""
    return prod(loop.size for loop in loops)


def _lengths(ranges: Sequence[Range]) -> list[int]:
    return [end - first for first, end in ranges]


def loops_of(over: Sequence[Over]) -> list[int]:
    """The loops that dimensions run over, in the order of the dimensions."""
    loops: list[int] = []
    for each in over:
        assert not isinstance(each, Span), "kernels over plain indices only"
        loops += (each,) if isinstance(each, int) else each or ()
    return loops


def _align(tensor: Tensor, over: Sequence[Over], ranges: Sequence[Range]) -> Tensor:
    """A tensor with a dimension for each loop; of length 1 where it does not run over the loop."""
    lengths = _lengths(ranges)
    shape = [1] * len(lengths)
    for loop in loops_of(over):
        shape[loop] = lengths[loop]
    return tensor.reshape(shape)


def _expanded(result: Tensor, over: Sequence[Over], ranges: Sequence[Range]) -> list[int]:
    """The shape of a result that may be the same along loops that it is written over."""
    lengths = _lengths(ranges)
    shape = list(result.shape)
    for loop in loops_of(over):
        shape[loop] = lengths[loop]
    return shape
