"""How long one node works on a block of a kernel whose operands lie in its own memory. MODELLED.

Pure functions of the node's description and of sizes. They know neither kernels nor other nodes.
"""

from dataclasses import replace
from math import ceil, sqrt

from fsdtrain_dojo.machine.node import Node, Stationary
from fsdtrain_dojo.machine.number_formats import FORMAT_BYTES
from fsdtrain_dojo.timing.matrix_unit import output_stationary, weight_stationary
from fsdtrain_dojo.timing.node_rates import (
    SUM_BYTES,
    NodeTime,
    Product,
    known,
    port_seconds,
    vector_lanes,
)


def matrix_time(node: Node, format_name: str, product: Product) -> NodeTime:
    """On the matrix units, or on the vector unit where it is faster or takes a format alone.

    Narrow products (a group of one channel) waste more of a matrix unit than the vector unit is
    slower.

    Raises:
        BackendError: neither unit takes the format.
    """
    times = known(node).times
    key = (format_name, product)
    if key not in times:
        times[key] = _matrix_time(node, format_name, product)
    return times[key]


def _matrix_time(node: Node, format_name: str, product: Product) -> NodeTime:
    by_vector = _product_on_vector(node, format_name, product)
    matrix = node.matrix
    if matrix is None or format_name not in matrix.macs_per_cycle:
        return by_vector
    place = output_stationary if matrix.stationary is Stationary.OUTPUT else weight_stationary
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
    port_s = port_seconds(node, load_bytes, store_bytes)
    if not (flops or specials or load_bytes or store_bytes):
        return NodeTime(seconds=0.0)
    fill = vector.latency_cycles / vector.clock_hz + node.memory.latency_cycles / node.clock_hz
    return NodeTime(
        seconds=max(busy, port_s) + fill,
        vector_s=busy,
        port_s=port_s,
        sram_bytes=load_bytes + store_bytes,
    )


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


def _product_on_vector(node: Node, format_name: str, product: Product) -> NodeTime:
    """Multiply-adds on the lanes, with square blocks of sums in half of the registers."""
    vector = node.vector
    lanes = vector_lanes(node, format_name)
    results = ceil(product.batch * product.m * product.n / lanes) * lanes
    padded = results * product.k * product.folds
    busy = padded * 2 / (lanes * vector.flops_per_lane * vector.clock_hz)
    side = max(sqrt(vector.register_bytes / 2 / SUM_BYTES), 1.0)
    operand_bytes = FORMAT_BYTES.get(format_name, SUM_BYTES)
    per_mac = 1 / min(side, product.m) + 1 / min(side, product.n)
    num_results = product.batch * product.m * product.n
    load_bytes = product.macs * per_mac * operand_bytes + num_results * product.sum_bytes
    store_bytes = num_results * product.result_bytes
    port_s = port_seconds(node, load_bytes, store_bytes)
    fill = vector.latency_cycles / vector.clock_hz + node.memory.latency_cycles / node.clock_hz
    return NodeTime(
        seconds=max(busy, port_s) + fill,
        vector_s=busy,
        port_s=port_s,
        sram_bytes=load_bytes + store_bytes,
    )
