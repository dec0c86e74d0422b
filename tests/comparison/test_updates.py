"""The optimiser's step on both sides: real optimisers, healthy and with faults."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from fsdtrain.backend import load_backend
from fsdtrain.comparison.one_step import (
    CapturedSteps,
    SideStep,
    capture_sides,
    compare_one_step,
)
from fsdtrain.comparison.record import SIDES, NumericsComparison, Side, TensorComparison
from fsdtrain.comparison.updates import State
from fsdtrain.errors import UserError
from fsdtrain.step_graph.graph import StepGraph
from tests.comparison import faults

OF_A_STEP = ("activation", "weight", "activation_gradient")
VECTORS = ("weight_gradient", "vector", "vector_gradient")
OF_A_RUN = ("master_weight", "first_moment", "second_moment")
FLOAT32 = {name: {"format": "fp32"} for name in (*OF_A_STEP, *VECTORS, *OF_A_RUN)}
LEAN = {
    "recipe": {
        **{name: {"format": "bf16"} for name in (*OF_A_STEP, *VECTORS)},
        "master_weight": {"format": "cfloat16_shp", "rounding": "stochastic", "bias": "current"},
        "first_moment": {"format": "cfloat16_shp", "rounding": "stochastic", "bias": "current"},
        "second_moment": {"format": "cfloat16_uhp"},
    }
}
STOCHASTIC = {name: {"format": "bf16", "rounding": "stochastic"} for name in (*OF_A_STEP, *VECTORS)}
BF16 = {"precision": "bf16-mixed"}
LEAN_FORMATS = {"": "cfloat16_shp", ".exp_avg": "cfloat16_shp", ".exp_avg_sq": "cfloat16_uhp"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 40)
        self.second = nn.Linear(40, 3)

    def forward(self, batch: Tensor) -> Tensor:
        return (
            self.second(self.first(batch).relu()).square().mean() * 30
        )  # moments that 16 bits hold


class Mean(nn.Module):
    """A loss."""

    def forward(self, batch: Tensor) -> Tensor:
        return batch.square().mean()


class Broken(nn.Module):
    """Its loss and gradients are NaN."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Tensor) -> Tensor:
        loss: Tensor = (-self.net(batch)).sqrt()
        return loss


@pytest.fixture
def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return Net(), torch.randn(16, 12)


def adam(module: nn.Module) -> Optimizer:
    return AdamW(module.parameters(), lr=1e-3, weight_decay=0.01)


def momentum(module: nn.Module) -> Optimizer:
    return SGD(module.parameters(), lr=0.1, momentum=0.9)


def captured(
    net: tuple[nn.Module, Tensor],
    side: str,
    options: dict[str, Any],
    build: Callable[[nn.Module], Optimizer] = adam,
) -> CapturedSteps:
    """cpu and a side, each with a copy of the network."""
    module, batch = net
    steps = [
        SideStep(
            backend=load_backend(name, chosen),
            options=chosen,
            step=copy.deepcopy(module),
            batch=batch,
        )
        for name, chosen in (("cpu", {}), (side, options))
    ]
    return capture_sides(module, batch, *steps, build)


def compare(
    net: tuple[nn.Module, Tensor],
    side: str,
    options: dict[str, Any],
    *,
    build: Callable[[nn.Module], Optimizer] = adam,
    spoil: Callable[[dict[str, Tensor], State], None] | None = None,
) -> NumericsComparison:
    """cpu against a side, whose state after the update may be spoilt; it gets that before, too."""
    steps = captured(net, side, options, build)
    updates = steps.updates

    def spoilt(gradients: Any) -> State:
        state = dict(updates.b(gradients))
        if spoil is not None:
            spoil(state, updates.before)
        return state

    return compare_one_step(replace(steps, updates=replace(updates, b=spoilt)))


def first(found: NumericsComparison) -> TensorComparison:
    assert found.first_divergence is not None
    return found.tensors[found.first_divergence]


