"""What a machine is: nodes (`node.py`), how they are joined at every level, what is at the edges.

Plain numbers in SI units (bytes, seconds, joules, hertz) and cycles of the unit's own clock. Where
each comes from is in `Machine.constants`. Nothing here has a default that is a figure of hardware,
and no code decides by a machine's name.

A machine is a tree of groups. `levels` runs from the inside out: level 0 joins nodes, level 1
joins groups of level 0, and so on; the last level is the whole machine. A D1 tile is 18 x 20 nodes
joined as a mesh to a die, and 5 x 5 dies joined as a mesh to a tile. A GPU is one level: its SMs
at a switch, with the L2 cache behind the switch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.node import Link, Node
from fsdtrain_dojo.machine.quantity import Quantity

Position = tuple[int, int]  # row, column in the grid of a level


class Topology(Enum):
    """How the members of a group reach each other."""

    MESH = "mesh"  # neighbours in the grid, through the members' edges; no wrap-around
    SWITCH = "switch"  # every member's edge ends at one switch
    NETWORK = "network"  # only through the network links of the interfaces


class Side(Enum):
    """A side of a grid; row 0 is north, column 0 is west."""

    NORTH = "north"
    EAST = "east"
    SOUTH = "south"
    WEST = "west"


@dataclass(frozen=True, kw_only=True)
class SharedMemory:
    """A memory behind the switch of a level, used as a cache of what lies further out."""

    capacity_bytes: int
    bytes_per_s: float
    latency_s: float  # of the memory, without the links to it
    joules_per_byte: float
    num_served: int = 1  # members that one read reaches where they ask for the same together


@dataclass(frozen=True, kw_only=True)
class Level:
    """How members form a group, and what leaves the group.

    Args:
        name: of the group: "die", "tile", "gpu".
        rows: of the grid of members; in a switch, rows x columns is just their number.
        columns: see `rows`.
        topology: how members reach each other.
        missing: absent members; group g has those of missing[g % len(missing)].
        do_missing_route: whether the router of an absent member still passes packets on.
        edge: what leaves each side of the group (MESH outside) or the group (SWITCH outside).
            None: nothing but what the interfaces carry.
        is_edge_per_member: whether `edge` is a link of every member along a side, rather than
            of the side as a whole.
        shared_memory: behind the switch.
    """

    name: str
    rows: int
    columns: int
    topology: Topology
    missing: tuple[tuple[Position, ...], ...] = ((),)
    do_missing_route: bool = True
    edge: Link | None = None
    is_edge_per_member: bool = False
    shared_memory: SharedMemory | None = None

    @property
    def num_places(self) -> int:
        """Members and absent members of a group."""
        return self.rows * self.columns

    def num_along(self, side: Side) -> int:
        """Members along a side."""
        return self.columns if side in (Side.NORTH, Side.SOUTH) else self.rows

    def side_bytes_per_s(self, side: Side) -> float:
        """What leaves one side of the group, in one direction."""
        if self.edge is None:
            return 0.0
        return self.edge.bytes_per_s * (self.num_along(side) if self.is_edge_per_member else 1)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A memory outside the nodes."""

    capacity_bytes: int
    bytes_per_s: float  # peak; reads and writes share it
    efficiency: float  # share of the peak that long streams reach
    latency_s: float  # of the memory and its controller, without the links to it
    num_channels: int
    access_bytes: int  # the least that one access moves
    joules_per_byte: float


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Equal chips, or ports, through which memory, host and network are reached.

    Args:
        name: of their kind.
        level: the level they are attached to.
        sides: of the level's grid: `count` hang along each of these sides of every group, evenly
            spread. Empty: `count` hang at the switch of every group.
        count: see `sides`.
        link: of each to the nodes or the switch. Memory, host and network of one share it.
        memory: of each.
        host: of each, to the host.
        network: of each, to a network that reaches all others; latency from end to end.
    """

    name: str
    level: str
    sides: tuple[Side, ...]
    count: int
    link: Link
    memory: Memory | None = None
    host: Link | None = None
    network: Link | None = None


@dataclass(frozen=True, kw_only=True)
class Power:
    """Of the whole machine."""

    limit_watts: float
    idle_watts: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A whole machine; see the top of this file.

    Args:
        node: every node is alike.
        levels: from the inside out.
        interfaces: at the edges.
        power: of the whole.
        op_start_s: from the end of an op to the start of one that waited for it, beyond what
            nodes and links take: the launch of a kernel, the fetch of a program.
        name: of the preset.
        summary: one line.
        is_hypothetical: nobody has built it.
        constants: what it was built from, by the name of the knob.
    """

    node: Node
    levels: tuple[Level, ...]
    interfaces: tuple[Interface, ...]
    power: Power
    op_start_s: float
    name: str = "unnamed"
    summary: str = ""
    is_hypothetical: bool = False
    constants: Mapping[str, Quantity] = field(default_factory=dict)

    def level(self, name: str) -> Level:
        """The level of this name.

        Raises:
            BackendError: there is none.
        """
        for each in self.levels:
            if each.name == name:
                return each
        raise BackendError(
            f"machine {self.name} has no level {name!r}; it has "
            f"{', '.join(each.name for each in self.levels)}"
        )
