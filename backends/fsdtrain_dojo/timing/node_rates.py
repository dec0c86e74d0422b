"""What a block of work on one node amounts to, and the rates that it goes by. MODELLED.

Pure functions of the node's description. Seconds, bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fsdtrain_dojo.machine.node import Node, PortKind
from fsdtrain_dojo.machine.number_formats import FORMAT_BYTES

SUM_BYTES = 4  # sums are fp32
FP32 = "fp32"


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """Of one block on one node.

    Args:
        seconds: from the first load to the last store.
        matrix_s: that the matrix units are busy, padding included.
        vector_s: that the vector unit is busy.
        port_s: that the ports of the local memory, or the units that give them addresses, are.
        sram_bytes: read and written.
    """

    seconds: float
    matrix_s: float = 0.0
    vector_s: float = 0.0
    port_s: float = 0.0
    sram_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Product:
    """`batch` products of (m x k) by (k x n).

    Args:
        batch: see above; so are `m`, `n` and `k`.
        folds: pieces of the depth that the unit cannot join, of k each: rows of a window, whose
            elements lie apart in memory. A fraction where not all points need all of them.
        result_bytes: stored of each result; less than an element's where this is one of several
            parts of the depth, the sums of which stay in the unit.
        sum_bytes: loaded of each earlier sum, to go on with.
    """

    batch: int
    m: int
    n: int
    k: int
    folds: float = 1
    result_bytes: float = SUM_BYTES
    sum_bytes: float = 0

    @property
    def macs(self) -> float:
        return self.batch * self.m * self.n * self.k * self.folds


def vector_lanes(node: Node, format_name: str) -> float:
    """Elements a cycle. What is no number format (integers, truth values) is worked on as fp32.

    Raises:
        BackendError: the node does not take this number format.
    """
    lanes = node.vector.lanes
    if format_name in lanes:
        return lanes[format_name]
    if format_name in FORMAT_BYTES:
        node.vector_flops_per_s(format_name)  # says which formats there are
    return lanes[FP32]


def slowest(node: Node, formats: Sequence[str]) -> str:
    """The format at which work on operands of these formats is done: that of the lowest rate."""
    rates = node.matrix.macs_per_cycle if node.matrix else {}
    lanes = node.vector.lanes
    return min(formats, key=lambda name: (rates.get(name, 0.0), lanes.get(name, 0.0)))


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is asked of one node again and again.

    Args:
        node: itself, so that nothing else takes its identity.
        load_rate: bytes a cycle; so is `store_rate`.
        load_width: bytes of one access, ports of a kind being equally wide; so is `store_width`.
        times: of products, by format.
        blocks: times of blocks of kernels; see `kernel_work`.
    """

    node: Node
    load_rate: float
    store_rate: float
    load_width: float
    store_width: float
    times: dict[tuple[str, Product], NodeTime] = field(default_factory=dict)
    blocks: dict[object, NodeTime] = field(default_factory=dict)


_KNOWN: dict[int, Known] = {}  # by identity: a node holds tables, which have no hash
MAX_KNOWN = 64


def known(node: Node) -> Known:
    """The rates of a node, and the times that were found for it."""
    found = _KNOWN.get(id(node))
    if found is None or found.node is not node:
        if len(_KNOWN) >= MAX_KNOWN:
            _KNOWN.clear()
        memory = node.memory
        found = Known(
            node=node,
            load_rate=memory.bytes_per_cycle(PortKind.LOAD),
            store_rate=memory.bytes_per_cycle(PortKind.STORE),
            load_width=_width(node, PortKind.LOAD),
            store_width=_width(node, PortKind.STORE),
        )
        _KNOWN[id(node)] = found
    return found


def _width(node: Node, kind: PortKind) -> float:
    return max(each.bytes_per_cycle for each in node.memory.ports if each.kind is kind)


def port_seconds(node: Node, load_bytes: float, store_bytes: float) -> float:
    """Loads and stores have their own ports but share the units that give addresses."""
    rates = known(node)
    accesses = load_bytes / rates.load_width + store_bytes / rates.store_width
    cycles = max(
        load_bytes / rates.load_rate,
        store_bytes / rates.store_rate,
        accesses / node.memory.accesses_per_cycle,
    )
    return cycles / node.clock_hz
