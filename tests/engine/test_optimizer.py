"""AdamW, fused and not: the same training, and checkpoints that know of no difference."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fsdtrain.engine.optimizer import build_optimizer
from fsdtrain.settings import TrainingSettings


def train(step: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> list[Tensor]:
    for seed in seeds:
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        step(inputs).square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in step.parameters()]


def make(is_fused: bool, training: TrainingSettings) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    step = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return step, build_optimizer(step, training, is_fused=is_fused)


def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = torch._fused_adamw_

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "_fused_adamw_", counted)
    return calls


def test_fused_or_not_trains_the_same(
    make_training: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fused_calls(monkeypatch)
    training = make_training(weight_decay=0.1, learning_rate=0.01)
    plain = train(*make(False, training), range(20))
    assert not calls
    fused = train(*make(True, training), range(20))
    assert len(calls) == 20 * 2  # parameter groups
    for one, other in zip(plain, fused, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("was_fused", [False, True])
def test_a_checkpoint_is_gone_on_with_in_the_devices_own_way(
    was_fused: bool,
    make_training: Callable[..., TrainingSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = make_training(weight_decay=0.1, learning_rate=0.01)
    step, optimizer = make(was_fused, training)
    train(step, optimizer, range(5))
    saved = copy.deepcopy((step.state_dict(), optimizer.state_dict()))
    expected = train(step, optimizer, range(5, 10))

    calls = fused_calls(monkeypatch)
    resumed, other = make(not was_fused, training)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    found = train(resumed, other, range(5, 10))
    assert bool(calls) is not was_fused
    for one, wanted in zip(found, expected, strict=True):
        assert torch.allclose(one, wanted, rtol=1e-5, atol=1e-7)
