"""Units of three captures: what corresponds, what stays alone, runs bit-equal to each side's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fsdtrain_dojo import DojoBackend
from torch import Tensor, nn

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.step_graph.capture import trace_step
from fsdtrain.step_graph.graph import GraphOp, StepGraph, run_freely
from fsdtrain.step_graph.units import AlignedSteps, Side, align_steps, find_units, run_units
from tests.backends.dojo.model_cases import CASES, build_model, each_case, make_inputs
from tests.backends.dojo.running import CFP8


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def assert_runs_are_each_sides(
    aligned: AlignedSteps, reference: StepGraph, a: StepGraph, b: StepGraph
) -> None:
    sides: dict[Side, StepGraph] = {"reference": reference, "a": a, "b": b}
    for side, graph in sides.items():
        found = run_units(aligned.units, lambda unit, side=side: side, reference.tensors)
        wanted = run_freely(graph)
        pairs = [(reference.loss, graph.loss)]
        pairs += [(name, graph.gradients[w]) for w, name in reference.gradients.items()]
        pairs += list(zip(reference.outputs, graph.outputs, strict=True))
        for mine, theirs in pairs:
            assert found[mine].dtype == wanted[theirs].dtype
            assert torch.equal(found[mine], wanted[theirs]), (side, mine)


def assert_same_shapes(aligned: AlignedSteps, reference: StepGraph) -> None:
    """Teacher-forced: every side's results for the reference's values have its shapes."""
    values = run_freely(reference)
    for unit in aligned.units:
        given = {name: values[name] for name in unit.inputs}
        for side in unit.sides:
            results = unit.run(side, given)
            assert set(results) == set(unit.outputs) == set(unit.sides[side].formats)
            assert all(results[name].shape == values[name].shape for name in unit.outputs)
        exact = unit.sides["reference"].run_exactly(given)
        assert all(exact[n].dtype == torch.float64 for n in exact if values[n].is_floating_point())


def names_of_pairs(aligned: AlignedSteps) -> set[tuple[str, str]]:
    """Of units whose own op is their last, on both sides."""
    return {(unit.name, unit.sides["a"].ops[-1].name) for unit in aligned.units}


@each_case("resnet", "gpt", "lstm")
@pytest.mark.parametrize(
    "is_checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "again"]
)
def test_models_match_as_a_whole(name: str, is_checkpointed: bool) -> None:
    model, inputs = build_model(CASES[name], is_checkpointed=is_checkpointed), make_inputs()
    reference, a = trace_step(model, inputs).graph(), trace_step(model, inputs).graph()
    b = DojoBackend(recipe=CFP8).step_graph(model, inputs)
    aligned = align_steps(reference, a, b)
    assert aligned.unmatched == ()
    assert all(mine == theirs for mine, theirs in names_of_pairs(aligned))
    counted = [op.name for op in reference.ops if op.inputs and not op.is_move]
    assert set(counted) <= {unit.name for unit in aligned.units}
    assert_runs_are_each_sides(aligned, reference, a, b)
    assert_same_shapes(aligned, reference)


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hydra_bev_with_casts_and_with_rounded_copies(
    make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch], recompute: bool
) -> None:
    network, batch = make_network(), make_batch()
    network.recompute_backbone = recompute
    step = TrainingStep(network)
    reference, a = trace_step(step, batch).graph(), trace_step(step, batch, autocast=bf16).graph()
    b = DojoBackend(recipe=CFP8).step_graph(step, batch)
    aligned = align_steps(reference, a, b)
    assert aligned.unmatched == ()
    assert_runs_are_each_sides(aligned, reference, a, b)
    convolution = next(unit for unit in aligned.units if unit.op == "aten.convolution")
    formats = {side: set(convolution.sides[side].formats.values()) for side in ("reference", "a")}
    assert formats == {"reference": {"float32"}, "a": {"bf16"}}
    assert convolution.layer.startswith("network.backbone")
    assert convolution.line


def test_hybrid_of_two_sides_is_between_them() -> None:
    """All but one unit as a: what does not depend on that unit is a's."""
    model, inputs = build_model(CASES["resnet"]), make_inputs()
    reference = trace_step(model, inputs).graph()
    b = DojoBackend(recipe=CFP8).step_graph(model, inputs)
    units = find_units(reference, reference, b)
    convolutions = [unit.name for unit in units if unit.op == "aten.convolution"]
    as_a = run_units(units, lambda unit: "a", reference.tensors)
    swapped = run_units(
        units, lambda unit: "b" if unit.name == convolutions[2] else "a", reference.tensors
    )
    assert torch.equal(swapped[convolutions[1]], as_a[convolutions[1]])
    assert not torch.equal(swapped[convolutions[2]], as_a[convolutions[2]])
    assert not torch.equal(swapped[reference.loss], as_a[reference.loss])


