"""Ops that need some dimensions whole and treat the places of the others alike.

reflection_pad2d(x of (n, c, h, w))     loops: n c;  x: n, c, all h, all w;  y: the same
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import call_with, make_kernel, values_of
from fsdtrain_dojo.lowering.describe.pointwise import loops_of
from fsdtrain_dojo.lowering.kernel import Access, Block, Loop, Span, Unit, Value, along, whole
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


def describe_pad(call: OpCall) -> Expansion:
    """Pads with what is near the border: the last dimensions."""
    source, result = call.args[0], call.outputs[0]
    assert result is not None
    rank = len(result.shape)
    needed = range(rank - _num_padded(call), rank)
    return _by_row(call, [source], result, needed, unit=Unit.MOVE)


def describe_pad_backward(call: OpCall) -> Expansion:
    """Gradients of pads: what was read several times adds up. The operand gives only its shape."""
    gradient, source, padding = call.args
    (result,) = call.outputs
    assert result is not None
    rank = len(result.shape)
    count = _num_padded(call)

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        like = torch.zeros([*tensors[0].shape[: rank - count], *source.shape[rank - count :]])
        return [call.function(tensors[0], like, padding)]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=_loops(result, range(rank - count, rank)),
        reads=(_access(gradient, range(rank - count, rank)),),
        writes=(_access(result, range(rank - count, rank)),),
        flops=gradient.num_elements,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def describe_window_backward(call: OpCall) -> Expansion:
    """unfold_backward: windows add up along one dimension."""
    gradient, shape, dim = call.args[:3]
    (result,) = call.outputs
    assert result is not None
    rank = len(shape)
    dim = dim % rank

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        sizes = [shape[d] if d == dim else tensors[0].shape[d] for d in range(rank)]
        return [call.function(tensors[0], sizes, *call.args[2:])]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=_loops(result, [dim]),
        reads=(_access(gradient, [dim, rank]),),
        writes=(_access(result, [dim]),),
        flops=gradient.num_elements,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def describe_halves(call: OpCall) -> Expansion:
    """Glu and its backward: half of a dimension gates the other."""
    operands = list(values_of(call))
    (result,) = call.outputs
    assert result is not None
    position = len(operands)
    given = call.args[position] if len(call.args) > position else -1
    return _by_row(
        call, operands, result, [given % len(result.shape)],
        unit=Unit.VECTOR, flops=6 * result.num_elements, specials=2 * result.num_elements,
    )  # fmt: skip


def describe_channel_shuffle(call: OpCall) -> Expansion:
    """channel_shuffle: the second dimension is needed whole."""
    source, result = call.args[0], call.outputs[0]
    assert result is not None
    return _by_row(call, [source], result, [1], unit=Unit.MOVE)


def _by_row(
    call: OpCall,
    operands: Sequence[Value],
    result: Value,
    needed: Collection[int],
    *,
    unit: Unit,
    flops: int = 0,
    specials: int = 0,
) -> Expansion:
    by_name = {value.name: value for value in operands}
    kernel = make_kernel(
        call,
        unit=unit,
        loops=_loops(result, needed),
        reads=tuple(_access(value, needed) for value in by_name.values()),
        writes=(_access(result, needed),),
        flops=flops,
        specials=specials,
        compute=lambda tensors, block: [call_with(call, dict(zip(by_name, tensors, strict=True)))],
    )
    return Expansion(kernels=(kernel,))


def _loops(result: Value, needed: Collection[int]) -> tuple[Loop, ...]:
    """The dimensions of the result that are not needed whole."""
    kept = [size for dim, size in enumerate(result.shape) if dim not in needed]
    return loops_of(kept)


def _access(value: Value, needed: Collection[int]) -> Access:
    spans: list[Span] = []
    loop = 0
    for dim, size in enumerate(value.shape):
        if dim in needed:
            spans.append(whole(size))
        else:
            spans.append(along(loop))
            loop += 1
    return Access(value.name, tuple(spans))


def _num_padded(call: OpCall) -> int:
    return int(call.op.partition("_pad")[2][0])


_PADS = tuple(
    f"aten.{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)
)
RULES: dict[str, Describe] = {
    **dict.fromkeys(_PADS, describe_pad),
    **dict.fromkeys((f"{name}_backward" for name in _PADS), describe_pad_backward),
    **dict.fromkeys(("aten.glu", "aten.glu_backward"), describe_halves),
    "aten.unfold_backward": describe_window_backward,
    "aten.channel_shuffle": describe_channel_shuffle,
}
