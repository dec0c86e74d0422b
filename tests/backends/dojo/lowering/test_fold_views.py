"""What is folded computes what was there before, bit for bit, on pieces too."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe.building import stored_as
from fsdtrain_dojo.lowering.kernel import Kernel, KernelGraph, Phase, Span, Unit, Value, ValueKind
from fsdtrain_dojo.lowering.mapping import Grid
from fsdtrain_dojo.lowering.op_call import OpCall
from fsdtrain_dojo.lowering.passes.expand_macros import find_describe
from fsdtrain_dojo.lowering.passes.fold_views import fold_views
from fsdtrain_dojo.lowering.verify import verify_graph, verify_program
from fsdtrain_dojo.spatial.execute import execute
from torch import Tensor

from tests.backends.dojo.lowering.pieces import cut_loops, run_pieces
from tests.backends.dojo.spatial.programs import (
    divided,
    graph_of,
    make_kernel,
    operand,
    place_program,
    value,
)

aten = torch.ops.aten


@dataclass
class Ops:
    """A graph that is put together op by op, with what ATen gives for each."""

    values: dict[str, Value] = field(default_factory=dict)
    kernels: list[Kernel] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def given(self, *shape: int) -> Value:
        return self._add(f"x{len(self.values)}", torch.randn(shape), ValueKind.INPUT)

    def _add(self, name: str, tensor: Tensor, kind: ValueKind) -> Value:
        format_name, num_bytes = stored_as(tensor.dtype)
        found = Value(
            name=name, shape=tuple(tensor.shape), format=format_name, element_bytes=num_bytes,
            kind=kind,
        )  # fmt: skip
        self.values[name], self.tensors[name] = found, tensor
        return found

    def call(self, function: Callable[..., Any], *args: Any) -> Value:
        """Of its results, the first one."""

        def tensor_of(each: Any) -> Any:
            if isinstance(each, list):
                return [tensor_of(one) for one in each]
            return self.tensors[each.name] if isinstance(each, Value) else each

        given = [tensor_of(each) for each in args]
        results = function(*given)
        first = results if isinstance(results, Tensor) else results[0]
        made = self._add(f"v{len(self.values)}", first, ValueKind.ACTIVATION)
        rest = 0 if isinstance(results, Tensor) else len(results) - 1
        call = OpCall(
            name=made.name, op=function._schema.name.replace("::", "."), function=function,
            args=args, kwargs={}, outputs=(made, *([None] * rest)), phase=Phase.FORWARD,
        )  # fmt: skip
        expansion = find_describe(call)(call)
        self.kernels += expansion.kernels
        self.values |= {each.name: each for each in expansion.values}
        return made

    def graph(self, *wanted: Value) -> KernelGraph:
        names = {each.name for each in wanted}
        values = {
            name: replace(each, is_output=name in names) for name, each in self.values.items()
        }
        return KernelGraph(values=values, kernels=tuple(self.kernels))

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {
            name: tensor
            for name, tensor in self.tensors.items()
            if self.values[name].kind is ValueKind.INPUT
        }


def run_graph(
    graph: KernelGraph, tensors: Mapping[str, Tensor], seed: int | None = None
) -> dict[str, Tensor]:
    """Kernel by kernel; in pieces, which depend on a kernel's name, where there is a seed."""
    found = dict(tensors)
    shapes = {name: each.shape for name, each in graph.values.items()}
    for kernel in graph.kernels:
        chance = random.Random(f"{seed} {kernel.name}")
        cuts = cut_loops(kernel, chance, division=0 if seed is None else 1)
        found |= run_pieces(kernel, cuts, found, shapes)
    return {name: found[name] for name, each in graph.values.items() if each.is_output}


def check_folding(ops: Ops, *wanted: Value) -> KernelGraph:
    """Assert that folding changes no bit of the wanted values; the folded graph."""
    graph = ops.graph(*wanted)
    verify_graph(graph)
    folded = fold_views(graph)
    verify_graph(folded)
    for seed in (None, 0, 1, 2):
        before, after = (run_graph(each, ops.inputs, seed) for each in (graph, folded))
        assert set(before) == set(after) == {each.name for each in wanted}
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), (name, seed)
            torch.testing.assert_close(tensor, ops.tensors[name], rtol=1e-5, atol=1e-5)
    return folded


