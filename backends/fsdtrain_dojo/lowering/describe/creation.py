"""Ops that make values of nothing, or nearly: constants, ramps, grids, random numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import (
    along_all,
    broadcast,
    call_with,
    make_kernel,
    values_of,
)
from fsdtrain_dojo.lowering.describe.pointwise import is_random, loops_of, torch_dtype
from fsdtrain_dojo.lowering.kernel import Access, Block, Compute, Unit, Value, along, whole
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


def describe_constant(call: OpCall) -> Expansion:
    """full, zeros, ones and the like: one number everywhere."""
    (result,) = call.outputs
    assert result is not None
    name = call.op.rpartition(".")[2]
    number: Any = 1 if "ones" in name else 0
    if "full" in name or name == "fill":
        number = call.args[1] if name != "new_full" else call.args[2]
    elif name == "scalar_tensor":
        number = call.args[0]
    if isinstance(number, Value):
        return _from_scalar(call, result, number)
    dtype = torch_dtype(result)
    return _made(
        call, result, lambda tensors, block: [torch.full(_sizes(block), number, dtype=dtype)]
    )


def describe_ramp(call: OpCall) -> Expansion:
    """arange, linspace, eye: small, and a part is cut out of the whole."""
    (result,) = call.outputs
    assert result is not None

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        made: Tensor = call_with(call, {})
        return [made[tuple(slice(*side) for side in block.boxes[0])].clone()]

    return _made(call, result, compute)


def describe_unknown(call: OpCall) -> Expansion:
    """Random numbers and memory that was not set: taken as they are."""
    (result,) = call.outputs
    assert result is not None
    tensors_by_name = {value.name: value for value in values_of(call)}
    assert not tensors_by_name or "like" in call.op or "new" in call.op, call.op
    dtype = torch_dtype(result)
    return _made(
        call, result, lambda tensors, block: [torch.zeros(_sizes(block), dtype=dtype)],
        is_unknown=True,
    )  # fmt: skip


def describe_affine_grid(call: OpCall) -> Expansion:
    """affine_grid_generator: coordinates of a regular grid, moved by a matrix for each image."""
    matrix, size, aligns = call.args
    (result,) = call.outputs
    assert isinstance(matrix, Value)
    assert result is not None
    rank = len(result.shape)
    *_, num_given = matrix.shape

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        made = call.function(tensors[0], [len(tensors[0]), *size[1:]], aligns)
        inner = tuple(slice(*side) for side in block.boxes[1][1:])
        return [made[(slice(None), *inner)].clone()]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops_of(result.shape[:-1]),
        reads=(Access(matrix.name, (along(0), *map(whole, matrix.shape[1:]))),),
        writes=(Access(result.name, (*map(along, range(rank - 1)), whole(result.shape[-1]))),),
        flops=2 * (num_given - 1) * result.num_elements,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def _from_scalar(call: OpCall, result: Value, number: Value) -> Expansion:
    """A number that is only known when the step runs."""
    dtype = torch_dtype(result)

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        return [tensors[0].to(dtype).expand(_sizes(block)).clone()]

    kernel = make_kernel(
        call,
        unit=Unit.MOVE,
        loops=loops_of(result.shape),
        reads=(broadcast(number, len(result.shape)),),
        writes=(along_all(result),),
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def _made(call: OpCall, result: Value, compute: Compute, *, is_unknown: bool = False) -> Expansion:
    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops_of(result.shape),
        reads=(),
        writes=(along_all(result),),
        # Random bits are one operation of the unit; memory that is not set is none.
        flops=0 if is_unknown and not is_random(call) else result.num_elements,
        compute=compute,
        is_random=is_unknown,
    )
    return Expansion(kernels=(kernel,))


def _sizes(block: Block) -> list[int]:
    return [end - first for first, end in block.boxes[-1]]


RULES: dict[str, Describe] = {
    **dict.fromkeys(
        (
            "aten.full", "aten.full_like", "aten.new_full", "aten.fill", "aten.scalar_tensor",
            "aten.zeros", "aten.zeros_like", "aten.new_zeros", "aten._efficientzerotensor",
            "aten.ones", "aten.ones_like", "aten.new_ones",
        ),
        describe_constant,
    ),
    "aten.affine_grid_generator": describe_affine_grid,
    **dict.fromkeys(("aten.arange", "aten.linspace", "aten.logspace", "aten.eye"), describe_ramp),
    **dict.fromkeys(
        (
            "aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty",
            "aten.new_empty_strided", "aten.rand", "aten.randn", "aten.randint", "aten.randperm",
            "aten.rand_like", "aten.randn_like", "aten.randint_like",
        ),
        describe_unknown,
    ),
}  # fmt: skip
