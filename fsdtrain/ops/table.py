"""Which implementation of each op a model calls: the references, unless a backend brings its own.

A model gets its table when it is built and calls ops through nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fsdtrain.ops.project_sample import project_sample
from fsdtrain.ops.warp_bev import warp_bev

ProjectSample = Callable[[Tensor, Tensor, Tensor, Tensor, tuple[int, int], int], Tensor]
WarpBev = Callable[[Tensor, Tensor, tuple[float, float], float], Tensor]


@dataclass(frozen=True, kw_only=True)
class OpTable:
    """One callable an op, with the signature of its reference; the references are the default."""

    project_sample: ProjectSample = project_sample
    warp_bev: WarpBev = warp_bev
