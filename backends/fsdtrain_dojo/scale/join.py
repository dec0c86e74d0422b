"""How the replicas of a model are joined, in the words that collectives are costed in.

A replica's home is a block of slices that lie side by side: one, or as many as its pipeline has
stages. Homes of one mesh form a grid; meshes are joined by the network of all their interfaces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.layout import mesh_layout
from fsdtrain_dojo.machine.node import Node, PortKind
from fsdtrain_dojo.machine.schema import Interface, Machine, Side, Topology
from fsdtrain_dojo.machine.totals import num_interfaces, num_nodes
from fsdtrain_dojo.network.closed_forms import Line
from fsdtrain_dojo.scale.grid import Hop, SliceGrid, lay_slices
from fsdtrain_dojo.scale.slices import num_slices


@dataclass(frozen=True, kw_only=True)
class Block:
    """The slices of one replica: rows x columns of a mesh, or all of `meshes` meshes."""

    rows: int = 1
    columns: int = 1
    meshes: int = 1

    @property
    def num_slices(self) -> int:
        return self.rows * self.columns * self.meshes


@dataclass(frozen=True, kw_only=True)
class NetworkPort:
    """Through which a home that spans whole meshes, or all homes of one mesh, reach the network.

    Args:
        num_ports: interfaces.
        port_bytes_per_s: of each, one direction.
        latency_s: of a message from the nodes before an interface to those before another.
        way_s: from the node that lies furthest inside to the nearest interface.
        packet_bytes: that each interface sends at a time.
        joules_per_byte: of a message, links to the interfaces included.
        num_nodes: that lie before the interfaces and add what arrives.
        sides: of the mesh, that the interfaces hang at; empty at a switch.
    """

    num_ports: int
    port_bytes_per_s: float
    latency_s: float
    way_s: float
    packet_bytes: int
    joules_per_byte: float
    num_nodes: int
    sides: tuple[Side, ...]

    @property
    def bytes_per_s(self) -> float:
        return self.num_ports * self.port_bytes_per_s

    def message_s(self, num_bytes: float) -> float:
        """Seconds of a message spread over all ports, in whole packets."""
        packets = -(-num_bytes // (self.num_ports * self.packet_bytes))
        return self.latency_s + packets * self.packet_bytes / self.port_bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Join:
    """How homes are joined; see the top of this file.

    Args:
        num_replicas: homes in the machine.
        row: homes side by side, a packet of which is one packet of every row of nodes.
        column: likewise, of every column.
        nodes_along_row: of a home; they share the links that lead along the row.
        nodes_along_column: likewise.
        row_joules_per_byte: of the hops of `row`.
        column_joules_per_byte: of the hops of `column`.
        num_meshes: grids of homes that the network joins; or homes, where they span meshes.
        network: of one of these; None: there is none.
        clock_hz: that lines count in.
        num_nodes: of a home.
        add_s_per_byte: for one node to add an arrived block to its own.
        sram_joules_per_byte: read or written.
        memory_bytes_per_s: outside, of a home; infinite where there is none.
        memory_joules_per_byte: of it and the links to it.
    """

    num_replicas: int
    row: Line
    column: Line
    nodes_along_row: int
    nodes_along_column: int
    row_joules_per_byte: tuple[float, ...]
    column_joules_per_byte: tuple[float, ...]
    num_meshes: int
    network: NetworkPort | None
    clock_hz: float
    num_nodes: int
    add_s_per_byte: float
    sram_joules_per_byte: float
    memory_bytes_per_s: float
    memory_joules_per_byte: float

    @property
    def num_in_mesh(self) -> int:
        """Homes that links alone join."""
        return len(self.row) * len(self.column)


def join_homes(machine: Machine, level_name: str, block: Block | None = None) -> Join:
    """How homes of `block` slices (default: one) of a level are joined.

    Raises:
        BackendError: no such level, a block that does not fit, or meshes without a network.
    """
    block = block or Block()
    grid = lay_slices(machine, level_name)
    rows, columns = grid.rows // block.rows, grid.columns // block.columns
    num_meshes = grid.num_meshes // block.meshes
    _check_block(machine, grid, block)
    network = network_port(machine, grid.num_meshes, block.meshes)
    if network is None and num_meshes > 1:
        raise BackendError(
            f"machine {machine.name} has {num_meshes} groups that only a network could join, but "
            "no interface of it has a network link: give one a network"
        )
    node = machine.node
    slices = num_slices(machine, level_name)
    share = block.num_slices / slices
    row_hops = _skip(grid.row_hops, block.columns, columns, block.rows)
    column_hops = _skip(grid.column_hops, block.rows, rows, block.columns)
    rate, joules = _memory(machine)
    return Join(
        num_replicas=min(rows * columns * num_meshes, slices // block.num_slices),
        row=_line(row_hops, node.clock_hz, grid.packet_bytes * grid.slice_rows * block.rows),
        column=_line(
            column_hops, node.clock_hz, grid.packet_bytes * grid.slice_columns * block.columns
        ),
        nodes_along_row=grid.slice_columns * block.columns,
        nodes_along_column=grid.slice_rows * block.rows,
        row_joules_per_byte=tuple(each.joules_per_byte for each in row_hops),
        column_joules_per_byte=tuple(each.joules_per_byte for each in column_hops),
        num_meshes=num_meshes,
        network=network,
        clock_hz=node.clock_hz,
        num_nodes=round(num_nodes(machine) * share),
        add_s_per_byte=_add_s_per_byte(node),
        sram_joules_per_byte=node.memory.joules_per_byte,
        memory_bytes_per_s=rate * share or inf,
        memory_joules_per_byte=joules,
    )


def _check_block(machine: Machine, grid: SliceGrid, block: Block) -> None:
    fits = (
        block.rows <= grid.rows
        and block.columns <= grid.columns
        and block.meshes <= grid.num_meshes
    )
    if not fits:
        raise BackendError(
            f"{block.num_slices} stages on {block.rows} x {block.columns} {grid.level}s of "
            f"{block.meshes} meshes do not fit on machine {machine.name}, which has "
            f"{grid.num_meshes} meshes of {grid.rows} x {grid.columns}: take fewer stages"
        )
    assert block.meshes == 1 or (block.rows, block.columns) == (grid.rows, grid.columns)


def _skip(hops: Sequence[Hop], width: int, count: int, breadth: int) -> list[Hop]:
    """Hops between `count` homes of `width` slices each, `breadth` slices wide across.

    Every slice of a home talks to the one at its place in the next home, so up to `width` of these
    talks share a hop of the slices: together they get its rate.
    """
    joined = []
    for first in range(0, (count - 1) * width, width):
        ways = [hops[start : start + width] for start in range(first, first + width)]
        ways = [way for way in ways if len(way) == width]
        joined.append(
            Hop(
                latency_s=max(sum(hop.latency_s for hop in way) for way in ways),
                bytes_per_s=breadth * min(hop.bytes_per_s for way in ways for hop in way),
                joules_per_byte=max(sum(hop.joules_per_byte for hop in way) for way in ways),
            )
        )
    return joined


def _line(hops: Sequence[Hop], clock_hz: float, packet_bytes: int) -> Line:
    return Line(
        latency=tuple(max(1, round(hop.latency_s * clock_hz)) for hop in hops),
        packet_clocks=tuple(packet_bytes / hop.bytes_per_s * clock_hz for hop in hops),
        packet_bytes=packet_bytes,
    )


def network_port(machine: Machine, num_meshes: int, meshes: int = 1) -> NetworkPort | None:
    """What `meshes` of a machine's `num_meshes` meshes have; None where nothing has a network."""
    kinds = [each for each in machine.interfaces if each.network is not None]
    if not kinds:
        return None
    kind = max(kinds, key=lambda each: num_interfaces(machine, each) * _port_rate(each))
    assert kind.network is not None
    num_ports = num_interfaces(machine, kind) * meshes // num_meshes
    return NetworkPort(
        num_ports=num_ports,
        port_bytes_per_s=_port_rate(kind),
        latency_s=kind.network.latency_s + 2 * kind.link.latency_s,
        way_s=_way_to_ports(machine, kind.sides),
        packet_bytes=kind.network.packet_bytes,
        joules_per_byte=kind.network.joules_per_byte + 2 * kind.link.joules_per_byte,
        num_nodes=_nodes_before(machine, kind) * meshes,
        sides=kind.sides,
    )


