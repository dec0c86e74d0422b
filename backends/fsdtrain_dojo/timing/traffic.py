"""What a transfer puts on every hop of the grid and on every interface: the data of heat maps."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.mapping import Storage
from fsdtrain_dojo.lowering.program import Transfer
from fsdtrain_dojo.timing.box_axes import has_own, split_boxes
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.memory_cost import find_way
from fsdtrain_dojo.timing.mesh_traffic import route_boxes
from fsdtrain_dojo.timing.reduce_cost import REDUCTIONS, route_reduce
from fsdtrain_dojo.timing.switch_cost import cost_switch

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkLoads:
    """Bytes, without what whole packets add.

    Args:
        east: over the hop from node (r, c) of the grid to (r, c + 1): (R, C - 1); west: back.
        south: over the hop from (r, c) to (r + 1, c): (R - 1, C); north: back.
        by_interface: between every interface and its memory; empty where there is none.
    """

    east: Floats
    west: Floats
    south: Floats
    north: Floats
    by_interface: Floats

    def __add__(self, other: "LinkLoads") -> "LinkLoads":
        return LinkLoads(
            **{each.name: getattr(self, each.name) + getattr(other, each.name)
               for each in fields(self)}
        )  # fmt: skip


def link_loads(
    fabric: Fabric,
    transfer: Transfer,
    element_bytes: float,
    *,
    share: float = 1.0,
    resident_share: float = 0.0,
) -> LinkLoads:
    """Loads of one transfer; arguments as in `cost_transfer`."""
    split = split_boxes(transfer.boxes)
    if not fabric.keeps_values:
        cost = cost_switch(
            fabric, split, element_bytes, is_load=transfer.source is not None, share=share,
            resident_share=resident_share,
        )  # fmt: skip
        assert fabric.memory is not None
        count = fabric.memory.num_interfaces
        return _loads(fabric, by_interface=np.full(count, cost.num_bytes.get("HBM", 0.0) / count))
    loads = _loads(fabric)
    if transfer.pattern in REDUCTIONS:
        reduced = route_reduce(fabric, transfer.pattern, split, element_bytes)
        loads += _loads(fabric, reduced.east, reduced.west, reduced.south, reduced.north)
    layout = transfer.target if transfer.source is None else transfer.source
    if layout is None:
        return loads
    if layout.storage is Storage.HBM:
        is_load = transfer.source is not None
        traffic = find_way(fabric, split, element_bytes, share=share, is_load=is_load).traffic
        return loads + _loads(
            fabric,
            *(each * element_bytes for each in (traffic.east, traffic.west, traffic.south,
                                                traffic.north, traffic.by_interface)),
        )  # fmt: skip
    if transfer.pattern in REDUCTIONS or layout.boxes is None:
        return loads
    kept, needed = split_boxes(layout.boxes), split
    if transfer.source is None:
        kept, needed = needed, kept
    if has_own(kept.boxes, needed.boxes):
        return loads
    moved = route_boxes(kept, needed, is_multicast=share == 1.0)
    scale = element_bytes * share
    return _loads(
        fabric, moved.east * scale, moved.west * scale, moved.south * scale, moved.north * scale
    )


def _loads(
    fabric: Fabric,
    east: Floats | None = None,
    west: Floats | None = None,
    south: Floats | None = None,
    north: Floats | None = None,
    by_interface: Floats | None = None,
) -> LinkLoads:
    rows, columns = fabric.grid
    in_row, in_column = np.zeros((rows, columns - 1)), np.zeros((rows - 1, columns))
    interfaces = np.zeros(fabric.memory.num_interfaces if fabric.memory else 0)
    return LinkLoads(
        east=in_row if east is None else east,
        west=in_row if west is None else west,
        south=in_column if south is None else south,
        north=in_column if north is None else north,
        by_interface=interfaces if by_interface is None else by_interface,
    )
