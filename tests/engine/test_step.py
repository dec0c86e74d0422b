"""The inner module: what it gives, and what of it can be differentiated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev


def test_only_the_loss_carries_gradients_and_all_of_them(
    make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch]
) -> None:
    network, batch = make_network(), make_batch()
    output = TrainingStep(network)(batch)
    tensors = [*output.losses.values(), *(v for of in output.outputs.values() for v in of.values())]
    assert len(tensors) > 4
    assert not any(value.requires_grad for value in tensors)
    assert output.loss.item() == pytest.approx(sum(map(float, output.losses.values())), rel=1e-6)

    # The same by hand, on the heads themselves.
    outputs = network(batch)
    heads: Any = network.heads  # ModuleDict is not generic
    losses = [
        loss for name, head in heads.items() for loss in head.loss(outputs[name], batch).values()
    ]
    parameters = list(network.parameters())
    expected = torch.autograd.grad(sum(losses), parameters)
    for found, wanted in zip(torch.autograd.grad(output.loss, parameters), expected, strict=True):
        assert torch.equal(found, wanted)
