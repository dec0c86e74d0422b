"""The inner module of training: network and losses, the one graph that a backend compiles.

It knows neither Lightning nor the optimiser nor any metric.
"""

from typing import NamedTuple, cast

from torch import Tensor, nn

from fsdtrain.data.batch import ClipBatch
from fsdtrain.heads.head import Head
from fsdtrain.models.hydra_bev import HydraBev


class StepOutput(NamedTuple):
    """`loss` is the sum of `losses`, which are named <head>/<loss>; `outputs` go by head.

    Only `loss` carries gradients: a compiled backward would take one for every output that does.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    outputs: dict[str, dict[str, Tensor]]


class TrainingStep(nn.Module):
    """batch -> outputs of every head, and their losses."""

    def __init__(self, network: HydraBev) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: ClipBatch) -> StepOutput:
        outputs = self.network(batch)
        losses = {
            f"{name}/{loss_name}": value
            for name, head in cast("list[tuple[str, Head]]", self.network.heads.items())
            for loss_name, value in head.loss(outputs[name], batch).items()
        }
        loss = sum(losses.values())
        assert isinstance(loss, Tensor), "a model needs at least one head with a loss"
        return StepOutput(
            loss,
            {name: value.detach() for name, value in losses.items()},
            {
                name: {key: value.detach() for key, value in of_head.items()}
                for name, of_head in outputs.items()
            },
        )
