"""Softmax and its kin: pieces against ATen."""

import pytest
import torch
from fsdtrain_dojo.lowering.describe.softmax import RULES
from fsdtrain_dojo.lowering.kernel import Combine

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
each_dim = pytest.mark.parametrize(("shape", "dim"), [((7,), 0), ((3, 4, 9), -1), ((3, 8, 5), 1)])


@each_dim
@pytest.mark.parametrize("function", [aten._softmax.default, aten._log_softmax.default])
def test_rows_may_be_divided(function, shape: tuple[int, ...], dim: int):
    call, tensors = make_call(function, torch.randn(shape) * 5, dim, False)
    kernels = check_kernels(RULES[call.op], call, tensors)
    assert [kernel.name for kernel in kernels] == ["op.max", "op.sum", "op.result"]
    assert [kernel.combine for kernel in kernels[:2]] == [Combine.MAX, Combine.SUM]
    assert all(len(kernel.reductions) == 1 for kernel in kernels[:2])


def test_a_safe_softmax_of_nothing_is_zero():
    data = torch.randn(5, 6)
    data[1] = -torch.inf
    data[2, 3] = -torch.inf
    data[3, 1] = torch.inf
    call, tensors = make_call(aten._safe_softmax.default, data, -1)
    check_kernels(RULES[call.op], call, tensors)


@each_dim
def test_gradients(shape: tuple[int, ...], dim: int):
    for forward, backward in (
        (aten._softmax, aten._softmax_backward_data),
        (aten._log_softmax, aten._log_softmax_backward_data),
    ):
        output = forward(torch.randn(shape), dim, False)
        call, tensors = make_call(backward.default, torch.randn(shape), output, dim, torch.float32)
        kernels = check_kernels(RULES[call.op], call, tensors)
        assert [len(kernel.reductions) for kernel in kernels] == [1, 0]


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [[1], [-1, 0], [0, 1, 2]])
def test_the_logarithm_of_a_sum_of_exponentials(dims: list[int], keepdim: bool):
    data = torch.randn(3, 4, 5)
    data[0] = -torch.inf
    data[1, 2, 3] = torch.inf
    call, tensors = make_call(aten.logsumexp.default, data, dims, keepdim)
    check_kernels(RULES[call.op], call, tensors)


def test_work_of_a_row():
    call, _ = make_call(aten._softmax.default, torch.randn(3, 10), 1, False)
    top, total, result = RULES[call.op](call).kernels
    assert (top.flops, total.flops, result.flops) == (30, 60, 60)
    assert (top.specials, total.specials, result.specials) == (0, 30, 30 + 3)
