"""Element-wise kernels, piece by piece, against the ops; and what they cost."""

from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe.pointwise import RULES, describe_pointwise, is_pointwise
from fsdtrain_dojo.lowering.describe.vector_cost import element_cost
from fsdtrain_dojo.lowering.kernel import Unit, Value
from fsdtrain_dojo.lowering.op_call import Describe, OpCall

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


CASES: dict[str, tuple[Any, ...]] = {
    "add": (aten.add.Tensor, normal(3, 5, 2), normal(5, 1)),
    "scaled sub": (aten.sub.Tensor, normal(3, 5), normal(3, 1)),
    "number": (aten.mul.Scalar, normal(7, 2), 0.3),
    "with itself": (aten.mul.Tensor, *([normal(4, 3)] * 2)),
    "scalar": (aten.add.Tensor, normal(), normal()),
    "scalar and tensor": (aten.div.Tensor, normal(4, 3), normal()),
    "two broadcast": (aten.maximum.default, normal(4, 1), normal(1, 3)),
    "where": (aten.where.self, normal(4, 3) > 0, normal(3), normal(4, 1)),
    "clamp": (aten.clamp.Tensor, normal(4, 3), normal(3), None),
    "addcmul": (aten.addcmul.default, normal(4, 3), normal(3), normal(4, 3)),
    "lerp": (aten.lerp.Scalar, normal(4, 3), normal(4, 3), 0.7),
    "gelu_backward": (aten.gelu_backward.default, normal(4, 3), normal(4, 3)),
    "threshold_backward": (aten.threshold_backward.default, normal(4, 3), normal(4, 3), 0),
    "dropout_backward": (
        aten.native_dropout_backward.default, normal(4, 3), normal(4, 3) > 0, 1.25,
    ),
    "compare": (aten.gt.Scalar, normal(4, 3), 0.1),
    "and": (aten.bitwise_and.Tensor, normal(4, 3) > 0, normal(3) > 0),
    "two results": (aten.log_sigmoid_forward.default, normal(4, 3)),
    "to integer": (aten._to_copy.default, 9 * normal(4, 3)),
    "clone": (aten.clone.default, normal(4, 3).t()),
    "copy": (aten.copy.default, normal(4, 3), normal(3)),
    "tril": (aten.tril.default, normal(2, 6, 5), -1),
    "triu": (aten.triu.default, normal(6, 9), 2),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "scaled sub": {"alpha": 0.4},
    "addcmul": {"value": -0.5},
    "gelu_backward": {"approximate": "tanh"},
    "to integer": {"dtype": torch.int64},
}


def find_describe(call: OpCall) -> Describe:
    assert call.op in RULES or is_pointwise(call)
    return RULES.get(call.op, describe_pointwise)


@pytest.mark.parametrize("name", CASES)
def test_pieces_make_up_the_op(name: str) -> None:
    call, tensors = make_call(*CASES[name], **OPTIONS.get(name, {}))
    (kernel,) = check_kernels(find_describe(call), call, tensors, is_exact=True, tolerance=1e-6)
    assert len(kernel.reads) == len(tensors) - (name == "copy")
    assert kernel.unit is (Unit.MOVE if name in ("clone", "copy") else Unit.VECTOR)


def test_dropout_is_taken_as_it_fell() -> None:
    call, tensors = make_call(aten.native_dropout.default, normal(4, 3), 0.3, True)
    (kernel,) = check_kernels(describe_pointwise, call, tensors)
    assert kernel.is_random
    call, tensors = make_call(aten.native_dropout.default, normal(4, 3), 0.3, False)
    (kernel,) = check_kernels(describe_pointwise, call, tensors, is_exact=True)
    assert not kernel.is_random


def test_a_copy_into_another_format_is_work() -> None:
    call, _ = make_call(aten.clone.default, normal(4, 3))
    assert isinstance(call.args[0], Value)
    wide = Value(name="x0", shape=(4, 3), format="bf16", element_bytes=2, kind=call.args[0].kind)
    (kernel,) = describe_pointwise(
        OpCall(
            name=call.name, op=call.op, function=call.function, args=(wide,), kwargs={},
            outputs=call.outputs, phase=call.phase,
        )
    ).kernels  # fmt: skip
    assert kernel.unit is Unit.VECTOR
    assert kernel.flops == 12


@pytest.mark.parametrize(
    ("args", "cost"),
    [
        ((aten.relu.default, normal(2)), (1, 0)),
        ((aten.exp.default, normal(2)), (0, 1)),
        ((aten.div.Tensor, normal(2), normal(2)), (1, 1)),
        ((aten.sigmoid.default, normal(2)), (1, 2)),  # 1 / (1 + exp(-x))
        ((aten.pow.Tensor_Scalar, normal(2), 2), (1, 0)),
        ((aten.pow.Tensor_Scalar, normal(2), 3), (2, 0)),
        ((aten.pow.Tensor_Scalar, normal(2), 0.5), (0, 1)),
        ((aten.pow.Tensor_Scalar, normal(2), 2.3), (1, 2)),  # exp(2.3 log x)
    ],
)  # fmt: skip
def test_cost_of_an_element(args: tuple[Any, ...], cost: tuple[int, int]) -> None:
    call, _ = make_call(*args)
    assert element_cost(call) == cost
    (kernel,) = find_describe(call)(call).kernels
    assert (kernel.flops, kernel.specials) == (2 * cost[0], 2 * cost[1])
