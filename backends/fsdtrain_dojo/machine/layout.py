"""Where nodes, missing nodes and interfaces lie in the grid that links alone hold together.

That grid is the mesh levels of a machine, counted from the inside until a switch or a network
ends them: one tray of an ExaPOD, all of a tile. It does not know routes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.node import Link
from fsdtrain_dojo.machine.schema import Interface, Level, Machine, Position, Side, Topology


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """What joins two neighbouring nodes on either side of a border between groups.

    Args:
        level: of the groups that it joins ("die").
        rows: nodes of such a group, top to bottom.
        columns: the same, left to right.
        row_link: between two nodes of one row: the share of the group's east or west edge.
        column_link: between two nodes of one column: the share of its north or south edge.
    """

    level: str
    rows: int
    columns: int
    row_link: Link
    column_link: Link


@dataclass(frozen=True, kw_only=True)
class InterfaceSite:
    """One interface and the nodes that its link is spread over, for which it is the next hop."""

    interface: Interface
    side: Side
    nodes: tuple[Position, ...]


@dataclass(frozen=True, kw_only=True)
class MeshLayout:
    """The grid in nodes.

    Args:
        rows: of nodes.
        columns: of nodes.
        missing: places without a node, row by row.
        crossings: from the inside out; a border that is one of several is the outermost of them.
        sites: interfaces along the sides.
        num_copies: such grids in the whole machine.
    """

    rows: int
    columns: int
    missing: tuple[Position, ...]
    crossings: tuple[Crossing, ...]
    sites: tuple[InterfaceSite, ...]
    num_copies: int

    @property
    def num_nodes(self) -> int:
        return self.rows * self.columns - len(self.missing)


def mesh_layout(machine: Machine) -> MeshLayout:
    """The largest grid of nodes that neighbours' links hold together.

    Raises:
        BackendError: nodes are not joined as a mesh.
    """
    levels = tuple(takewhile(lambda each: each.topology is Topology.MESH, machine.levels))
    if not levels:
        raise BackendError(
            f"machine {machine.name} has no mesh: its nodes are joined by a "
            f"{machine.levels[0].topology.value}"
        )
    sizes = _sizes(levels)
    rows, columns = sizes[-1]
    num_copies = 1
    for level in machine.levels[len(levels) :]:
        num_copies *= level.num_places
    return MeshLayout(
        rows=rows,
        columns=columns,
        missing=tuple(sorted(_missing(levels, sizes))),
        crossings=tuple(
            _crossing(level, size) for level, size in zip(levels[:-1], sizes[:-1], strict=True)
        ),
        sites=tuple(_sites(machine, levels, sizes)),
        num_copies=num_copies,
    )


def _sizes(levels: tuple[Level, ...]) -> list[tuple[int, int]]:
    """Nodes of a group of each level: rows, columns."""
    sizes = [(1, 1)]
    for level in levels:
        sizes.append((sizes[-1][0] * level.rows, sizes[-1][1] * level.columns))
    return sizes[1:]


def _crossing(level: Level, size: tuple[int, int]) -> Crossing:
    edge = level.edge
    if edge is None:
        raise BackendError(
            f"level {level.name} has no edge link, yet the level around it is a mesh"
        )

    def share(side: Side, num_nodes: int) -> Link:
        return Link(
            bytes_per_s=level.side_bytes_per_s(side) / num_nodes,
            latency_s=edge.latency_s,
            packet_bytes=edge.packet_bytes,
            joules_per_byte=edge.joules_per_byte,
        )

    rows, columns = size
    return Crossing(
        level=level.name,
        rows=rows,
        columns=columns,
        row_link=share(Side.EAST, rows),
        column_link=share(Side.SOUTH, columns),
    )


def _missing(levels: tuple[Level, ...], sizes: list[tuple[int, int]]) -> Iterator[Position]:
    for depth, level in enumerate(levels):
        member_rows, member_columns = sizes[depth - 1] if depth else (1, 1)
        for group, (top, left) in enumerate(_origins(levels, sizes, depth)):
            for row, column in level.missing[group % len(level.missing)]:
                for down in range(member_rows):
                    for right in range(member_columns):
                        yield (
                            top + row * member_rows + down,
                            left + column * member_columns + right,
                        )


def _origins(
    levels: tuple[Level, ...], sizes: list[tuple[int, int]], depth: int
) -> Iterator[Position]:
    """The north-west node of every group of a level, in the order of the groups' numbers."""
    if depth == len(levels) - 1:
        yield (0, 0)
        return
    outer = levels[depth + 1]
    rows, columns = sizes[depth]
    for top, left in _origins(levels, sizes, depth + 1):
        for row in range(outer.rows):
            for column in range(outer.columns):
                yield (top + row * rows, left + column * columns)


def _sites(
    machine: Machine, levels: tuple[Level, ...], sizes: list[tuple[int, int]]
) -> Iterator[InterfaceSite]:
    names = [level.name for level in levels]
    for interface in machine.interfaces:
        if interface.level not in names:
            continue
        depth = names.index(interface.level)
        rows, columns = sizes[depth]
        for top, left in _origins(levels, sizes, depth):
            for side in interface.sides:
                line = _line(side, top, left, rows, columns)
                for site in range(interface.count):
                    first = site * len(line) // interface.count
                    last = max(first + 1, (site + 1) * len(line) // interface.count)
                    yield InterfaceSite(interface=interface, side=side, nodes=line[first:last])


def _line(side: Side, top: int, left: int, rows: int, columns: int) -> tuple[Position, ...]:
    """The nodes along a side of a group, from the north or the west."""
    if side in (Side.NORTH, Side.SOUTH):
        row = top if side is Side.NORTH else top + rows - 1
        return tuple((row, left + column) for column in range(columns))
    column = left if side is Side.WEST else left + columns - 1
    return tuple((top + row, column) for row in range(rows))
