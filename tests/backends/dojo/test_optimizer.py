"""The compiled optimiser against torch.optim, and what it stores against rounding by ml_dtypes."""

import copy
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from fsdtrain_dojo.optimizer import OptimizerCompiler
from fsdtrain_dojo.recipe import Recipe, Role, read_recipe
from fsdtrain_dojo.sites import SiteTable
from torch import Tensor, nn
from torch.optim import Optimizer

from fsdtrain.backend import BackendError

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]


def make_compiler(recipe: Recipe, model: nn.Module) -> OptimizerCompiler:
    table = SiteTable(recipe, seed=0, device=torch.device("cpu"), read_every_steps=0)
    table.begin_step()
    names = {parameter: name for name, parameter in model.named_parameters()}
    return OptimizerCompiler(recipe, table, names)


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def adamw(given: list[dict[str, Any]]) -> Optimizer:
    return torch.optim.AdamW(given, lr=1e-2)


def momentum(given: list[dict[str, Any]]) -> Optimizer:
    return torch.optim.SGD(given, lr=1e-1, momentum=0.9, nesterov=True)


@pytest.mark.parametrize(
    "make",
    [
        adamw,
        momentum,
        lambda given: torch.optim.AdamW(given, lr=1e-2, amsgrad=True),
        lambda given: torch.optim.RMSprop(given, lr=1e-2),
        lambda given: torch.optim.Adagrad(given, lr=1e-2),
    ],
    ids=["adamw", "sgd", "amsgrad", "rmsprop", "adagrad"],
)
def test_without_rounding_it_is_the_optimiser_itself(make: MakeOptimizer) -> None:
    model = make_model()
    reference = copy.deepcopy(model)
    found, wanted = make(groups(model)), make(groups(reference))
    compiler = make_compiler(read_recipe({}), model)
    schedule = torch.optim.lr_scheduler.LambdaLR(wanted, lambda step: 1 / (1 + step))
    found_schedule = torch.optim.lr_scheduler.LambdaLR(found, lambda step: 1 / (1 + step))
    for step in range(4):
        give_gradients(model, step)
        give_gradients(reference, step)
        compiler.step(found)
        wanted.step()
        schedule.step()
        found_schedule.step()
        rates = [group["lr"] for group in found.param_groups]
        assert rates == [group["lr"] for group in wanted.param_groups]
        assert all(isinstance(rate, float) for rate in rates)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=3e-6, atol=3e-7)
    # And it can be saved and loaded as the optimiser it is.
    assert found.state_dict().keys() == wanted.state_dict().keys()


def as_bf16(values: Tensor) -> Tensor:
    rounded = values.detach().numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
    return torch.from_numpy(rounded)


def test_what_is_stored_is_rounded_and_the_update_reads_it() -> None:
    """AdamW in float64 from the stored values, by its formulas (arXiv 1711.05101, algorithm 2)."""
    roles = ("master_weight", "first_moment", "second_moment", "weight_gradient")
    recipe = read_recipe({role: {"format": "bf16"} for role in roles})
    model = make_model(1)
    optimizer = adamw(groups(model))
    compiler = make_compiler(recipe, model)
    for parameter in model.parameters():
        parameter.data = as_bf16(parameter)
    for step in range(1, 4):
        give_gradients(model, step)
        before = copy.deepcopy((list(model.parameters()), optimizer.state_dict()))
        gradients = [as_bf16(p.grad).double() for p in model.parameters() if p.grad is not None]
        compiler.step(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                index = [p is parameter for p in model.parameters()].index(True)
                old, gradient = before[0][index].double(), gradients[index]
                assert torch.equal(parameter.grad.double(), gradient)
                state = optimizer.state[parameter]
                moments = before[1]["state"].get(_number(optimizer, parameter), {})
                zero = torch.zeros_like(old)
                first = 0.9 * moments.get("exp_avg", zero).double() + 0.1 * gradient
                second = 0.999 * moments.get("exp_avg_sq", zero).double() + 0.001 * gradient**2
                _assert_rounded(state["exp_avg"], first)
                _assert_rounded(state["exp_avg_sq"], second)
                mean = state["exp_avg"].double() / (1 - 0.9**step)
                spread = (state["exp_avg_sq"].double() / (1 - 0.999**step)).sqrt()
                decayed = old * (1 - 1e-2 * group["weight_decay"])
                _assert_rounded(parameter, decayed - 1e-2 * mean / (spread + 1e-8))


def _number(optimizer: Optimizer, parameter: nn.Parameter) -> int:
    ordered = [each for group in optimizer.param_groups for each in group["params"]]
    return [each is parameter for each in ordered].index(True)


def _assert_rounded(found: Tensor, exact: Tensor) -> None:
    """On the grid of BF16, and no further from the exact value than half a step."""
    assert torch.equal(as_bf16(found), found.detach())
    exponent = torch.frexp(exact.detach().abs()).exponent - 1
    half_step = torch.ldexp(torch.ones_like(exact), exponent - 8)
    error = (found.detach().double() - exact.detach()).abs()
    # The update itself is computed in FP32: its bias correction 1 - 0.999^t loses four digits.
    assert bool((error <= half_step + 1e-6).all())


def test_stochastic_rounding_keeps_small_updates_alive() -> None:
    """Updates far below half a step: nearest loses all of them, stochastic moves by their sum."""
    moved = {}
    for rounding in ("nearest", "stochastic"):
        recipe = read_recipe({"master_weight": {"format": "bf16", "rounding": rounding}})
        model = nn.Linear(64, 64, bias=False)
        nn.init.ones_(model.weight)
        compiler = make_compiler(recipe, model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(50):
            compiler.table.begin_step()
            model.weight.grad = torch.full_like(model.weight, 2.0**-12)
            compiler.step(optimizer)
        moved[rounding] = 1 - model.weight.mean().item()
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(50 * 2.0**-12, rel=0.1)


def test_hooks_are_called() -> None:
    model = make_model()
    optimizer = momentum(groups(model))
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    give_gradients(model, 0)
    make_compiler(read_recipe({}), model).step(optimizer)
    assert called == ["before", "after"]


def test_a_state_of_unknown_meaning_is_refused() -> None:
    model = make_model()
    give_gradients(model, 0)
    optimizer = torch.optim.Rprop(groups(model))
    recipe = read_recipe({"first_moment": {"format": "bf16"}})
    with pytest.raises(BackendError, match="Rprop keeps 'prev' for every weight.*exp_avg_sq"):
        make_compiler(recipe, model).step(optimizer)


def test_the_tied_roles_are_those_of_the_states() -> None:
    recipe = read_recipe({role.value: {"format": "bf16"} for role in Role})
    model = make_model()
    give_gradients(model, 0)
    compiler = make_compiler(recipe, model)
    compiler.step(adamw(groups(model)))
    found = {site.name: site.role for site in compiler.table.sites}
    for name, _ in model.named_parameters():
        assert found[f"optimizer.{name}.grad"] is Role.WEIGHT_GRADIENT
        assert found[f"optimizer.{name}.weight"] is Role.MASTER_WEIGHT
        assert found[f"optimizer.{name}.exp_avg"] is Role.FIRST_MOMENT
        assert found[f"optimizer.{name}.exp_avg_sq"] is Role.SECOND_MOMENT
    assert len(found) == 4 * 4


def test_weights_that_no_compiled_module_has_are_refused() -> None:
    model = make_model()
    compiler = make_compiler(read_recipe({}), nn.Linear(2, 2))
    with pytest.raises(BackendError, match=r"trains a weight of shape \[5, 7\] that belongs to no"):
        compiler.step(adamw(groups(model)))
