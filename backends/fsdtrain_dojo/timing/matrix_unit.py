"""How long the matrix units of one node take for a product in its own memory. MODELLED.

A matrix unit works in steps of rows x columns x depth, so every size is rounded up to its shape.
Where sums stay in the unit (OUTPUT stationary), a set of accumulators is filled at a time: its
operands are read for every step, its sums leave when the depth is done, and the pipeline is waited
for unless other accumulators are free meanwhile. Where an operand stays (WEIGHT stationary, a
systolic array), the next one is loaded behind the one in use, but a pass begins only when the sums
of the pass before have left: `latency_cycles` is exposed once a pass. Sums that no accumulator
keeps are added by the vector unit.
"""

from dataclasses import replace
from functools import lru_cache
from math import ceil

from fsdtrain_dojo.machine.node import MatrixUnit, Node
from fsdtrain_dojo.machine.number_formats import FORMAT_BYTES
from fsdtrain_dojo.timing.node_rates import (
    SUM_BYTES,
    NodeTime,
    Product,
    port_seconds,
    vector_lanes,
)


def output_stationary(
    node: Node, matrix: MatrixUnit, format_name: str, product: Product
) -> NodeTime:
    """Of a product whose m plays the rows, on units that keep the sums."""
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
    leaving = results / vector_lanes(node, format_name) / node.vector.clock_hz
    found = []
    for high, wide in _arrangements(max(matrix.num_accumulators, 1), blocks_m, blocks_n):
        row_sets, column_sets = ceil(blocks_m / high), ceil(blocks_n / wide)
        # Each set of blocks reads its rows and its columns once for every step of the depth.
        loaded = (
            product.batch
            * depth_steps
            * (column_sets * blocks_m * row_bytes + row_sets * blocks_n * column_bytes)
        )
        loaded += results * product.sum_bytes
        moved = port_seconds(node, loaded, stored)
        busy = rounds * depth_steps * step_s
        # While a set drains, the next fills other accumulators if there are as many again.
        hidden = 2 * high * wide <= matrix.num_accumulators
        drains = 1 if hidden else ceil(rounds / (high * wide))
        found.append(
            NodeTime(
                seconds=max(busy, moved) + drains * drain,
                matrix_s=busy,
                vector_s=leaving,
                port_s=moved,
                sram_bytes=loaded + stored,
            )
        )
    best = min(found, key=lambda each: (each.seconds, each.sram_bytes))
    return replace(best, seconds=max(best.seconds, leaving))


@lru_cache(maxsize=4096)
def _arrangements(num_accumulators: int, blocks_m: int, blocks_n: int) -> list[tuple[int, int]]:
    """Rows x columns of blocks that the accumulators may hold at once."""
    return [
        (high, min(max(room // high, 1), blocks_n))
        for high in range(1, min(num_accumulators, blocks_m) + 1)
        for room in (num_accumulators, num_accumulators // 2)  # half of them, to hide the drain
    ]


def weight_stationary(
    node: Node, matrix: MatrixUnit, format_name: str, product: Product
) -> NodeTime:
    """Of a product whose m streams, on units that keep an operand of depth x columns."""
    element = FORMAT_BYTES[format_name]
    depth_tiles = product.folds * ceil(product.k / matrix.depth)
    column_tiles = ceil(product.n / matrix.columns)
    passes = ceil(product.batch * depth_tiles * column_tiles)
    granules = ceil(product.m / matrix.rows)
    rounds, rest = divmod(passes, matrix.num_units)
    # Units that would have no pass of their own share the rows of the last ones.
    whole = granules * matrix.step_cycles(format_name)
    last = ceil(granules * rest / matrix.num_units) * matrix.step_cycles(format_name)
    busy_cycles = rounds * whole + last
    # The first operand is waited for, the others are loaded behind the streams before them.
    cycles = matrix.load_cycles + rounds * (max(whole, matrix.load_cycles) + matrix.latency_cycles)
    if rest:
        cycles += max(last, matrix.load_cycles) + matrix.latency_cycles
    results = product.batch * product.m * product.n
    # Without accumulators, sums of every pass but the first meet those before in the local memory.
    again = results * max(depth_tiles - 1, 0.0) if matrix.num_accumulators == 0 else 0.0
    loaded = float(passes * (product.m + matrix.columns) * matrix.depth * element)
    loaded += again * SUM_BYTES + results * product.sum_bytes
    stored = again * SUM_BYTES + results * product.result_bytes
    port_s = port_seconds(node, loaded, stored)
    vector_s = (again + results) / vector_lanes(node, format_name) / node.vector.clock_hz
    fill = node.memory.latency_cycles / node.clock_hz
    return NodeTime(
        seconds=max(cycles / matrix.clock_hz, port_s, vector_s) + fill,
        matrix_s=busy_cycles / matrix.clock_hz,
        vector_s=vector_s,
        port_s=port_s,
        sram_bytes=loaded + stored,
    )
