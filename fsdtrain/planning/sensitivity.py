"""Which figure moves the time to train the most when it is at its low or high end, not both."""

from collections.abc import Callable, Iterator

from fsdtrain.planning.device_step import DeviceStep
from fsdtrain.planning.fleet import Fleet, unit_of
from fsdtrain.planning.provenance import assumption_origin, figure_origin
from fsdtrain.planning.record import Sensitivity

NUM_SHOWN = 8
NEGLIGIBLE = 1e-4  # of the time to train

TimeOf = Callable[[DeviceStep, Fleet], float | None]


def find_sensitivities(
    time_of: TimeOf, step: DeviceStep, fleet: Fleet, *, num_devices: int
) -> tuple[Sensitivity, ...]:
    """The figures with a range that matter most, the largest move of the time first.

    Args:
        time_of: seconds to train with this step and fleet; None: it would never end.
        step: of one device, whose own assumptions are tried as well.
        fleet: whose figures are tried.
        num_devices: that train.
    """
    now_s = time_of(step, fleet)
    if now_s is None:
        return ()
    tried = (
        *_of_fleet(time_of, step, fleet, num_devices),
        *_of_step(time_of, step, fleet, num_devices),
    )
    moving = [each for each in tried if _move(each) > NEGLIGIBLE * now_s]
    return tuple(sorted(moving, key=_move, reverse=True)[:NUM_SHOWN])


def _move(each: Sensitivity) -> float:
    return abs(each.time_at_high_s - each.time_at_low_s)


def _of_fleet(
    time_of: TimeOf, step: DeviceStep, fleet: Fleet, num_devices: int
) -> Iterator[Sensitivity]:
    for name, figure in fleet.figures().items():
        if figure.low is None or figure.high is None:
            continue
        low_s = time_of(step, fleet.with_figure(name, figure.low))
        high_s = time_of(step, fleet.with_figure(name, figure.high))
        if low_s is None or high_s is None:
            continue
        yield Sensitivity(
            name=name,
            value=figure.value,
            unit=unit_of(name)[0],
            low=figure.low,
            high=figure.high,
            num_devices=num_devices,
            time_at_low_s=low_s,
            time_at_high_s=high_s,
            origin=figure_origin(figure),
            source=figure.source,
        )


def _of_step(
    time_of: TimeOf, step: DeviceStep, fleet: Fleet, num_devices: int
) -> Iterator[Sensitivity]:
    for each in step.assumptions:
        if each.step_time_at_low_s is None or each.step_time_at_high_s is None:
            continue
        if each.low is None or each.high is None:
            continue
        low_s = time_of(step.slowed(each.step_time_at_low_s / step.profile_step_s), fleet)
        high_s = time_of(step.slowed(each.step_time_at_high_s / step.profile_step_s), fleet)
        if low_s is None or high_s is None:
            continue
        yield Sensitivity(
            name=each.name,
            value=each.value,
            unit=each.unit,
            low=each.low,
            high=each.high,
            num_devices=num_devices,
            time_at_low_s=low_s,
            time_at_high_s=high_s,
            origin=assumption_origin(each),
            source=each.source,
        )
