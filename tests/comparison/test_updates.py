"""The optimiser's step on both sides: real optimisers, healthy and with faults."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from fsdtrain.backend import load_backend
from fsdtrain.comparison.numerics import compare_numerics
from fsdtrain.comparison.record import NumericsComparison, TensorComparison
from fsdtrain.comparison.updates import Updates
from fsdtrain.comparison.weight_update import make_updater
from fsdtrain.step_graph.capture import capture_step

LEAN = {
    **{name: {"format": "bf16"} for name in ("activation", "weight", "activation_gradient")},
    **{name: {"format": "bf16"} for name in ("weight_gradient", "vector", "vector_gradient")},
    "master_weight": {"format": "cfloat16_shp", "rounding": "stochastic", "bias": "current"},
    "first_moment": {"format": "cfloat16_shp", "rounding": "stochastic", "bias": "current"},
    "second_moment": {"format": "cfloat16_uhp"},
}
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


@pytest.fixture
def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return Net(), torch.randn(16, 12)


def adam(module: nn.Module) -> Optimizer:
    return AdamW(module.parameters(), lr=1e-3, weight_decay=0.01)


def momentum(module: nn.Module) -> Optimizer:
    return SGD(module.parameters(), lr=0.1, momentum=0.9)


def compare(
    net: tuple[nn.Module, Tensor],
    side: str,
    options: dict[str, Any],
    *,
    build: Callable[[nn.Module], Optimizer] = adam,
    spoil: Callable[[dict[str, Tensor]], None] | None = None,
    formats: dict[str, str] | None = None,
) -> NumericsComparison:
    """cpu against a side, whose state after the update may be spoilt."""
    module, batch = net
    parameters = dict(module.named_parameters())
    backends = [load_backend("cpu", {}), load_backend(side, options)]
    graphs = [each.step_graph(module, batch) for each in backends]
    a, b = (make_updater(module, build(module), each.update) for each in backends)

    def spoilt(gradients: Any) -> dict[str, Tensor]:
        state = dict(b(gradients))
        if spoil is not None:
            spoil(state)
        return state

    exact = copy.deepcopy(module).double()
    updates = Updates(
        reference=make_updater(exact, build(exact), lambda each: each.step()),
        a=a,
        b=spoilt,
        before={name: each.detach().clone() for name, each in parameters.items()},
        formats={
            "b": {name + end: each for name in parameters for end, each in (formats or {}).items()}
        },
    )
    return compare_numerics(capture_step(module, batch), *graphs, updates=updates)


def first(found: NumericsComparison) -> TensorComparison:
    assert found.first_divergence is not None
    return found.tensors[found.first_divergence]


@pytest.mark.parametrize("build", [adam, momentum])
@pytest.mark.parametrize(
    ("side", "options", "formats"),
    [("cpu", {}, None), ("dojo", {}, None), ("dojo", {"recipe": LEAN}, LEAN_FORMATS)],
)
def test_healthy_updates_are_within_their_bands(
    net: tuple[nn.Module, Tensor],
    side: str,
    options: dict[str, Any],
    formats: dict[str, str] | None,
    build: Callable[[nn.Module], Optimizer],
) -> None:
    if build is momentum and formats is not None:
        formats = {"": "cfloat16_shp", ".momentum_buffer": "cfloat16_shp"}
    found = compare(net, side, options, build=build, formats=formats)
    assert [(row.name, row.mode, row.finding) for row in found.tensors if row.outside] == []
    rows = [row for row in found.tensors if row.kind == "update"]
    assert len(rows) == 2 * 4 * (3 if build is adam else 1)
    assert {row.mode for row in rows} == {"teacher_forced", "free_running"}
    if side == "cpu":
        assert all(row.between.is_bitwise_equal for row in rows)


def leave_out(state: dict[str, Tensor], before: Tensor) -> None:
    state["first.weight"] = before


@pytest.mark.parametrize(("side", "options"), [("cpu", {}), ("dojo", {})])
def test_a_weight_that_is_left_out_is_named(
    net: tuple[nn.Module, Tensor], side: str, options: dict[str, Any]
) -> None:
    before = net[0].get_parameter("first.weight").detach().clone()
    found = compare(net, side, options, spoil=lambda state: leave_out(state, before))
    row = first(found)
    assert (row.kind, row.name, row.mode) == ("update", "first.weight", "teacher_forced")
    assert row.finding == "b is zero: it equals the value of the step before (stale weight)"
    assert found.sentence.startswith("b: the update of first.weight is zero")


def test_a_step_that_is_too_long_is_named(net: tuple[nn.Module, Tensor]) -> None:
    before = net[0].get_parameter("second.bias").detach().clone()

    def longer(state: dict[str, Tensor]) -> None:
        state["second.bias"] = before + 1.01 * (state["second.bias"] - before)

    row = first(compare(net, "cpu", {}, spoil=longer))
    assert (row.name, row.finding[:9]) == ("second.bias", "b is 1.01")


def test_a_moment_that_is_missing_is_named(net: tuple[nn.Module, Tensor]) -> None:
    def lose(state: dict[str, Tensor]) -> None:
        del state["first.bias.exp_avg"]

    row = first(compare(net, "cpu", {}, spoil=lose))
    assert (row.name, row.finding) == ("first.bias.exp_avg", "b is missing")
