"""Bisecting the captured step of a small network, with faults planted into one side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from fsdtrain_cpu import CpuBackend
from fsdtrain_dojo import DojoBackend
from torch import Tensor, nn

from fsdtrain.comparison.bisect import bisect
from fsdtrain.comparison.hybrid import HybridRuns
from fsdtrain.comparison.record import SwappedSet
from fsdtrain.step_graph.graph import StepGraph, run_freely
from fsdtrain.step_graph.units import find_units

Change = Callable[[Tensor], Tensor]


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 4)
        self.body = nn.ModuleList([Block(4, 4) for _ in range(4)])
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.body:
            x = x + block(x)
        return self.head(x.mean((2, 3))).logsumexp(1).mean()


@pytest.fixture(scope="module")
def graph() -> StepGraph:
    torch.manual_seed(11)
    return CpuBackend().step_graph(Net(), torch.randn(2, 3, 7, 5))


def plant(graph: StepGraph, faults: Mapping[str, Change]) -> StepGraph:
    """The step with the results of some ops, by name, changed."""
    assert set(faults) <= {op.name for op in graph.ops}
    ops = []
    for op in graph.ops:
        if op.name in faults:
            change = faults[op.name]

            def run(
                inputs: Sequence[Tensor], right: Callable = op.run, change: Change = change
            ) -> tuple[Tensor | None, ...]:
                return tuple(None if x is None else change(x) for x in right(inputs))

            op = replace(op, run=run)
        ops.append(op)
    return replace(graph, ops=tuple(ops))


def bisected(a: StepGraph, b: StepGraph, **arguments: float) -> SwappedSet:
    return bisect(
        find_units(a, a, b), a.tensors, loss=a.loss, gradients=a.gradients.values(), **arguments
    )


def name_of(graph: StepGraph, op: str, layer: str, phase: str) -> str:
    (found,) = (
        each.name
        for each in graph.ops
        if each.op == op and each.layer == layer and each.phase == phase
    )
    return found


@pytest.mark.parametrize(
    ("op", "layer", "phase"),
    [
        ("aten.convolution", "body.2.conv", "forward"),
        ("aten.convolution_backward", "stem.conv", "backward"),
        ("aten.native_group_norm", "stem.norm", "forward"),
    ],
)
def test_a_scale_of_one_op_is_named(graph: StepGraph, op: str, layer: str, phase: str) -> None:
    name = name_of(graph, op, layer, phase)
    found = bisected(graph, plant(graph, {name: lambda x: x * 1.01}))
    assert found.names == (name,)
    assert found.explained_share == pytest.approx(1)
    assert f"{layer} {op.removeprefix('aten.')} ({phase}" in found.sentence
    assert found.num_units == len(find_units(graph, graph, graph))
    # Two whole runs, two sweeps, and what the fault reaches, with all else as a and as b.
    assert found.num_unit_runs <= 6 * found.num_units


def test_two_faults_are_named(graph: StepGraph) -> None:
    names = {
        name_of(graph, "aten.convolution", "body.0.conv", "forward"),
        name_of(graph, "aten.convolution_backward", "body.3.conv", "backward"),
    }
    wrong = plant(graph, dict.fromkeys(names, lambda x: x * 1.05))
    # Both matter, though not alike.
    found = bisected(graph, wrong, min_share=0.999)
    assert set(found.names) == names


def test_a_fault_that_another_one_hides(graph: StepGraph) -> None:
    """One unit's results are twice as large, and those of the next one half as large again."""
    first = name_of(graph, "aten.convolution", "body.1.conv", "forward")
    loss = next(op for op in graph.ops if graph.loss in op.outputs)
    unmade = plant(graph, {first: lambda x: x * 0.0})
    assert set(bisected(graph, unmade).names) == {first}
    both = plant(graph, {first: lambda x: x * 0.0, loss.name: lambda x: x + 1e-7})
    assert set(bisected(graph, both).names) == {first}


def test_a_dropped_gradient_is_named(graph: StepGraph) -> None:
    name = name_of(graph, "aten.convolution_backward", "body.1.conv", "backward")
    found = bisected(graph, plant(graph, {name: torch.zeros_like}))
    assert found.names == (name,)


def test_a_step_is_equal_to_itself(graph: StepGraph) -> None:
    found = bisected(graph, graph)
    assert found.names == ()
    assert found.num_runs == 2


def test_runs_that_are_all_of_one_side_are_that_side(graph: StepGraph) -> None:
    wrong = plant(graph, {graph.ops[4].name: lambda x: x * 1.01})
    wanted = [graph.loss, *graph.gradients.values()]
    runs = HybridRuns(find_units(graph, graph, wrong), graph.tensors, wanted=wanted)
    for values, side in ((run_freely(graph), ()), (run_freely(wrong), runs.numbers)):
        found = runs.run(side)
        assert all(torch.equal(found[name], values[name]) for name in wanted)


def test_a_step_in_bf16_is_different_everywhere(graph: StepGraph) -> None:
    torch.manual_seed(11)
    emulated = DojoBackend().step_graph(Net(), torch.randn(2, 3, 7, 5))
    found = bisected(graph, emulated, max_runs=100)
    assert found.num_runs <= 100
    assert found == bisected(graph, emulated, max_runs=100)
    if found.is_spread:
        assert "no small set" in found.sentence
        assert len(found.ranking) >= len(found.names)
    else:
        assert found.explained_share >= 0.9
    assert [each.share for each in found.ranking] == sorted(
        (each.share for each in found.ranking), reverse=True
    )
