"""Learning-rate schedules over a known number of steps, as multiples of the peak rate.

Pure functions of the step; the optimiser is not known here.
"""

import math
from collections.abc import Callable
from typing import Literal

FINAL_SHARE = 1e-3  # of the peak, at the last step of one_cycle and cosine


def rate_at(
    step: int,
    *,
    num_steps: int,
    schedule: Literal["one_cycle", "cosine", "constant"],
    warmup_fraction: float,
) -> float:
    """The share of the peak rate at `step` (0 .. num_steps - 1).

    All three rise linearly over the first `warmup_fraction` of the steps. Then "one_cycle" falls
    linearly (as Simple-BEV trains), "cosine" along half a cosine, "constant" not at all.
    """
    num_warmup = round(num_steps * warmup_fraction)
    if step < num_warmup:
        return (step + 1) / num_warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - 1 - num_warmup))
    falling = 1 - progress if schedule == "one_cycle" else (1 + math.cos(math.pi * progress)) / 2
    return FINAL_SHARE + (1 - FINAL_SHARE) * falling


def schedule_function(
    *,
    num_steps: int,
    schedule: Literal["one_cycle", "cosine", "constant"],
    warmup_fraction: float,
) -> Callable[[int], float]:
    """`rate_at` for `torch.optim.lr_scheduler.LambdaLR`."""

    def rate(step: int) -> float:
        return rate_at(
            step, num_steps=num_steps, schedule=schedule, warmup_fraction=warmup_fraction
        )

    return rate
