"""A small network on both sides: clean against itself, and every fault by name."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsdtrain.backend import Backend, load_backend
from fsdtrain.comparison.numerics import compare_numerics
from fsdtrain.comparison.record import NumericsComparison, Side, TensorComparison
from fsdtrain.comparison.summary import name_divergence
from fsdtrain.errors import UserError
from fsdtrain.step_graph.capture import trace_step
from fsdtrain.step_graph.graph import GraphOp, Results, StepGraph
from tests.comparison import faults

CPU, BF16, DOJO = "cpu", "cpu bf16", "dojo"
CFP8 = {
    "activation": {"format": "cfloat8_1_4_3"},
    "weight": {"format": "cfloat8_1_4_3"},
    "activation_gradient": {"format": "cfloat8_1_5_2"},
    **{name: {"format": "bf16"} for name in ("weight_gradient", "vector", "vector_gradient")},
}
STOCHASTIC = {name: {**rule, "rounding": "stochastic"} for name, rule in CFP8.items()}


class SmallNet(nn.Module):
    """Convolutions, a norm, attention over places, a mean, a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.query = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, batch: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(batch)))
        x = x + self.conv(x)
        places = x.flatten(2).transpose(1, 2)
        weights = (places @ self.query(places).transpose(1, 2) / 8).softmax(-1)
        x = (weights @ places).mean(1)
        return F.cross_entropy(self.head(x), torch.tensor([0, 3, 1, 2]))


@cache
def backend(name: str) -> Backend:
    if name == CPU:
        return load_backend("cpu", {})
    if name == BF16:
        return load_backend("cpu", {"precision": "bf16-mixed"})
    recipes: Mapping[str, Any] = {"cfp8": CFP8, "cfp8 stochastic": STOCHASTIC}
    options = {"recipe": recipes[name]} if name in recipes else {}
    return load_backend("dojo", options)


@cache
def network(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return SmallNet(), torch.randn(4, 3, 7, 9) + 0.2


@cache
def graph(name: str, seed: int = 0) -> StepGraph:
    module, batch = network(seed)
    if name == "reference":
        return trace_step(module, batch).graph()
    return backend(name).step_graph(module, batch)


def compare(a: StepGraph, b: StepGraph, **options: Any) -> NumericsComparison:
    return compare_numerics(graph("reference"), a, b, **options)


def first(found: NumericsComparison) -> TensorComparison:
    assert found.first_divergence is not None
    return found.tensors[found.first_divergence]


@pytest.mark.parametrize("name", [CPU, BF16, DOJO, "cfp8", "cfp8 stochastic"])
def test_a_against_a_is_bitwise_clean(name: str) -> None:
    found = compare(graph(name), graph(name))
    assert (found.outcome, found.first_divergence) == ("same", None)
    assert all(row.between.is_bitwise_equal for row in found.tensors)
    assert not any(row.finding or row.outside for row in found.tensors)
    assert "bitwise equal" in found.sentence


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [BF16, DOJO, "cfp8", "cfp8 stochastic"])
def test_healthy_pairs_are_within_their_bands(name: str, seed: int) -> None:
    found = compare_numerics(graph("reference", seed), graph(CPU, seed), graph(name, seed))
    assert [row.finding for row in found.tensors if row.outside] == []
    assert found.outcome == "same"
    assert "within the bands" in found.sentence


def on(side: Side, healthy: StepGraph, faulty: StepGraph) -> tuple[StepGraph, StepGraph]:
    return (faulty, healthy) if side == "a" else (healthy, faulty)


