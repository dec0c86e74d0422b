"""Data-parallel steps: exposed exchange as bucket replay predicts it, beside what was measured.

It does not know how steps are measured, nor how the model of an all-reduce was found.
"""

from collections.abc import Sequence

import numpy as np

from fsdtrain.planning.bucket_replay import Replay, replay_buckets
from fsdtrain.planning.calibration_ddp import BUCKET_MB, StepSample
from fsdtrain.planning.calibration_fit import SharedRing
from fsdtrain.planning.calibration_record import StepPoint, typical
from fsdtrain.planning.gradients import Gradient


def judge_steps(
    ranks: Sequence[Sequence[StepSample]],
    ring: SharedRing,
    *,
    core_share: float,
    held_out: bool,
) -> StepPoint:
    """One world size; every round as its slowest process had it.

    Args:
        ranks: the samples of each process, all of this world size.
        ring: the fitted model.
        core_share: of all cores, that an all-reduce uses where nobody else wants them.
        held_out: whether the model has seen this world size.
    """
    rounds = list(zip(*ranks, strict=True))
    ready_s = np.array([np.max([each.ready_s for each in round_], axis=0) for round_ in rounds])
    gradients = [
        Gradient(num_bytes=num_bytes, ready_s=typical(ready_s[:, number].tolist()))
        for number, num_bytes in enumerate(rounds[0][0].gradient_bytes)
    ]
    without_s = typical([max(each.without_s for each in round_) for round_ in rounds])
    # Means of faster halves need not be in order where samples are few.
    without_s = max(without_s, *(each.ready_s for each in gradients))
    gradients.sort(key=lambda each: each.ready_s)
    own = _replay(gradients, without_s, ring, len(ranks), 1 - core_share)
    elsewhere = _replay(gradients, without_s, ring, len(ranks), 1.0)
    return StepPoint(
        world_size=len(ranks),
        num_samples=len(rounds),
        held_out=held_out,
        bucket_bytes=rounds[0][0].bucket_bytes,
        without_s=without_s,
        with_s=typical([max(each.with_s for each in round_) for round_ in rounds]),
        exchange_s=own.exchange_s,
        exposed_s=own.exposed_s,
        exposed_elsewhere_s=elsewhere.exposed_s,
    )


def _replay(
    gradients: Sequence[Gradient],
    needed_s: float,
    ring: SharedRing,
    world_size: int,
    rate_left: float,
) -> Replay:
    def all_reduce_s(num_bytes: float) -> float:
        return ring.seconds(world_size, num_bytes)

    return replay_buckets(
        gradients, needed_s, all_reduce_s, limits=(BUCKET_MB * 2**20,), rate_left=rate_left
    )
