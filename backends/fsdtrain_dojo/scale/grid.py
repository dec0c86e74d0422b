"""How the slices of a machine (dies, tiles, trays) lie beside each other, and what joins them.

A slice is a node or a group of a level. Slices of one mesh form a grid whose neighbours are joined
by all links along their common side; meshes are joined by the network of their interfaces. Knows
no collective. Seconds, bytes, joules; all MODELLED.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.layout import MeshLayout, mesh_layout
from fsdtrain_dojo.machine.node import Link
from fsdtrain_dojo.machine.schema import Machine, Side, Topology

NODE = "node"  # the name of the slices below the innermost level


@dataclass(frozen=True, kw_only=True)
class Hop:
    """From the nodes of a slice to the nodes at the same places of the next slice, one direction.

    Args:
        latency_s: of a packet.
        bytes_per_s: of all rows (or columns) of nodes along that side together.
        joules_per_byte: of all links on the way.
    """

    latency_s: float
    bytes_per_s: float
    joules_per_byte: float


@dataclass(frozen=True, kw_only=True)
class SliceGrid:
    """The slices of one kind in a machine.

    Args:
        level: of each slice; "node" is a single node.
        slice_rows: of nodes in a slice; 1 at a switch.
        slice_columns: likewise.
        row_hops: between neighbours in a row of slices, from the west.
        column_hops: between neighbours in a column of slices, from the north.
        across_row_s: latency from the western to the eastern nodes of one slice.
        across_column_s: from its northern to its southern nodes.
        num_meshes: such grids in the machine, joined by networks alone.
        packet_bytes: of the links between nodes.
    """

    level: str
    slice_rows: int
    slice_columns: int
    row_hops: tuple[Hop, ...]
    column_hops: tuple[Hop, ...]
    across_row_s: float
    across_column_s: float
    num_meshes: int
    packet_bytes: int

    @property
    def rows(self) -> int:
        return len(self.column_hops) + 1

    @property
    def columns(self) -> int:
        return len(self.row_hops) + 1


def level_depth(machine: Machine, level_name: str) -> int:
    """The number of a level from the inside, -1 for a node.

    Raises:
        BackendError: no such level, or its groups cannot stand alone.
    """
    depth = -1 if level_name == NODE else machine.levels.index(machine.level(level_name))
    for level in machine.levels[depth + 1 :]:
        if level.topology is Topology.SWITCH:
            raise BackendError(
                f"machine {machine.name} cannot be cut into slices of a {level_name}: the members "
                f"of a {level.name} share the memory behind its switch; cut it into "
                f"{level.name}s or larger"
            )
    return depth


def lay_slices(machine: Machine, level_name: str) -> SliceGrid:
    """The grid of slices of a level.

    Raises:
        BackendError: see `level_depth`.
    """
    depth = level_depth(machine, level_name)
    if machine.levels[0].topology is not Topology.MESH:
        return SliceGrid(
            level=level_name,
            slice_rows=1,
            slice_columns=1,
            row_hops=(),
            column_hops=(),
            across_row_s=0.0,
            across_column_s=0.0,
            num_meshes=prod(each.num_places for each in machine.levels[depth + 1 :]),
            packet_bytes=machine.node.edge.packet_bytes,
        )
    layout = mesh_layout(machine)
    num_levels = sum(each.topology is Topology.MESH for each in machine.levels)
    mine = machine.levels[: min(depth + 1, num_levels)]
    height, width = prod(each.rows for each in mine), prod(each.columns for each in mine)
    outside = machine.levels[depth + 1 :]
    present = _present(layout, machine.levels[0].do_missing_route)
    rows = _Lines(machine, layout, along_rows=True)
    columns = _Lines(machine, layout, along_rows=False)
    return SliceGrid(
        level=level_name,
        slice_rows=height,
        slice_columns=width,
        row_hops=rows.hops(width, height, _narrowest(present, height, width)),
        column_hops=columns.hops(height, width, _narrowest(present.T, width, height)),
        across_row_s=rows.latency_s(0, width - 1),
        across_column_s=columns.latency_s(0, height - 1),
        num_meshes=prod(each.num_places for each in outside if each.topology is Topology.NETWORK),
        packet_bytes=machine.node.edge.packet_bytes,
    )


def way_to_sides(grid: SliceGrid, sides: Sequence[Side], row: int, column: int) -> tuple[Hop, ...]:
    """The hops from a slice to the nearest of these sides of its mesh."""
    ways = {
        Side.WEST: grid.row_hops[:column],
        Side.EAST: grid.row_hops[column:],
        Side.NORTH: grid.column_hops[:row],
        Side.SOUTH: grid.column_hops[row:],
    }
    return min((ways[side] for side in sides), key=lambda way: sum(hop.latency_s for hop in way))


@dataclass
class _Lines:
    """All rows of nodes of a mesh, or all its columns."""

    machine: Machine
    layout: MeshLayout
    along_rows: bool

    def link(self, border: int) -> Link:
        """Between the nodes before and after a border, of which 0 is the first."""
        for crossing in reversed(self.layout.crossings):
            extent = crossing.columns if self.along_rows else crossing.rows
            if (border + 1) % extent == 0:
                return crossing.row_link if self.along_rows else crossing.column_link
        return self.machine.node.edge

    def latency_s(self, first: int, last: int) -> float:
        return sum(self.link(border).latency_s for border in range(first, last))

    def hops(self, extent: int, breadth: int, num_present: int) -> tuple[Hop, ...]:
        """Between slices of `extent` nodes along the line and `breadth` across it.

        `num_present` links between nodes cross a slice where most of its nodes are missing.
        """
        length = self.layout.columns if self.along_rows else self.layout.rows
        inner = [self.link(border) for border in range(extent - 1)]
        edge = self.machine.node.edge
        rates = [each.bytes_per_s * (num_present if each is edge else breadth) for each in inner]
        hops = []
        for border in range(extent - 1, length - 1, extent):
            outer = self.link(border)
            hops.append(
                Hop(
                    latency_s=sum(each.latency_s for each in (*inner, outer)),
                    bytes_per_s=min([*rates, breadth * outer.bytes_per_s]),
                    joules_per_byte=sum(each.joules_per_byte for each in (*inner, outer)),
                )
            )
        return tuple(hops)


def _present(layout: MeshLayout, do_missing_route: bool) -> NDArray[np.bool_]:
    """Places with a router that works."""
    present = np.ones((layout.rows, layout.columns), bool)
    for place in () if do_missing_route else layout.missing:
        present[place] = False
    return present


def _narrowest(present: NDArray[np.bool_], breadth: int, extent: int) -> int:
    """Nodes of the emptiest line across a slice of `breadth` x `extent`; empty slices left out."""
    rows, columns = present.shape
    blocks = present.reshape(rows // breadth, breadth, columns // extent, extent)
    counts = blocks.sum(1)  # (slice rows, slice columns, extent)
    return int(counts[counts.sum(2) > 0].min())
