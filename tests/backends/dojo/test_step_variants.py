"""One captured step under many recipes is what each recipe's own capture gives."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from fsdtrain_dojo import DojoBackend
from fsdtrain_dojo.lowering.record_step import record_step
from fsdtrain_dojo.modelling import model_step
from fsdtrain_dojo.recipe import bf16_options
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fsdtrain.comparison.tune import find_overrides
from fsdtrain.step_graph.graph import StepGraph, run_freely

CFP8 = bf16_options() | {
    "activation": {"format": "cfloat8_1_4_3"},
    "weight": {"format": "cfloat8_1_4_3", "bias": 9},
    "activation_gradient": {"format": "cfloat8_1_5_2"},
}
STOCHASTIC = CFP8 | {
    "weight_gradient": {"format": "bf16", "rounding": "stochastic"},
    "first_moment": {"format": "bf16", "rounding": "stochastic"},
    "second_moment": {"format": "cfloat16_uhp"},
}
RECIPES = [CFP8, bf16_options(), STOCHASTIC, {"vector": {"format": "bf16"}}, {}, CFP8]


class Output(NamedTuple):
    loss: Tensor


class Net(nn.Module):
    """Convolution, batch norm, dropout, and a checkpointed block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6, 10)
        self.classify = nn.Linear(10, 4)

    def head(self, x: Tensor) -> Tensor:
        return self.hidden(x).relu()

    def forward(self, x: Tensor) -> Output:
        features = self.norm(self.conv(x)).relu().mean((2, 3))
        hidden: Any = checkpoint(self.head, features, use_reentrant=False)
        dropped = nn.functional.dropout(hidden, 0.25)
        return Output(loss=self.classify(dropped).logsumexp(1).mean())


def differences(first: StepGraph, second: StepGraph) -> list[str]:
    if [op.name for op in first.ops] != [op.name for op in second.ops]:
        return ["ops"]
    values, others = run_freely(first), run_freely(second)
    return [name for name, value in values.items() if not torch.equal(value, others[name])]


@pytest.fixture
def backend() -> DojoBackend:
    return DojoBackend(recipe=CFP8, seed=3, machine="d1_node")


def options(backend: DojoBackend, recipe: Mapping[str, Any]) -> Mapping[str, object]:
    return {**backend.wider_formats().options_at({}), "recipe": recipe}


def test_values_are_those_of_the_recipes_own_capture(backend: DojoBackend) -> None:
    torch.manual_seed(8)
    net, batch = Net(), torch.randn(5, 3, 7, 9)
    variants = backend.step_variants(net, batch, torch.optim.AdamW(net.parameters()))
    for recipe in RECIPES:
        own = DojoBackend(recipe=recipe, seed=3).step_graph(net, batch)
        assert differences(variants.graph(options(backend, recipe)), own) == []
    first, other = (variants.graph(options(backend, recipe)) for recipe in RECIPES[:2])
    assert differences(first, other)


def test_times_are_those_of_the_recipes_own_recording(backend: DojoBackend) -> None:
    torch.manual_seed(8)
    net, batch = Net(), torch.randn(5, 3, 7, 9)
    optimizer = torch.optim.AdamW(net.parameters())
    variants = backend.step_variants(net, batch, optimizer)
    times = []
    for recipe in RECIPES:
        own = DojoBackend(recipe=recipe, machine="d1_node")
        recorded = record_step(net, batch, optimizer, recipe=own.recipe)
        times.append(variants.time_s(options(backend, recipe)))
        assert times[-1] == model_step(own.kernels_of(recorded), own.machine).time.seconds
    assert len(set(times)) > 2
    assert optimizer.state == {}


def test_what_is_proposed_can_be_typed(backend: DojoBackend) -> None:
    """The overrides of a search, put on a command line, are the recipe that was measured."""
    ladders = backend.wider_formats()
    start, wider = (ladders.options_at(each) for each in ({}, {"weight": 1, "vector_gradient": 1}))
    typed = find_overrides(start, wider)
    assert typed == [
        "backend.recipe.weight.bias=delayed",
        "backend.recipe.vector_gradient.format=fp32",
    ]
    config = OmegaConf.create({"backend": {**start}})
    config.merge_with_dotlist(typed)
    assert OmegaConf.to_container(config.backend.recipe) == wider["recipe"]
