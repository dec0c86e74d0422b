"""Loads from and stores to the memory outside a mesh.

The memory is read once, whoever needs it, and routers copy. Where a value lies among the interfaces
is free, so the better of two ways is taken: each part at the interface in front of the row (column)
that needs it, or all parts spread over all interfaces, which columns (rows) then even out.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.mapping import Axis, Boxes
from fsdtrain_dojo.machine.schema import Side
from fsdtrain_dojo.timing.axis_traffic import follow_axis
from fsdtrain_dojo.timing.box_axes import SplitBoxes
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.link_time import Busy, busiest_link, busiest_port, over_hops, packet_waste
from fsdtrain_dojo.timing.outer_memory import OuterMemory

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class AxisNeed:
    """What places along an axis need, in elements: of an L-place axis.

    Args:
        each: by every place, (L).
        entering: by every place, where what several need alike enters evenly over them, (L).
        passed_on: forward and backward over every hop, from where it enters to all that need it.
        beyond: by any place behind every hop, (L - 1).
        before: by any place before it, (L - 1).
        total: by any place.
    """

    each: Floats
    entering: Floats
    passed_on: tuple[Floats, Floats]
    beyond: Floats
    before: Floats
    total: float


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryTraffic:
    """Elements over hops and interfaces; see `MeshTraffic`."""

    east: Floats
    west: Floats
    south: Floats
    north: Floats
    by_interface: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryWay:
    """A way between memory and nodes: elements, how long links and interfaces are busy, latency."""

    traffic: MemoryTraffic
    links: Busy
    memory_s: float
    latency_s: float


def find_way(
    fabric: Fabric,
    split: SplitBoxes,
    element_bytes: float,
    *,
    share: float = 1.0,
    is_load: bool,
    ports_s: float = 0.0,
) -> MemoryWay:
    """The quicker of the ways at the top of this file; ports of nodes take `ports_s` on both."""
    memory = fabric.memory
    assert memory is not None, "transfers with a memory that the machine lacks"
    boxes = split.boxes
    is_multicast = share == 1.0
    needs = tuple(_need(split, axis, is_multicast) for axis in (Axis.ROW, Axis.COLUMN))
    amount = float(split.extent(None)[0]) * share
    largest = split.largest * element_bytes * share
    waste = packet_waste(fabric, largest)
    accesses = access_waste(boxes, element_bytes, memory.access_bytes, is_gather=not is_multicast)
    rate = memory.bytes_per_s / memory.num_interfaces
    ways = []
    for is_at_home in (True, False):
        traffic = _traffic(fabric, memory, needs, amount, is_at_home=is_at_home, is_load=is_load)
        hops = (traffic.east, traffic.west, traffic.south, traffic.north)
        busiest = float(traffic.by_interface.max()) * element_bytes
        links = busiest_link(fabric, *hops, element_bytes * waste)
        ways.append(
            MemoryWay(
                traffic=traffic,
                links=links,
                memory_s=busiest * accesses / rate,
                latency_s=memory.latency_s + _way_s(fabric, memory, split, traffic),
            )
        )
    return min(
        ways,
        key=lambda way: way.latency_s + max(way.links.after_first_s, way.memory_s, ports_s),
    )


def cost_memory(
    fabric: Fabric, split: SplitBoxes, element_bytes: float, *, share: float = 1.0, is_load: bool
) -> TransferCost:
    """From the memory outside to all nodes that need boxes, or from nodes to the memory.

    Of nodes that hold the same, each stores a part. Arguments as in `cost_transfer`.
    """
    boxes = split.boxes
    moved = boxes.num_elements * (element_bytes * share)
    if not moved.any():
        return TransferCost(seconds=0.0, latency_s=0.0)
    memory = fabric.memory
    assert memory is not None, "transfers with a memory that the machine lacks"
    waste = packet_waste(fabric, float(moved.max()))
    ports = busiest_port(fabric, float(moved.max()) * waste, fabric.receive_bytes_per_s)
    way = find_way(
        fabric,
        split,
        element_bytes,
        share=share,
        is_load=is_load,
        ports_s=ports.after_first_s if is_load else 0.0,
    )
    traffic = way.traffic
    outside = float(traffic.by_interface.sum()) * element_bytes
    arriving = float(moved.sum()) if is_load else outside
    links = way.links
    if is_load:
        links |= ports
    latency_s = way.latency_s
    levels, joules = over_hops(fabric, traffic.east, traffic.west, traffic.south, traffic.north)
    scale = element_bytes * waste
    accessed = outside * access_waste(
        boxes, element_bytes, memory.access_bytes, is_gather=share != 1.0
    )
    joules = (
        joules * scale
        + accessed * memory.joules_per_byte
        + outside * waste * memory.link_joules_per_byte
        + arriving * waste * fabric.sram_joules_per_byte
    )
    return TransferCost(
        seconds=latency_s + max(links.after_first_s, way.memory_s),
        latency_s=latency_s,
        busy_s={Resource.LINK: links.seconds, Resource.HBM: way.memory_s},
        num_bytes={
            **{level: size * scale for level, size in levels.items()},
            "interface link": outside * waste,
            "HBM": accessed,
        },
        joules=joules,
        moved_bytes=arriving,
    )


def access_waste(
    boxes: Boxes, element_bytes: float, access_bytes: int, *, is_gather: bool = False
) -> float:
    """By how much accesses of this size are larger than the runs of a node's box in a memory.

    Of a gather, a run is as long as the last dimension of the box.
    """
    run = 1
    for first, end, size in reversed(list(zip(boxes.first, boxes.end, boxes.shape, strict=True))):
        extent = int((end - first).max())
        run *= max(extent, 1)
        if extent < size or is_gather:
            break
    run_bytes = run * element_bytes
    return float(-(-run_bytes // access_bytes) * access_bytes / run_bytes)


def _way_s(fabric: Fabric, memory: OuterMemory, split: SplitBoxes, traffic: MemoryTraffic) -> float:
    """Latency from the interfaces to the farthest node that takes part, however parts spread."""
    rows, columns = np.flatnonzero(split.rows), np.flatnonzero(split.columns)
    ways = []
    for side in memory.shares:
        start = 0 if side in (Side.WEST, Side.NORTH) else -1
        if side in (Side.WEST, Side.EAST):
            way = float(fabric.row_way_s[start, columns].max())
            if traffic.south.any() or traffic.north.any():
                way += float(fabric.column_way_s[:, rows].max())
        else:
            way = float(fabric.column_way_s[start, rows].max())
            if traffic.east.any() or traffic.west.any():
                way += float(fabric.row_way_s[:, columns].max())
        ways.append(way)
    return max(ways)


def _need(split: SplitBoxes, axis: Axis, is_multicast: bool) -> AxisNeed:
    dims = tuple(dim.key for dim in split.along(axis))
    return _need_along(dims, split.busy(axis).tobytes(), is_multicast)


@lru_cache(maxsize=4096)
def _need_along(dims: tuple[bytes, ...], places: bytes, is_multicast: bool) -> AxisNeed:
    """Of the places that are busy, given the ranges of every dimension along the axis."""
    busy = np.frombuffer(places, bool)
    length = len(busy)
    ranges = [np.frombuffer(dim, np.int64).reshape(2, length) for dim in dims]
    # One place that keeps all and serves all: what it sends over hops is what lies behind them.
    first = np.zeros(length, bool)
    first[0] = True
    ways = [
        follow_axis((), dims, 0, start.tobytes(), places, is_multicast, by_keeper=False)
        for start in (first, first[::-1])
    ]
    each = busy.astype(np.float64)
    for low, high in ranges:
        each = each * np.maximum(high - low, 0)
    entering, forward, backward = _spread(ranges, busy, each, is_multicast)
    return AxisNeed(
        each=each,
        entering=entering,
        passed_on=(forward, backward),
        beyond=ways[0].forward[0].copy(),
        before=ways[1].backward[0].copy(),
        total=float(ways[0].all[0]),
    )


def _spread(
    ranges: list[Ints], busy: NDArray[np.bool_], each: Floats, is_multicast: bool
) -> tuple[Floats, Floats, Floats]:
    """Where what several places need alike enters, and what of it passes every hop each way."""
    length = len(busy)
    forward, backward = np.zeros(length), np.zeros(length)
    if not is_multicast:
        return each, forward[:-1], backward[:-1]
    group = np.zeros(length, np.int64)
    if ranges:
        _, group = np.unique(np.concatenate(ranges), axis=1, return_inverse=True)
        group = group.ravel()
    group = np.where(busy & (each > 0), group, -1)
    size = np.bincount(group + 1, minlength=length + 1)[group + 1]
    entering = np.where(group >= 0, each / size, 0.0)
    last = {int(of): place for place, of in enumerate(group)}
    first = {int(of): length - 1 - place for place, of in enumerate(group[::-1])}
    for place in np.flatnonzero(group >= 0):
        of = int(group[place])
        forward[place] += entering[place]
        forward[last[of]] -= entering[place]
        backward[first[of]] += entering[place]
        backward[place] -= entering[place]
    return entering, np.cumsum(forward)[:-1], np.cumsum(backward)[:-1]


def _traffic(
    fabric: Fabric,
    memory: OuterMemory,
    needs: tuple[AxisNeed, ...],
    total: float,
    *,
    is_at_home: bool,
    is_load: bool,
) -> MemoryTraffic:
    rows, columns = fabric.grid
    ways = {
        Side.EAST: np.zeros((rows, columns - 1)), Side.WEST: np.zeros((rows, columns - 1)),
        Side.SOUTH: np.zeros((rows - 1, columns)), Side.NORTH: np.zeros((rows - 1, columns)),
    }  # fmt: skip
    by_interface = np.zeros(memory.num_interfaces)
    for side, share in memory.shares.items():
        in_rows = side in (Side.WEST, Side.EAST)
        across, along = needs if in_rows else needs[::-1]
        # `along` is the axis that packets enter along, `across` the one that they spread over.
        count = len(across.each)
        if is_at_home:
            entering, spread = across.entering, across.passed_on
            if not is_load:
                spread = (np.zeros(count - 1), np.zeros(count - 1))
        else:
            entering = np.full(count, across.total / count)
            done = np.arange(1, count) / count
            spread = (done * across.beyond, (1 - done) * across.before)
        amount = share * total
        inward = along.beyond if side in (Side.WEST, Side.NORTH) else along.before
        entry = np.outer(entering, inward) * amount
        forward, backward = (np.outer(way, along.each) * amount for way in spread)
        if not is_load:
            forward, backward = backward, forward
        into, out = (Side.EAST, Side.WEST) if in_rows else (Side.SOUTH, Side.NORTH)
        if side in (Side.EAST, Side.SOUTH):
            into, out = out, into
        if in_rows:
            ways[into if is_load else out] += entry
            ways[Side.SOUTH] += forward
            ways[Side.NORTH] += backward
        else:
            ways[into if is_load else out] += entry.T
            ways[Side.EAST] += forward.T
            ways[Side.WEST] += backward.T
        np.add.at(by_interface, memory.fed[side], entering * along.total * amount)
    if not is_at_home:
        by_interface[:] = by_interface.sum() / len(by_interface)
    return MemoryTraffic(
        east=ways[Side.EAST], west=ways[Side.WEST], south=ways[Side.SOUTH],
        north=ways[Side.NORTH], by_interface=by_interface,
    )  # fmt: skip
