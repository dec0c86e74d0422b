"""The contract of a head: everything about one task in one file of this folder.

A head turns BEV features into outputs, and owns its targets, its loss, its metric and its
baselines. It does not know the backbone, the lift, the other heads or the trainer.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from fsdtrain.data.batch import ClipBatch, ClipWindow

Outputs = Mapping[str, Tensor]
# Runs in DataLoader workers, so it must pickle: a frozen dataclass with __call__, or a function.
TargetBuilder = Callable[[ClipWindow], dict[str, NDArray[np.generic]]]


class Head(nn.Module):
    """One task on top of the BEV features."""

    def target_builder(self) -> TargetBuilder:
        """What turns a window into this head's entries of `ClipBatch.targets`."""
        raise NotImplementedError

    def forward(self, bev_BTCXY: Tensor, batch: ClipBatch) -> dict[str, Tensor]:
        """Raw outputs by name; runs inside the compiled graph, static shapes only."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: ClipBatch) -> dict[str, Tensor]:
        """Weighted scalar losses by name; their sum over all heads is minimised."""
        raise NotImplementedError

    def metric(self) -> Metric:
        """A fresh metric: `update(outputs, batch)`, `compute() -> dict[str, Tensor]`.

        Sums over the set and over ranks before it divides. Baselines stand beside the figure
        they are to be compared with, under `<name>_baseline_<which>`.
        """
        raise NotImplementedError
