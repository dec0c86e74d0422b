"""Partial results that become one: to one node of each group, a piece to each, or all to each.

A group is the nodes that hold parts of the same elements: equal boxes along an axis. Routers do not
add, nodes do. Groups along rows go first, then those along columns (the bucket algorithm of Sack
and Gropp, PPoPP 2012, where all or pieces are wanted). Groups that interleave share their hops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.mapping import Axis
from fsdtrain_dojo.lowering.program import Pattern
from fsdtrain_dojo.timing.box_axes import SplitBoxes
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.link_time import over_hops
from fsdtrain_dojo.timing.memory_cost import cost_memory
from fsdtrain_dojo.timing.reduce_line import (
    LineCost,
    ReduceLine,
    multicast_along,
    reduce_along,
    ring_along,
)

Floats = NDArray[np.float64]
Key = TypeVar("Key")

DIGITS_OF_SECONDS = 13  # a thousandth of a clock, so that lines that are alike are equal
REDUCTIONS = (Pattern.REDUCE, Pattern.REDUCE_SCATTER, Pattern.ALL_REDUCE)
Phase = tuple[Axis, LineCost, float]  # along which axis, how long, bytes of a block


def cost_reduce(
    fabric: Fabric,
    pattern: Pattern,
    boxes: SplitBoxes,
    element_bytes: float,
    *,
    is_outside: bool = False,
) -> TransferCost:
    """What combining partial results costs, and then storing them outside if they go there."""
    cost = _sum_phases(fabric, boxes, _plan(fabric, pattern, boxes, element_bytes))
    if is_outside:
        store = cost_memory(fabric, boxes, element_bytes, is_load=False)
        return _one_after_another(cost, store)
    return cost


def group_places(split: SplitBoxes, axis: Axis) -> tuple[tuple[int, ...], ...]:
    """Places along an axis that hold the same box, for every box."""
    dims = tuple(dim.key for dim in split.along(axis))
    return _group(dims, split.busy(axis).tobytes())


@lru_cache(maxsize=4096)
def _group(dims: tuple[bytes, ...], places: bytes) -> tuple[tuple[int, ...], ...]:
    busy = np.frombuffer(places, bool)
    ranges = [np.frombuffer(dim, np.int64).reshape(2, len(busy)) for dim in dims]
    boxes = np.concatenate(ranges).T if ranges else np.zeros((len(busy), 0))
    groups: dict[bytes, list[int]] = {}
    for place in np.flatnonzero(busy):
        groups.setdefault(np.ascontiguousarray(boxes[place]).tobytes(), []).append(int(place))
    return tuple(map(tuple, groups.values()))


def _lines(fabric: Fabric, split: SplitBoxes, axis: Axis) -> tuple[ReduceLine, ...]:
    """Those of groups of several places along an axis, as the slowest parallel line has them."""
    groups = tuple(group for group in group_places(split, axis) if len(group) > 1)
    across = split.busy(Axis.COLUMN if axis is Axis.ROW else Axis.ROW)
    return _measure_lines(fabric, axis, groups, across.tobytes()) if groups else ()


@lru_cache(maxsize=1024)
def _measure_lines(
    fabric: Fabric, axis: Axis, groups: tuple[tuple[int, ...], ...], across: bytes
) -> tuple[ReduceLine, ...]:
    hops = fabric.along_columns if axis is Axis.ROW else fabric.along_rows
    way_s = fabric.column_way_s if axis is Axis.ROW else fabric.row_way_s
    assert hops is not None
    byte_s = hops.seconds_per_byte if axis is Axis.ROW else hops.seconds_per_byte.T
    slowest = byte_s[:, np.frombuffer(across, bool)].max(1) * _groups_over(groups, len(way_s))
    found = set()
    for group in groups:
        pairs = list(zip(group, group[1:], strict=False))
        line = ReduceLine(
            latency_s=tuple(round(float(way_s[a, b]), DIGITS_OF_SECONDS) for a, b in pairs),
            byte_s=tuple(float(slowest[a:b].max()) for a, b in pairs),
            packet_bytes=fabric.packet_bytes,
            add_s=fabric.add_s_per_byte,
        )
        found.add(_known_line(line))
    return tuple(found)


@lru_cache(maxsize=4096)
def _known_line(line: ReduceLine) -> ReduceLine:
    """The first of equal lines, which may have been measured already."""
    return line


def _groups_over(groups: Sequence[Sequence[int]], length: int) -> Floats:
    """How many groups reach over every hop."""
    steps = np.zeros(length)
    for group in groups:
        steps[group[0]] += 1
        steps[group[-1]] -= 1
    return np.cumsum(steps)[:-1]


def _choose(
    lines: dict[Axis, tuple[ReduceLine, ...]], block: float, pattern: Pattern
) -> list[Phase]:
    """Phases one after another, of the quicker algorithm."""
    by_row, by_column = lines[Axis.COLUMN], lines[Axis.ROW]
    scattered = block / max(map(len, by_row), default=1)
    rings: list[Phase] = []
    if pattern is not Pattern.REDUCE:
        gathers = pattern is Pattern.ALL_REDUCE
        rings += _phase(Axis.COLUMN, [ring_along(each, block, True) for each in by_row], block)
        rings += _phase(Axis.ROW, [ring_along(e, scattered, True) for e in by_column], scattered)
        if gathers:
            rings += _phase(
                Axis.ROW, [ring_along(e, scattered, False) for e in by_column], scattered
            )
            rings += _phase(Axis.COLUMN, [ring_along(e, block, False) for e in by_row], block)
    if pattern is Pattern.REDUCE_SCATTER:
        return rings
    rooted = [
        *_phase(Axis.COLUMN, [reduce_along(each, block) for each in by_row], block),
        *_phase(Axis.ROW, [reduce_along(each, block) for each in by_column], block),
    ]
    if pattern is Pattern.REDUCE:
        return rooted
    rooted += _phase(Axis.ROW, [multicast_along(each, block) for each in by_column], block)
    rooted += _phase(Axis.COLUMN, [multicast_along(each, block) for each in by_row], block)
    return min(rings, rooted, key=lambda phases: sum(cost.seconds for _, cost, _ in phases))


def _phase(axis: Axis, costs: list[LineCost], block: float) -> list[Phase]:
    return [(axis, max(costs, key=lambda cost: cost.seconds), block)] if costs else []


@dataclass(frozen=True, kw_only=True, eq=False)
class ReduceTraffic:
    """Bytes over hops, how many arrive at nodes, how many are added; see `MeshTraffic`."""

    east: Floats
    west: Floats
    south: Floats
    north: Floats
    arriving: float
    added: float


def route_reduce(
    fabric: Fabric, pattern: Pattern, boxes: SplitBoxes, element_bytes: float
) -> ReduceTraffic:
    """What combining partial results moves."""
    return _traffic(fabric, boxes, _plan(fabric, pattern, boxes, element_bytes))


def _traffic(fabric: Fabric, split: SplitBoxes, phases: list[Phase]) -> ReduceTraffic:
    rows, columns = fabric.grid
    ways = {
        Axis.COLUMN: [np.zeros((rows, columns - 1)) for _ in range(2)],
        Axis.ROW: [np.zeros((rows - 1, columns)) for _ in range(2)],
    }
    arriving = added = 0.0
    for axis, cost, block in phases:
        over, num_groups = _covered(split, axis)
        ways[axis][0] += over * (cost.down * block)
        ways[axis][1] += over * (cost.up * block)
        added += num_groups * block * cost.added_blocks
        arriving += num_groups * block * cost.received_blocks
    return ReduceTraffic(
        east=ways[Axis.COLUMN][0],
        west=ways[Axis.COLUMN][1],
        south=ways[Axis.ROW][0],
        north=ways[Axis.ROW][1],
        arriving=arriving,
        added=added,
    )


def _plan(fabric: Fabric, pattern: Pattern, split: SplitBoxes, element_bytes: float) -> list[Phase]:
    block = split.largest * element_bytes
    if not block:
        return []
    lines = {axis: _lines(fabric, split, axis) for axis in Axis}
    return _choose(lines, block, pattern)


def _sum_phases(fabric: Fabric, split: SplitBoxes, phases: list[Phase]) -> TransferCost:
    traffic = _traffic(fabric, split, phases)
    num_bytes, joules = over_hops(fabric, traffic.east, traffic.west, traffic.south, traffic.north)
    seconds = sum(cost.seconds for _, cost, _ in phases)
    link_s = sum(cost.link_s for _, cost, _ in phases)
    add_s = sum(cost.add_s for _, cost, _ in phases)
    # Read to be sent, written on arrival; read twice and written once to be added.
    accessed = 2 * traffic.arriving + 3 * traffic.added
    joules += accessed * fabric.sram_joules_per_byte
    return TransferCost(
        seconds=seconds,
        latency_s=max(seconds - link_s - add_s, 0.0),
        busy_s={Resource.LINK: link_s, Resource.VECTOR: add_s} if phases else {},
        num_bytes=num_bytes,
        joules=joules,
        moved_bytes=traffic.arriving,
    )


def _covered(split: SplitBoxes, axis: Axis) -> tuple[Floats, float]:
    """How many groups lie over every hop of an axis, and how many groups there are in all."""
    groups = [group for group in group_places(split, axis) if len(group) > 1]
    over = _groups_over(groups, len(split.busy(axis)))
    lines = split.busy(Axis.COLUMN if axis is Axis.ROW else Axis.ROW).astype(np.float64)
    covered = np.outer(over, lines) if axis is Axis.ROW else np.outer(lines, over)
    return covered, float(len(groups) * lines.sum())


def _one_after_another(first: TransferCost, second: TransferCost) -> TransferCost:
    return TransferCost(
        seconds=first.seconds + second.seconds,
        latency_s=first.latency_s + second.latency_s,
        busy_s=_both(first.busy_s, second.busy_s),
        num_bytes=_both(first.num_bytes, second.num_bytes),
        joules=first.joules + second.joules,
        moved_bytes=first.moved_bytes + second.moved_bytes,
    )


def _both(first: Mapping[Key, float], second: Mapping[Key, float]) -> dict[Key, float]:
    return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in {**first, **second}}
