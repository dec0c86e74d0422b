"""Whole training steps, lowered onto a die with holes and run node by node.

In double precision nothing but a mistake of the lowering can show; in single precision the order of
sums shows, and no more than in the direct execution; with Dojo's order of sums and undivided sums
every bit is the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from fsdtrain_dojo.accumulation import matrix_implementations
from fsdtrain_dojo.lowering.kernel import KernelGraph
from fsdtrain_dojo.lowering.lower import lower
from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros
from fsdtrain_dojo.lowering.passes.keep_sums_whole import keep_sums_whole
from fsdtrain_dojo.lowering.program import Step, TileProgram
from fsdtrain_dojo.lowering.record_step import RecordedStep, record_step, run_directly
from fsdtrain_dojo.lowering.verify import verify_graph, verify_program
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.recipe import bf16_options, read_recipe
from fsdtrain_dojo.spatial.execute import Execution, run_program
from fsdtrain_dojo.timing.costs import Costs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fsdtrain.engine.step import TrainingStep
from tests.backends.dojo.model_cases import CASES, build_model, make_inputs

SMALL_DIE = {"name": "d1_die", "die_rows": 4, "die_columns": 5, "missing_nodes": 2}


class Tiny(nn.Module):
    """A convolution, a batch norm, a pool, an attention, a layer norm and a loss, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 10, 3, 2, 1, bias=False)  # a bias would have no gradient
        self.norm = nn.BatchNorm2d(10)
        self.to_qkv = nn.Linear(10, 30)
        self.last_norm = nn.LayerNorm(10)
        self.dropout = nn.Dropout(0.3)
        self.classify = nn.Linear(10, 7)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(inputs["images"]))), 3, 2, 1)
        x = x.flatten(2).transpose(1, 2)
        query, key, found = self.to_qkv(x).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(query, key, found)
        logits = self.classify(self.dropout(self.last_norm(x).mean(1)))
        return F.cross_entropy(logits, inputs["labels"])


class Plain(nn.Module):
    """Nothing that lowering computes in another way than ATen, but for the order of sums."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 10, 3, 1, 1, bias=False)
        self.second = nn.Conv2d(10, 6, 3, 2, 1, bias=False)
        self.hidden = nn.Linear(6 * 3 * 3, 11, bias=False)
        self.last = nn.Linear(11, 5, bias=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(inputs["images"])), 2)
        x = F.relu(self.second(x)).flatten(1)
        return self.last(F.relu(self.hidden(x))).square().mean()


def make_batch(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "images": torch.randn(3, 3, size, size, generator=generator),
        "labels": torch.randint(0, 7, (3,), generator=generator),
    }


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """With an epsilon that keeps gradients of zero from being noise divided by itself."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-2, weight_decay=0.1)


def record(
    model: nn.Module,
    inputs: Any,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adam,
) -> RecordedStep:
    return record_step(
        model, inputs, optimizer(model), recipe=read_recipe(bf16_options()),
        run=lambda model, inputs: model(inputs),
    )  # fmt: skip


@lru_cache
def tiny_step() -> RecordedStep:
    return record(Tiny().train(), make_batch(23))


def graph_of(recorded: RecordedStep) -> KernelGraph:
    """With losses, gradients, and new weights, states and statistics as outputs."""
    graph = expand_macros(recorded)
    wanted = {*recorded.outputs, *recorded.gradients.values(), *recorded.renews}
    values = {
        name: replace(each, is_output=each.is_output or name in wanted)
        for name, each in graph.values.items()
    }
    return replace(graph, values=values)


def lower_and_verify(graph: KernelGraph, machine: Machine) -> TileProgram:
    program = lower(graph, Costs(machine))
    verify_graph(program.graph)
    verify_program(program, sram_bytes=machine.node.memory.capacity_bytes)
    return program


def run(
    program: TileProgram, tensors: Mapping[str, Tensor], direct: Mapping[str, Tensor]
) -> Execution:
    """The program; what random kernels give is taken from the direct execution."""
    kernels = [each for main in program.graph.kernels for each in (main, *main.epilogue)]
    given = {
        access.value: direct[access.value]
        for kernel in kernels
        if kernel.is_random
        for access in kernel.writes
    }
    with torch.no_grad():
        return run_program(program, tensors, given=given)


class InDouble(TorchDispatchMode):
    """Computes in double precision whatever asks for single precision."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*map(_in_double, args), **{k: _in_double(v) for k, v in (kwargs or {}).items()})


def _in_double(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.double() if argument.dtype is torch.float32 else argument
    if isinstance(argument, list | tuple):
        return type(argument)(map(_in_double, argument))
    return torch.float64 if argument is torch.float32 else argument


def largest_errors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """By value: the largest difference, as a share of the largest magnitude.

    Magnitudes below 1e-6 count as that: a bias before a batch norm has a gradient of zero, and
    what is found for it is noise.
    """
    return {
        name: float((each.double() - wanted[name].double()).abs().max())
        / max(float(wanted[name].double().abs().max()), 1e-6)
        for name, each in found.items()
    }


def check_in_double(
    recorded: RecordedStep, program: TileProgram, tolerance: float = 1e-10
) -> TileProgram:
    """Assert that the program's outputs are those of the ops; the program."""
    tensors = {name: _in_double(each) for name, each in recorded.tensors.items()}
    with InDouble():
        direct = run_directly(recorded, tensors)
        found = run(program, tensors, direct).outputs
    assert {*recorded.outputs, *recorded.gradients.values(), *recorded.renews} == set(found)
    errors = largest_errors(found, direct)
    assert max(errors.values()) < tolerance, sorted(errors.items(), key=lambda each: -each[1])[:5]
    return program


