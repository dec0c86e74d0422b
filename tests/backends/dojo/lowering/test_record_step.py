"""Recorded steps against eager PyTorch: the same values, and nothing left behind."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe.building import values_of
from fsdtrain_dojo.lowering.kernel import Phase, ValueKind
from fsdtrain_dojo.lowering.record_step import (
    RecordedStep,
    record_forward,
    record_step,
    run_directly,
)
from fsdtrain_dojo.recipe import read_recipe
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from fsdtrain.backend import BackendError
from tests.backends.dojo.model_cases import CASES, build_model, make_inputs
from tests.backends.dojo.running import BF16, CFP8, emulate, run_step

FP32 = read_recipe({})


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def make_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 7),
        nn.LayerNorm(7), nn.Linear(7, 7), nn.GELU(), nn.Linear(7, 7),
    )  # fmt: skip


def make_batch(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(seed))


def mean_square(module: nn.Module, batch: Tensor) -> Tensor:
    return module(batch).square().mean()


class Coupled(torch.optim.SGD):
    """Every weight moves by its share of all gradients' norm."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        weights = [w for group in self.param_groups for w in group["params"]]
        total = torch.stack([w.grad.square().sum() for w in weights]).sum().sqrt()
        for weight in weights:
            weight.sub_(self.param_groups[0]["lr"] * weight.grad / total)


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: torch.optim.AdamW(weights, lr=1e-2, fused=True),
        lambda weights: torch.optim.AdamW(weights, lr=1e-2, foreach=True, amsgrad=True),
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
        lambda weights: Coupled(weights, lr=0.1),
    ],
    ids=["adamw-fused", "amsgrad-foreach", "nesterov", "coupled"],
)
def test_two_recorded_steps_are_eagers(make: Callable[[Any], Optimizer]) -> None:
    """The second begins with the statistics and moments that eager's first has left."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4)
    )
    optimizer = make(module.parameters())
    for seed in range(2):
        batch = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        recorded = record_step(module, batch, optimizer, recipe=FP32, run=mean_square)
        found = run_directly(recorded)
        module.zero_grad()
        loss = mean_square(module, batch)
        loss.backward()
        torch.testing.assert_close(found[recorded.outputs[0]], loss.detach())
        for name, weight in module.named_parameters():
            torch.testing.assert_close(found[recorded.gradients[name]], weight.grad)
        with torch.no_grad():
            optimizer.step()
        now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        renewed = {old: found[new] for new, old in recorded.renews.items()}
        assert set(now) <= set(renewed)
        for name, value in now.items():
            torch.testing.assert_close(renewed[name], value.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["resnet", pytest.param("gpt", marks=pytest.mark.slow)])
def test_checkpointed_step_has_the_loss_and_gradients_of_the_plain_one(name: str) -> None:
    def run(module: nn.Module, inputs: Any) -> Tensor:
        loss: Tensor = module(inputs)
        return loss

    losses, gradients, sizes = [], [], []
    for is_checkpointed in (False, True):
        module = build_model(CASES[name], is_checkpointed=is_checkpointed)
        for each in module.modules():
            if isinstance(each, nn.Dropout):
                each.p = 0.0
            if hasattr(each, "dropout") and isinstance(each.dropout, float):
                each.dropout = 0.0
        recorded = record_step(module, make_inputs(), recipe=FP32, run=run)
        found = run_directly(recorded)
        losses.append(found[recorded.outputs[0]])
        gradients.append({key: found[value] for key, value in recorded.gradients.items()})
        sizes.append(len(recorded.calls))
        assert len({call.name for call in recorded.calls}) == len(recorded.calls)
    assert sizes[1] > sizes[0]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_nothing_is_left_behind() -> None:
    module, batch = make_network(), make_batch()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    generator = torch.random.get_rng_state()
    record_step(module, batch, optimizer, recipe=FP32, run=mean_square)
    record_forward(module, batch, recipe=FP32)
    after = module.state_dict(), optimizer.state_dict()
    assert str(after[1]) == str(before[1])
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(weight.grad is None for weight in module.parameters())
    assert all(each.training for each in module.modules())


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = make_network()

    def forward(self, batch: Tensor) -> Tensor:
        return mean_square(self.network, batch)


def test_a_compiled_module_is_recorded_as_it_was_written_and_runs_afterwards() -> None:
    module = Loss()
    table = emulate(module, BF16)
    wanted = run_step(module, make_batch())
    recorded = record_step(module, make_batch(), recipe=FP32, run=lambda m, batch: m(batch))
    assert {value.format for value in recorded.values.values()} <= {"fp32", "int64", "bool"}
    found = run_step(module, make_batch())
    assert torch.equal(found.loss, wanted.loss)
    assert table.sites


def formats(recorded: RecordedStep, op: str, phase: Phase) -> set[str]:
    return {
        value.format
        for call in recorded.calls
        if call.op == op and call.phase is phase
        for value in call.outputs[:1]
        if value is not None
    }


def test_values_are_stored_as_the_recipe_says() -> None:
    recipe = CFP8 | {"first_moment": {"format": "bf16"}, "master_weight": {"format": "fp32"}}
    module = make_network()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    recorded = record_step(
        module, make_batch(), optimizer, recipe=read_recipe(recipe), run=mean_square
    )
    values = recorded.values
    assert values["0.weight"].format == "fp32"
    assert values["0.weight.exp_avg"].format == "bf16"
    assert values["0.weight.exp_avg"].element_bytes == 2
    assert values["0.weight.exp_avg_sq"].format == "fp32"
    assert values["1.num_batches_tracked"].format == "int64"
    assert {values[gradient].format for gradient in recorded.gradients.values()} == {"bf16"}
    assert "cfloat8_1_4_3" in formats(recorded, "aten.clone", Phase.FORWARD)  # as it is loaded
    assert "cfloat8_1_5_2" in formats(recorded, "aten.clone", Phase.BACKWARD)
    assert formats(recorded, "aten.convolution", Phase.FORWARD) == {"bf16"}
    assert formats(recorded, "aten.relu", Phase.FORWARD) == {"cfloat8_1_4_3"}  # a layer reads it
    assert formats(recorded, "aten.view", Phase.FORWARD) == {"cfloat8_1_4_3"}  # only moved
    assert formats(recorded, "aten.mean", Phase.FORWARD) == {"fp32"}  # the loss
    for new, old in recorded.renews.items():
        assert values[new].format == values[old].format
        assert values[new].is_output
        assert values[new].kind is ValueKind.ACTIVATION


def test_what_is_not_rounded_again_stays_in_its_format() -> None:
    """The maximum of a BF16 value and zero is one."""
    recorded = record_forward(make_network(), make_batch(), recipe=read_recipe(BF16))
    assert formats(recorded, "aten.relu", Phase.FORWARD) == {"bf16"}


def test_every_result_is_used_and_every_operand_is_made_before() -> None:
    module = make_network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    recorded = record_step(module, make_batch(), optimizer, recipe=FP32, run=mean_square)
    made = set(recorded.tensors)
    used = {value.name for call in recorded.calls for value in values_of(call)}
    for call in recorded.calls:
        assert {value.name for value in values_of(call)} <= made, call.name
        results = [value for value in call.outputs if value is not None]
        assert results
        assert all(value.name in used or value.is_output for value in results), call.name
        made |= {value.name for value in results}
    assert set(recorded.values) == made
    phases = [call.phase for call in recorded.calls]
    assert phases == sorted(phases, key=list(Phase).index)
    layers = {call.layer for call in recorded.calls if call.phase is Phase.OPTIMIZER}
    assert {"0", "1", "4", "5", "6", "8"} <= layers
    assert all(call.line.startswith("test_record_step.py:") for call in recorded.calls[:3])


def test_fake_tensors_need_no_memory() -> None:
    """Five terabytes of pictures."""
    with FakeTensorMode():
        module, batch = make_network(), torch.empty(1 << 33, 3, 7, 7)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        recorded = record_step(module, batch, optimizer, recipe=FP32, run=mean_square)
    assert recorded.values["batch"].shape == (1 << 33, 3, 7, 7)
    small = record_step(make_network(), make_batch(), recipe=FP32, run=mean_square)
    assert [call.op for call in small.calls] == [
        call.op for call in recorded.calls if call.phase is not Phase.OPTIMIZER
    ]


def test_inference_runs_in_evaluation_mode() -> None:
    module, batch = make_network(), make_batch()
    mean_square(module, make_batch(1))  # moves the running statistics
    recorded = record_forward(module, batch, recipe=FP32)
    found = run_directly(recorded)
    with torch.no_grad():
        wanted = module.eval()(batch)
    assert torch.equal(found[recorded.outputs[0]], wanted)
    assert not recorded.renews
    assert not recorded.gradients


def breaking(module: nn.Module, batch: Tensor) -> Tensor:
    found: Tensor = module(batch)
    return found.sum() if found.mean() > 0 else -found.sum()


def test_what_cannot_be_recorded_is_refused() -> None:
    module, batch = make_network(), make_batch()
    with pytest.raises(BackendError, match="one static graph"):
        record_step(module, batch, recipe=FP32, run=breaking)
    other = torch.optim.SGD(make_network().parameters(), lr=0.1)
    with pytest.raises(BackendError, match="belongs to no compiled module"):
        record_step(module, batch, other, recipe=FP32, run=mean_square)
    with pytest.raises(BackendError, match="gets a gradient"):
        record_step(module.requires_grad_(False), batch, recipe=FP32, run=mean_square)
