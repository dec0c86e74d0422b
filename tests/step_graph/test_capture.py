"""A captured step against eager PyTorch, bit for bit, and in double precision against eager's."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.errors import BackendError
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.step_graph.capture import loss_of, trace_step
from fsdtrain.step_graph.graph import StepGraph, run_freely
from tests.backends.dojo.model_cases import CASES, build_model, each_case, make_inputs

SEED = 5
LIFTS = pytest.mark.parametrize(
    "lift",
    [
        "project_sample",
        pytest.param("depth_splat", marks=pytest.mark.slow),
        pytest.param("deformable", marks=pytest.mark.slow),
    ],
)
BF16 = partial(torch.autocast, "cpu", torch.bfloat16)


def capture(step: nn.Module, batch: Any, **options: Any) -> StepGraph:
    torch.manual_seed(SEED)
    return trace_step(step, batch, **options).graph()


def run_eagerly(
    step: nn.Module, batch: Any, autocast: Callable[[], Any] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(SEED)
    step.zero_grad()
    with autocast() if autocast else torch.enable_grad():
        loss = loss_of(step(batch))
    loss.backward()
    weights = step.named_parameters()
    return loss.detach(), {n: w.grad for n, w in weights if w.grad is not None}


def run_exactly(graph: StepGraph) -> dict[str, Tensor]:
    """Every op in double precision, from the doubles of those before it."""
    values = {
        name: each.double() if each.is_floating_point() else each
        for name, each in graph.tensors.items()
    }
    for op in graph.ops:
        results = op.run_exactly([values[name] for name in op.inputs])
        for name, result in zip(op.outputs, results, strict=True):
            if name is not None:
                assert result is not None
                assert result.dtype not in (torch.float32, torch.bfloat16), op.op
                values[name] = result
    return values


def assert_is_eagers(
    graph: StepGraph, loss: Tensor, gradients: dict[str, Tensor], values: dict[str, Tensor]
) -> None:
    assert torch.equal(values[graph.loss], loss)
    assert set(graph.weights) == graph.gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(values[graph.gradients[name]], gradient), name


def assert_is_pure(graph: StepGraph, values: dict[str, Tensor]) -> None:
    """No op has written into what it read, and each gives the same bits again."""
    fresh = dict(graph.tensors)
    for op in graph.ops:
        inputs = [values[name] for name in op.inputs]
        before = [each.clone() for each in inputs]
        results = op.run(inputs)
        assert all(map(torch.equal, _bits(inputs), _bits(before))), op.name
        for name, result in zip(op.outputs, results, strict=True):
            if name is not None:
                assert result is not None
                assert all(map(torch.equal, _bits([result]), _bits([values[name]]))), op.name
                fresh[name] = result
    assert fresh.keys() == values.keys()


def _bits(tensors: list[Tensor]) -> list[Tensor]:
    return [each.nan_to_num() for each in tensors]


@each_case("resnet", "vit_attention_dropout", "convnext", "lstm", "gpt", "unet_index_add")
@pytest.mark.parametrize(
    "is_checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "again"]
)
def test_step_is_eagers(name: str, is_checkpointed: bool) -> None:
    """Dropout too: it draws what the step would have drawn when it was captured."""
    case, inputs = CASES[name], make_inputs()
    model = build_model(case, is_checkpointed=is_checkpointed)
    graph = capture(model, inputs)
    # Eager's checkpointing would move running statistics twice.
    loss, gradients = run_eagerly(build_model(case), inputs)
    values = run_freely(graph)
    if case.has_same_kernels:
        assert_is_eagers(graph, loss, gradients, values)
    torch.testing.assert_close(values[graph.loss], loss)
    assert_is_pure(graph, values)
    assert len({op.name for op in graph.ops}) == len(graph.ops)


@each_case("resnet", "vit", "convnext", "lstm", "gpt", "unet_index_add")
def test_exact_step_is_eagers_in_double(name: str) -> None:
    model, inputs = build_model(CASES[name]), make_inputs()
    graph = capture(model, inputs)
    exact = run_exactly(graph)
    wide = _pytree.tree_map(lambda x: x.double() if x.is_floating_point() else x, inputs)
    loss, gradients = run_eagerly(model.double(), wide)
    # Its targets are float32, so that eager's loss may be.
    torch.testing.assert_close(exact[graph.loss], loss, rtol=1e-6, atol=1e-9, check_dtype=False)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for weight, gradient in gradients.items():
        found = exact[graph.gradients[weight]]
        # Immediates of the graph are float32's: 1 / 0.8 of dropout for one.
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-7 * largest, msg=weight)


@LIFTS
@pytest.mark.parametrize("autocast", [None, BF16], ids=["fp32", "bf16"])
def test_hydra_bev(
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    lift: str,
    autocast: Callable[[], Any] | None,
) -> None:
    step, batch = TrainingStep(make_network(lift=lift)), make_batch()
    graph = capture(step, batch, **({"autocast": autocast} if autocast else {}))
    values = run_freely(graph)
    loss, gradients = run_eagerly(step, batch, autocast)
    assert_is_eagers(graph, loss, gradients, values)
    assert_is_pure(graph, values)
    formats = {each for op in graph.ops for each in op.formats}
    assert formats == ({"float32", "bf16", None} if autocast else {"float32", None})
    assert {op.layer.partition(".")[0] for op in graph.ops} <= {"network", ""}
    assert any(op.line.startswith("hydra_bev.py:") for op in graph.ops)
    # The losses of the heads, and what they give, besides the loss.
    assert len(graph.outputs) > 5
    exact = run_exactly(graph)
    assert exact[graph.loss].item() == pytest.approx(loss.item(), rel=2e-2 if autocast else 1e-5)


def make_small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))


class MeanSquare(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Tensor) -> Tensor:
        return self.network(batch).square().mean()


def test_nothing_is_left_behind() -> None:
    step, batch = MeanSquare(make_small()), torch.randn(5, 3)
    before, generator = copy.deepcopy(step.state_dict()), torch.get_rng_state()
    graph = trace_step(step, batch).graph()
    run_freely(graph)
    assert all(torch.equal(value, before[name]) for name, value in step.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(weight.grad is None for weight in step.parameters())
    assert not torch.is_autocast_enabled("cpu")


def test_a_graph_keeps_its_weights_when_training_goes_on() -> None:
    step, batch = MeanSquare(make_small()), torch.randn(5, 3)
    graph = trace_step(step, batch).graph()
    before = run_freely(graph)
    with torch.no_grad():
        for weight in step.parameters():
            weight.add_(1.0)
    assert torch.equal(run_freely(graph)[graph.loss], before[graph.loss])
    changed = run_freely(graph, dict(step.named_parameters()))
    assert not torch.equal(changed[graph.loss], before[graph.loss])


class Outputs(NamedTuple):
    squares: Tensor
    loss: Tensor
    rest: Tensor


class ManyOutputs(MeanSquare):
    """Others than the loss have gradients, too."""

    def forward(self, batch: Tensor) -> Outputs:  # type: ignore[override]
        squares = self.network(batch).square()
        return Outputs(squares, squares.mean(), squares.sum())


def test_only_the_loss_is_differentiated() -> None:
    batch, step = torch.randn(5, 3), ManyOutputs(nn.Linear(3, 2))
    graph = capture(step, batch)
    values = run_freely(graph)
    assert_is_eagers(graph, *run_eagerly(step, batch), values)
    assert [values[name].shape for name in graph.outputs] == [(), (5, 2), ()]
    assert torch.equal(values[graph.outputs[2]], values[graph.outputs[1]].sum())


class Breaking(MeanSquare):
    def forward(self, batch: Tensor) -> Tensor:
        loss = super().forward(batch)
        return loss if loss > 1 else -loss


def test_what_cannot_be_captured_is_refused() -> None:
    batch = torch.randn(5, 3)
    with pytest.raises(BackendError, match=r"one static graph.*; backend x needs fixed shapes"):
        trace_step(Breaking(make_small()), batch, who="backend x").graph()
    with pytest.raises(BackendError, match="no weight of the module gets a gradient"):
        trace_step(MeanSquare(make_small()).requires_grad_(False), batch).graph()
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(BackendError, match="a captured step cannot take a step that is not capt"),
    ):
        trace_step(MeanSquare(make_small()), batch).graph()