@lru_cache
def tiny_program() -> TileProgram:
    return lower_and_verify(graph_of(tiny_step()), read_machine(SMALL_DIE))


def test_a_step_on_a_die_with_holes_is_the_direct_one():
    program = check_in_double(tiny_step(), tiny_program())
    assert program.grid == (4, 4)
    assert not program.spills
    assert any(is_reduced(step) for step in program.steps)


def test_a_step_on_a_column_of_nodes_is_the_direct_one():
    machine = read_machine({"name": "d1_die", "die_rows": 7, "die_columns": 1, "missing_nodes": 0})
    program = lower_and_verify(graph_of(tiny_step()), machine)
    assert program.grid == (7, 1)
    check_in_double(tiny_step(), program)


def test_a_step_with_little_memory_is_the_direct_one():
    """Values wait outside, and nodes go through their shares in several steps."""
    recorded = tiny_step()
    program = lower_and_verify(graph_of(recorded), read_machine(SMALL_DIE | {"sram_kb": 7}))
    assert len(program.spills) > 10
    assert max(step.mapping.num_steps for step in program.steps) > 2
    check_in_double(recorded, program)


def is_reduced(step: Step) -> bool:
    divided = {part.loop for part in (*step.mapping.rows, *step.mapping.columns)}
    return bool(divided & step.kernel.reductions)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_steps_of_many_models_are_the_direct_ones(name):
    model = build_model(CASES[name]).train()
    recorded = record(model, make_inputs())
    check_in_double(recorded, lower_and_verify(graph_of(recorded), read_machine(SMALL_DIE)))


@pytest.mark.slow
def test_the_step_of_hydra_bev_on_a_whole_die_is_the_direct_one(make_network, make_batch):
    """342 nodes. Weights of resampling are ATen's own, in single precision, hence the tolerance."""
    step = TrainingStep(make_network())
    recorded = record_step(
        step.train(), make_batch(), adam(step), recipe=read_recipe(bf16_options())
    )
    program = lower_and_verify(graph_of(recorded), read_machine("d1_die"))
    assert program.grid == (18, 19)
    check_in_double(recorded, program, tolerance=1e-6)


def test_single_precision_is_lost_to_the_order_of_sums_only():
    """Neither execution is the right one; the spatial one is about as near to it."""
    recorded, program = tiny_step(), tiny_program()
    direct = run_directly(recorded)
    found = run(program, recorded.tensors, direct).outputs
    masks = {
        access.value: direct[access.value]
        for kernel in program.graph.kernels
        for each in (kernel, *kernel.epilogue)
        if each.is_random
        for access in each.writes
    }
    with InDouble():
        exact = run(program, {n: _in_double(t) for n, t in recorded.tensors.items()}, masks).outputs
    mine = largest_errors(found, exact)
    other = largest_errors({name: direct[name] for name in exact}, exact)
    eps = torch.finfo(torch.float32).eps
    for name in exact:
        assert mine[name] < 8 * other[name] + 8 * eps, name


def test_in_dojos_order_of_sums_every_bit_is_the_same():
    recorded = record(
        Plain(),
        make_batch(11),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    )
    exact = matrix_implementations("exact", accumulator="fp32", k_tile=16, host="cpu")
    calls = [replace(each, function=exact.get(each.function, each.function)) for each in
             recorded.calls]  # fmt: skip
    assert sum(each.function in exact.values() for each in calls) >= 8
    recorded = replace(recorded, calls=tuple(calls))
    program = lower_and_verify(keep_sums_whole(graph_of(recorded)), read_machine(SMALL_DIE))
    direct = run_directly(recorded)
    found = run(program, recorded.tensors, direct).outputs
    differ = [name for name, each in found.items() if not torch.equal(each, direct[name])]
    assert not differ


def test_traffic_is_what_the_timing_counts():
    """Bytes that arrive at nodes which had not got them: copied here, counted there."""
    recorded, program = tiny_step(), tiny_program()
    costs = Costs(read_machine(SMALL_DIE))
    copies = iter(run(program, recorded.tensors, run_directly(recorded)).copies)
    values = program.graph.values
    num_moved = 0
    for step in program.steps:
        hidden = step.kernel.hidden
        stores = [each for each in step.stores if each.value not in hidden]
        for load in step.loads:
            counted = costs.load(load.source, load.boxes, values[load.value], 1.0).moved_bytes
            copied = next(copies)
            assert (copied.value, copied.moved_bytes) == (load.value, counted)
            num_moved += counted > 0
        for store in stores:
            copied = next(copies)
            if not is_reduced(step):
                counted = costs.store(store, values[store.value]).moved_bytes
                assert (copied.value, copied.moved_bytes) == (store.value, counted)
    assert num_moved > 20
    assert not list(copies)
