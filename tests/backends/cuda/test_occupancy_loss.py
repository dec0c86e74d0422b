"""The kernel of occupancy_loss against the reference in float64, where autograd differentiates."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain.ops.occupancy_loss import occupancy_loss as reference

pytest.importorskip("triton")
from fsdtrain_cuda.kernels.occupancy_loss import occupancy_loss

Shape = tuple[int, int, int, int]


def make_inputs(
    voxels: Shape, num_classes: int, *, seed: int = 0, valid_share: float = 0.7
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is invalid holds NaN and targets that are no class."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*voxels, num_classes, generator=generator)
    target = torch.randint(num_classes, voxels, generator=generator)
    valid = torch.rand(voxels, generator=generator) < valid_share
    weights = 0.1 + torch.rand(num_classes, generator=generator)
    logits = torch.where(valid[..., None], logits, math.nan)
    return logits, torch.where(valid, target, 255), valid, weights


def run(op: Any, logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = op(logits, *rest)
    (1.7 * loss).backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def assert_twice_as_good_as_torch(device: str, logits: Tensor, *rest: Tensor) -> None:
    """At most twice the error of the reference in the same dtype, and some units in the last."""
    exact = run(reference, logits.double(), *rest[:2], rest[2].double())
    plain = run(reference, logits, *rest)
    ours = run(occupancy_loss, logits.to(device), *(tensor.to(device) for tensor in rest))
    assert ours[0].dtype == torch.promote_types(logits.dtype, torch.float32)
    assert ours[1].dtype == logits.dtype
    for found, allowed, expected in zip(ours, plain, exact, strict=True):
        assert found.shape == expected.shape
        if not expected.numel():
            continue
        # The interpreter cuts float32 down to bfloat16 instead of rounding, here twice.
        units = 4 if found.dtype.itemsize > 2 else 2
        floor = units * torch.finfo(found.dtype).eps * expected.abs().max().item()
        bound = 2 * (allowed - expected).abs().max().item() + floor
        assert (found.cpu() - expected).abs().max().item() <= bound


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize(
    ("voxels", "num_classes"),
    [((2, 5, 4, 7), 18), ((1, 3, 3, 1), 1), ((3, 1, 29, 1), 2), ((1, 2, 2, 2), 65)],
)
def test_loss_and_gradient(
    device: str, voxels: Shape, num_classes: int, dtype: torch.dtype
) -> None:
    logits, target, valid, weights = make_inputs(voxels, num_classes)
    weights = weights.double() if dtype == torch.float64 else weights
    assert_twice_as_good_as_torch(device, logits.to(dtype), target, valid, weights)


@settings(max_examples=20, deadline=None)
@given(
    voxels=st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 5), st.integers(1, 5)),
    num_classes=st.integers(1, 20),
    valid_share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape(voxels: Shape, num_classes: int, valid_share: float, seed: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = make_inputs(voxels, num_classes, seed=seed, valid_share=valid_share)
    assert_twice_as_good_as_torch(device, *inputs)


def test_more_blocks_than_programs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsdtrain_cuda.kernels.occupancy_loss.MAX_PARTS", 3)
    assert_twice_as_good_as_torch(device, *make_inputs((2, 17, 9, 6), 7))


def test_classes_that_do_not_lie_together(device: str) -> None:
    logits, *rest = make_inputs((2, 3, 4, 5), 6)
    turned = logits.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    assert_twice_as_good_as_torch(device, turned, *rest)
    sliced = torch.stack([logits, logits], -1)[..., 0]
    assert_twice_as_good_as_torch(device, sliced, *rest)
    transposed = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (logits, *rest[:2])]
    assert_twice_as_good_as_torch(device, *transposed, rest[2])


def test_huge_logits(device: str) -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0], [-1e30, -1e30, -1e30]], device=device)
    target = torch.tensor([0, 2], device=device).view(1, 2, 1, 1)
    valid = torch.ones(1, 2, 1, 1, dtype=torch.bool, device=device)
    weights = torch.ones(3, device=device)
    loss, gradient = run(occupancy_loss, logits.view(1, 2, 1, 1, 3), target, valid, weights)
    assert loss.item() == pytest.approx(math.log(3) / 2)
    expected = torch.tensor([[0.0, 0.0, 0.0], [1 / 3, 1 / 3, -2 / 3]]) / 2 * 1.7
    torch.testing.assert_close(gradient.cpu().view(2, 3), expected)


def test_weights_that_are_all_zero(device: str) -> None:
    logits, target, valid, weights = (t.to(device) for t in make_inputs((1, 3, 3, 3), 4))
    loss, gradient = run(occupancy_loss, logits, target, valid, torch.zeros_like(weights))
    assert loss.item() == 0
    assert not gradient.any()


def test_gradcheck(device: str) -> None:
    logits, target, valid, weights = (t.to(device) for t in make_inputs((1, 2, 2, 2), 3))
    known = torch.where(valid[..., None], logits, 0.0).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: occupancy_loss(x, target, valid, weights.double()), (known,)
    )


def test_ten_runs_alike(device: str) -> None:
    inputs = [t.to(device) for t in make_inputs((2, 8, 9, 5), 18)]
    first = run(occupancy_loss, *inputs)
    for _ in range(9):
        again = run(occupancy_loss, *inputs)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])


def test_without_a_gradient_none_is_written(device: str) -> None:
    logits, *rest = (t.to(device) for t in make_inputs((1, 3, 3, 3), 4))
    expected, _ = run(occupancy_loss, logits, *rest)
    loss, gradient, _ = torch.ops.fsdtrain.occupancy_loss(logits, *rest, False)
    assert torch.equal(loss, expected)
    assert gradient.numel() == 0
    assert not occupancy_loss(logits, *rest).requires_grad


def _spoilt(**changes: Any) -> dict[str, Any]:
    logits, target, valid, weights = make_inputs((1, 2, 3, 2), 4)
    good = {"logits_BXYZK": logits, "target_BXYZ": target, "valid_BXYZ": valid}
    return {**good, "class_weights_K": weights, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits_BXYZK": torch.zeros(2, 3, 4)}, r"must be \[B, X, Y, Z, K\]"),
        ({"logits_BXYZK": torch.zeros(1, 2, 3, 2, 0)}, "at least one class"),
        ({"logits_BXYZK": torch.zeros(1, 2, 3, 2, 4, dtype=torch.int32)}, "is torch.int32"),
        ({"target_BXYZ": torch.zeros(1, 2, 3, 2)}, "target of shape"),
        ({"target_BXYZ": torch.zeros(1, 2, 3, dtype=torch.int64)}, r"target has shape \(1, 2, 3\)"),
        ({"valid_BXYZ": torch.ones(1, 2, 3, 2)}, "valid of shape"),
        ({"class_weights_K": torch.ones(5)}, r"class_weights has shape \(5,\)"),
        ({"class_weights_K": torch.ones(4, device="meta")}, "class_weights on meta"),
        ({"class_weights_K": torch.ones(4).requires_grad_()}, "class_weights asks for one"),
        ({"class_weights_K": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "not negative"),
        ({"valid_BXYZ": torch.ones(1, 2, 3, 2, dtype=torch.bool)}, "target 255 of a valid voxel"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        occupancy_loss(**_spoilt(**changes))


def test_a_target_that_nobody_checked_is_nan(device: str) -> None:
    logits, target, valid, weights = (t.to(device) for t in make_inputs((1, 2, 3, 2), 4))
    loss, _, _ = torch.ops.fsdtrain.occupancy_loss(
        logits.nan_to_num(), target, torch.ones_like(valid), weights, True
    )
    assert loss.isnan()


def test_registered_as_pytorch_asks(device: str) -> None:
    logits, *rest = (t.to(device) for t in make_inputs((1, 2, 3, 2), 4, valid_share=1.0))
    op = torch.ops.fsdtrain.occupancy_loss.default
    torch.library.opcheck(op, (logits.requires_grad_(), *rest, True))
    torch.library.opcheck(op, (logits.detach(), *rest, False))
    scalars = (torch.ones((), device=device), torch.ones((), device=device))
    torch.library.opcheck(
        torch.ops.fsdtrain.scale_gradient.default, (logits.detach().bfloat16(), *scalars)
    )


def test_compiles_as_one_graph(device: str) -> None:
    inputs = [t.to(device) for t in make_inputs((1, 2, 3, 2), 4)]
    compiled = torch.compile(occupancy_loss, fullgraph=True, backend="aot_eager")
    found = run(compiled, *inputs)
    expected = run(occupancy_loss, *inputs)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_autocast_leaves_it_alone(device: str) -> None:
    inputs = [t.to(device) for t in make_inputs((1, 2, 3, 2), 4)]
    expected = occupancy_loss(*inputs)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(occupancy_loss(*inputs), expected)
