"""What of the exchange of gradients between a fleet's devices the backward pass does not hide."""

from fsdtrain.planning.bucket_replay import replay_buckets
from fsdtrain.planning.fleet import Fleet
from fsdtrain.planning.gradients import GradientSchedule
from fsdtrain.planning.network import Level, all_reduce


def exposed_s(schedule: GradientSchedule, fleet: Fleet, num_devices: int) -> float:
    """Seconds by which the last sums are later than the step could go on.

    Args:
        schedule: of the gradients of one device.
        fleet: whose networks join the devices.
        num_devices: that sum.
    """
    if num_devices == 1:
        return 0.0
    levels = network_levels(fleet)
    replay = replay_buckets(
        schedule.gradients,
        schedule.needed_s,
        lambda num_bytes: all_reduce(levels, num_devices, num_bytes).time_s,
    )
    return replay.exposed_s


def network_levels(fleet: Fleet) -> tuple[Level, ...]:
    """The networks of a fleet in SI units, from the inside out."""
    return tuple(
        Level(
            name=each.name,
            num_devices=each.num_devices,
            alpha_s=each.alpha_s,
            bytes_per_s=each.bytes_per_s,
        )
        for each in fleet.levels
    )
