import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fsdtrain import losses


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7)),
    weight=st.floats(0.1, 10),
)
def test_cross_entropy_is_the_formula(seed: int, shape: tuple[int, ...], weight: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, shape)
    target, valid = rng.random(shape) < 0.3, rng.random(shape) < 0.7
    terms = []
    for logit, is_positive, is_valid in zip(logits.flat, target.flat, valid.flat, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        if is_valid:
            terms.append(
                -weight * math.log(probability) if is_positive else -math.log(1 - probability)
            )

    found = losses.binary_cross_entropy(
        torch.tensor(logits),
        torch.tensor(target),
        torch.tensor(valid),
        positive_weight=weight,
    )

    assert found.item() == pytest.approx(np.mean(terms) if terms else 0.0, rel=1e-4, abs=1e-6)


def test_cross_entropy_equals_torch_where_everything_is_valid() -> None:
    logits, target = torch.randn(3, 4, 5), torch.rand(3, 4, 5) < 0.2
    found = losses.binary_cross_entropy(
        logits, target, torch.ones_like(target), positive_weight=2.13
    )
    expected = F.binary_cross_entropy_with_logits(
        logits, target.float(), pos_weight=torch.tensor(2.13)
    )
    torch.testing.assert_close(found, expected)


def test_dice_by_hand() -> None:
    # Probabilities 1, 0, 1/2 against targets 1, 1, 0; the last cell is not valid.
    logits = torch.tensor([50.0, -50.0, 0.0, 50.0])
    target = torch.tensor([True, True, False, False])
    valid = torch.tensor([True, True, True, False])
    found = losses.dice(logits, target, valid)
    assert found.item() == pytest.approx(1 - (2 * 1 + 1) / (1.5 + 2 + 1))


def test_nothing_valid_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    target, valid = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    for value in (
        losses.binary_cross_entropy(logits, target, valid, positive_weight=2.0),
        losses.dice(logits, target, valid),
    ):
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == 0
        assert not gradient.any()


def test_cells_that_are_not_valid_get_no_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    target, valid = torch.rand(2, 3) < 0.5, torch.tensor([[True, False, True], [False] * 3])
    total = losses.binary_cross_entropy(logits, target, valid, positive_weight=2.0) + losses.dice(
        logits, target, valid
    )
    (gradient,) = torch.autograd.grad(total, logits)
    assert torch.equal(gradient != 0, valid)


def winner_takes_all_by_loops(
    path: np.ndarray, mode_logits: np.ndarray, target: np.ndarray, valid: np.ndarray
) -> tuple[float, float]:
    errors, entropies = [], []
    for b in range(len(path)):
        steps = np.flatnonzero(valid[b])
        if not len(steps):
            continue
        distances = [
            np.mean([np.hypot(*(mode[s] - target[b, s])) for s in steps]) for mode in path[b]
        ]
        best = int(np.argmin(distances))
        for s in steps:
            offset = np.abs(path[b, best, s] - target[b, s])
            errors.append(np.where(offset < 1, offset**2 / 2, offset - 0.5).sum())
        probabilities = np.exp(mode_logits[b]) / np.exp(mode_logits[b]).sum()
        entropies.append(-np.log(probabilities[best]))
    return (float(np.mean(errors)), float(np.mean(entropies))) if errors else (0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_winner_takes_all_equals_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    path, mode_logits = rng.normal(0, 2, (4, 3, 5, 2)), rng.normal(0, 1, (4, 3))
    target, valid = rng.normal(0, 2, (4, 5, 2)), rng.random((4, 5)) < 0.6
    valid[0] = False
    target[~valid] = np.nan

    regression, classification = losses.winner_takes_all(
        *(torch.tensor(array) for array in (path, mode_logits, target, valid))
    )

    expected = winner_takes_all_by_loops(path, mode_logits, target, valid)
    assert (regression.item(), classification.item()) == pytest.approx(expected, rel=1e-4)


def test_only_the_winner_learns_and_nan_stays_out() -> None:
    target = torch.tensor([[[1.0, 0.0], [math.nan, math.nan]]])
    valid = torch.tensor([[True, False]])
    path = torch.zeros(1, 2, 2, 2)
    path[0, 1] = 3.0
    path.requires_grad_()
    regression, _ = losses.winner_takes_all(path, torch.zeros(1, 2), target, valid)
    (gradient,) = torch.autograd.grad(regression, path)
    assert gradient.flatten().tolist() == [-1.0, 0, 0, 0, 0, 0, 0, 0]


def test_gradients_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # The losses compute in float32; finite differences need float64.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target, valid = torch.rand(3, 4) < 0.4, torch.rand(3, 4) < 0.7
    path = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    modes = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    path_target, path_valid = torch.randn(2, 4, 2), torch.rand(2, 4) < 0.7

    assert torch.autograd.gradcheck(
        lambda x: losses.binary_cross_entropy(x, target, valid, positive_weight=2.13), (logits,)
    )
    assert torch.autograd.gradcheck(lambda x: losses.dice(x, target, valid), (logits,))
    assert torch.autograd.gradcheck(
        lambda p, m: losses.winner_takes_all(p, m, path_target, path_valid), (path, modes)
    )
