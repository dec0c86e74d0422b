"""Values made of nothing, piece by piece, against the ops."""

from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe.creation import RULES

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
X = torch.randn(4, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        (aten.full.default, [5, 3], 0.3),
        (aten.full_like.default, X, 2.5),
        (aten.new_full.default, X, [7], 1.5),
        (aten.zeros_like.default, X),
        (aten.new_zeros.default, X, [2, 5]),
        (aten.new_ones.default, X > 0, [2, 5]),
        (aten.fill.Scalar, X, 0.7),
        (aten.fill.Tensor, X, torch.tensor(0.7)),
        (aten.arange.start_step, 3, 17, 2),
        (aten.arange.default, 7.0),
        (aten.linspace.default, 0.0, 1.0, 11),
        (aten.eye.default, 5),
    ],
)
def test_pieces_make_up_the_op(arguments: tuple[Any, ...]) -> None:
    call, tensors = make_call(*arguments)
    (kernel,) = check_kernels(RULES[call.op], call, tensors, is_exact=True, tolerance=0)
    read = {access.value for access in kernel.reads}
    assert read == ({"x1"} if call.function is aten.fill.Tensor else set())
    assert not kernel.is_random


def test_zeros_of_a_type() -> None:
    for dtype in (torch.float32, torch.int64, torch.bool):
        call, tensors = make_call(aten.zeros.default, [4, 3], dtype=dtype)
        check_kernels(RULES[call.op], call, tensors, is_exact=True, tolerance=0)


@pytest.mark.parametrize(
    "arguments",
    [
        (aten.rand.default, [4, 3]),
        (aten.randn_like.default, X),
        (aten.randint.low, 0, 9, [4]),
        (aten.empty.memory_format, [4, 3]),
        (aten.new_empty.default, X, [4]),
    ],
)
def test_what_nobody_can_compute_again(arguments: tuple[Any, ...]) -> None:
    call, tensors = make_call(*arguments)
    (kernel,) = check_kernels(RULES[call.op], call, tensors, num_divisions=1)
    assert kernel.is_random
    assert not kernel.reads


@pytest.mark.parametrize("size", [[3, 1, 4, 5], [3, 1, 2, 4, 5]])
def test_grids_of_coordinates(size: list[int]) -> None:
    matrix = torch.randn(3, len(size) - 2, len(size) - 1)
    for aligns in (True, False):
        call, tensors = make_call(aten.affine_grid_generator.default, matrix, size, aligns)
        check_kernels(RULES[call.op], call, tensors)
