"""The step as ops is the compiled training step, bit for bit, and leaves no marks in the run."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from fsdtrain_dojo import DojoBackend
from torch import Tensor, nn

from fsdtrain.backend import BackendError
from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.step_graph.capture import loss_of
from fsdtrain.step_graph.graph import StepGraph, run_freely
from tests.backends.dojo.model_cases import CASES, build_model, each_case, make_inputs
from tests.backends.dojo.running import BF16, CFP8

STOCHASTIC = {
    role: {**rule, "rounding": "stochastic"} if isinstance(rule, dict) else rule
    for role, rule in CFP8.items()
}
OPTIONS: dict[str, Mapping[str, Any]] = {
    "bf16": {"recipe": BF16},
    "cfp8": {"recipe": CFP8},
    "stochastic": {"recipe": STOCHASTIC, "seed": 3},
    "exact": {"recipe": CFP8, "accumulate": "exact"},
}


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def assert_is_trained_step(backend: DojoBackend, step: nn.Module, batch: Any) -> StepGraph:
    torch.manual_seed(5)
    graph = backend.step_graph(step, batch)
    values = run_freely(graph)
    assert not backend.table.sites
    assert backend.table.step == 0
    backend.compile_step(step)
    torch.manual_seed(5)
    loss = loss_of(step(batch))
    loss.backward()
    assert torch.equal(values[graph.loss], loss.detach())
    gradients = {n: w.grad for n, w in step.named_parameters() if w.grad is not None}
    assert gradients.keys() == graph.gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(values[graph.gradients[name]], gradient), name
    return graph


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "is_checkpointed",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["plain", "checkpointed"],
)
def test_step_is_the_compiled_one(options: Mapping[str, Any], is_checkpointed: bool) -> None:
    model = build_model(CASES["resnet"], is_checkpointed=is_checkpointed)
    assert_is_trained_step(DojoBackend(**options), model, make_inputs())


@each_case("vit_attention_dropout")
def test_stochastic_step_of_each_model_is_the_compiled_one(name: str) -> None:
    backend = DojoBackend(**OPTIONS["stochastic"])
    assert_is_trained_step(backend, build_model(CASES[name]), make_inputs())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(each, id=name, marks=() if name == "stochastic" else pytest.mark.slow)
        for name, each in OPTIONS.items()
    ],
)
def test_hydra_bev(
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    options: Mapping[str, Any],
) -> None:
    step, batch = TrainingStep(make_network()), make_batch()
    graph = assert_is_trained_step(DojoBackend(**options), step, batch)
    copies = [op for op in graph.ops if op.op == "aten.clone" and op.formats != ("float32",)]
    assert copies
    assert all(op.is_move for op in copies)


def test_the_recipe_and_the_seed_matter() -> None:
    """Or equality above would say little."""
    losses = set()
    for options in (OPTIONS["cfp8"], OPTIONS["stochastic"], OPTIONS["stochastic"] | {"seed": 4}):
        torch.manual_seed(5)
        graph = DojoBackend(**options).step_graph(build_model(CASES["resnet"]), make_inputs())
        losses.add(run_freely(graph)[graph.loss].item())
    assert len(losses) == 3


@pytest.mark.parametrize("name", ["cfp8", "stochastic"])
def test_an_op_can_be_run_from_its_words(name: str) -> None:
    backend = DojoBackend(**OPTIONS[name])
    graph = backend.step_graph(build_model(CASES["resnet"]), make_inputs())
    values = run_freely(graph)
    num_stored = 0
    for op in graph.ops:
        if op.call is None or not any(op.call.stores):
            continue
        namespace, packet, overload = op.call.target.split(".")
        function = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
        inputs = [values[each] for each in op.inputs]

        def fill(argument: object, inputs: list[Tensor] = inputs) -> Any:
            if isinstance(argument, list):
                return [fill(each) for each in argument]
            return inputs[argument.place] if hasattr(argument, "place") else argument

        results = function(
            *(fill(each) for each in op.call.arguments),
            **{key: fill(each) for key, each in op.call.keywords.items()},
        )
        results = results if isinstance(results, list | tuple) else (results,)
        for words, result, output in zip(op.call.stores, results, op.outputs, strict=True):
            if words is not None and output is not None:
                num_stored += 1
                backend.store(words)(result)
                assert torch.equal(result, values[output]), op.name
    assert num_stored > 30
    with pytest.raises(BackendError, match="is in no role of this recipe"):
        backend.store({"format": "cfloat16_shp"})


@pytest.mark.parametrize("name", ["cfp8", "stochastic"])
def test_updates_are_those_of_training(name: str) -> None:
    """Two steps: delayed biases of moments look back on the first."""
    options = dict(OPTIONS[name])
    options["recipe"] = options["recipe"] | {
        "first_moment": {"format": "cfloat16_shp"},
        "second_moment": {"format": "cfloat16_uhp"},
    }
    trained, updated = build_model(CASES["convnext"]), build_model(CASES["convnext"])
    training, backend = DojoBackend(**options), DojoBackend(**options)
    training.compile_step(trained)
    backend.step_graph(updated, make_inputs())
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (trained, updated)]
    for _ in range(2):
        optimizers[0].zero_grad()
        loss_of(trained(make_inputs())).backward()
        for mine, theirs in zip(updated.parameters(), trained.parameters(), strict=True):
            assert theirs.grad is not None
            mine.grad = theirs.grad.clone()
        training.optimizers.step(optimizers[0])
        backend.update(optimizers[1])
        for mine, theirs in zip(updated.parameters(), trained.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    assert not backend.table.sites
    first, second = (list(each.state.values()) for each in optimizers)
    for mine, theirs in zip(second, first, strict=True):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])


def test_autocast_is_refused() -> None:
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(BackendError, match="does the number formats itself"),
    ):
        DojoBackend().step_graph(build_model(CASES["resnet"]), make_inputs())
