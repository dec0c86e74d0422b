"""Look-ups and scattered sums, piece by piece, against the ops."""

from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe import indexing, scattering

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
RULES = {**indexing.RULES, **scattering.RULES}
X = torch.randn(7, 5, 6)


def places(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape)


def distinct(high: int, count: int) -> torch.Tensor:
    return torch.randperm(high)[:count]


LOOK_UPS: dict[str, tuple[Any, ...]] = {
    "index_select": (aten.index_select.default, X, 1, places(5, 8)),
    "gather": (aten.gather.default, X, 1, places(5, 6, 9, 4)),
    "gather of the last": (aten.gather.default, X, -1, places(6, 7, 5, 2)),
    "embedding": (aten.embedding.default, torch.randn(9, 4), places(9, 3, 5)),
    "one index": (aten.index.Tensor, X, [places(7, 4, 3)]),
    "index behind": (aten.index.Tensor, X, [None, places(5, 4)]),
    "two neighbours": (aten.index.Tensor, X, [None, places(5, 4, 1), places(6, 3)]),
    "two apart": (aten.index.Tensor, X, [places(7, 4), None, places(6, 4)]),
    "negative": (aten.index.Tensor, X, [places(7, 4) - 7]),
    "bucketize": (aten.bucketize.Tensor, X, torch.tensor([-1.0, 0.2, 0.7])),
    "searchsorted": (aten.searchsorted.Tensor, torch.tensor([-1.0, 0.2, 0.7]), X),
}
SUMS: dict[str, tuple[Any, ...]] = {
    "index_add": (aten.index_add.default, X, 1, places(5, 8), torch.randn(7, 8, 6)),
    "scatter_add": (
        aten.scatter_add.default, X, 1, places(5, 6, 9, 4), torch.randn(7, 9, 5),
    ),
    "embedding_dense_backward": (
        aten.embedding_dense_backward.default, torch.randn(3, 5, 4), places(9, 3, 5), 9, 2, False,
    ),
    "put": (aten.index_put.default, X, [places(7, 4, 3)], torch.randn(4, 3, 5, 6), True),
    "put behind": (aten.index_put.default, X, [None, places(5, 4)], torch.randn(7, 4, 6), True),
    "put of two": (
        aten.index_put.default, X, [None, places(5, 4, 1), places(6, 3)], torch.randn(7, 4, 3),
        True,
    ),
    "put of two apart": (
        aten.index_put.default, X, [places(7, 4), None, places(6, 4) - 6], torch.randn(4, 5), True,
    ),
    "put of one value": (aten.index_put.default, X, [places(7, 4)], torch.tensor(0.3), True),
}  # fmt: skip
COPIES: dict[str, tuple[Any, ...]] = {
    "scatter": (aten.scatter.src, X, 0, distinct(7, 3)[:, None, None].expand(3, 4, 6),
                torch.randn(3, 5, 6)),
    "scatter of a value": (aten.scatter.value, X, 1, places(5, 6, 9, 4), 0.5),
    "index_copy": (aten.index_copy.default, X, 1, distinct(5, 3), torch.randn(7, 3, 6)),
    "index_fill": (aten.index_fill.int_Scalar, X, 2, places(6, 4), 0.5),
    "put": (aten.index_put.default, X, [None, distinct(5, 3)], torch.randn(7, 3, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOK_UPS)
def test_look_ups(name: str) -> None:
    call, tensors = make_call(*LOOK_UPS[name])
    (kernel,) = check_kernels(RULES[call.op], call, tensors, is_exact=True, tolerance=0)
    gathered = [access for access in kernel.reads if access.is_gathered]
    assert len(gathered) == ("search" not in name and name != "bucketize")


@pytest.mark.parametrize("name", SUMS)
def test_sums_at_places(name: str) -> None:
    call, tensors = make_call(*SUMS[name])
    (kernel,) = check_kernels(RULES[call.op], call, tensors, is_exact=True, num_divisions=10)
    assert any(kernel.loops[loop].is_splittable for loop in kernel.reductions)


@pytest.mark.parametrize("name", COPIES)
def test_copies_to_places(name: str) -> None:
    call, tensors = make_call(*COPIES[name])
    check_kernels(RULES[call.op], call, tensors, is_exact=True, tolerance=0, num_divisions=10)


def test_scaled_sum() -> None:
    call, tensors = make_call(
        aten.index_add.default, X, 0, places(7, 8), torch.randn(8, 5, 6), alpha=-0.5
    )
    check_kernels(RULES[call.op], call, tensors, is_exact=True)


def test_how_much_of_the_box_is_read() -> None:
    """Eight of five rows: some of them twice."""
    call, _ = make_call(*LOOK_UPS["index_select"])
    (kernel,) = RULES[call.op](call).kernels
    assert kernel.reads[0].gathered_share == 8 / 5
    call, _ = make_call(*LOOK_UPS["two neighbours"])
    (kernel,) = RULES[call.op](call).kernels
    assert kernel.reads[0].gathered_share == 4 * 3 / (5 * 6)