FAULTS: list[tuple[str, faults.Change, str]] = [
    ("convolution", lambda x: 1.01 * x, r"is 1\.0(1|09|10)\d* times the reference"),
    ("convolution_backward", lambda x: 1.01 * x, r"is 1\.0(1|09|10)\d* times the reference"),
    ("convolution_1", lambda x: -x, "has the opposite sign"),
    ("convolution_1", faults.in_1_5_2, r"has the resolution of 2 mantissa bits \(1-5-2\?\)"),
    ("addmm", faults.reordered, "holds the values of another axis order"),
    ("mean", lambda x: 0 * x, "is zero"),
]


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("name", [CPU, DOJO])
@pytest.mark.parametrize(("op", "change", "finding"), FAULTS)
def test_a_fault_is_named(
    name: str, side: Side, op: str, change: faults.Change, finding: str
) -> None:
    healthy = graph(name)
    place = faults.op_of(healthy, op)
    found = compare(*on(side, healthy, faults.with_fault(healthy, op, change)))
    row = first(found)
    assert found.outcome == "different"
    assert (row.mode, row.name, row.layer, row.kind) == (
        "teacher_forced", op, place.layer, place.phase
    )  # fmt: skip
    assert row.outside == (side,)
    assert re.fullmatch(f"{side} {finding}", row.finding), row.finding
    assert row.layer in found.sentence
    assert found.sentence.startswith(f"{side}: ")
    assert found.tensors[found.worst[0]].name == op


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_small_offset_is_named(side: Side) -> None:
    faulty = faults.with_fault(graph(CPU), "convolution_1", faults.shifted)
    row = first(compare(*on(side, graph(CPU), faulty)))
    assert row.finding == f"{side} is off by a constant of 0.001 of the reference's RMS"
    assert row.name == "convolution_1"


@pytest.mark.parametrize("name", [CPU, DOJO])
def test_a_softmax_along_another_axis_is_named(name: str) -> None:
    op = faults.along_another_axis(faults.op_of(graph(name), "_softmax"), 1, 2)
    row = first(compare(graph(name), faults.with_op(graph(name), op)))
    assert row.name == "_softmax"
    assert row.finding.startswith("b holds the values of another axis order")


def test_a_gradient_that_is_not_there_is_named() -> None:
    whole = graph(CPU)
    gradients = {n: value for n, value in whole.gradients.items() if n != "conv.bias"}
    found = compare(whole, replace(whole, gradients=gradients))
    row = first(found)
    assert (row.kind, row.name, row.finding) == ("gradient", "conv.bias", "b is missing")
    assert found.sentence.startswith("b: the gradient of conv.bias is missing")


def test_an_op_that_gives_nothing_is_named() -> None:
    whole = graph(CPU)

    def nothing(inputs: Any) -> Results:
        return (None,)

    lazy = replace(faults.op_of(whole, "mean"), run=nothing)
    row = first(compare(faults.with_op(whole, lazy), whole))
    assert (row.name, row.finding) == ("mean", "a is missing")


@pytest.mark.parametrize("name", [CPU, DOJO])
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_stale_weight_is_named(name: str, side: Side) -> None:
    whole = graph(name)
    earlier = whole.tensors["conv.weight"] + 0.05 * torch.randn(8, 8, 3, 3)
    op = next(op for op in whole.ops if "conv.weight" in op.inputs)
    stale = faults.reading(op, op.inputs.index("conv.weight"), earlier)
    pair = on(side, whole, faults.with_op(whole, stale))
    row = first(compare(*pair, previous={"conv.weight": earlier}))
    assert row.layer == "conv"
    assert row.outside == (side,)
    assert re.search("step before", row.finding), row.finding


def test_nan_from_the_first_step_names_the_first_op_and_the_side() -> None:
    faulty = faults.with_fault(graph(CPU), "convolution_1", lambda x: x / 0 * 0)
    with pytest.raises(UserError, match=r"side b is NaN.* first in conv convolution \(forward"):
        compare(graph(CPU), faulty)


def test_nan_of_the_reference_is_told_first() -> None:
    bias = {"head.bias": torch.full((5,), math.nan)}
    broken = {
        name: replace(graph(name), tensors={**graph(name).tensors, **bias})
        for name in ("reference", CPU)
    }
    with pytest.raises(UserError, match="the reference is NaN"):
        compare_numerics(broken["reference"], broken[CPU], broken[CPU])


