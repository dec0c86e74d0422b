"""Reductions, piece by piece, against the ops: sums of parts, two-pass variances, whole rows."""

from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe import reductions, scans
from fsdtrain_dojo.lowering.kernel import Combine

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
RULES = {**reductions.RULES, **scans.RULES}


def positive(*shape: int) -> torch.Tensor:
    return torch.rand(shape) + 0.1


X = positive(5, 7, 3)
SUMS: dict[str, tuple[Any, ...]] = {
    "sum": (aten.sum.default, X),
    "sum of a dimension": (aten.sum.dim_IntList, X, [1]),
    "sum of two, kept": (aten.sum.dim_IntList, X, [0, -1], True),
    "sum of truths": (aten.sum.dim_IntList, X > 0.5, [1]),
    "sum of a scalar": (aten.sum.default, positive()),
    "nansum": (aten.nansum.default, X, [0]),
    "mean": (aten.mean.default, X),
    "mean of a dimension": (aten.mean.dim, X, [2], True),
    "amax": (aten.amax.default, X, [0, 2]),
    "amin": (aten.amin.default, X, [1], True),
    "max": (aten.max.default, X),
    "min": (aten.min.default, X),
    "max of two": (aten.max.other, X, positive(7, 1)),
    "any": (aten.any.dim, X > 1, 1),
    "all": (aten.all.default, X > 0.1),
    "norm 1": (aten.linalg_vector_norm.default, X, 1, [1]),
    "norm of everything": (aten.linalg_vector_norm.default, X),
    "norm inf": (aten.linalg_vector_norm.default, X, float("inf"), [0]),
    "norm -inf": (aten.linalg_vector_norm.default, X, -float("inf"), [0]),
    "norm 0": (aten.linalg_vector_norm.default, X, 0, [0]),
    "norm 3": (aten.linalg_vector_norm.default, X, 3, [0, 1], True),
    "norm with a scalar": (aten.norm.ScalarOpt_dim, X, 2, [1]),
}
SPREADS: dict[str, tuple[Any, ...]] = {
    "var": (aten.var.correction, X, [1]),
    "var of everything": (aten.var.correction, X),
    "var, biased": (aten.var.dim, X, [0, 2], False, True),
    "std": (aten.std.correction, X, [2]),
    "var_mean": (aten.var_mean.correction, X, [1]),
    "std_mean, kept": (aten.std_mean.dim, X, [0], True, True),
}
WHOLE: dict[str, tuple[Any, ...]] = {
    "max with places": (aten.max.dim, X, 1),
    "argmax": (aten.argmax.default, X, 1, True),
    "argmin of everything": (aten.argmin.default, X),
    "cumsum": (aten.cumsum.default, X, 1),
    "cumprod": (aten.cumprod.default, X, -1),
    "prod": (aten.prod.dim_int, X, 1),
    "logsumexp": (aten.logsumexp.default, X, [1]),
    "sort": (aten.sort.default, X, 1),
    "stable sort": (aten.sort.stable, X),
    "topk": (aten.topk.default, X, 2, 1),
    "median": (aten.median.dim, X, 1),
    "kthvalue": (aten.kthvalue.default, X, 2),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "var": {"correction": 0},
    "stable sort": {"stable": True, "dim": 0},
}


@pytest.mark.parametrize("name", SUMS)
def test_parts_add_up(name: str) -> None:
    """Undivided, bit by bit; but powers are added one after another."""
    call, tensors = make_call(*SUMS[name])
    is_exact = not name.startswith("norm")
    check_kernels(RULES[call.op], call, tensors, is_exact=is_exact, tolerance=2e-6)


@pytest.mark.parametrize("name", SPREADS)
def test_variances_take_two_passes(name: str) -> None:
    call, tensors = make_call(*SPREADS[name], **OPTIONS.get(name, {}))
    kernels = check_kernels(RULES[call.op], call, tensors, tolerance=5e-6)
    assert [kernel.name.partition(".")[2] for kernel in kernels[:2]] == ["centre", "squares"]


def test_a_small_variance_beside_a_large_mean_does_not_cancel() -> None:
    """The sum of squares less the square of the sum would have no right digit."""
    x = 1000 + 0.01 * torch.randn(64, 32)
    call, tensors = make_call(aten.var.correction, x, [1])
    check_kernels(RULES[call.op], call, tensors, tolerance=1e-3)
    direct = (x * x).mean(1) - x.mean(1) ** 2
    assert (direct - x.var(1)).abs().max() > 0.1 * x.var(1).max()


@pytest.mark.parametrize("name", WHOLE)
def test_rows_that_are_needed_whole(name: str) -> None:
    call, tensors = make_call(*WHOLE[name], **OPTIONS.get(name, {}))
    (kernel,) = check_kernels(RULES[call.op], call, tensors, is_exact=True)
    assert any(not loop.is_splittable for loop in kernel.loops)


def test_only_one_of_two_results_is_read() -> None:
    for used in ((0,), (1,)):
        call, tensors = make_call(aten.var_mean.correction, X, [1], used=used)
        check_kernels(RULES[call.op], call, tensors, tolerance=5e-6)
        call, tensors = make_call(aten.topk.default, X, 2, 1, used=used)
        (kernel,) = check_kernels(RULES[call.op], call, tensors, is_exact=True)
        assert [access.value for access in kernel.writes] == [f"y{used[0]}"]


def test_what_a_reduction_is_and_costs() -> None:
    call, _ = make_call(aten.amax.default, X, [1])
    (kernel,) = RULES[call.op](call).kernels
    assert kernel.reductions == {1}
    assert kernel.combine is Combine.MAX
    assert kernel.flops == X.numel()
