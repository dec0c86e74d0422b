"""Element-wise ops: each element of the results comes from the same element of the operands.

    y[i, j] = x[i, j] * scale[j]       loops i j; x: i, j; scale: j; y: i, j

Operands that are broadcast stay at their one index. Every op that PyTorch tags as element-wise is
one, beside those of the table below.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import (
    along_all,
    broadcast,
    call_with,
    make_kernel,
    values_of,
)
from fsdtrain_dojo.lowering.describe.vector_cost import element_cost
from fsdtrain_dojo.lowering.kernel import Block, Loop, Unit, Value
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall

# Of different type than a copy of the bits: the vector unit rounds.
_COPIES = ("aten.clone", "aten._to_copy", "aten.lift_fresh_copy", "aten.contiguous", "aten.copy")


def describe_pointwise(call: OpCall) -> Expansion:
    """One kernel; its loops are the dimensions of the results."""
    results = [value for value in call.outputs if value is not None]
    shape = results[0].shape
    assert all(value.shape == shape for value in results), call.op
    operands = {value.name: value for value in values_of(call)}
    indices = [index for index, value in enumerate(call.outputs) if value is not None]

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        found = call_with(call, dict(zip(operands, tensors, strict=True)))
        return [found[i] for i in indices] if isinstance(found, list | tuple) else [found]

    flops, specials = element_cost(call)
    num_elements = results[0].num_elements
    is_copy = call.op in _COPIES and _is_same_format(call)
    kernel = make_kernel(
        call,
        unit=Unit.MOVE if is_copy else Unit.VECTOR,
        loops=loops_of(shape),
        reads=tuple(broadcast(value, len(shape)) for value in operands.values()),
        writes=tuple(map(along_all, results)),
        flops=0 if is_copy else flops * num_elements,
        specials=0 if is_copy else specials * num_elements,
        compute=compute,
        is_random=is_random(call),
    )
    return Expansion(kernels=(kernel,))


def describe_copy_over(call: OpCall) -> Expansion:
    """aten.copy(target, source): the source in the shape and type of the target."""
    target, source = call.args[:2]
    (result,) = call.outputs
    assert isinstance(target, Value)
    assert isinstance(source, Value)
    assert result is not None
    dtype = torch_dtype(result)

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        shape = [end - first for first, end in block.boxes[1]]
        return [tensors[0].to(dtype).expand(shape).clone()]

    is_same = source.format == result.format
    kernel = make_kernel(
        call,
        unit=Unit.MOVE if is_same else Unit.VECTOR,
        loops=loops_of(result.shape),
        reads=(broadcast(source, len(result.shape)),),
        writes=(along_all(result),),
        flops=0 if is_same else result.num_elements,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def describe_triangle(call: OpCall) -> Expansion:
    """Tril and triu: which elements are kept depends on where they are."""
    source, diagonal = call.args[0], call.args[1] if len(call.args) > 1 else 0
    (result,) = call.outputs
    assert isinstance(source, Value)
    assert result is not None

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        (row, _), (column, _) = block.boxes[0][-2:]
        return [call.function(tensors[0], diagonal + row - column)]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops_of(result.shape),
        reads=(along_all(source),),
        writes=(along_all(result),),
        flops=result.num_elements,
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def loops_of(shape: Sequence[int]) -> tuple[Loop, ...]:
    """A loop for every dimension."""
    return tuple(Loop(f"d{number}", size) for number, size in enumerate(shape))


def is_pointwise(call: OpCall) -> bool:
    """Whether PyTorch tags the op as element-wise."""
    return torch.Tag.pointwise in getattr(call.function, "tags", ())


def is_random(call: OpCall) -> bool:
    """Whether another call gives other numbers."""
    if torch.Tag.nondeterministic_seeded not in getattr(call.function, "tags", ()):
        return False
    if call.op == "aten.native_dropout":
        probability, is_training = call.args[1:3]
        return is_training is not False and 0 < probability < 1
    return True


def torch_dtype(value: Value) -> torch.dtype:
    """Of the tensors that stand for a value: float32 for every float format."""
    found = getattr(torch, value.format, None)
    is_integer = isinstance(found, torch.dtype) and not found.is_floating_point
    return found if is_integer and found is not None else torch.float32


def _is_same_format(call: OpCall) -> bool:
    source, result = call.args[0], call.outputs[0]
    assert isinstance(source, Value)
    assert result is not None
    return source.format == result.format


_UNTAGGED = (
    "where masked_fill clamp clamp_min clamp_max threshold threshold_backward relu hardtanh "
    "hardtanh_backward lerp addcmul addcdiv gelu gelu_backward silu silu_backward mish "
    "mish_backward sigmoid_backward tanh_backward elu elu_backward celu softplus "
    "softplus_backward hardsigmoid hardsigmoid_backward hardswish hardswish_backward leaky_relu "
    "leaky_relu_backward logit_backward log_sigmoid_forward log_sigmoid_backward "
    "_prelu_kernel _prelu_kernel_backward native_dropout native_dropout_backward nan_to_num "
    "_to_copy clone contiguous lift_fresh_copy lift_fresh bernoulli copysign rrelu_with_noise "
    "rrelu_with_noise_functional rrelu_with_noise_backward special_ndtri special_log_ndtr"
)
RULES: dict[str, Describe] = {
    **{f"aten.{name}": describe_pointwise for name in _UNTAGGED.split()},
    "prims.fma": describe_pointwise,
    "aten.copy": describe_copy_over,
    "aten.tril": describe_triangle,
    "aten.triu": describe_triangle,
}
