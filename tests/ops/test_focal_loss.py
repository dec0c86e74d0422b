import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fsdtrain.ops.focal_loss import focal_loss


def make_inputs(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.rand(shape, generator=generator) < 0.2
    return logits, target, torch.rand(shape, generator=generator) < 0.7


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.5), (0.9, 0.0), (1.0, 3.5)])
@pytest.mark.parametrize("shape", [(2, 1, 7, 5), (13,), (3, 2)])
def test_equals_the_papers_formula(shape: tuple[int, ...], alpha: float, gamma: float) -> None:
    logits, target, valid = make_inputs(shape)
    total, num_valid = 0.0, 0
    for x, is_true, counts in zip(
        logits.flatten().tolist(), target.flatten().tolist(), valid.flatten().tolist(), strict=True
    ):
        if counts:
            p = 1 / (1 + np.exp(-x))
            p_t, alpha_t = (p, alpha) if is_true else (1 - p, 1 - alpha)
            total -= alpha_t * (1 - p_t) ** gamma * np.log(p_t)
            num_valid += 1
    found = focal_loss(logits, target, valid, alpha, gamma)
    np.testing.assert_allclose(found.item(), total / num_valid, rtol=1e-11)


def test_gamma_zero_is_binary_cross_entropy() -> None:
    logits, target, valid = make_inputs((4, 9))
    expected = F.binary_cross_entropy_with_logits(logits[valid], target[valid].double())
    torch.testing.assert_close(2 * focal_loss(logits, target, valid, 0.5, 0.0), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradcheck(gamma: float) -> None:
    logits, target, valid = make_inputs((3, 4))
    logits[0, 0] = 0.0  # as a head is initialised
    valid[0, 0] = True
    assert torch.autograd.gradcheck(
        lambda x: focal_loss(x, target, valid, 0.25, gamma), (logits.requires_grad_(),)
    )


def test_what_is_invalid_does_not_leak() -> None:
    logits, target, valid = make_inputs((5, 5))
    expected = focal_loss(logits, target, valid, 0.25, 2.0)
    spoilt = torch.where(valid, logits, torch.nan).requires_grad_()
    found = focal_loss(spoilt, target, valid, 0.25, 2.0)
    found.backward()
    assert torch.equal(found, expected)
    assert spoilt.grad is not None
    assert not spoilt.grad[~valid].any()


@pytest.mark.parametrize("shape", [(2, 3), (0,)])
def test_nothing_valid_is_zero_with_a_zero_gradient(shape: tuple[int, ...]) -> None:
    logits, target, valid = make_inputs(shape)
    logits.requires_grad_()
    loss = focal_loss(logits, target, torch.zeros_like(valid), 0.25, 2.0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_huge_logits_and_low_precision(dtype: torch.dtype) -> None:
    logits = torch.tensor([3e4, -3e4, 3e4, -3e4]).to(dtype)
    given = logits.clone().requires_grad_()
    target = torch.tensor([True, True, False, False])
    loss = focal_loss(given, target, torch.ones(4, dtype=torch.bool), 0.25, 0.5)
    loss.backward()
    size = logits[0].double().item()
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.item(), (0.25 + 0.75) * size / 4, rtol=1e-6)
    assert given.grad is not None
    expected = torch.tensor([0.0, -0.25 / 4, 0.75 / 4, 0.0])
    torch.testing.assert_close(given.grad.float(), expected, atol=0, rtol=0)
