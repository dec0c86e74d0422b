import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fsdtrain.ops.occupancy_loss import occupancy_loss

IGNORED = 255


def make_inputs(shape: tuple[int, int, int, int], num_classes: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, num_classes, generator=generator, dtype=torch.float64)
    target = torch.randint(num_classes, shape, generator=generator)
    valid = torch.rand(shape, generator=generator) < 0.7
    weights = torch.rand(num_classes, generator=generator, dtype=torch.float64) + 0.1
    return [logits, target, valid, weights]


def by_loop(
    logits: NDArray[np.float64],
    target: NDArray[np.int64],
    valid: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64]]:
    """(loss, its gradient) from the definition, a voxel at a time."""
    total, loss, gradient = 0.0, 0.0, np.zeros_like(logits)
    for place in np.ndindex(*target.shape):
        if not valid[place]:
            continue
        exponentials = np.exp(logits[place] - logits[place].max())
        probability = exponentials / exponentials.sum()
        weight, truth = weights[target[place]], np.eye(len(weights))[target[place]]
        total += weight
        loss -= weight * np.log(probability[target[place]])
        gradient[place] = weight * (probability - truth)
    return loss / total, gradient / total


@pytest.mark.parametrize(
    ("shape", "num_classes"), [((2, 3, 4, 2), 18), ((1, 5, 1, 7), 3), ((1, 2, 1, 1), 1)]
)
def test_equals_a_loop_over_voxels(shape: tuple[int, int, int, int], num_classes: int) -> None:
    logits, target, valid, weights = make_inputs(shape, num_classes)
    valid[0, 0, 0, 0] = True
    logits.requires_grad_()
    loss = occupancy_loss(logits, target, valid, weights)
    loss.backward()
    arrays = (tensor.detach().numpy() for tensor in (logits, target, valid, weights))
    expected, expected_gradient = by_loop(*arrays)
    assert logits.grad is not None
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)
    np.testing.assert_allclose(logits.grad.numpy(), expected_gradient, atol=1e-14)


def test_equals_torch_with_weights_and_an_ignored_class() -> None:
    logits, target, valid, weights = make_inputs((2, 4, 3, 5), 18)
    expected = F.cross_entropy(
        logits.flatten(0, 3),
        torch.where(valid, target, IGNORED).flatten(),
        weight=weights,
        ignore_index=IGNORED,
    )
    found = occupancy_loss(logits, torch.where(valid, target, IGNORED), valid, weights)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-12)


def test_gradcheck() -> None:
    logits, *rest = make_inputs((1, 2, 2, 2), 5)
    assert torch.autograd.gradcheck(lambda x: occupancy_loss(x, *rest), (logits.requires_grad_(),))


def test_what_is_invalid_does_not_leak() -> None:
    logits, target, valid, weights = make_inputs((1, 3, 3, 3), 4)
    expected = occupancy_loss(logits, target, valid, weights)
    spoilt = torch.where(valid[..., None], logits, torch.nan).requires_grad_()
    found = occupancy_loss(spoilt, torch.where(valid, target, -7), valid, weights)
    found.backward()
    assert torch.equal(found, expected)
    assert spoilt.grad is not None
    assert not spoilt.grad[~valid].any()


@pytest.mark.parametrize("shape", [(1, 2, 2, 2), (1, 0, 2, 2)])
def test_nothing_valid_is_zero_with_a_zero_gradient(shape: tuple[int, int, int, int]) -> None:
    logits, target, valid, weights = make_inputs(shape, 4)
    logits.requires_grad_()
    loss = occupancy_loss(logits, target, torch.zeros_like(valid), weights)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_huge_logits_and_low_precision() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4]]).view(1, 2, 1, 1, 3)
    target = torch.tensor([1, 2]).view(1, 2, 1, 1)
    valid = torch.ones(1, 2, 1, 1, dtype=torch.bool)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        given = logits.to(dtype, copy=True).requires_grad_()
        loss = occupancy_loss(given, target, valid, torch.ones(3))
        loss.backward()
        assert loss.dtype == torch.float32
        high, low, _ = logits.to(dtype)[0, 0, 0, 0].double().tolist()
        np.testing.assert_allclose(loss.item(), (high - low + np.log(3)) / 2, rtol=1e-6)
        assert given.grad is not None
        assert given.grad.dtype == dtype
        expected = torch.tensor([[0.5, -0.5, 0.0], [1 / 6, 1 / 6, -1 / 3]]).view_as(logits)
        torch.testing.assert_close(given.grad.float(), expected, atol=4e-3, rtol=0)
