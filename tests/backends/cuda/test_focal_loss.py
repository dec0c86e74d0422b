"""The kernel of focal_loss against the reference in float64, where autograd differentiates."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain.ops.focal_loss import focal_loss as reference

pytest.importorskip("triton")
from fsdtrain_cuda.kernels.focal_loss import focal_loss


def make_inputs(
    shape: tuple[int, ...], *, seed: int = 0, valid_share: float = 0.7
) -> tuple[Tensor, Tensor, Tensor]:
    """What is invalid holds NaN."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(shape, generator=generator)
    target = torch.rand(shape, generator=generator) < 0.2
    valid = torch.rand(shape, generator=generator) < valid_share
    return torch.where(valid, logits, math.nan), target, valid


def run(op: Any, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = op(logits, *rest)
    (1.7 * loss).backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def assert_twice_as_good_as_torch(
    device: str, inputs: tuple[Tensor, Tensor, Tensor], alpha: float, gamma: float
) -> None:
    """At most twice the error of the reference in the same dtype, and some units in the last."""
    logits, target, valid = inputs
    exact = run(reference, logits.double(), target, valid, alpha, gamma)
    plain = run(reference, logits, target, valid, alpha, gamma)
    ours = run(focal_loss, *(tensor.to(device) for tensor in inputs), alpha, gamma)
    assert ours[0].dtype == torch.promote_types(logits.dtype, torch.float32)
    assert ours[1].dtype == logits.dtype
    for found, allowed, expected in zip(ours, plain, exact, strict=True):
        assert found.shape == expected.shape
        if not expected.numel():
            continue
        # Powers are exponentials of gamma times a logarithm, which multiplies its error. The
        # interpreter cuts float32 down to bfloat16 instead of rounding, here twice.
        units = 16 if found.dtype.itemsize > 2 else 2
        floor = units * torch.finfo(found.dtype).eps * expected.abs().max().item()
        bound = 2 * (allowed - expected).abs().max().item() + floor
        assert (found.cpu() - expected).abs().max().item() <= bound


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize(
    ("shape", "alpha", "gamma"),
    [((2, 1, 31, 40), 0.25, 2.0), ((67,), 0.9, 0.0), ((3, 5), 0.3, 0.5), ((), 1.0, 3.3)],
)
def test_loss_and_gradient(
    device: str, shape: tuple[int, ...], alpha: float, gamma: float, dtype: torch.dtype
) -> None:
    logits, target, valid = make_inputs(shape)
    assert_twice_as_good_as_torch(device, (logits.to(dtype), target, valid), alpha, gamma)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(0, 12), max_size=4),
    alpha=st.floats(0, 1),
    gamma=st.floats(0, 5),
    valid_share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    shape: list[int], alpha: float, gamma: float, valid_share: float, seed: int
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = make_inputs(tuple(shape), seed=seed, valid_share=valid_share)
    assert_twice_as_good_as_torch(device, inputs, alpha, gamma)


def test_more_blocks_than_programs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsdtrain_cuda.kernels.focal_loss.MAX_PARTS", 2)
    assert_twice_as_good_as_torch(device, make_inputs((5, 1500)), 0.25, 2.0)


def test_any_layout(device: str) -> None:
    logits, target, valid = make_inputs((2, 3, 4, 5))
    turned = logits.contiguous(memory_format=torch.channels_last)
    assert_twice_as_good_as_torch(device, (turned, target, valid), 0.25, 2.0)
    same = valid[:1].expand(2, 3, 4, 5)
    assert_twice_as_good_as_torch(device, (logits.nan_to_num(), target, same), 0.25, 2.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_huge_and_zero_logits(device: str, gamma: float) -> None:
    logits = torch.tensor([1e30, -1e30, 1e30, -1e30, 0.0, -0.0, 1e-30, 90.0, -110.0])
    target = torch.tensor([True, True, False, False, True, False, True, True, False])
    valid = torch.ones(9, dtype=torch.bool)
    expected, expected_gradient = run(reference, logits.double(), target, valid, 0.25, gamma)
    found, gradient = run(focal_loss, *(t.to(device) for t in (logits, target, valid)), 0.25, gamma)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient.cpu(), expected_gradient.float(), atol=1e-7, rtol=1e-5)


def test_good_predictions_keep_their_digits(device: str) -> None:
    """log(1 + e) of a small e: the loss of one well classified element is all there is."""
    for logit in (3.0, 9.0, 17.0):
        logits, true = torch.tensor([logit], device=device), torch.tensor([True], device=device)
        found = focal_loss(logits, true, true, 1.0, 0.0).item()
        assert found == pytest.approx(math.log1p(math.exp(-logit)), rel=1e-6)


def test_gradcheck(device: str) -> None:
    logits, target, valid = (t.to(device) for t in make_inputs((3, 4)))
    known = torch.where(valid, logits, 0.0).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, target, valid, 0.25, 2.0), (known,))


def test_ten_runs_alike(device: str) -> None:
    inputs = [t.to(device) for t in make_inputs((40, 70))]
    first = run(focal_loss, *inputs, 0.25, 2.0)
    for _ in range(9):
        again = run(focal_loss, *inputs, 0.25, 2.0)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])


FLAGS = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, dtype=torch.int32), FLAGS, FLAGS, 0.25, 2.0), "is torch.int32"),
        ((torch.zeros(2, 3), FLAGS[:1], FLAGS, 0.25, 2.0), r"target has shape \(1, 3\)"),
        ((torch.zeros(2, 3), FLAGS.float(), FLAGS, 0.25, 2.0), "target of shape"),
        ((torch.zeros(2, 3), FLAGS, FLAGS.int(), 0.25, 2.0), "valid of shape"),
        ((torch.zeros(2, 3, device="meta"), FLAGS, FLAGS, 0.25, 2.0), "logits on meta"),
        ((torch.zeros(2, 3), FLAGS, FLAGS, 1.5, 2.0), "alpha=1.5"),
        ((torch.zeros(2, 3), FLAGS, FLAGS, 0.25, -1.0), "gamma=-1.0"),
        ((torch.zeros(2, 3), FLAGS, FLAGS, 0.25, math.nan), "gamma=nan"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        focal_loss(*arguments)


def test_registered_as_pytorch_asks(device: str) -> None:
    logits, target, valid = (t.to(device) for t in make_inputs((3, 7), valid_share=1.0))
    op = torch.ops.fsdtrain.focal_loss.default
    torch.library.opcheck(op, (logits.requires_grad_(), target, valid, 0.25, 2.0, True))
    torch.library.opcheck(op, (logits.detach(), target, valid, 0.25, 2.0, False))


def test_compiles_as_one_graph(device: str) -> None:
    inputs = [t.to(device) for t in make_inputs((4, 9))]
    compiled = torch.compile(focal_loss, fullgraph=True, backend="aot_eager")
    found = run(compiled, *inputs, 0.25, 2.0)
    expected = run(focal_loss, *inputs, 0.25, 2.0)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
