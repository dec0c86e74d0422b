"""Activation checkpointing of the backbone: nothing changes but what is kept."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fsdtrain.models.backbone import Backbone


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def make(*, recomputes: bool) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(
        stem_stride=2, stage_channels=[4, 6, 8], stage_blocks=[0, 2, 1], out_channels=5,
        recomputes=recomputes,
    )  # fmt: skip
    for name, parameter in backbone.named_parameters():
        if name.endswith("norm.weight"):  # zero at first, which would hide the block
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
    return backbone


def run(backbone: Backbone) -> tuple[dict[str, Tensor], int]:
    """The state after a step, results and gradients with it; and the bytes kept for backward."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    images = torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        feats = backbone(images)
        backward = feats.square().mean()
    backward.backward()
    found = {"feats": feats.detach(), **backbone.state_dict()}
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None
        found[f"{name}.grad"] = parameter.grad
    return found, kept


@pytest.mark.parametrize("compiles", [False, True])
def test_the_same_numbers_with_less_kept(compiles: bool) -> None:
    expected, much = run(make(recomputes=False))
    backbone = make(recomputes=True)
    if compiles:
        backbone.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    found, little = run(backbone)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-7), name
    assert found["stages.1.1.norm.num_batches_tracked"] == 1, "once, not once more in backward"
    assert little < 0.7 * much


def test_batch_norms_track_again_afterwards_and_evaluation_keeps_nothing() -> None:
    backbone = make(recomputes=True)
    run(backbone)
    norms = [each for each in backbone.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 and norm.num_batches_tracked == 1 for norm in norms)
    with torch.no_grad():
        expected = make(recomputes=False).eval()(torch.ones(1, 3, 8, 8))
        assert torch.equal(make(recomputes=True).eval()(torch.ones(1, 3, 8, 8)), expected)
