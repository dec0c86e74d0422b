"""The contract of a head: everything about one task in one file of this folder.

A head turns BEV features into outputs, and owns its targets, its loss, its metric and its
baselines. It does not know the backbone, the lift, the other heads or the trainer.

To add one: write `<task>.py` with a subclass of Head, and name it under `heads:` in a model
config.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from fsdtrain.data.batch import ClipBatch, ClipWindow

Outputs = Mapping[str, Tensor]
# Runs in DataLoader workers, so it must pickle: a frozen dataclass with __call__, or a function.
TargetBuilder = Callable[[ClipWindow], dict[str, NDArray[np.generic]]]
# What a head learns from the training targets alone, by name; see Head.prior.
Prior = Mapping[str, Tensor]


class Head(nn.Module):
    """One task on top of the BEV features.

    The features a head gets are those of the last T' frames of the clip, oldest first; T' is 1
    when the model encodes the last frame only, otherwise the batch's T.
    """

    unit: ClassVar[str]  # of all figures of `metric()`
    better: ClassVar[Literal["higher", "lower"]]
    protocol: ClassVar[str]  # one sentence for the report: what is counted, by whose rule

    def target_builder(self) -> TargetBuilder:
        """What turns a window into this head's entries of `ClipBatch.targets`."""
        raise NotImplementedError

    def forward(self, bev_BTCXY: Tensor, batch: ClipBatch) -> dict[str, Tensor]:
        """Raw outputs by name; runs inside the compiled graph, static shapes only."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: ClipBatch) -> dict[str, Tensor]:
        """Weighted scalar losses by name; their sum over all heads is minimised."""
        raise NotImplementedError

    def prior(self) -> Metric | None:
        """A fresh accumulator: `update(batch)` with training batches, `compute() -> Prior`.

        None where the head's baselines need no training set.
        """
        return None

    def metric(self, prior: Prior | None = None) -> Metric:
        """A fresh metric: `update(outputs, batch)`, `compute() -> dict[str, Tensor]`.

        Sums over the set and over ranks before it divides. Baselines stand beside the figure
        they are to be compared with, under `<name>_baseline_<which>`; the one that needs `prior`
        is left out without it.
        """
        raise NotImplementedError
