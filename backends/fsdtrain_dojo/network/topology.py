"""The network as plain numbers: nodes in a grid, ports at its rim, directed links between them.

Knows no machine, no format and no flow; whoever describes a machine calls `build_mesh` with its
numbers. Nodes of the grid are numbered row by row (`row * columns + column`), ports come after
them. One packet of `packet_bytes` is the unit of transfer: shorter messages fill one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fsdtrain.backend import BackendError

PACKET_BYTES = 64  # what a D1 node moves over a link in a clock


class Level(IntEnum):
    """What a link crosses."""

    NODE = 0
    DIE_EDGE = 1
    TILE_EDGE = 2
    PORT = 3  # between a node at the rim and a memory or host port


class Direction(IntEnum):
    """Where a link of the grid leads; columns grow to the east, rows to the south."""

    EAST = 0
    WEST = 1
    SOUTH = 2
    NORTH = 3
    OUT_OF_GRID = 4  # to a port
    INTO_GRID = 5  # from a port


@dataclass(frozen=True, kw_only=True)
class LinkKind:
    """A link in one direction: the rate it moves bytes at, and how long a packet's hop takes.

    The latency counts from a packet's start at one node to the moment that the next node can
    pass it on, all of it: a D1 die edge of 100 ns at 2 GHz is 1 + 200 clocks.
    """

    bytes_per_clock: float
    latency_clocks: int


@dataclass(frozen=True, kw_only=True)
class PortKind:
    """A memory or host at the rim, linked to each of `nodes` (grid numbers).

    `bytes_per_clock` limits what it sends and, apart from that, what it receives.
    """

    nodes: Sequence[int]
    link: LinkKind
    bytes_per_clock: float


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """A grid of nodes, cut into dies and the dies into tiles.

    `die_*` are nodes a die, `tile_*` nodes a tile; None means that the grid has no such edge.
    """

    columns: int
    rows: int
    die_columns: int | None = None
    die_rows: int | None = None
    tile_columns: int | None = None
    tile_rows: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Topology:
    """Nodes and directed links; arrays are indexed by node or by link.

    `send_` and `receive_bytes_per_clock` are what a node's memory reads for the network and
    writes from it, over all its links together. `link_from[node, direction]` is the link that
    leaves a grid node, -1 where there is none; ports' links lie after the grid's.
    """

    shape: MeshShape
    packet_bytes: int
    present: NDArray[np.bool_]
    send_bytes_per_clock: NDArray[np.float64]
    receive_bytes_per_clock: NDArray[np.float64]
    link_source: NDArray[np.int64]
    link_target: NDArray[np.int64]
    link_direction: NDArray[np.int64]
    link_level: NDArray[np.int64]
    link_bytes_per_clock: NDArray[np.float64]
    link_latency: NDArray[np.int64]
    link_from: NDArray[np.int64]

    @property
    def num_nodes(self) -> int:
        """Grid places, missing ones among them, and ports."""
        return len(self.present)

    @property
    def num_links(self) -> int:
        return len(self.link_source)

    @property
    def num_grid_nodes(self) -> int:
        return self.shape.columns * self.shape.rows

    def node(self, column: int, row: int) -> int:
        """The number of the node at this place of the grid."""
        return row * self.shape.columns + column


def build_mesh(
    shape: MeshShape,
    *,
    link: LinkKind,
    die_edge: LinkKind | None = None,
    tile_edge: LinkKind | None = None,
    missing: Sequence[int] = (),
    ports: Sequence[PortKind] = (),
    send_bytes_per_clock: float | None = None,
    receive_bytes_per_clock: float | None = None,
    packet_bytes: int = PACKET_BYTES,
) -> Topology:
    """A mesh with `link` between neighbours, other links where they cross a die or tile edge.

    `missing` nodes have neither memory nor links. A node sends and receives as fast as one of
    its links unless said otherwise.

    Raises:
        BackendError: numbers that contradict each other.
    """
    kinds = _link_kinds(shape, link, die_edge, tile_edge)
    present = _present_nodes(shape, missing, ports)
    between = _grid_links(shape, present, kinds)
    ends = _port_links(shape, present, ports)
    at_ports = [np.array(column) for column in zip(*ends, strict=True)] or [np.zeros(0, int)] * 6
    columns = [np.concatenate(pair) for pair in zip(between, at_ports, strict=True)]
    source, target, direction, level = (column.astype(np.int64) for column in columns[:4])
    link_from = np.full((shape.columns * shape.rows, 4), -1, np.int64)
    in_grid = direction < Direction.OUT_OF_GRID
    link_from[source[in_grid], direction[in_grid]] = np.flatnonzero(in_grid)
    rates = [port.bytes_per_clock for port in ports]
    num_grid = shape.columns * shape.rows
    rate = link.bytes_per_clock
    send = rate if send_bytes_per_clock is None else send_bytes_per_clock
    receive = rate if receive_bytes_per_clock is None else receive_bytes_per_clock
    _positive("send_bytes_per_clock", send)
    _positive("receive_bytes_per_clock", receive)
    return Topology(
        shape=shape,
        packet_bytes=packet_bytes,
        present=present,
        send_bytes_per_clock=np.array([send] * num_grid + rates, np.float64),
        receive_bytes_per_clock=np.array([receive] * num_grid + rates, np.float64),
        link_source=source,
        link_target=target,
        link_direction=direction,
        link_level=level,
        link_bytes_per_clock=columns[4].astype(np.float64),
        link_latency=columns[5].astype(np.int64),
        link_from=link_from,
    )


_End = tuple[int, int, Direction, Level, float, int]  # source, target, ..., bytes a clock, latency


def _link_kinds(
    shape: MeshShape, link: LinkKind, die_edge: LinkKind | None, tile_edge: LinkKind | None
) -> dict[Level, LinkKind]:
    if shape.columns < 1 or shape.rows < 1:
        raise BackendError(f"a mesh of {shape.columns} x {shape.rows} nodes has none; give 1 x 1")
    kinds = {Level.NODE: link}
    for level, kind, sizes in (
        (Level.DIE_EDGE, die_edge, (shape.die_columns, shape.die_rows)),
        (Level.TILE_EDGE, tile_edge, (shape.tile_columns, shape.tile_rows)),
    ):
        name = level.name.lower()
        if (kind is None) != (sizes == (None, None)):
            given = "no link for it" if kind is None else f"{kind}, but no size in nodes"
            raise BackendError(f"{name}: the mesh has {given}; give both or neither")
        if kind is not None:
            kinds[level] = kind
    for length, extent in (
        (shape.die_columns, shape.columns),
        (shape.tile_columns, shape.columns),
        (shape.die_rows, shape.rows),
        (shape.tile_rows, shape.rows),
    ):
        if length is not None and (length < 1 or extent % length):
            raise BackendError(f"{extent} nodes do not divide into dies or tiles of {length}")
    for level, kind in kinds.items():
        _check_link(level.name.lower(), kind)
    return kinds


def _check_link(name: str, kind: LinkKind) -> None:
    _positive(f"{name} bytes_per_clock", kind.bytes_per_clock)
    if kind.latency_clocks < 1:
        raise BackendError(f"{name} latency is {kind.latency_clocks} clocks; a hop takes 1 or more")


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise BackendError(f"{name} is {value}; give a positive number of bytes a clock")
    return value


def _present_nodes(
    shape: MeshShape, missing: Sequence[int], ports: Sequence[PortKind]
) -> NDArray[np.bool_]:
    num_grid = shape.columns * shape.rows
    present = np.ones(num_grid + len(ports), np.bool_)
    for node in missing:
        if not 0 <= node < num_grid:
            raise BackendError(f"missing node {node} is not one of the {num_grid} of the mesh")
        present[node] = False
    for number, port in enumerate(ports):
        _positive(f"port {number} bytes_per_clock", port.bytes_per_clock)
        _check_link(f"port {number}", port.link)
        if not any(0 <= node < num_grid and present[node] for node in port.nodes):
            raise BackendError(f"port {number} has no node to be linked to among {port.nodes}")
    return present


def _grid_links(
    shape: MeshShape, present: NDArray[np.bool_], kinds: dict[Level, LinkKind]
) -> list[NDArray[np.generic]]:
    """The six figures of an `_End` for all links between nodes of the grid."""
    row, column = (each[..., None] for each in np.indices((shape.rows, shape.columns)))
    source, direction = np.broadcast_arrays(row * shape.columns + column, np.arange(4))
    to_column = column + np.array([1, -1, 0, 0])  # by `Direction`
    to_row = row + np.array([0, 0, 1, -1])
    inside = (to_column >= 0) & (to_column < shape.columns) & (to_row >= 0) & (to_row < shape.rows)
    target = np.where(inside, to_row * shape.columns + to_column, source)
    exists = inside & present[source] & present[target]

    def crosses(columns: int | None, rows: int | None) -> NDArray[np.bool_]:
        width, height = columns or shape.columns, rows or shape.rows
        across, down = column // width != to_column // width, row // height != to_row // height
        found: NDArray[np.bool_] = across | down
        return found

    level = np.where(crosses(shape.die_columns, shape.die_rows), Level.DIE_EDGE, Level.NODE)
    level = np.where(crosses(shape.tile_columns, shape.tile_rows), Level.TILE_EDGE, level)[exists]
    # A mesh without such edges has no such links.
    of_level = [kinds.get(each, kinds[Level.NODE]) for each in Level]
    return [
        source[exists],
        target[exists],
        direction[exists],
        level,
        np.array([kind.bytes_per_clock for kind in of_level])[level],
        np.array([kind.latency_clocks for kind in of_level])[level],
    ]


def _port_links(
    shape: MeshShape, present: NDArray[np.bool_], ports: Sequence[PortKind]
) -> list[_End]:
    ends: list[_End] = []
    for port, kind in enumerate(ports, start=shape.columns * shape.rows):
        rate, latency = kind.link.bytes_per_clock, kind.link.latency_clocks
        for node in kind.nodes:
            if present[node]:
                ends.append((node, port, Direction.OUT_OF_GRID, Level.PORT, rate, latency))
                ends.append((port, node, Direction.INTO_GRID, Level.PORT, rate, latency))
    return ends
