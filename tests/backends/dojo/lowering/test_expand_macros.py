"""Whole steps as kernels: they give what the ops give, and all that matters has a description."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.check_graph import find_graph_problems
from fsdtrain_dojo.lowering.describe.fallback import describe_whole
from fsdtrain_dojo.lowering.kernel import KernelGraph, Unit
from fsdtrain_dojo.lowering.op_call import Expansion, OpCall
from fsdtrain_dojo.lowering.passes.expand_macros import RULES, expand_macros, find_describe
from fsdtrain_dojo.lowering.record_step import RecordedStep, record_step, run_directly
from fsdtrain_dojo.recipe import read_recipe
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev
from tests.backends.dojo.lowering.pieces import check_kernels, make_call, run_pieces
from tests.backends.dojo.model_cases import CASES, build_model, each_case, make_inputs
from tests.backends.dojo.running import CFP8
from tests.backends.dojo.test_ops_captured import GROUPS, Expressions


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def assert_same_values(graph: KernelGraph, recorded: RecordedStep) -> None:
    """Every kernel, undivided, gives what the ops give for the values that the ops have made."""
    assert not list(find_graph_problems(graph))
    direct = run_directly(recorded)
    found = dict(recorded.tensors)
    shapes = {name: value.shape for name, value in graph.values.items()}
    for kernel in graph.kernels:
        written = [access.value for access in kernel.writes]
        if not kernel.is_random:
            ranges = [[(0, loop.size)] for loop in kernel.loops]
            results = run_pieces(kernel, ranges, found, shapes)
            for name in written:
                wanted = direct.get(name, results[name])  # not what only these kernels know
                # Memory that nobody has set may hold anything.
                is_near = torch.isclose(
                    results[name].double(), wanted.double(), 1e-4, 1e-6, equal_nan=True
                )
                assert is_near.all(), name
            found |= results
        found |= {name: direct[name] for name in written if name in direct}
    assert {*recorded.outputs, *recorded.gradients.values(), *recorded.renews} <= set(found)


def loss_of(module: nn.Module, inputs: Any) -> Tensor:
    loss: Tensor = module(inputs)
    return loss


@each_case("resnet")
def test_models_become_kernels(name: str) -> None:
    module = build_model(CASES[name])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    recorded = record_step(module, make_inputs(), optimizer, recipe=read_recipe(CFP8), run=loss_of)
    graph = expand_macros(recorded)
    assert_same_values(graph, recorded)
    assert not {call.op for call in recorded.calls if find_describe(call) is describe_whole}


@pytest.mark.slow
@each_case()
def test_checkpointed_models_become_kernels(name: str) -> None:
    module = build_model(CASES[name], is_checkpointed=True)
    recorded = record_step(module, make_inputs(), recipe=read_recipe({}), run=loss_of)
    assert_same_values(expand_macros(recorded), recorded)


def test_hydra_bev_becomes_kernels(
    make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch]
) -> None:
    step, batch = TrainingStep(make_network()), make_batch()
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-3)
    recorded = record_step(step, batch, optimizer, recipe=read_recipe(CFP8))
    graph = expand_macros(recorded)
    assert_same_values(graph, recorded)
    assert not {call.op for call in recorded.calls if find_describe(call) is describe_whole}
    with FlopCounterMode(display=False) as counter:
        step(batch).loss.backward()
    assert sum(kernel.counted_flops for kernel in graph.kernels) == counter.get_total_flops()


def weighted_sum(module: nn.Module, one: Tensor) -> Tensor:
    losses = [
        (torch.linspace(0.5, 1.5, each.numel()).view(each.shape) * each).sum()
        for of in module(one).values()
        for each in of
        if each.requires_grad
    ]
    return torch.stack(losses).sum()


@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta:UserWarning")
@pytest.mark.parametrize(
    "name",
    [n if n == "layers-scatters" else pytest.param(n, marks=pytest.mark.slow) for n in GROUPS],
)
def test_every_op_in_pieces(name: str) -> None:
    """Sums of a few hundred numbers that nearly cancel: parts differ in the fourth digit."""
    recorded = record_step(
        Expressions(GROUPS[name]), torch.ones(()), recipe=read_recipe({}), run=weighted_sum
    )
    assert not list(find_graph_problems(expand_macros(recorded)))
    tensors = run_directly(recorded)
    for number, call in enumerate(recorded.calls):
        check_kernels(
            find_describe(call), call, tensors, num_divisions=2, seed=number, tolerance=2e-4
        )


def test_an_op_without_a_description_is_one_undivided_kernel() -> None:
    call, tensors = make_call(torch.ops.aten.trace.default, torch.randn(5, 5))
    describe = find_describe(call)
    assert describe is describe_whole
    (kernel,) = check_kernels(describe, call, tensors, is_exact=True)
    assert kernel.unit is Unit.VECTOR
    assert kernel.num_points == 1


def test_a_tagged_op_needs_no_description() -> None:
    call, tensors = make_call(torch.ops.aten.special_bessel_j0.default, torch.rand(7, 3))
    (kernel,) = check_kernels(find_describe(call), call, tensors, is_exact=True)
    assert [loop.size for loop in kernel.loops] == [7, 3]


def test_accesses_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def describe_wrong(call: OpCall) -> Expansion:
        (kernel,) = describe_whole(call).kernels
        (write,) = kernel.writes
        wrong = replace(write, spans=write.spans[1:])
        return Expansion(kernels=(replace(kernel, writes=(wrong,)),))

    recorded = record_step(
        nn.Linear(3, 2), torch.randn(4, 3), recipe=read_recipe({}),
        run=lambda module, batch: module(batch).square().sum(),
    )  # fmt: skip
    expand_macros(recorded)
    monkeypatch.setitem(RULES, "aten.addmm", describe_wrong)
    with pytest.raises(AssertionError, match="addmm"):
        expand_macros(recorded)
