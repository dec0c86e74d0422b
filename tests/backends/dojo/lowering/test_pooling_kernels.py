"""Pools and their gradients: pieces against ATen."""

from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe.pooling import RULES

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
# Plane, window, stride, padding.
PLANES: dict[str, tuple[list[int], list[int], list[int], list[int]]] = {
    "of a stem": ([15, 12], [3, 3], [2, 2], [1, 1]),
    "dense": ([7, 8], [2, 3], [1, 1], [1, 0]),
    "with gaps": ([11, 13], [2, 2], [3, 4], [0, 0]),
    "halves": ([8, 10], [2, 2], [], [0, 0]),
}
each_plane = pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
each_ceil = pytest.mark.parametrize("ceil", [False, True])


def check(function: Any, *args: Any, is_exact: bool = True) -> None:
    call, tensors = make_call(function, *args)
    check_kernels(RULES[call.op], call, tensors, is_exact=is_exact)


@each_ceil
@each_plane
def test_maxima_and_their_gradients(plane: tuple[list[int], ...], ceil: bool):
    size, *settings = plane
    data = torch.randn(2, 3, *size)
    check(aten.max_pool2d_with_indices.default, data, *settings, [1, 1], ceil)
    values, indices = aten.max_pool2d_with_indices(data, *settings, [1, 1], ceil)
    check(
        aten.max_pool2d_with_indices_backward.default,
        torch.randn_like(values), data, *settings, [1, 1], ceil, indices,
    )  # fmt: skip


def test_dilated_maxima_of_one_image():
    data = torch.randn(3, 11, 9)
    settings = [3, 2], [2, 1], [1, 0], [2, 3], False
    check(aten.max_pool2d_with_indices.default, data, *settings)
    values, indices = aten.max_pool2d_with_indices(data, *settings)
    check(
        aten.max_pool2d_with_indices_backward.default,
        torch.randn_like(values), data, *settings, indices,
    )  # fmt: skip


def test_maxima_of_spaces_and_lines():
    data = torch.randn(2, 2, 5, 6, 7)
    settings = [2, 3, 2], [2, 1, 2], [1, 1, 0], [1, 1, 1], False
    check(aten.max_pool3d_with_indices.default, data, *settings)
    values, indices = aten.max_pool3d_with_indices(data, *settings)
    check(
        aten.max_pool3d_with_indices_backward.default,
        torch.randn_like(values), data, *settings, indices,
    )  # fmt: skip
    check(aten.max_pool1d.default, torch.randn(2, 3, 17), [3], [2], [1])


def test_maxima_of_nothing_and_of_no_number():
    data = torch.randn(1, 2, 9, 9)
    data[0, 0] = -torch.inf
    data[0, 1, 4, 4] = torch.nan
    check(aten.max_pool2d_with_indices.default, data, [3, 3], [2, 2], [1, 1])


@each_ceil
@pytest.mark.parametrize("counts_padding", [True, False])
@each_plane
def test_means_and_their_gradients(plane: tuple[list[int], ...], counts_padding: bool, ceil: bool):
    size, *settings = plane
    data = torch.randn(2, 3, *size)
    for divisor in (None, 5):
        rest = (ceil, counts_padding, divisor)
        check(aten.avg_pool2d.default, data, *settings, *rest)
        gradient = torch.randn_like(aten.avg_pool2d(data, *settings, *rest))
        check(aten.avg_pool2d_backward.default, gradient, data, *settings, *rest)


def test_means_of_spaces_and_lines():
    data = torch.randn(2, 2, 5, 6, 7)
    settings = [2, 3, 2], [2, 1, 2], [1, 1, 0], False, False, None
    check(aten.avg_pool3d.default, data, *settings)
    gradient = torch.randn_like(aten.avg_pool3d(data, *settings))
    check(aten.avg_pool3d_backward.default, gradient, data, *settings)
    check(aten.avg_pool1d.default, torch.randn(2, 3, 17), [3], [2], [1])


@pytest.mark.parametrize(
    ("size", "wanted"), [([7, 9], [1, 1]), ([8, 12], [4, 3]), ([7, 10], [3, 7]), ([3, 4], [5, 6])]
)
def test_adaptive_pools(size: list[int], wanted: list[int]):
    data, gradient = torch.randn(2, 3, *size), torch.randn(2, 3, *wanted)
    check(aten._adaptive_avg_pool2d.default, data, wanted)
    check(aten._adaptive_avg_pool2d_backward.default, gradient, data)
    check(aten.adaptive_max_pool2d.default, data, wanted)
    indices = aten.adaptive_max_pool2d(data, wanted)[1]
    check(aten.adaptive_max_pool2d_backward.default, gradient, data, indices)


def test_adaptive_pools_of_spaces():
    data, wanted = torch.randn(2, 3, 5, 4, 6), [2, 3, 4]
    check(aten._adaptive_avg_pool3d.default, data, wanted)
    check(aten._adaptive_avg_pool3d_backward.default, torch.randn(2, 3, *wanted), data)


def test_places_are_put_back_where_they_were_picked():
    values, indices = aten.max_pool2d_with_indices(torch.randn(2, 3, 8, 6), [2, 2])
    check(aten.max_unpool2d.default, values, indices, [8, 6])


def test_a_division_of_rows_needs_a_halo():
    call, _ = make_call(
        aten.max_pool2d_with_indices.default, torch.randn(1, 1, 16, 16), [3, 3], [2, 2], [1, 1]
    )
    (kernel,) = RULES[call.op](call).kernels
    ranges = [(0, 1), (0, 1), (2, 4), (0, 8), (0, 3), (0, 3)]
    assert kernel.reads[0].spans[2].touched(ranges, 16) == (3, 8)
    assert kernel.flops == 64 * 9
