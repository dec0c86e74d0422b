"""How long one node works on a block of a kernel whose operands lie in its own memory. MODELLED.

Pure functions of the node's description and of sizes. They know neither kernels nor other nodes.

A matrix unit works in steps of rows x columns x depth, so every size is rounded up to its shape;
either operand may play the rows. Where sums stay in the unit (OUTPUT stationary), a set of
accumulators is filled at a time: its operands are read for every step, its sums leave when the
depth is done, and the pipeline is waited for unless other accumulators are free meanwhile. Where
an operand stays (WEIGHT stationary, a systolic array), the next one is loaded behind the one in
use, but a pass begins only when the sums of the pass before have left: `latency_cycles` is exposed
once a pass. Sums that no accumulator keeps are added by the vector unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, sqrt

from fsdtrain_dojo.machine.node import MatrixUnit, Node, PortKind, Stationary
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


def matrix_time(node: Node, format_name: str, product: Product) -> NodeTime:
    """On the matrix units, or on the vector unit where it is faster or takes a format alone.

    Narrow products (a group of one channel) waste more of a matrix unit than the vector unit is
    slower.

    Raises:
        BackendError: neither unit takes the format.
    """
    by_vector = _product_on_vector(node, format_name, product)
    matrix = node.matrix
    if matrix is None or format_name not in matrix.macs_per_cycle:
        return by_vector
    place = _output_stationary if matrix.stationary is Stationary.OUTPUT else _weight_stationary
    turned = replace(product, m=product.n, n=product.m)
    ways = [by_vector, *(place(node, matrix, format_name, each) for each in (product, turned))]
    return min(ways, key=lambda each: each.seconds)


def vector_time(
    node: Node,
    format_name: str,
    *,
    flops: float,
    specials: float = 0.0,
    load_bytes: float = 0.0,
    store_bytes: float = 0.0,
) -> NodeTime:
    """Element-wise work and reductions on the vector unit.

    A lane is taken to do one operation a cycle: few of these pair a multiply with an add. Special
    functions take turns with the lanes.
    """
    vector = node.vector
    lanes = vector_lanes(node, format_name)
    busy = (flops / lanes + specials / vector.special_per_cycle) / vector.clock_hz
    port_s = _port_seconds(node, load_bytes, store_bytes)
    if not (flops or specials or load_bytes or store_bytes):
        return NodeTime(seconds=0.0)
    fill = vector.latency_cycles / vector.clock_hz + node.memory.latency_cycles / node.clock_hz
    return NodeTime(
        seconds=max(busy, port_s) + fill,
        vector_s=busy,
        port_s=port_s,
        sram_bytes=load_bytes + store_bytes,
    )


def vector_lanes(node: Node, format_name: str) -> float:
    """Elements a cycle; integers and other formats without lanes of their own are as fp32."""
    lanes = node.vector.lanes
    return lanes[format_name if format_name in lanes else FP32]


def slowest(node: Node, formats: Sequence[str]) -> str:
    """The format at which work on operands of these formats is done: that of the lowest rate."""
    rates = node.matrix.macs_per_cycle if node.matrix else {}
    lanes = node.vector.lanes
    return min(formats, key=lambda name: (rates.get(name, 0.0), lanes.get(name, 0.0)))


def together(first: NodeTime, second: NodeTime) -> NodeTime:
    """Both at once: a unit that both need serves them one after the other."""
    vector_s = first.vector_s + second.vector_s
    port_s = first.port_s + second.port_s
    return NodeTime(
        seconds=max(first.seconds, second.seconds, vector_s, port_s),
        matrix_s=first.matrix_s + second.matrix_s,
        vector_s=vector_s,
        port_s=port_s,
        sram_bytes=first.sram_bytes + second.sram_bytes,
    )


def times(each: NodeTime, count: float) -> NodeTime:
    """`count` of these, one after the other."""
    return NodeTime(
        seconds=each.seconds * count,
        matrix_s=each.matrix_s * count,
        vector_s=each.vector_s * count,
        port_s=each.port_s * count,
        sram_bytes=each.sram_bytes * count,
    )


def _port_seconds(node: Node, load_bytes: float, store_bytes: float) -> float:
    """Loads and stores have their own ports but share the units that give addresses."""
    memory = node.memory
    load_rate = memory.bytes_per_cycle(PortKind.LOAD)
    store_rate = memory.bytes_per_cycle(PortKind.STORE)
    accesses = load_bytes / _width(node, PortKind.LOAD)
    accesses += store_bytes / _width(node, PortKind.STORE)
    cycles = max(
        load_bytes / load_rate, store_bytes / store_rate, accesses / memory.accesses_per_cycle
    )
    return cycles / node.clock_hz


def _width(node: Node, kind: PortKind) -> float:
    """Bytes of one access; ports of one kind are taken to be equally wide."""
    return max(each.bytes_per_cycle for each in node.memory.ports if each.kind is kind)


def _product_on_vector(node: Node, format_name: str, product: Product) -> NodeTime:
    """Multiply-adds on the lanes, with square blocks of sums in half of the registers."""
    vector = node.vector
    lanes = vector_lanes(node, format_name)
    results = product.batch * ceil(product.m * product.n / lanes) * lanes
    padded = results * product.k * product.folds
    busy = padded * 2 / (lanes * vector.flops_per_lane * vector.clock_hz)
    side = max(sqrt(vector.register_bytes / 2 / SUM_BYTES), 1.0)
    operand_bytes = FORMAT_BYTES.get(format_name, SUM_BYTES)
    per_mac = 1 / min(side, product.m) + 1 / min(side, product.n)
    num_results = product.batch * product.m * product.n
    load_bytes = product.macs * per_mac * operand_bytes + num_results * product.sum_bytes
    store_bytes = num_results * product.result_bytes
    port_s = _port_seconds(node, load_bytes, store_bytes)
    fill = vector.latency_cycles / vector.clock_hz + node.memory.latency_cycles / node.clock_hz
    return NodeTime(
        seconds=max(busy, port_s) + fill,
        vector_s=busy,
        port_s=port_s,
        sram_bytes=load_bytes + store_bytes,
    )


def _output_stationary(
    node: Node, matrix: MatrixUnit, format_name: str, product: Product
) -> NodeTime:
    element = FORMAT_BYTES[format_name]
    blocks_m, blocks_n = ceil(product.m / matrix.rows), ceil(product.n / matrix.columns)
    blocks = product.batch * blocks_m * blocks_n
    rounds = ceil(blocks / matrix.num_units)  # blocks that the busiest unit makes
    depth_steps = product.folds * ceil(product.k / matrix.depth)
    results = product.batch * product.m * product.n
    step_s = matrix.step_cycles(format_name) / matrix.clock_hz
    row_bytes = matrix.rows * matrix.depth * element
    column_bytes = matrix.columns * matrix.depth * element
    stored = results * product.result_bytes
    drain = matrix.latency_cycles / matrix.clock_hz + node.memory.latency_cycles / node.clock_hz
    best: NodeTime | None = None
    for high, wide in _arrangements(max(matrix.num_accumulators, 1), blocks_m, blocks_n):
        row_sets, column_sets = ceil(blocks_m / high), ceil(blocks_n / wide)
        # Each set of blocks reads its rows and its columns once for every step of the depth.
        loaded = (
            product.batch
            * depth_steps
            * (column_sets * blocks_m * row_bytes + row_sets * blocks_n * column_bytes)
        )
        loaded += results * product.sum_bytes
        moved = _port_seconds(node, loaded, stored)
        busy = rounds * depth_steps * step_s
        # While a set drains, the next fills other accumulators if there are as many again.
        hidden = 2 * high * wide <= matrix.num_accumulators
        drains = 1 if hidden else ceil(rounds / (high * wide))
        seconds = max(busy, moved) + drains * drain
        if best is None or seconds < best.seconds:
            leaving = results / vector_lanes(node, format_name) / node.vector.clock_hz
            best = NodeTime(
                seconds=max(seconds, leaving),
                matrix_s=busy,
                vector_s=leaving,
                port_s=moved,
                sram_bytes=loaded + stored,
            )
    assert best is not None
    return best


@lru_cache(maxsize=4096)
def _arrangements(num_accumulators: int, blocks_m: int, blocks_n: int) -> list[tuple[int, int]]:
    """Rows x columns of blocks that the accumulators may hold at once."""
    return [
        (high, min(num_accumulators // high, blocks_n))
        for high in range(1, min(num_accumulators, blocks_m) + 1)
    ]


def _weight_stationary(
    node: Node, matrix: MatrixUnit, format_name: str, product: Product
) -> NodeTime:
    element = FORMAT_BYTES[format_name]
    depth_tiles = product.folds * ceil(product.k / matrix.depth)
    column_tiles = ceil(product.n / matrix.columns)
    passes = ceil(product.batch * depth_tiles * column_tiles)
    rounds = ceil(passes / matrix.num_units)  # that the busiest unit makes
    streamed = ceil(product.m / matrix.rows) * matrix.step_cycles(format_name)
    busy_cycles = rounds * streamed
    # The first operand is waited for, the others are loaded behind the streams before them.
    cycles = matrix.load_cycles + rounds * (
        max(streamed, matrix.load_cycles) + matrix.latency_cycles
    )
    results = product.batch * product.m * product.n
    # Without accumulators, sums of every pass but the first meet those before in the local memory.
    again = results * max(depth_tiles - 1, 0.0) if matrix.num_accumulators == 0 else 0.0
    loaded = float(passes * (product.m + matrix.columns) * matrix.depth * element)
    loaded += again * SUM_BYTES + results * product.sum_bytes
    stored = again * SUM_BYTES + results * product.result_bytes
    port_s = _port_seconds(node, loaded, stored)
    vector_s = (again + results) / vector_lanes(node, format_name) / node.vector.clock_hz
    fill = node.memory.latency_cycles / node.clock_hz
    return NodeTime(
        seconds=max(cycles / matrix.clock_hz, port_s, vector_s) + fill,
        matrix_s=busy_cycles / matrix.clock_hz,
        vector_s=vector_s,
        port_s=port_s,
        sram_bytes=loaded + stored,
    )
