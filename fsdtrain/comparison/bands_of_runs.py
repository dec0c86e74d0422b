"""The training losses of two sides, smoothed, as bands over the seeds; and when they part.

It does not know where the losses come from, nor what is concluded from them.
"""

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from fsdtrain.comparison.record import Band
from fsdtrain.engine.metrics_file import Curve, smooth

Array = NDArray[np.float64]
Steps = NDArray[np.int64]

# Standard deviation of the smoothing, in logged points: one, and more of a long run, as the
# report's curves have it. It is centred, so it shifts nothing in time.
POINTS_PER_WIDTH = 80
# A stretch outside of the band counts as parting if it lasts to the end and is this long: one
# point alone is outside in about 3 % of all steps when nothing differs.
MIN_PARTED_SHARE = 0.1
MIN_PARTED_POINTS = 3


def common_steps(curves: Sequence[Curve]) -> Steps:
    """The steps that all of them have."""
    return reduce(np.intersect1d, (curve.steps for curve in curves))


def smoothed_at(curve: Curve, steps: Steps) -> Array:
    """The smoothed curve at some of its steps."""
    values = smooth(curve.values, 1 + len(curve.values) / POINTS_PER_WIDTH)
    return values[np.searchsorted(curve.steps, steps)]


def make_band(losses_RS: Array, steps_S: Steps) -> Band:
    """Mean +- 2 standard deviations over runs R at steps S; of one run, the band has no width."""
    mean = losses_RS.mean(0)
    spread = 2 * losses_RS.std(0, ddof=1) if len(losses_RS) > 1 else np.zeros_like(mean)
    return Band(
        steps=tuple(steps_S.tolist()),
        mean=tuple(mean.tolist()),
        low=tuple((mean - spread).tolist()),
        high=tuple((mean + spread).tolist()),
    )


def is_outside(mean: Sequence[float], band: Band) -> NDArray[np.bool_]:
    """Whether a mean lies outside of a band, by step."""
    values = np.array(mean)
    return (values < np.array(band.low)) | (values > np.array(band.high))


def find_divergence(outside: NDArray[np.bool_], steps: Sequence[int]) -> int | None:
    """The first step of the stretch outside that lasts to the end, if it is long enough."""
    inside = np.flatnonzero(~outside)
    first = int(inside[-1]) + 1 if len(inside) else 0
    length = len(outside) - first
    needed = max(MIN_PARTED_POINTS, math.ceil(MIN_PARTED_SHARE * len(outside)))
    return steps[first] if length >= min(needed, len(outside)) and length else None


def reachable_target(losses_of_runs: Sequence[Array]) -> float:
    """The lowest loss that all of some runs reach."""
    return max(float(losses.min()) for losses in losses_of_runs)


def samples_to(target: float, losses: Array, steps: Steps, *, samples_per_step: int) -> int | None:
    """Samples trained on until the smoothed loss is no higher than the target; None: never."""
    reached = np.flatnonzero(losses <= target)
    # metrics.csv counts from 0, and a step's loss is that of the weights before its update.
    return int(steps[reached[0]] + 1) * samples_per_step if len(reached) else None