def test_the_example_of_the_docstring():
    ops = Ops()
    x = ops.given(4, 6)
    y = ops.call(aten.relu.default, ops.call(aten.view.default, x, [24]))
    (kernel,) = check_folding(ops, y).kernels
    assert kernel.reads[0].value == x.name
    loop = ((0, 1),)
    assert kernel.reads[0].spans == (Span(loop, divide=6), Span(loop, modulo=6))


def random_view(ops: Ops, given: Value, chance: random.Random) -> Value:
    shape, rank = given.shape, len(given.shape)
    dim = chance.randrange(rank)
    kind = chance.choice(("merge", "split", "permute", "slice", "select", "expand", "flip", "copy"))
    if kind == "merge" and rank > 1:
        at = chance.randrange(rank - 1)
        merged = [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
        return ops.call(aten.view.default, given, merged)
    if kind == "split":
        parts = [n for n in range(2, shape[dim]) if shape[dim] % n == 0]
        if parts:
            part = chance.choice(parts)
            return ops.call(
                aten.view.default,
                given,
                [*shape[:dim], part, shape[dim] // part, *shape[dim + 1 :]],
            )
    if kind == "permute":
        return ops.call(aten.permute.default, given, chance.sample(range(rank), rank))
    if kind == "slice" and shape[dim] > 2:
        start = chance.randrange(shape[dim] - 1)
        end = chance.randint(start + 1, shape[dim])
        return ops.call(aten.slice.Tensor, given, dim, start, end, chance.choice((1, 1, 2)))
    if kind == "select" and rank > 2:
        return ops.call(aten.select.int, given, dim, chance.randrange(shape[dim]))
    if kind == "expand" and rank < 4:
        ahead = ops.call(aten.unsqueeze.default, given, dim)
        return ops.call(aten.expand.default, ahead, [*shape[:dim], 3, *shape[dim:]])
    if kind == "copy":
        return ops.call(aten.clone.default, given)
    return given


def read_elementwise(ops: Ops, given: Value, chance: random.Random) -> Value:
    return ops.call(aten.add.Tensor, given, ops.given(*given.shape))


def read_by_product(ops: Ops, given: Value, chance: random.Random) -> Value:
    depth = given.shape[-1]
    flat = ops.call(aten.reshape.default, given, [-1, depth])
    if chance.random() < 0.5:
        turned = ops.call(aten.t.default, flat)
        return ops.call(aten.mm.default, ops.given(3, flat.shape[0]), ops.call(
            aten.t.default, turned))  # fmt: skip
    return ops.call(aten.mm.default, flat, ops.given(depth, 5))


def read_by_sum(ops: Ops, given: Value, chance: random.Random) -> Value:
    dims = chance.sample(range(len(given.shape)), chance.randint(1, len(given.shape)))
    return ops.call(aten.sum.dim_IntList, given, dims)


def read_by_softmax(ops: Ops, given: Value, chance: random.Random) -> Value:
    return ops.call(aten._softmax.default, given, -1, False)


def read_in_windows(ops: Ops, given: Value, chance: random.Random) -> Value:
    shape = given.shape
    flat = ops.call(aten.reshape.default, given, [1, 1, -1, shape[-1]])
    padded = ops.call(aten.convolution.default, flat, ops.given(2, 1, 3, 3), None,
                      [1, 2], [2, 2], [1, 1], False, [0, 0], 1)  # fmt: skip
    return ops.call(aten.relu.default, padded)


READERS = [read_elementwise, read_by_product, read_by_sum, read_by_softmax, read_in_windows]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("seed", range(16))
def test_random_chains_of_views_are_folded_without_a_difference(reader, seed):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    ops = Ops()
    given = ops.given(*chance.choice([(4, 6, 5), (12, 10), (2, 3, 4, 5), (7, 9)]))
    seen = [given]
    for _ in range(chance.randint(1, 4)):
        seen.append(random_view(ops, seen[-1], chance))
    wanted = [reader(ops, seen[-1], chance)]
    kept = chance.choice([each for each in seen if each is not given] or [wanted[0]])
    if chance.random() < 0.5:
        wanted.append(kept)
    folded = check_folding(ops, *{each.name: each for each in wanted if each is not given}.values())
    assert len(folded.kernels) <= len(ops.kernels)


def test_readers_of_one_view_share_its_source():
    ops = Ops()
    x = ops.given(6, 4)
    turned = ops.call(aten.t.default, x)
    results = [ops.call(aten.relu.default, turned), ops.call(aten.exp.default, turned)]
    folded = check_folding(ops, *results)
    assert [[read.value for read in kernel.reads] for kernel in folded.kernels] == [["x0"]] * 2
    assert turned.name not in folded.values


def test_a_view_that_is_wanted_stays_and_is_read_through_all_the_same():
    ops = Ops()
    turned = ops.call(aten.t.default, ops.given(6, 4))
    result = ops.call(aten.relu.default, turned)
    view, reader = check_folding(ops, turned, result).kernels
    assert view.writes[0].value == turned.name
    assert reader.reads[0].value == "x0"


def test_what_joins_values_or_changes_the_format_stays():
    ops = Ops()
    both = ops.call(aten.cat.default, [ops.given(3, 4), ops.given(2, 4)])
    result = ops.call(aten.relu.default, both)
    assert len(check_folding(ops, result).kernels) == 2
    x, wide = operand("x", 8), value("y", 8, element_bytes=4)
    narrow = replace(value("n", 8), format="bf16", element_bytes=2)
    graph = graph_of(
        [x, narrow, replace(wide, is_output=True)],
        [
            make_kernel({"i": 8}, {"x": "i"}, {"n": "i"}, lambda x: x, unit=Unit.MOVE),
            make_kernel({"i": 8}, {"n": "i"}, {"y": "i"}, lambda n: n),
        ],
    )
    assert fold_views(graph) == graph


def copied_then_renewed() -> KernelGraph:
    """kept = copy(old); new = old + 1; y = kept + new: reading old for kept would be too late."""
    old = value("old", 8, kind=ValueKind.STATE)
    values = [old, value("kept", 8), value("new", 8, is_output=True), value("y", 8, is_output=True)]
    loops = {"i": 8}
    kernels = [
        make_kernel(loops, {"old": "i"}, {"kept": "i"}, lambda x: x, unit=Unit.MOVE),
        make_kernel(loops, {"old": "i"}, {"new": "i"}, lambda x: x + 1),
        make_kernel(loops, {"kept": "i", "new": "i"}, {"y": "i"}, lambda a, b: a + b),
    ]
    return graph_of(values, kernels, renews={"new": "old"})


def test_a_copy_of_what_is_renewed_before_it_is_read_stays():
    graph = copied_then_renewed()
    verify_graph(graph)
    folded = fold_views(graph)
    verify_graph(folded)
    assert folded == graph


def test_a_copy_that_is_read_before_its_source_is_renewed_is_folded():
    graph = copied_then_renewed()
    copy, renewing, last = graph.kernels
    early = make_kernel({"i": 8}, {"kept": "i"}, {"y": "i"}, lambda a: a)
    folded = fold_views(replace(graph, kernels=(copy, early, renewing)))
    assert [kernel.name for kernel in folded.kernels] == ["y", "new"]
    verify_graph(folded)


@pytest.mark.parametrize("grid", [(2, 3), (4, 1)])
@pytest.mark.parametrize("seed", range(6))
def test_a_folded_graph_runs_on_nodes(grid: Grid, seed):
    """The load of the reader brings what of the source lies elsewhere."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    ops = Ops()
    given = ops.given(6, 4, 5)
    turned = ops.call(aten.permute.default, given, chance.sample(range(3), 3))
    flat = ops.call(aten.reshape.default, turned, [-1, 10])
    result = ops.call(aten.relu.default, flat)
    graph = fold_views(ops.graph(result))
    assert len(graph.kernels) == 1
    program = place_program(
        graph, grid, [divided({0: grid[0]}, {1: grid[1]})], {"x0": divided({1: grid[0]})}
    )
    verify_program(program, sram_bytes=10**6)
    assert torch.equal(execute(program, ops.inputs)[result.name], ops.tensors[result.name])
