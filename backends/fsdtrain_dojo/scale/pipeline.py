"""A replica whose layers are spread over stages, with the batch in micro-batches (1F1B).

GPipe takes as long; it keeps the activations of all micro-batches at a time, 1F1B those of as many
as there are stages (Huang et al., NeurIPS 2019; Narayanan et al., SOSP 2019 and SC 2021). Knows no
machine: the time of a message between stages goes in. All MODELLED.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fsdtrain_dojo.scale.replica import Gradient, ReplicaTime


@dataclass(frozen=True, kw_only=True)
class PipelineTime:
    """Of one step of one replica, gradients of other replicas not yet summed.

    Args:
        num_stages: 1: no pipeline.
        num_microbatches: of a batch.
        forward_backward_s: until the optimiser could start.
        work_s: what a stage computes in that time.
        bubble_s: in which a stage has nothing to do, being first or last.
        transfer_s: in which it waits for activations of the stage before.
        seconds: with the optimiser.
        gradients: with the times at which they are ready.
    """

    num_stages: int
    num_microbatches: int
    forward_backward_s: float
    work_s: float
    bubble_s: float
    transfer_s: float
    seconds: float
    gradients: tuple[Gradient, ...]


def bubble_share(num_stages: int, num_microbatches: int) -> float:
    """Share of the time in which a stage has nothing to do: (p - 1) / (m + p - 1)."""
    return (num_stages - 1) / (num_microbatches + num_stages - 1)


def time_pipeline(
    replica: ReplicaTime, num_stages: int, message_s: Callable[[float], float]
) -> PipelineTime:
    """The step over this many stages of equal work, with the number of micro-batches that suits.

    Args:
        replica: the step on one stage that had the memory of all.
        num_stages: see above.
        message_s: seconds of a message of so many bytes from a stage to the next.
    """
    if num_stages == 1:
        return _time(replica, 1, 1, message_s)
    divisors = [count for count in range(1, replica.batch_size + 1)
                if replica.batch_size % count == 0]  # fmt: skip
    return min(
        (_time(replica, num_stages, count, message_s) for count in divisors),
        key=lambda each: each.seconds,
    )


def _time(
    replica: ReplicaTime,
    num_stages: int,
    num_microbatches: int,
    message_s: Callable[[float], float],
) -> PipelineTime:
    whole = replica.optimizer_start_s
    varying = whole - replica.fixed_s
    microbatch_s = replica.fixed_s + varying / num_microbatches  # over all stages
    stage_s = microbatch_s / num_stages
    widest = max(
        (replica.cut_at(stage / num_stages) for stage in range(1, num_stages)), default=0.0
    )
    sent_s = message_s(widest / num_microbatches) if num_stages > 1 else 0.0
    # Messages overlap with other micro-batches' work, but a stage cannot be quicker than they are;
    # while the pipeline fills and drains, each is waited for.
    turn_s = max(stage_s, sent_s)
    work_s = num_microbatches * stage_s
    bubble_s = (num_stages - 1) * stage_s
    turns = num_microbatches + num_stages - 1
    transfer_s = turns * (turn_s - stage_s) + 2 * (num_stages - 1) * sent_s
    end = work_s + bubble_s + transfer_s
    # The last micro-batch passes all stages just before the end.
    last_s = microbatch_s / whole if whole else 0.0
    return PipelineTime(
        num_stages=num_stages,
        num_microbatches=num_microbatches,
        forward_backward_s=end,
        work_s=work_s,
        bubble_s=bubble_s,
        transfer_s=transfer_s,
        seconds=end + replica.optimizer_s / num_stages,
        gradients=tuple(
            Gradient(
                num_bytes=each.num_bytes,
                ready_s=end - max(0.0, whole - each.ready_s) * last_s,
            )
            for each in replica.gradients
        ),
    )