def _port_rate(interface: Interface) -> float:
    assert interface.network is not None
    return min(interface.network.bytes_per_s, interface.link.bytes_per_s)


def _nodes_before(machine: Machine, interface: Interface) -> int:
    """Nodes of a mesh (of a switch: all) that are an interface's next hop."""
    if machine.levels[0].topology is not Topology.MESH:
        return num_nodes(machine) // prod(
            each.num_places for each in machine.levels if each.topology is Topology.NETWORK
        )
    layout = mesh_layout(machine)
    before = {node for site in layout.sites if site.interface is interface for node in site.nodes}
    return len(before - set(layout.missing))


def _way_to_ports(machine: Machine, sides: tuple[Side, ...]) -> float:
    """From the node that lies furthest inside to the nearest side, along its row or column."""
    if machine.levels[0].topology is not Topology.MESH or not sides:
        return 0.0
    innermost = machine.levels[0]
    grid = lay_slices(machine, innermost.name)
    edge = machine.node.edge.latency_s
    ways = []
    for ends, hops, inside in (
        ((Side.WEST, Side.EAST), grid.row_hops, (innermost.columns - 1) * edge),
        ((Side.NORTH, Side.SOUTH), grid.column_hops, (innermost.rows - 1) * edge),
    ):
        if served := [side for side in ends if side in sides]:
            whole = sum(hop.latency_s for hop in hops) + inside
            ways.append(whole / len(served))
    return min(ways)


def _add_s_per_byte(node: Node) -> float:
    """A sum reads both addends and writes one: as many accesses as ports, or addresses, allow."""
    memory = node.memory
    widths = [each.bytes_per_cycle for each in memory.ports if each.kind is PortKind.LOAD]
    cycles = max(
        2 / memory.bytes_per_cycle(PortKind.LOAD),
        1 / memory.bytes_per_cycle(PortKind.STORE),
        3 / (memory.accesses_per_cycle * max(widths)),
    )
    return cycles / node.clock_hz


def _memory(machine: Machine) -> tuple[float, float]:
    """Of all memory outside: the rate that long streams reach, and the mean joules a byte."""
    rates, joules = [], []
    for each in machine.interfaces:
        if each.memory is not None:
            rate = min(each.memory.bytes_per_s * each.memory.efficiency, each.link.bytes_per_s)
            rates.append(num_interfaces(machine, each) * rate)
            joules.append(each.memory.joules_per_byte + each.link.joules_per_byte)
    total = sum(rates)
    if not total:
        return 0.0, 0.0
    return total, sum(a * b for a, b in zip(rates, joules, strict=True)) / total
