"""Losses and their gradients: pieces against ATen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe.losses import RULES

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
NONE, MEAN, SUM = REDUCTIONS = (0, 1, 2)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS, ids=["none", "mean", "sum"])
SHAPES = {"a scalar": (), "a row": (7,), "a batch": (3, 4, 5)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
# Loss, its gradient, and what follows the reduction.
PAIRS: dict[str, tuple[Any, Any, tuple[float, ...]]] = {
    "mse": (aten.mse_loss, aten.mse_loss_backward, ()),
    "smooth_l1": (aten.smooth_l1_loss, aten.smooth_l1_loss_backward, (0.4,)),
    "huber": (aten.huber_loss, aten.huber_loss_backward, (0.4,)),
    "soft_margin": (aten.soft_margin_loss, aten.soft_margin_loss_backward, ()),
}


def check(function: Callable[..., Any], *args: Any, is_exact: bool = True) -> None:
    call, tensors = make_call(function, *args)
    check_kernels(RULES[call.op], call, tensors, is_exact=is_exact)


@each_shape
@each_reduction
@pytest.mark.parametrize("loss", PAIRS)
def test_distances_and_their_gradients(loss: str, shape: tuple[int, ...], reduction: int):
    forward, backward, knobs = PAIRS[loss]
    data, target = torch.randn(shape), torch.randn(shape)
    check(forward.default, data, target, reduction, *knobs)
    gradient = torch.randn(shape if reduction == NONE else ())
    check(backward.default, gradient, data, target, reduction, *knobs)


@each_reduction
@pytest.mark.parametrize("is_weighted", [True, False])
def test_binary_cross_entropy_and_its_gradients(is_weighted: bool, reduction: int):
    shape = (3, 4, 5)
    data, target = torch.rand(shape), torch.rand(shape)
    weight = torch.rand(shape) if is_weighted else None
    check(aten.binary_cross_entropy.default, data, target, weight, reduction)
    gradient = torch.randn(shape if reduction == NONE else ())
    check(aten.binary_cross_entropy_backward.default, gradient, data, target, weight, reduction)
    weights = (torch.rand(4, 5), torch.rand(5)) if is_weighted else (None, None)
    check(
        aten.binary_cross_entropy_with_logits.default,
        torch.randn(shape), target, *weights, reduction,
    )  # fmt: skip


@each_reduction
@pytest.mark.parametrize("is_weighted", [True, False])
@pytest.mark.parametrize("shape", [(6,), (9, 6), (3, 6, 4, 5)])
def test_likelihoods_and_their_gradients(shape: tuple[int, ...], is_weighted: bool, reduction: int):
    num_classes = 6
    places = shape[:1] * (len(shape) > 1) + shape[2:]
    data = torch.randn(shape)
    target = torch.randint(0, num_classes, places)
    if places:
        target[0] = 4
        target[-1] = 2
    weight = torch.rand(num_classes) if is_weighted else None
    forward, backward = aten.nll_loss_forward, aten.nll_loss_backward
    if len(shape) == 4:
        forward, backward = aten.nll_loss2d_forward, aten.nll_loss2d_backward
    check(forward.default, data, target, weight, reduction, 4, is_exact=False)
    total = forward(data, target, weight, reduction, 4)[1]
    gradient = torch.randn(places if reduction == NONE else ())
    check(backward.default, gradient, data, target, weight, reduction, 4, total, is_exact=False)


def test_a_mean_of_nothing_but_ignored_targets_is_nan():
    call, tensors = make_call(
        aten.nll_loss_forward.default, torch.randn(3, 4), torch.full((3,), -100), None, MEAN, -100
    )
    check_kernels(RULES[call.op], call, tensors)


def test_a_target_reads_one_score():
    call, _ = make_call(
        aten.nll_loss_forward.default, torch.randn(3, 4), torch.zeros(3).long(), None, SUM, -100,
        used=(0,),
    )  # fmt: skip
    (kernel,) = RULES[call.op](call).kernels
    assert kernel.reads[0].is_gathered
    assert kernel.reads[0].gathered_share == 1 / 4