@torch.library.custom_op("fsdtrain_test::fused", mutates_args=())
def fused(x: Tensor, weight: Tensor) -> Tensor:
    return plain(x, weight)


@fused.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fsdtrain_test::fused_backward", mutates_args=())
def fused_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    tanh = (x * weight).tanh()
    total = tanh + x
    to_total = grad + 0.5 * grad * weight * (total > 0)
    to_product = to_total * (1 - tanh.square())
    to_weight = 0.5 * grad * total.relu() + to_product * x
    return to_total + to_product * weight, to_weight.sum(0)


@fused_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return fused_backward(grad, *ctx.saved_tensors)


fused.register_autograd(
    _differentiate, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def plain(x: Tensor, weight: Tensor) -> Tensor:
    """A few ops, some of which the rest of the model has, too."""
    total = (x * weight).tanh() + x
    return (total.relu() * weight) * 0.5 + total


class Fused(nn.Module):
    """Layers around an op that one side has in one piece."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.op = op
        self.before, self.after = nn.Linear(6, 8), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x).relu() * 2.0
        return self.after((self.op(y, self.weight) * 0.5).relu()).square().mean()


def test_fused_op_against_many_plain_ones() -> None:
    x = torch.randn(5, 6)
    reference = trace_step(Fused(plain), x).graph()
    b = trace_step(Fused(fused), x).graph()
    aligned = align_steps(reference, reference, b)
    alone = [each for each in aligned.unmatched if each.startswith("b alone")]
    assert [each.partition(" in ")[0] for each in alone] == [
        "b alone: fsdtrain_test.fused", "b alone: fsdtrain_test.fused_backward",
    ]  # fmt: skip
    assert any(each.startswith("reference alone: aten.tanh") for each in aligned.unmatched)
    assert_runs_are_each_sides(aligned, reference, reference, b)
    assert_same_shapes(aligned, reference)
    pairs = {unit.name: unit.sides["b"] for unit in aligned.units}
    # What is around it corresponds; the unit behind it holds it.
    assert {"addmm", "relu"} <= pairs.keys()
    assert reference.loss in {name for unit in aligned.units for name in unit.outputs}
    holding = [
        unit for unit in aligned.units
        if any(op.op == "fsdtrain_test.fused" for op in unit.sides["b"].ops)
    ]  # fmt: skip
    assert holding
    assert all(unit.phase == "forward" for unit in holding[:1])
    # Both sides compute the same numbers, so every unit must, whatever is in it.
    values = run_freely(reference)
    for unit in aligned.units:
        given = {name: values[name] for name in unit.inputs}
        mine, theirs = unit.run("reference", given), unit.run("b", given)
        for name in unit.outputs:
            torch.testing.assert_close(theirs[name], mine[name], rtol=1e-5, atol=1e-6, msg=name)


def make_op(
    name: str, op: str, run: Callable[..., Tensor], inputs: tuple[str, ...], **changes: Any
) -> GraphOp:
    def call(tensors: Any) -> tuple[Tensor]:
        return (run(*tensors),)

    fields: dict[str, Any] = {
        "name": name, "op": op, "phase": "forward", "layer": "", "line": "", "inputs": inputs,
        "outputs": (name,), "is_move": False, "is_elementwise": True, "formats": ("float32",),
        "run": call, "run_exactly": call, "shapes": ((3,),), "dtypes": (torch.float32,),
    }  # fmt: skip
    return GraphOp(**(fields | changes))


def make_graph(*ops: GraphOp, loss: str) -> StepGraph:
    tensors = {"v": torch.tensor([1.0, -2.0, 3.0]), "w": torch.tensor([0.5, 0.25, 2.0])}
    return StepGraph(
        ops=ops, tensors=tensors, weights=("w",), loss=loss, gradients={}, outputs=(loss,)
    )


def multiply(name: str, *inputs: str, **changes: Any) -> GraphOp:
    return make_op(name, "aten.mul", torch.mul, inputs, **changes)


def test_order_does_not_matter() -> None:
    add = make_op("sum", "aten.add", torch.add, ("first", "second"))
    first, second = multiply("first", "v", "w"), multiply("second", "w", "w")
    reference = make_graph(first, second, add, loss="sum")
    a = make_graph(multiply("x", "w", "w"), multiply("y", "v", "w"),
                   make_op("z", "aten.add", torch.add, ("y", "x")), loss="z")  # fmt: skip
    aligned = align_steps(reference, a, reference)
    assert aligned.unmatched == ()
    assert names_of_pairs(aligned) == {("first", "y"), ("second", "x"), ("sum", "z")}


def test_other_shapes_never_correspond() -> None:
    reference = make_graph(multiply("first", "v", "w"), multiply("last", "first", "v"), loss="last")
    a = make_graph(
        multiply("first", "v", "w", shapes=((1, 3),)), multiply("last", "first", "v"), loss="last"
    )
    aligned = align_steps(reference, a, reference)
    assert aligned.unmatched == (
        "reference alone: aten.mul in no layer (forward)",
        "a alone: aten.mul in no layer (forward)",
        "b alone: aten.mul in no layer (forward)",
    )
    (unit,) = aligned.units
    assert unit.outputs == ("last",)
    assert [op.name for op in unit.sides["a"].ops] == ["first", "last"]


def test_op_of_one_side_takes_no_others_place() -> None:
    """The second of three products is a's alone; the third is still the third."""
    reference = make_graph(multiply("first", "v", "w"), multiply("last", "first", "w"), loss="last")
    a = make_graph(
        multiply("first", "v", "w"), multiply("between", "v", "v"), multiply("last", "first", "w"),
        make_op("end", "aten.add", torch.add, ("last", "between")), loss="end",
    )  # fmt: skip
    aligned = align_steps(reference, a, reference)
    assert aligned.unmatched == (
        "a alone: aten.mul in no layer (forward)",
        "a alone: aten.add in no layer (forward)",
    )
    units = {unit.name: unit for unit in aligned.units}
    # The loss is the loss, whichever op gives it.
    assert [op.name for op in units["last"].sides["a"].ops] == ["between", "last", "end"]
    found = run_units(aligned.units, lambda unit: "a", reference.tensors)
    assert torch.equal(found["last"], run_freely(a)["end"])


def test_pairs_that_contradict_each_other_are_dropped() -> None:
    """Two halves read each other the other way round on side a."""

    def pair(first: str, second: str) -> StepGraph:
        return make_graph(
            make_op(first, f"aten.{first}", torch.neg, ("v",)),
            make_op(second, f"aten.{second}", torch.add, ("w", first)),
            make_op("loss", "aten.sum", torch.mul, (first, second)),
            loss="loss",
        )  # fmt: skip

    reference, a = pair("sin", "cos"), pair("cos", "sin")
    aligned = align_steps(reference, a, reference)
    assert [unit.name for unit in aligned.units][-1] == "loss"
    for side, graph in (("reference", reference), ("a", a)):
        found = run_units(aligned.units, lambda unit, side=side: side, reference.tensors)  # type: ignore[misc]  # of a loop
        assert torch.equal(found["loss"], run_freely(graph)["loss"])
