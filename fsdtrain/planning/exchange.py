"""What of the gradients' exchange between devices is not hidden behind the backward pass.

Hierarchical all-reduce: groups of every network scatter-reduce, the groups' parts go on to the next
network, and come back. Buckets follow each other, each when its gradients are ready. The all-reduce
and the replay of buckets are those that short real runs check (network.py, bucket_replay.py).
"""

from collections.abc import Sequence

from fsdtrain.planning.fleet import Fleet, NetworkLevel
from fsdtrain.planning.gradients import Gradient, GradientSchedule

BUCKET_BYTES = 25 * 2**20  # torch's DistributedDataParallel
FIRST_BUCKET_BYTES = 2**20


def exposed_s(schedule: GradientSchedule, fleet: Fleet, num_devices: int) -> float:
    """Seconds by which the last sums are later than the step could go on.

    Args:
        schedule: of the gradients of one device.
        fleet: whose networks join the devices.
        num_devices: that sum.
    """
    if num_devices == 1:
        return 0.0
    groups = group_sizes(fleet.levels, num_devices)
    free_s = 0.0
    for bucket in _buckets(schedule.gradients):
        seconds = _all_reduce_s(fleet.levels, groups, bucket.num_bytes)
        free_s = max(free_s, bucket.ready_s) + seconds
    return max(0.0, free_s - schedule.needed_s)


def group_sizes(levels: Sequence[NetworkLevel], num_devices: int) -> tuple[int, ...]:
    """How many members a group of each network has when so many devices train."""
    sizes, inside = [], 1
    for level in levels:
        whole = num_devices if level.num_devices is None else level.num_devices
        size = max(1, -(-min(whole, num_devices) // inside))
        sizes.append(size)
        inside *= size
    return tuple(sizes)


def _all_reduce_s(levels: Sequence[NetworkLevel], groups: Sequence[int], num_bytes: float) -> float:
    seconds, part = 0.0, num_bytes
    for level, size in zip(levels, groups, strict=True):
        seconds += 2 * (size - 1) * (level.alpha_s + part / size / level.bytes_per_s)
        part /= size
    return seconds


def _buckets(gradients: Sequence[Gradient]) -> list[Gradient]:
    buckets: list[Gradient] = []
    held = 0.0
    for number, each in enumerate(gradients, start=1):
        held += each.num_bytes
        limit = BUCKET_BYTES if buckets else FIRST_BUCKET_BYTES
        if held >= limit or number == len(gradients):
            buckets.append(Gradient(num_bytes=held, ready_s=each.ready_s))
            held = 0.0
    return buckets
