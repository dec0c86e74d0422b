"""A step from its module to its time, and what is conserved on the way."""

from collections.abc import Callable

import pytest
import torch
from fsdtrain_dojo.lowering.kernel import Phase
from fsdtrain_dojo.lowering.lower import lower
from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros
from fsdtrain_dojo.lowering.record_step import record_step
from fsdtrain_dojo.lowering.verify import verify_program
from fsdtrain_dojo.machine.catalog import read_machine, with_constants
from fsdtrain_dojo.modelling import model_step
from fsdtrain_dojo.recipe import bf16_options, read_recipe
from fsdtrain_dojo.timing.costs import Costs
from fsdtrain_dojo.timing.schedule_steps import schedule_steps
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsdtrain.backend import BackendError
from tests.backends.dojo.lowering.steps import gemm_graph, training_graph

DIE = {"name": "d1_die", "die_rows": 4, "die_columns": 5, "missing_nodes": 2}


class Attention(nn.Module):
    """With what it attends to of another length, as explicit products."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(12, 16) for _ in range(3))
        self.out = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        query, other = self.query(x), x[:, ::2]
        weights = (query @ self.key(other).transpose(1, 2)).softmax(-1)
        return x + self.out(weights @ self.value(other))


def convolutions() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=4), nn.BatchNorm2d(8),
        nn.Conv2d(8, 6, 1, bias=False), nn.ConvTranspose2d(6, 4, 2, 2),
        nn.Conv2d(4, 4, 3, groups=4),
    ), torch.randn(2, 3, 13, 10)  # fmt: skip


def linears() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 7, bias=False)), torch.randn(
        5, 20
    )


def attention() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(Attention(), nn.LayerNorm(12), Attention()), torch.randn(3, 10, 12)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "convolutions": convolutions, "linears": linears, "attention": attention,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_that_torch_counts(name):
    torch.manual_seed(0)
    module, batch = MODELS[name]()
    with FlopCounterMode(display=False) as counter:
        module(batch).square().mean().backward()
    module.zero_grad()
    recorded = record_step(
        module, batch, torch.optim.SGD(module.parameters(), lr=0.1),
        recipe=read_recipe(bf16_options()), run=lambda net, x: net(x).square().mean(),
    )  # fmt: skip
    graph = expand_macros(recorded)
    assert sum(kernel.counted_flops for kernel in graph.kernels) == counter.get_total_flops()
    program = lower(graph, Costs(read_machine(DIE)))
    kept = sum(step.kernel.counted_flops for step in program.steps)
    assert kept == counter.get_total_flops()


def test_a_step_is_lowered_and_timed():
    machine = read_machine(DIE)
    modelled = model_step(training_graph(), machine)
    assert modelled.machine is machine
    verify_program(modelled.program, sram_bytes=machine.node.memory.capacity_bytes)
    time = schedule_steps(modelled.program, Costs(machine))
    assert time.seconds == modelled.time.seconds
    phases = [step.kernel.phase for step in modelled.program.steps]
    assert set(phases) == set(Phase)


def test_modelling_is_the_same_each_time():
    one, other = (model_step(training_graph(), read_machine(DIE)) for _ in range(2))
    assert one.time == other.time
    assert [step.mapping for step in one.program.steps] == [
        step.mapping for step in other.program.steps
    ]


@pytest.mark.parametrize("name", ["d1_die", "a100", "h100"])
def test_twice_the_product_takes_about_eight_times_as_long(name):
    small, large = (
        model_step(gemm_graph(*[size] * 3), read_machine(name)).time.seconds
        for size in (4096, 8192)
    )
    assert 6.5 < large / small < 9.5


def test_more_nodes_are_quicker():
    graph = gemm_graph(1024, 1024, 1024)
    seconds = [
        model_step(graph, read_machine({**DIE, "missing_nodes": 0, "die_rows": rows})).time.seconds
        for rows in (2, 4, 8)
    ]
    assert seconds[0] > 1.7 * seconds[1] > 2.5 * seconds[2]


def test_a_step_that_does_not_fit_is_an_error():
    machine = with_constants(read_machine(DIE), {"sram_kb": 4, "hbm_gb": 1e-5})
    with pytest.raises(BackendError, match="memory outside holds"):
        model_step(gemm_graph(512, 512, 512), machine)
