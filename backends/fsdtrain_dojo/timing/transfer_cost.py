"""How long a transfer takes by itself, what it moves over which links, and its energy.

`cost_transfer` knows every pattern. Loads from other nodes' memories are here; what comes from or
goes to the memory outside is in `memory_cost`, partial results in `reduce_cost`, and nodes at a
switch in `switch_cost`. The time is that of the busiest link, port or memory, and the latency of
the longest way: what any schedule of these routes needs at least, and what flows that share links
evenly reach. MODELLED. Bytes, seconds, joules.
"""

from functools import lru_cache

from fsdtrain_dojo.lowering.mapping import Boxes, Layout, Storage
from fsdtrain_dojo.lowering.program import Pattern, Transfer
from fsdtrain_dojo.timing.axis_traffic import AxisTraffic
from fsdtrain_dojo.timing.box_axes import SplitBoxes, has_own, split_boxes
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.link_time import busiest_link, busiest_port, over_hops, packet_waste
from fsdtrain_dojo.timing.memory_cost import cost_memory
from fsdtrain_dojo.timing.mesh_traffic import MeshTraffic, along_axes, route_boxes
from fsdtrain_dojo.timing.reduce_cost import REDUCTIONS, cost_reduce
from fsdtrain_dojo.timing.switch_cost import cost_switch

__all__ = ["REDUCTIONS", "classify", "cost_transfer", "has_own"]

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
    source = transfer.source
    layout = transfer.target if source is None else source
    other = split_boxes(layout.boxes) if layout is not None and layout.boxes is not None else None
    return _cost_alike(
        fabric,
        transfer.pattern if transfer.pattern in REDUCTIONS else None,
        source is not None,
        layout.storage if layout is not None else None,
        split_boxes(transfer.boxes),
        other,
        element_bytes,
        share,
        resident_share,
    )


@lru_cache(maxsize=16384)
def _cost_alike(
    fabric: Fabric,
    reduction: Pattern | None,
    is_load: bool,
    storage: Storage | None,
    boxes: SplitBoxes,
    other: SplitBoxes | None,
    element_bytes: float,
    share: float,
    resident_share: float,
) -> TransferCost:
    """Found once for all transfers that are alike."""
    if not fabric.keeps_values:
        return cost_switch(
            fabric, boxes, element_bytes, is_load=is_load, is_reduction=reduction is not None,
            share=share, resident_share=resident_share,
        )  # fmt: skip
    if reduction is not None:
        is_outside = storage is Storage.HBM
        return cost_reduce(fabric, reduction, boxes, element_bytes, is_outside=is_outside)
    if storage is Storage.HBM:
        return cost_memory(fabric, boxes, element_bytes, share=share, is_load=is_load)
    if other is None:
        return NOTHING
    kept, needed = (other, boxes) if is_load else (boxes, other)
    if has_own(kept.boxes, needed.boxes):
        return NOTHING
    traffic = route_boxes(kept, needed, is_multicast=share == 1.0)
    return _price(fabric, traffic, element_bytes * share)


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


def load_latency_s(fabric: Fabric, source: Layout, needed: Boxes, *, share: float) -> float:
    """`TransferCost.latency_s` of a load between nodes of a mesh, found before the rest of it."""
    assert source.boxes is not None
    kept, wanted = split_boxes(source.boxes), split_boxes(needed)
    return _longest_way_s(fabric, *along_axes(kept, wanted, is_multicast=share == 1.0))


def _longest_way_s(fabric: Fabric, along_rows: AxisTraffic, along_columns: AxisTraffic) -> float:
    return float(
        (fabric.row_way_s * along_rows.is_served).max(initial=0.0)
        + (fabric.column_way_s * along_columns.is_served).max(initial=0.0)
    )


def _price(fabric: Fabric, traffic: MeshTraffic, element_bytes: float) -> TransferCost:
    scale = element_bytes * packet_waste(fabric, traffic.piece * element_bytes)
    ways = (traffic.east, traffic.west, traffic.south, traffic.north)
    busy = (
        busiest_link(fabric, *ways, scale)
        | busiest_port(fabric, float(traffic.sent.max()) * scale, fabric.send_bytes_per_s)
        | busiest_port(fabric, float(traffic.received.max()) * scale, fabric.receive_bytes_per_s)
    )
    latency_s = _longest_way_s(fabric, traffic.along_rows, traffic.along_columns)
    num_bytes, joules = over_hops(fabric, *ways)
    in_and_out = float(traffic.sent.sum() + traffic.received.sum())
    return TransferCost(
        seconds=latency_s + busy.after_first_s,
        latency_s=latency_s,
        busy_s={Resource.LINK: busy.seconds},
        num_bytes={level: size * scale for level, size in num_bytes.items()},
        joules=(joules + fabric.sram_joules_per_byte * in_and_out) * scale,
        moved_bytes=float(traffic.received.sum()) * element_bytes,
    )
