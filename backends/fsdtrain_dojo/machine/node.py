"""What a node is: matrix unit, vector unit, local memory, and its link to the others.

Plain numbers in SI units (bytes, seconds, joules, hertz) and cycles of the unit's own clock. It
does not know how nodes are joined, nor which machine they are of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from fsdtrain.backend import BackendError


class Stationary(Enum):
    """What stays inside the matrix unit while operands stream through it."""

    OUTPUT = "output"  # sums stay; both operands are read again for every step
    WEIGHT = "weight"  # one operand (depth x columns) stays; the other and the sums stream


class PortKind(Enum):
    """Who uses a port of the local memory, and in which direction."""

    LOAD = "load"  # to the matrix and vector units
    STORE = "store"  # from them
    NETWORK_READ = "network_read"  # to the link of the node
    NETWORK_WRITE = "network_write"  # from the link of the node
    SCALAR_LOAD = "scalar_load"
    SCALAR_STORE = "scalar_store"


@dataclass(frozen=True, kw_only=True)
class MatrixUnit:
    """The matrix units of a node.

    One step of one unit multiplies rows x depth by depth x columns.

    Args:
        rows: see above; so are `columns` and `depth`.
        num_units: units of a node, all of which work in every step.
        clock_hz: of these units.
        macs_per_cycle: of all units together, by the format of the operands.
        stationary: what stays inside.
        num_accumulators: blocks of rows x columns sums that each unit keeps; 0: sums leave it
            after every step and are added elsewhere.
        latency_cycles: from the last operand of a step to its result.
        load_cycles: to put in another stationary operand; 0 where the output is stationary.
        joules_per_mac: by format.
    """

    rows: int
    columns: int
    depth: int
    num_units: int
    clock_hz: float
    macs_per_cycle: Mapping[str, float]
    stationary: Stationary
    num_accumulators: int
    latency_cycles: float
    load_cycles: float
    joules_per_mac: Mapping[str, float]

    def step_cycles(self, format_name: str) -> float:
        """Cycles from the start of a step to the start of the next."""
        macs = self.rows * self.columns * self.depth * self.num_units
        return macs / self.macs_per_cycle[format_name]


@dataclass(frozen=True, kw_only=True)
class VectorUnit:
    """The SIMD side of a node.

    Args:
        lanes: elements that all its pipes together finish in a cycle, by format.
        flops_per_lane: 2 where a multiply-add is one operation, else 1.
        clock_hz: of this unit.
        latency_cycles: of a dependent operation.
        special_per_cycle: results of exp, log, reciprocal, reciprocal square root a cycle.
        register_bytes: of the vector registers of a node.
        joules_per_flop: at fp32.
    """

    lanes: Mapping[str, float]
    flops_per_lane: int
    clock_hz: float
    latency_cycles: float
    special_per_cycle: float
    register_bytes: int
    joules_per_flop: float


@dataclass(frozen=True, kw_only=True)
class Port:
    """Equal ports of a local memory."""

    kind: PortKind
    count: int
    bytes_per_cycle: float  # of each


@dataclass(frozen=True, kw_only=True)
class LocalMemory:
    """The memory of a node that its program places data in.

    Args:
        capacity_bytes: usable.
        ports: what it can do in a cycle at most.
        accesses_per_cycle: LOAD and STORE accesses that the node can issue in a cycle; fewer than
            its ports where addresses are the limit.
        latency_cycles: from a load to the use of its value.
        joules_per_byte: read or written.
    """

    capacity_bytes: int
    ports: tuple[Port, ...]
    accesses_per_cycle: int
    latency_cycles: float
    joules_per_byte: float

    def bytes_per_cycle(self, *kinds: PortKind) -> float:
        """Of all ports of these kinds together."""
        return sum(each.count * each.bytes_per_cycle for each in self.ports if each.kind in kinds)


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link; bandwidth holds for each direction at the same time."""

    bytes_per_s: float
    latency_s: float  # from the first byte in to the first byte out, one router included
    packet_bytes: int
    joules_per_byte: float


@dataclass(frozen=True, kw_only=True)
class Node:
    """One processing element: a D1 node, an SM, a TPU core."""

    clock_hz: float  # of its memory, ports and links
    matrix: MatrixUnit | None
    vector: VectorUnit
    memory: LocalMemory
    edge: Link  # to a neighbour on each side, or to the switch

    @property
    def formats(self) -> tuple[str, ...]:
        """What its vector unit can work on."""
        return tuple(self.vector.lanes)

    def matrix_flops_per_s(self, format_name: str) -> float | None:
        """Peak of the matrix units; None: they do not take this format."""
        if self.matrix is None or format_name not in self.matrix.macs_per_cycle:
            return None
        return 2 * self.matrix.macs_per_cycle[format_name] * self.matrix.clock_hz

    def vector_flops_per_s(self, format_name: str) -> float:
        """Peak of the vector unit.

        Raises:
            BackendError: it does not take this format.
        """
        if format_name not in self.vector.lanes:
            raise BackendError(
                f"a node of this machine has no rate for {format_name}; its formats are "
                f"{', '.join(self.formats)}: choose a recipe with these (backend/recipe)"
            )
        return self.vector.lanes[format_name] * self.vector.flops_per_lane * self.vector.clock_hz

    def matmul_flops_per_s(self, format_name: str) -> float:
        """Peak of matrix products: of the matrix units, else of the vector unit.

        Raises:
            BackendError: neither takes this format.
        """
        matrix = self.matrix_flops_per_s(format_name)
        return self.vector_flops_per_s(format_name) if matrix is None else matrix