@pytest.mark.parametrize("build", [adam, momentum])
@pytest.mark.parametrize(("side", "options"), [("cpu", {}), ("dojo", {}), ("dojo", LEAN)])
def test_healthy_updates_are_within_their_bands(
    net: tuple[nn.Module, Tensor],
    side: str,
    options: dict[str, Any],
    build: Callable[[nn.Module], Optimizer],
) -> None:
    found = compare(net, side, options, build=build)
    assert [(row.name, row.mode, row.finding) for row in found.tensors if row.outside] == []
    rows = [row for row in found.tensors if row.kind == "update"]
    assert len(rows) == 2 * 4 * (3 if build is adam else 1)
    assert {row.mode for row in rows} == {"teacher_forced", "free_running"}
    if side == "cpu":
        assert all(row.between.is_bitwise_equal for row in rows)
    elif options and build is adam:
        formats = {row.name.removeprefix("first.weight"): row.b_stored.format for row in rows}
        assert formats.items() >= LEAN_FORMATS.items()


@pytest.mark.parametrize("seed", range(20))
def test_gradients_of_few_numbers_may_be_rounded_the_unlikely_way(seed: int) -> None:
    """Of one number close to the grid, to nearest says nothing of what chance may do."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(1, 1), Mean())
    options = {"recipe": STOCHASTIC, "seed": seed}
    found = compare((net, torch.rand(3, 1) + 1), "dojo", options)
    assert [(row.name, row.mode, row.finding) for row in found.tensors if row.outside] == []


@pytest.mark.parametrize("side", ["reference", "a", "b"])
def test_the_update_is_the_second_of_a_training(net: tuple[nn.Module, Tensor], side: str) -> None:
    """Against two steps of torch.optim in double precision."""
    module, batch = net
    updates = captured(net, "dojo", {"recipe": FLOAT32}).updates
    twin = copy.deepcopy(module).double()
    optimizer = adam(twin)
    twin(batch.double()).backward()
    optimizer.step()
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(updates.before[name].double(), weight.detach())
    given = {name: torch.randn_like(weight) for name, weight in module.named_parameters()}
    for name, weight in twin.named_parameters():
        weight.grad = given[name].double()
    optimizer.step()
    for _ in range(2):  # all start from the same state
        after = getattr(updates, side)(given)
        for name, weight in twin.named_parameters():
            change = weight.detach() - updates.before[name]
            found = after[name].double() - updates.before[name]
            torch.testing.assert_close(found, change, rtol=1e-3, atol=1e-7)
            for moment in ("exp_avg", "exp_avg_sq"):
                expected = optimizer.state[weight][moment]
                torch.testing.assert_close(after[f"{name}.{moment}"].double(), expected)


def test_a_capture_leaves_steps_and_generator_as_they_were(net: tuple[nn.Module, Tensor]) -> None:
    module, batch = net
    state, weights = torch.get_rng_state(), copy.deepcopy(module.state_dict())
    steps = [copy.deepcopy(module) for _ in range(2)]
    backend = load_backend("cpu", {})
    sides = [SideStep(backend=backend, options={}, step=each, batch=batch) for each in steps]
    compare_one_step(capture_sides(module, batch, *sides, adam))
    assert torch.equal(torch.get_rng_state(), state)
    for each in (module, *steps):
        assert all(torch.equal(value, weights[name]) for name, value in each.state_dict().items())
        assert all(weight.grad is None for weight in each.parameters())


def test_a_step_that_is_not_finite_is_compared_itself(net: tuple[nn.Module, Tensor]) -> None:
    """Behind an update by NaN all ops would be NaN, and the first would be blamed."""
    module, batch = net
    steps = captured((Broken(module), batch), "cpu", {})
    initial = module.get_parameter("first.weight")
    assert torch.equal(steps.updates.before["net.first.weight"], initial)
    with pytest.raises(UserError, match=r"the reference is NaN.* first in sqrt"):
        compare_one_step(steps)


@pytest.mark.parametrize("side", ["cpu", "dojo"])
def test_a_weight_that_is_left_out_is_named(net: tuple[nn.Module, Tensor], side: str) -> None:
    def leave_out(state: dict[str, Tensor], before: State) -> None:
        state["first.weight"] = before["first.weight"]

    found = compare(net, side, {}, spoil=leave_out)
    row = first(found)
    assert (row.kind, row.name, row.mode) == ("update", "first.weight", "teacher_forced")
    assert row.finding == "b is zero: it equals the value of the step before (stale weight)"
    assert found.sentence.startswith("b: the update of first.weight is zero")


def test_a_step_that_is_too_long_is_named(net: tuple[nn.Module, Tensor]) -> None:
    def longer(state: dict[str, Tensor], before: State) -> None:
        change = state["second.bias"] - before["second.bias"]
        state["second.bias"] = before["second.bias"] + 1.01 * change

    row = first(compare(net, "cpu", {}, spoil=longer))
    assert (row.name, row.finding[:9]) == ("second.bias", "b is 1.01")


def test_a_moment_that_is_missing_is_named(net: tuple[nn.Module, Tensor]) -> None:
    def lose(state: dict[str, Tensor], before: State) -> None:
        del state["first.bias.exp_avg"]

    row = first(compare(net, "cpu", {}, spoil=lose))
    assert (row.name, row.finding) == ("first.bias.exp_avg", "b is missing")


def test_a_moment_that_forgets_is_named(net: tuple[nn.Module, Tensor]) -> None:
    """In a first update, from moments of zero, there is nothing to forget."""

    def forget(state: dict[str, Tensor], before: State) -> None:
        state["first.bias.exp_avg"] = (
            state["first.bias.exp_avg"] - 0.9 * before["first.bias.exp_avg"]
        )

    row = first(compare(net, "cpu", {}, spoil=forget))
    assert (row.name, row.outside) == ("first.bias.exp_avg", ("b",))


def test_a_moment_that_stays_is_named(net: tuple[nn.Module, Tensor]) -> None:
    def keep(state: dict[str, Tensor], before: State) -> None:
        state["first.bias.exp_avg"] = before["first.bias.exp_avg"]

    row = first(compare(net, "cpu", {}, spoil=keep))
    assert row.name == "first.bias.exp_avg"
    assert row.finding == "b is zero: it equals the value of the step before (stale moment)"


class Faint(nn.Module):
    """Gradients whose squares are too small for 16 bits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Tensor) -> Tensor:
        loss: Tensor = 1e-6 * self.net(batch)
        return loss


