"""What transfers run over: the logical grid of a machine's nodes, its hops, and memory outside.

Of a mesh, a hop leads from a node of the logical grid to the next one along a row or a column. It
may take several links (a missing node is gone around), and a link may be shared by several hops.
A hop's rate is what is left of its narrowest link when all hops of its axis are loaded alike.
Of nodes at a switch, the grid is one row, and there are no hops. Bytes, seconds, joules.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.machine.layout import MeshLayout, mesh_layout
from fsdtrain_dojo.machine.node import PortKind
from fsdtrain_dojo.machine.schema import Machine, Topology
from fsdtrain_dojo.timing.hops import Hops, measure_hops
from fsdtrain_dojo.timing.logical_grid import lay_grid
from fsdtrain_dojo.timing.outer_memory import OuterMemory, mesh_memory, switch_memory
from fsdtrain_dojo.timing.switch_stages import SwitchStage, find_stages

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fabric:
    """See the top of this file. Two fabrics are equal if they are one.

    Args:
        machine: that it was built of.
        grid: logical rows and columns.
        keeps_values: whether a node's memory outlives a kernel.
        num_copies: such grids in the machine; only networks join them.
        node_row: physical row of every node of the grid, (R, C); node_column likewise.
        along_rows: hops between (r, c) and (r, c + 1); None at a switch. See `Hops`.
        along_columns: hops between (r, c) and (r + 1, c).
        row_way_s: latency between two logical columns within a row, that of the worst row: (C, C).
        column_way_s: between two logical rows within a column: (R, R).
        memory: outside; None: there is none.
        stages: switches from a node outwards; empty on a mesh.
    """

    machine: Machine
    grid: tuple[int, int]
    keeps_values: bool
    num_copies: int
    node_row: Ints
    node_column: Ints
    along_rows: Hops | None
    along_columns: Hops | None
    row_way_s: Floats
    column_way_s: Floats
    memory: OuterMemory | None
    stages: tuple[SwitchStage, ...] = ()

    @property
    def num_nodes(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def clock_hz(self) -> float:
        """Of links and node memories."""
        return self.machine.node.clock_hz

    @property
    def packet_bytes(self) -> int:
        """Of the links between nodes."""
        return self.machine.node.edge.packet_bytes

    @property
    def sram_joules_per_byte(self) -> float:
        """Read from or written to a node's memory."""
        return self.machine.node.memory.joules_per_byte

    @cached_property
    def send_bytes_per_s(self) -> float:
        """What a node's memory reads for the network."""
        return self.machine.node.memory.bytes_per_cycle(PortKind.NETWORK_READ) * self.clock_hz

    @cached_property
    def receive_bytes_per_s(self) -> float:
        """What a node's memory writes from the network."""
        return self.machine.node.memory.bytes_per_cycle(PortKind.NETWORK_WRITE) * self.clock_hz

    @cached_property
    def add_s_per_byte(self) -> float:
        """For a node to add an arrived block to its own: two reads and a write, as ports allow."""
        memory = self.machine.node.memory
        loads, stores = (memory.bytes_per_cycle(kind) for kind in (PortKind.LOAD, PortKind.STORE))
        widest = max(port.bytes_per_cycle for port in memory.ports if port.kind is PortKind.LOAD)
        accesses = 3 / (memory.accesses_per_cycle * widest)
        return max(2 / loads, 1 / stores, accesses) / self.clock_hz


# By identity, for machines cannot be hashed; a fabric keeps its machine, so identities stay.
_FABRICS: dict[int, Fabric] = {}
MOST_FABRICS = 64


def build_fabric(machine: Machine) -> Fabric:
    """The fabric of a machine; the same one each time it is asked for.

    Raises:
        BackendError: neither a mesh nor a switch holds the nodes together.
    """
    known = _FABRICS.get(id(machine))
    if known is None:
        is_mesh = machine.levels[0].topology is Topology.MESH
        known = _build_mesh(machine) if is_mesh else _build_switch(machine)
        while len(_FABRICS) >= MOST_FABRICS:
            del _FABRICS[next(iter(_FABRICS))]
        _FABRICS[id(machine)] = known
    return known


def _build_mesh(machine: Machine) -> Fabric:
    layout = mesh_layout(machine)
    present = np.ones((layout.rows, layout.columns), bool)
    for place in layout.missing:
        present[place] = False
    node_row, node_column = lay_grid(present)
    along_rows, along_columns = measure_hops(machine, layout, node_row, node_column)
    rows, columns = node_row.shape
    return Fabric(
        machine=machine,
        grid=(rows, columns),
        keeps_values=True,
        num_copies=layout.num_copies,
        node_row=node_row,
        node_column=node_column,
        along_rows=along_rows,
        along_columns=along_columns,
        row_way_s=_longest_ways(machine, layout, node_row, node_column),
        column_way_s=_longest_ways(machine, layout, node_row.T, node_column.T),
        memory=mesh_memory(layout, node_row, node_column),
    )


def _longest_ways(
    machine: Machine, layout: MeshLayout, node_row: Ints, node_column: Ints
) -> Floats:
    """Between any two places of a line, that of the slowest of many lines: (lines, L) -> (L, L).

    Straight ways along a row and a column of the mesh; detours around missing nodes, of a few
    hops each, are left out.
    """
    hop = machine.node.edge.latency_s
    down, right = np.full(layout.rows, hop), np.full(layout.columns, hop)
    for crossing in layout.crossings:
        down[:: crossing.rows] = crossing.column_link.latency_s
        right[:: crossing.columns] = crossing.row_link.latency_s
    south, east = np.cumsum(down)[node_row], np.cumsum(right)[node_column]
    ways = np.zeros((node_row.shape[1], node_row.shape[1]))
    for south_L, east_L in zip(south, east, strict=True):
        way = np.abs(south_L[:, None] - south_L) + np.abs(east_L[:, None] - east_L)
        np.maximum(ways, way, out=ways)
    return ways


def _build_switch(machine: Machine) -> Fabric:
    num_nodes = 1
    for level in machine.levels:
        if level.topology is Topology.SWITCH:
            num_nodes *= level.num_places - len(level.missing[0])
    return Fabric(
        machine=machine,
        grid=(1, num_nodes),
        keeps_values=False,
        num_copies=1,
        node_row=np.zeros((1, num_nodes), np.int64),
        node_column=np.arange(num_nodes)[None, :],
        along_rows=None,
        along_columns=None,
        row_way_s=np.zeros((num_nodes, num_nodes)),
        column_way_s=np.zeros((1, 1)),
        memory=switch_memory(machine),
        stages=find_stages(machine),
    )
