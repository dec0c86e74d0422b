"""The scaling curve of a fleet, and the fewest devices that meet a target. It plots nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from fsdtrain.planning.record import ScalePoint

MOST_DEVICES = 10_000
POINTS_A_DECADE = 4

PointOf = Callable[[int], ScalePoint | None]
Curve = tuple[ScalePoint, ...]
Meets = Callable[[ScalePoint], bool]


def device_counts(devices_per_node: int, most: int = MOST_DEVICES) -> tuple[int, ...]:
    """About four a decade from 1 on; beyond a node, whole nodes."""
    counts, number = set(), 0
    while (count := 10 ** (number / POINTS_A_DECADE)) <= most * 1.0001:
        whole = to_nodes(round(count), devices_per_node)
        counts.add(whole if whole <= most else whole - devices_per_node)
        number += 1
    return tuple(sorted(counts))


def to_nodes(count: int, devices_per_node: int) -> int:
    """The nearest number that fills its nodes; within one node, any."""
    if count <= devices_per_node:
        return count
    return max(1, round(count / devices_per_node)) * devices_per_node


def trace_curve(point_of: PointOf, devices_per_node: int, most: int = MOST_DEVICES) -> Curve:
    """The points from one device on, without those where a training would never end."""
    found = (point_of(count) for count in device_counts(devices_per_node, most))
    return tuple(point for point in found if point is not None)


def fewest_devices(
    point_of: PointOf, curve: Curve, meets: Meets, devices_per_node: int
) -> ScalePoint | None:
    """The first point that meets a target: between two points of a curve, by bisection.

    It is the smallest number where meeting is monotone between these two, as more devices are
    quicker until exchange or failures outweigh them. Beyond one node, only whole nodes are asked.

    Args:
        point_of: so many devices.
        curve: of the same, from 1 device on.
        meets: the target.
        devices_per_node: of the fleet.
    """
    before = 0
    for point in curve:
        if meets(point):
            return _bisect(point_of, before, point, meets, devices_per_node)
        before = point.num_devices
    return None


def _bisect(
    point_of: PointOf, low: int, high: ScalePoint, meets: Meets, devices_per_node: int
) -> ScalePoint:
    """`low` devices do not meet the target, `high` do."""
    while True:
        middle = to_nodes((low + high.num_devices) // 2, devices_per_node)
        if not low < middle < high.num_devices:
            return high
        point = point_of(middle)
        if point is not None and meets(point):
            high = point
        else:
            low = middle


def most_devices(
    point_of: PointOf, curve: Curve, fits: Meets, devices_per_node: int
) -> ScalePoint | None:
    """The quickest point that fits, such as into a budget, where fewer devices fit better.

    Args:
        point_of: so many devices.
        curve: of the same, from 1 device on.
        fits: the limit.
        devices_per_node: of the fleet.
    """
    fitting = [point for point in curve if fits(point)]
    if not fitting:
        return None
    last = fitting[-1]
    beyond = next((each for each in curve if each.num_devices > last.num_devices), None)
    if beyond is not None:
        fitting.append(_last_fitting(point_of, last, beyond.num_devices, fits, devices_per_node))
    return min(fitting, key=lambda point: point.time_to_train_s)


def _last_fitting(
    point_of: PointOf, fitting: ScalePoint, high: int, fits: Meets, devices_per_node: int
) -> ScalePoint:
    """By bisection between a point that fits and a number that does not."""
    while True:
        middle = to_nodes((fitting.num_devices + high) // 2, devices_per_node)
        if not fitting.num_devices < middle < high:
            return fitting
        point = point_of(middle)
        if point is not None and fits(point):
            fitting = point
        else:
            high = middle


@dataclass(frozen=True, kw_only=True)
class Best:
    """The quickest point of a curve, and whether more devices make it slower again."""

    point: ScalePoint
    turns: bool


def quickest(curve: Curve) -> Best:
    """Of a curve with at least one point."""
    best = min(curve, key=lambda point: point.time_to_train_s)
    return Best(point=best, turns=best is not curve[-1])
