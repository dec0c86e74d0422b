"""The recipe search on a small network with Dojo's formats."""

import pytest
import torch
from fsdtrain_cpu import CpuBackend
from fsdtrain_dojo import DojoBackend
from fsdtrain_dojo.recipe import bf16_options
from torch import Tensor, nn
from torch.optim import SGD

from fsdtrain.comparison.tune import gradient_snr_db
from fsdtrain.comparison.tune_step import tune_step
from fsdtrain.step_graph.graph import StepGraph, run_freely


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 16)
        self.second = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).square().mean()


def gradients(graph: StepGraph) -> dict[str, Tensor]:
    values = run_freely(graph)
    return {weight: values[name] for weight, name in graph.gradients.items()}


def test_the_roles_that_lose_most_are_widened() -> None:
    """What the matrix unit reads is in 8 bits: both operands have to be wider, and nothing else."""
    torch.manual_seed(5)
    net, batch = Net(), torch.randn(32, 24)
    recipe = bf16_options() | {
        "activation": {"format": "cfloat8_1_4_3"},
        "weight": {"format": "cfloat8_1_4_3", "bias": 7},
        "second_moment": {"format": "bf16"},
    }
    reference = CpuBackend().step_graph(net, batch)
    before = {name: each.clone() for name, each in net.state_dict().items()}
    found = tune_step(
        DojoBackend(recipe=recipe, machine="d1_node"),
        net,
        batch,
        reference=reference,
        make_optimizer=lambda step: SGD(step.parameters(), lr=0.1),
    )
    assert found.is_reached
    expected = gradients(reference)
    bf16 = gradient_snr_db(expected, gradients(DojoBackend().step_graph(net, batch)))
    assert found.margin_snr_db == pytest.approx(bf16 - 6)
    assert {(each.role, each.to_format) for each in found.steps} == {
        ("activation", "bf16"),
        ("weight", "bf16"),
    }
    assert all(each.origin == "MODELLED" for each in found.steps)
    assert found.steps[-1].gradient_snr_db == pytest.approx(bf16)
    times = [each.step_time_s for each in found.steps]
    assert all(time is not None and time > 0 for time in times)
    assert "(MODELLED)" in found.sentence
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
