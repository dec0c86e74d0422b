"""Interpolation and its gradients: pieces against ATen."""

import pytest
import torch
from fsdtrain_dojo.lowering.describe.resampling import RULES
from fsdtrain_dojo.lowering.kernel import Unit

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
SIZES = {
    "twice as large": ((5, 6, 4), (10, 12, 8)),
    "odd": ((5, 7, 4), (8, 9, 5)),
    "smaller": ((9, 11, 7), (4, 5, 7)),
    "to one": ((6, 5, 3), (1, 1, 1)),
    "from one": ((1, 1, 2), (5, 3, 4)),
    "half a step": ((7, 5, 3), (13, 9, 5)),
}
each_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
ALIGNABLE = [
    ("upsample_linear1d", 1), ("upsample_bilinear2d", 2), ("upsample_trilinear3d", 3),
    ("upsample_bicubic2d", 2), ("_upsample_bilinear2d_aa", 2),
]  # fmt: skip
NEAREST = [
    ("upsample_nearest1d", 1), ("upsample_nearest2d", 2), ("upsample_nearest3d", 3),
    ("_upsample_nearest_exact2d", 2),
]  # fmt: skip


def check(name: str, rank: int, sizes: tuple[tuple[int, ...], ...], knobs: list[object]) -> None:
    inputs, outputs = (list(each[:rank]) for each in sizes)
    call, tensors = make_call(
        getattr(aten, name).default, torch.randn(2, 3, *inputs), outputs, *knobs
    )
    check_kernels(RULES[call.op], call, tensors, is_exact=True)
    call, tensors = make_call(
        getattr(aten, f"{name}_backward").default,
        torch.randn(2, 3, *outputs), outputs, [2, 3, *inputs], *knobs,
    )  # fmt: skip
    check_kernels(RULES[call.op], call, tensors, is_exact=True)


@each_size
@pytest.mark.parametrize("is_aligned", [True, False])
@pytest.mark.parametrize(("name", "rank"), ALIGNABLE)
def test_weighted_taps(name: str, rank: int, is_aligned: bool, sizes: tuple[tuple[int, ...], ...]):
    check(name, rank, sizes, [is_aligned])


@each_size
@pytest.mark.parametrize(("name", "rank"), NEAREST)
def test_nearest_points(name: str, rank: int, sizes: tuple[tuple[int, ...], ...]):
    check(name, rank, sizes, [])


def test_a_scale_that_is_not_the_ratio_of_the_sizes():
    call, tensors = make_call(
        aten.upsample_bilinear2d.vec, torch.randn(2, 3, 7, 10), None, False, [1.6, 2.45]
    )
    assert call.outputs[0].shape == (2, 3, 11, 24)
    check_kernels(RULES[call.op], call, tensors, is_exact=True)
    call, tensors = make_call(
        aten.upsample_nearest2d.vec, torch.randn(2, 3, 7, 10), None, [1.6, 2.45]
    )
    check_kernels(RULES[call.op], call, tensors, is_exact=True)
    check("upsample_bilinear2d", 2, ((7, 10), (11, 24)), [False, 1.6, 2.45])


def test_twice_as_large_needs_one_more_row_on_either_side():
    call, _ = make_call(aten.upsample_bilinear2d.default, torch.randn(1, 1, 8, 8), [16, 16], False)
    (kernel,) = RULES[call.op](call).kernels
    rows = kernel.reads[0].spans[2]
    ranges = [(0, 1), (0, 1), (4, 8), (0, 16)]
    assert rows.touched(ranges, 8) == (1, 5)
    # Two rows, two columns, but for the border's.
    assert kernel.flops == 2 * (2 * 16 - 2) ** 2


def test_copies_are_no_work_of_the_vector_unit():
    call, _ = make_call(aten.upsample_nearest2d.default, torch.randn(1, 2, 3, 4), [6, 8])
    (kernel,) = RULES[call.op](call).kernels
    assert kernel.unit is Unit.MOVE
    assert kernel.flops == 0
