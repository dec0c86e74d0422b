"""Energy of a kernel: of what its units compute and of what moves. MODELLED; joules.

Padding is taken to cost nothing (operands that are zero switch little), and what is idle is the
machine's, not a kernel's.
"""

from collections.abc import Sequence

from fsdtrain_dojo.machine.node import Node
from fsdtrain_dojo.timing.cost import TransferCost
from fsdtrain_dojo.timing.kernel_work import Work
from fsdtrain_dojo.timing.node_rates import slowest, vector_lanes


def compute_joules(node: Node, work: Work) -> float:
    """Of the units of all nodes together.

    A special function costs what the lanes could have done in its time. A product whose format
    the matrix unit lacks is computed by the vector unit, at its price.
    """
    name = slowest(node, work.formats)
    vector = node.vector
    lanes = vector_lanes(node, name)
    flops = work.flops + work.specials * lanes / vector.special_per_cycle
    if node.matrix is not None and name in node.matrix.joules_per_mac:
        products = work.macs * node.matrix.joules_per_mac[name]
    else:
        products = 2 * work.macs * vector.joules_per_flop
    return products + flops * vector.joules_per_flop


def transfer_joules(costs: Sequence[TransferCost], times: Sequence[float]) -> float:
    """Of transfers, each as often as it is made."""
    return sum(cost.joules * count for cost, count in zip(costs, times, strict=True))
