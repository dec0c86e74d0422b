"""What of a gradients' exchange the backward pass hides, by playing the buckets through one queue.

Gradients become ready during the backward pass, the last layers' first, and fill buckets as
torch's DistributedDataParallel fills them. A bucket is summed once all of it is ready and the one
before it is done. It does not know networks: it is told how long so many bytes take.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fsdtrain.planning.gradients import Gradient

# torch.distributed._DEFAULT_FIRST_BUCKET_BYTES and DistributedDataParallel(bucket_cap_mb=25)
FIRST_BUCKET_BYTES = 2**20
BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Gradients that are summed in one call.

    Args:
        num_bytes: of all.
        num_gradients: how many.
        start_s: of its all-reduce.
        end_s: of its all-reduce.
    """

    num_bytes: float
    num_gradients: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One step's exchange.

    Args:
        buckets: in the order in which they are summed.
        needed_s: when the step would go on if nothing had to be exchanged.
        end_s: when it goes on.
    """

    buckets: tuple[Bucket, ...]
    needed_s: float
    end_s: float

    @property
    def exchange_s(self) -> float:
        """Of all buckets, each by itself."""
        return sum(each.end_s - each.start_s for each in self.buckets)

    @property
    def exposed_s(self) -> float:
        """By how much the exchange delays the step."""
        return max(0.0, self.end_s - self.needed_s)


def replay_buckets(
    gradients: Sequence[Gradient],
    needed_s: float,
    all_reduce_s: Callable[[float], float],
    *,
    limits: Sequence[float] = (FIRST_BUCKET_BYTES, BUCKET_BYTES),
    rate_left: float = 1.0,
) -> Replay:
    """Play one step's buckets through one queue.

    Args:
        gradients: of a device, the first ready first; times are those of a step that exchanges
            nothing.
        needed_s: when that step would go on; if the last gradient is ready later, then.
        all_reduce_s: seconds of the all-reduce of so many bytes.
        limits: bytes at which the first buckets are full; the last one is that of all others, too.
        rate_left: to the step while buckets are summed, as a share of its rate by itself. 1: the
            exchange has hardware of its own; 0: it takes all that the step computes with.
    """
    assert 0.0 <= rate_left <= 1.0
    buckets: list[Bucket] = []
    needed_s = max(needed_s, gradients[-1].ready_s) if gradients else needed_s
    # `done_s` is how far the step would be by now if it had not shared anything.
    now_s, done_s = 0.0, 0.0
    begin = 0
    for end in bucket_ends([each.num_bytes for each in gradients], limits):
        members = gradients[begin:end]
        waits_s = max(0.0, members[-1].ready_s - done_s)
        start_s = now_s + waits_s
        num_bytes = sum(each.num_bytes for each in members)
        now_s = start_s + all_reduce_s(num_bytes)
        done_s = min(needed_s, done_s + waits_s + rate_left * (now_s - start_s))
        buckets.append(
            Bucket(num_bytes=num_bytes, num_gradients=len(members), start_s=start_s, end_s=now_s)
        )
        begin = end
    return Replay(buckets=tuple(buckets), needed_s=needed_s, end_s=now_s + needed_s - done_s)


def bucket_ends(sizes: Sequence[float], limits: Sequence[float]) -> tuple[int, ...]:
    """Where the buckets of gradients of these sizes end: gradients are whole, none is split.

    A bucket is closed by the gradient that fills it, so that it may be larger than its limit.

    Args:
        sizes: bytes of the gradients in the order in which they are summed.
        limits: of the first buckets; the last one is that of all others, too.
    """
    ends: list[int] = []
    held = 0.0
    for number, size in enumerate(sizes, start=1):
        held += size
        if held >= limits[min(len(ends), len(limits) - 1)] or number == len(sizes):
            ends.append(number)
            held = 0.0
    return tuple(ends)