def test_what_storing_did_is_told_where_the_values_before_are_known() -> None:
    """In the free run a side's values before it stores them are its own, and nobody's to know."""
    rows = compare(graph(CPU), graph("cfp8")).tensors
    shares = {
        mode: [
            (row.b_stored.saturated_share, row.b_stored.underflowed_share)
            for row in rows
            if row.mode == mode and row.b_stored.format in ("bf16", "cfloat8_1_4_3")
        ]
        for mode in ("teacher_forced", "free_running")
    }
    assert {saturated for saturated, _ in shares["teacher_forced"]} == {0.0}
    assert set(shares["free_running"]) == {(None, None)}


def test_a_dropped_gradient_does_not_underflow() -> None:
    faulty = faults.with_fault(graph(DOJO), "mean", torch.zeros_like)
    row = first(compare(graph(CPU), faulty))
    assert row.b_stored.underflowed_share == 0


@pytest.mark.parametrize("factor", [1.0, 1.01])
@pytest.mark.parametrize("name", [CPU, DOJO])
def test_an_op_that_one_side_alone_has_is_part_of_what_it_computes(
    name: str, factor: float
) -> None:
    """It is exact by its own measure, and the reference has no such op."""
    whole = graph(name)
    extra = replace(
        faults.op_of(whole, "convolution_1"),
        name="extra",
        op="aten.mul",
        inputs=("convolution_1",),
        outputs=("extra",),
        run=lambda inputs: (inputs[0] * factor,),
        run_exactly=lambda inputs: (inputs[0].double() * factor,),
    )
    ops = []
    for op in whole.ops:
        inputs = tuple("extra" if each == "convolution_1" else each for each in op.inputs)
        ops += [replace(op, inputs=inputs), *([extra] if op.name == "convolution_1" else [])]
    found = compare(whole, replace(whole, ops=tuple(ops)))
    if factor == 1:
        assert found.outcome == "same"
        return
    row = first(found)
    assert (row.name, row.outside) == ("add_1", ("b",))
    assert any("mul" in each for each in found.unmatched)


def test_ops_of_one_side_are_told() -> None:
    found = compare(graph(CPU), graph(BF16))
    assert found.outcome == "same"
    assert isinstance(found.unmatched, tuple)


def test_a_record_is_bounded_and_keeps_what_is_outside() -> None:
    faulty = faults.with_fault(graph(CPU), "convolution", lambda x: 1.01 * x)
    whole = compare(graph(CPU), faulty)
    bounded = compare(graph(CPU), faulty, max_rows=20)
    assert len(bounded.tensors) == 20
    assert first(bounded) == first(whole)
    assert any("left out" in note for note in bounded.notes)
    size = len(msgspec.json.encode(whole)) / len(whole.tensors)
    assert size < 1100  # bytes a row
    orders = [row.order for row in whole.tensors]
    assert orders == sorted(orders)


def test_a_divergence_reads_as_a_sentence() -> None:
    faulty = faults.with_fault(graph(CPU), "convolution", lambda x: 1.01 * x)
    found = name_divergence(first(compare(graph(CPU), faulty)))
    assert re.fullmatch(
        r"b: stem convolution \(forward, test_numerics.py:\d+\) is 1.010 times the reference", found
    )


def free_rows(found: NumericsComparison) -> list[TensorComparison]:
    return [row for row in found.tensors if row.mode == "free_running" and row.outside]


def test_a_free_run_goes_off_behind_the_fault_and_not_before() -> None:
    faulty = faults.with_fault(graph(CPU), "convolution_1", lambda x: 1.01 * x)
    rows = free_rows(compare(graph(CPU), faulty))
    place: GraphOp = faults.op_of(graph(CPU), "convolution_1")
    assert rows[0].name == place.name
    assert len(rows) > 10
    assert "is expected" in rows[1].finding
