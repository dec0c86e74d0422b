"""The least time that a kernel can take on all nodes of its mesh or switch. MODELLED; seconds.

Peak rates and peak bandwidth only: no padding, no latency, nothing exposed. What must move over the
edge of the machine is each byte of a value once.
"""

from collections.abc import Mapping, Sequence

from fsdtrain_dojo.lowering.kernel import Unit, Value
from fsdtrain_dojo.machine.node import Node
from fsdtrain_dojo.machine.totals import num_nodes
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.kernel_work import Operand, Work
from fsdtrain_dojo.timing.node_rates import slowest, vector_lanes


def least_seconds(
    fabric: Fabric,
    work: Work,
    load_costs: Sequence[TransferCost],
    store_costs: Sequence[TransferCost],
    values: Mapping[str, Value],
) -> float:
    """Max over the peaks of matrix and vector units, and of the memory outside the nodes.

    A multiply-add may be done by either unit, special functions and vector work by one of them.
    """
    node, nodes = fabric.machine.node, nodes_of(fabric)
    name = slowest(node, work.formats)
    products = work.macs / (nodes * peak_macs_per_s(node, name))
    lanes = vector_lanes(node, name)
    rate = nodes * node.vector.clock_hz
    vector = max(
        work.flops / (rate * lanes * node.vector.flops_per_lane),
        work.specials / (rate * node.vector.special_per_cycle),
    )
    found = max(products, vector)
    if fabric.memory is not None:
        moved = sum(
            _unavoidable(operand, cost, values)
            for operands, costs in ((work.reads, load_costs), (work.writes, store_costs))
            for operand, cost in zip(operands, costs, strict=True)
        )
        found = max(found, moved / fabric.memory.peak_bytes_per_s)
    return found


def _unavoidable(operand: Operand, cost: TransferCost, values: Mapping[str, Value]) -> float:
    return min(cost.num_bytes.get(Resource.HBM.value, 0.0), values[operand.value].num_bytes)


def nodes_of(fabric: Fabric) -> float:
    """Nodes of the mesh or switch that a kernel runs on, those that its grid leaves out too."""
    return num_nodes(fabric.machine) / fabric.num_copies


def peak_macs_per_s(node: Node, format_name: str) -> float:
    """Of one node: of its matrix units and, where that is more or all there is, its vector unit."""
    vector = node.vector
    lanes = vector_lanes(node, format_name)
    flops = lanes * vector.flops_per_lane * vector.clock_hz
    return max(flops, node.matrix_flops_per_s(format_name) or 0.0) / 2


def matrix_share(fabric: Fabric, work: Work, seconds: float) -> float:
    """Share of the peak multiply-adds that a matrix kernel of this duration uses; 0 for others."""
    if work.unit is not Unit.MATRIX:
        return 0.0
    node = fabric.machine.node
    peak = nodes_of(fabric) * peak_macs_per_s(node, slowest(node, work.formats))
    return work.macs / (peak * seconds)
