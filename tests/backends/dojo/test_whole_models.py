"""Whole models: with nothing to round a captured step is eager's, and every recipe runs.

Guards against what PyTorch changes while it traces: a decomposition that is silently wrong, dropout
that is lost or drawn anew, a kernel whose backward pass gets another tensor.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from fsdtrain_dojo.recipe import Role
from torch import Tensor, nn

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev
from tests.backends.dojo.model_cases import CASES, build_model, each_case, make_inputs
from tests.backends.dojo.running import (
    BF16,
    CFP8,
    IDENTITY,
    StepResult,
    emulate,
    relative_error,
    run_step,
)

GRADIENT_TOLERANCE = 2e-6
RECIPES = pytest.mark.parametrize(
    "recipe",
    [pytest.param(BF16, id="bf16", marks=pytest.mark.slow), pytest.param(CFP8, id="cfp8")],
)


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def assert_same_step(found: StepResult, wanted: StepResult) -> None:
    assert relative_error(found.loss, wanted.loss) <= 1e-6
    assert found.gradients.keys() == wanted.gradients.keys()
    for name, gradient in wanted.gradients.items():
        assert relative_error(found.gradients[name], gradient) <= GRADIENT_TOLERANCE, name
    for name, value in wanted.buffers.items():
        assert relative_error(found.buffers[name], value) <= 1e-6, name


@each_case("resnet", "vit", "convnext", "lstm", "gpt", "unet_index_add")
def test_identity_recipe_gives_eagers_step(name: str) -> None:
    """Two steps: what the first leaves behind in buffers the second reads."""
    case, compiled = CASES[name], build_model(CASES[name])
    eager = build_model(case)
    table = emulate(compiled, IDENTITY)
    for seed in range(2):
        inputs = make_inputs(seed)
        wanted, found = run_step(eager, inputs, seed=seed), run_step(compiled, inputs, seed=seed)
        assert_same_step(found, wanted)
        if case.has_same_kernels:
            assert torch.equal(found.loss, wanted.loss)
            for parameter, gradient in wanted.gradients.items():
                assert torch.equal(found.gradients[parameter], gradient), parameter
    assert not table.sites
    # The seed matters, or the masks above were none.
    assert not torch.equal(run_step(compiled, inputs, seed=7).loss, found.loss)


@each_case("resnet", "vit", "lstm")
def test_identity_recipe_gives_eagers_validation(name: str) -> None:
    inputs, eager, compiled = make_inputs(), build_model(CASES[name]), build_model(CASES[name])
    emulate(compiled, IDENTITY)
    with torch.no_grad():
        loss = compiled.eval()(inputs)
        assert relative_error(loss, eager.eval()(inputs)) <= 1e-6
    assert not loss.requires_grad
    assert all(map(torch.equal, compiled.buffers(), eager.buffers()))


@each_case("resnet", "vit", "convnext", "lstm", "gpt", "unet_index_add")
def test_checkpointed_step_is_eagers_without(name: str) -> None:
    """Of eager's, checkpointed running statistics would move twice; here they move once."""
    eager, compiled = build_model(CASES[name]), build_model(CASES[name], is_checkpointed=True)
    emulate(compiled, IDENTITY)
    for seed in range(2):
        inputs = make_inputs(seed)
        assert_same_step(run_step(compiled, inputs, seed=seed), run_step(eager, inputs, seed=seed))


@RECIPES
@each_case("resnet", "gpt")
def test_checkpointing_changes_no_bit_of_an_emulated_step(
    name: str, recipe: dict[str, object]
) -> None:
    """Recomputed tensors are rounded again, to the same numbers; and the numbers are plausible."""
    plain, checkpointed = (
        build_model(CASES[name], is_checkpointed=is_checkpointed)
        for is_checkpointed in (False, True)
    )
    tables = emulate(plain, recipe), emulate(checkpointed, recipe)
    eager = run_step(build_model(CASES[name]), make_inputs())
    for _ in range(2):
        found, again = run_step(plain, make_inputs()), run_step(checkpointed, make_inputs())
        assert torch.equal(found.loss, again.loss)
        for parameter, gradient in found.gradients.items():
            assert torch.equal(gradient, again.gradients[parameter]), parameter
            assert torch.isfinite(gradient).all()
    assert {site.role for site in tables[0].sites} >= {Role.ACTIVATION, Role.WEIGHT, Role.VECTOR}
    assert 0 < relative_error(found.loss, eager.loss) < 0.05
    together = [torch.cat([g.flatten() for g in of.gradients.values()]) for of in (found, eager)]
    similarity = nn.functional.cosine_similarity(*together, dim=0).item()
    assert similarity > (0.98 if recipe is BF16 else 0.8)


def count_kept_bytes(module: nn.Module) -> int:
    """What a forward pass keeps for the backward pass, weights not counted."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = module(make_inputs())
    assert loss.requires_grad  # and holds what is counted here
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    return sum(t.untyped_storage().nbytes() for storage, t in kept.items() if storage not in own)


@each_case("vit")
def test_checkpointing_keeps_as_little_as_eagers(name: str) -> None:
    """Rounded copies, too, are computed again."""
    eager = build_model(CASES[name], is_checkpointed=True)
    compiled = build_model(CASES[name], is_checkpointed=True)
    emulate(compiled, CFP8)
    run_step(compiled, make_inputs())
    assert count_kept_bytes(compiled) <= 1.15 * count_kept_bytes(eager)


class CheckpointedStep(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.step = TrainingStep(network)

    def forward(self, batch: ClipBatch) -> Tensor:
        def loss() -> Tensor:
            return self.step(batch).loss

        return torch.utils.checkpoint.checkpoint(loss, use_reentrant=False)


class PlainStep(CheckpointedStep):
    def forward(self, batch: ClipBatch) -> Tensor:
        return self.step(batch).loss


@pytest.mark.parametrize("step", [PlainStep, CheckpointedStep])
def test_hydra_bev(
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    step: type[CheckpointedStep],
) -> None:
    batch, eager, compiled = make_batch(), PlainStep(make_network()), step(make_network())
    emulate(compiled, IDENTITY)
    assert_same_step(run_step(compiled, batch), run_step(eager, batch))
    with torch.no_grad():
        assert torch.equal(compiled.eval()(batch), eager.eval()(batch))


@RECIPES
def test_hydra_bev_emulated(
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    recipe: dict[str, object],
) -> None:
    batch, compiled = make_batch(), PlainStep(make_network())
    emulate(compiled, recipe)
    eager = run_step(PlainStep(make_network()), batch)
    found = run_step(compiled, batch)
    assert 0 < relative_error(found.loss, eager.loss) < 0.05
    assert all(torch.isfinite(gradient).all() for gradient in found.gradients.values())
