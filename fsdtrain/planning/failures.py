"""What stops and checkpoints cost a training: how often to save, and what share of time is useful.

Stops come at random (exponential intervals); each costs a restart and the work since the last
checkpoint. J. W. Young 1974, "A first order approximation to the optimum checkpoint interval";
J. T. Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps".
It does not know what is trained.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """How a training with stops goes on at its best.

    Args:
        useful_share: of the time that is work which is kept, 0 to 1.
        interval_s: of work between two checkpoints; None: nothing ever stops, so none is needed.
    """

    useful_share: float
    interval_s: float | None


def young_interval(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between checkpoints, to first order: sqrt(2 C M)."""
    return math.sqrt(2 * checkpoint_s * mtbf_s)


def daly_interval(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between checkpoints, to higher order; Daly 2006, equation 37."""
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = checkpoint_s / (2 * mtbf_s)
    better = 1 + math.sqrt(ratio) / 3 + ratio / 9
    return young_interval(checkpoint_s, mtbf_s) * better - checkpoint_s


def useful_share(
    interval_s: float, *, checkpoint_s: float, mtbf_s: float, restart_s: float
) -> float:
    """Share of the time that is work which is kept; Daly 2006, equation 20.

    Exact where stops are exponential and may also hit checkpoints and restarts. 0 where a piece of
    work practically never ends before the next stop.
    """
    try:
        wall_s = (
            mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1((interval_s + checkpoint_s) / mtbf_s)
        )
    except OverflowError:
        return 0.0
    return interval_s / wall_s if wall_s else 1.0


def best_goodput(*, checkpoint_s: float, mtbf_s: float, restart_s: float) -> Goodput:
    """With checkpoints as often as Daly says.

    Args:
        checkpoint_s: that training waits for one.
        mtbf_s: mean time between stops of the whole fleet; infinite: none.
        restart_s: from a stop until training goes on.
    """
    if math.isinf(mtbf_s):
        return Goodput(useful_share=1.0, interval_s=None)
    if checkpoint_s == 0:
        # They cost nothing, so that only restarts are lost.
        return Goodput(useful_share=math.exp(-restart_s / mtbf_s), interval_s=0.0)
    interval_s = daly_interval(checkpoint_s, mtbf_s)
    share = useful_share(interval_s, checkpoint_s=checkpoint_s, mtbf_s=mtbf_s, restart_s=restart_s)
    return Goodput(useful_share=share, interval_s=interval_s)
