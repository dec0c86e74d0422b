"""How long a transfer takes by itself, what it moves over which links, and its energy.

`cost_transfer` knows every pattern. Loads from other nodes' memories are here; what comes from or
goes to the memory outside is in `memory_cost`, partial results in `reduce_cost`, and nodes at a
switch in `switch_cost`. The time is that of the busiest link, port or memory, and the latency of
the longest way: what any schedule of these routes needs at least, and what flows that share links
evenly reach. MODELLED. Bytes, seconds, joules.
"""

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.mapping import Boxes, Layout, Storage
from fsdtrain_dojo.lowering.program import Pattern, Transfer
from fsdtrain_dojo.timing.axis_traffic import AxisTraffic
from fsdtrain_dojo.timing.box_axes import split_boxes
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.link_time import busiest_link_s, first_packet_s, over_hops, packet_waste
from fsdtrain_dojo.timing.memory_cost import cost_memory_load, cost_memory_store
from fsdtrain_dojo.timing.mesh_traffic import MeshTraffic, route_boxes
from fsdtrain_dojo.timing.reduce_cost import cost_reduce
from fsdtrain_dojo.timing.switch_cost import cost_switch_load, cost_switch_store

Floats = NDArray[np.float64]

REDUCTIONS = (Pattern.REDUCE, Pattern.REDUCE_SCATTER, Pattern.ALL_REDUCE)
NOTHING = TransferCost(seconds=0.0, latency_s=0.0)


def cost_transfer(
    fabric: Fabric,
    transfer: Transfer,
    element_bytes: float,
    *,
    share: float = 1.0,
    resident_share: float = 0.0,
) -> TransferCost:
    """What a transfer costs when nothing else moves.

    Args:
        fabric: of the machine.
        transfer: see there.
        element_bytes: of the value as it travels; partial results may be wider than the result.
        share: of the needed boxes' elements that are moved. Not 1: they are picked by other
            values, each node gets its own, and nothing is copied on the way.
        resident_share: of the value that lies in the cache behind the switch already.
    """
    is_store = transfer.source is None
    if not fabric.keeps_values:
        if is_store:
            return cost_switch_store(fabric, transfer.boxes, element_bytes)
        return cost_switch_load(
            fabric, transfer.boxes, element_bytes, share=share, resident_share=resident_share
        )
    if transfer.pattern in REDUCTIONS:
        return cost_reduce(fabric, transfer, element_bytes)
    if is_store:
        to_memory = transfer.target is not None and transfer.target.storage is Storage.HBM
        if to_memory:
            return cost_memory_store(fabric, transfer.boxes, element_bytes)
        if transfer.target is None or transfer.target.boxes is None:
            return NOTHING
        return cost_move(fabric, transfer.boxes, transfer.target.boxes, element_bytes)
    source = transfer.source
    assert source is not None
    if source.storage is Storage.HBM:
        return cost_memory_load(fabric, transfer.boxes, element_bytes, share=share)
    assert source.boxes is not None, transfer.value
    return cost_move(fabric, source.boxes, transfer.boxes, element_bytes, share=share)


def cost_move(
    fabric: Fabric, kept: Boxes, needed: Boxes, element_bytes: float, *, share: float = 1.0
) -> TransferCost:
    """From nodes that keep boxes to nodes that need others; arguments as in `cost_transfer`."""
    if has_own(kept, needed):
        return NOTHING
    traffic = route_boxes(split_boxes(kept), split_boxes(needed), is_multicast=share == 1.0)
    return _price(fabric, traffic, element_bytes * share)


def has_own(kept: Boxes, needed: Boxes) -> bool:
    """Whether every node has what it needs."""
    if kept is needed:
        return True
    lacks = needed.busy & ~kept.busy
    is_empty = np.zeros((1, 1), bool)
    for have, until, want, end in zip(kept.first, kept.end, needed.first, needed.end, strict=True):
        lacks = lacks | (needed.busy & ((want < have) | (end > until)))
        is_empty = is_empty | (end <= want)
    return not bool((lacks & ~is_empty).any())


def classify(source: Layout, needed: Boxes) -> Pattern:
    """What loading boxes from a layout looks like."""
    if source.storage is Storage.HBM:
        return Pattern.HBM_LOAD
    assert source.boxes is not None
    if has_own(source.boxes, needed):
        return Pattern.LOCAL
    kept, wanted = split_boxes(source.boxes), split_boxes(needed)
    traffic = route_boxes(kept, wanted)
    total = needed.num_elements.sum()
    if (
        traffic.received.sum() <= total / 2
        and not ((traffic.received > 0) & (traffic.received >= needed.num_elements)).any()
    ):
        return Pattern.HALO
    ways = (traffic.along_rows, traffic.along_columns)
    if all(_is_one_to_one(each) for each in ways) and (
        needed.num_elements.max() == source.boxes.num_elements.max()
    ):
        return Pattern.SHIFT
    sent, received = traffic.sent.sum(), traffic.received.sum()
    return Pattern.MULTICAST if sent < 0.75 * received else Pattern.SCATTER


def _is_one_to_one(way: AxisTraffic) -> bool:
    return bool((way.is_served.sum(1) <= 1).all() and (way.is_served.sum(0) <= 1).all())


def _price(fabric: Fabric, traffic: MeshTraffic, element_bytes: float) -> TransferCost:
    scale = element_bytes * packet_waste(fabric, traffic.piece * element_bytes)
    ways = (traffic.east, traffic.west, traffic.south, traffic.north)
    link_s = scale * busiest_link_s(fabric, *ways)
    port_s = scale * max(
        float(traffic.sent.max()) / fabric.send_bytes_per_s,
        float(traffic.received.max()) / fabric.receive_bytes_per_s,
    )
    latency_s = float(
        (fabric.row_way_s * traffic.along_rows.is_served).max(initial=0.0)
        + (fabric.column_way_s * traffic.along_columns.is_served).max(initial=0.0)
    )
    num_bytes, joules = over_hops(fabric, *ways)
    in_and_out = float(traffic.sent.sum() + traffic.received.sum())
    busy = max(link_s, port_s)
    return TransferCost(
        seconds=latency_s + max(busy - first_packet_s(fabric), 0.0),
        latency_s=latency_s,
        busy_s={Resource.LINK: busy},
        num_bytes={level: size * scale for level, size in num_bytes.items()},
        joules=(joules + fabric.sram_joules_per_byte * in_and_out) * scale,
        moved_bytes=float(traffic.received.sum()) * element_bytes,
    )