def test_steps_that_are_long_for_moments_that_became_zero_are_told(
    net: tuple[nn.Module, Tensor],
) -> None:
    module, batch = net
    found = compare((Faint(module), batch), "dojo", LEAN)
    row = first(found)
    assert row.name == "net.first.weight"
    assert row.finding.endswith("% of its exp_avg_sq became zero in cfloat16_uhp)")
    others = [each for each in found.tensors if each.outside and each.mode == "free_running"]
    assert others
    assert not any("became zero" in each.finding for each in others)


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(("name", "options"), [("cpu", {}), ("cpu", BF16), ("dojo", {})])
def test_a_weight_that_a_side_keeps_from_its_capture_is_named(
    net: tuple[nn.Module, Tensor], name: str, options: dict[str, Any], side: Side
) -> None:
    module, batch = net

    def keep(graph: StepGraph) -> StepGraph:
        op = next(op for op in graph.ops if "first.weight" in op.inputs)
        number = op.inputs.index("first.weight")
        return faults.with_op(graph, faults.reading(op, number, graph.tensors["first.weight"]))

    backend = load_backend(name, options)
    whole, stale = backend.step_graph, copy.copy(backend)
    stale.step_graph = lambda step, batch: keep(whole(step, batch))  # type: ignore[method-assign]
    sides = [
        SideStep(
            backend=stale if each == side else backend,
            options=options,
            step=copy.deepcopy(module),
            batch=batch,
        )
        for each in SIDES
    ]
    found = compare_one_step(capture_sides(module, batch, *sides, adam))
    row = first(found)
    assert (row.outside, row.layer, row.kind) == ((side,), "first", "forward")
    assert row.finding.endswith("the value of first.weight of the step before (stale weight)")
    assert found.sentence.startswith(f"{side}: first ")
