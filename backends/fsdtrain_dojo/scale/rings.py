"""How long reduce-scatter and all-gather take around a ring whose members have many nodes each.

Knows a line of numbers, no machine. The nodes of a member sum their own parts, in rings of their
own beside each other: they share the links, but while one part is on its way, another is sent. For
members of one node, this is `closed_forms.ring_clocks`.
"""

import numpy as np

from fsdtrain_dojo.network.closed_forms import Line


def parallel_ring_clocks(
    line: Line, num_bytes: float, *, num_parts: int, add_clocks: float = 0.0
) -> float:
    """Of one phase: all members send, add and pass on, one block less often than there are members.

    By recursion over parts and hops: a part is sent when it has come (and has been added), and
    those before it have left. Adding what arrives last is not counted.

    Args:
        line: folded into a ring, whose hops then use every link once in each direction.
        num_bytes: of each member before a reduce-scatter, or after an all-gather.
        num_parts: rings side by side that share the links.
        add_clocks: for a member to add a whole block, all parts of it.
    """
    count = len(line)
    places = [*range(0, count, 2), *reversed(range(1, count, 2))]
    ends = list(zip(places, [*places[1:], places[0]], strict=True))
    packets = line.num_packets(num_bytes / count) / num_parts
    one = np.array([line.transfer(a, b, 1) for a, b in ends], float)
    slowest = np.array([line.transfer(a, b, 2) for a, b in ends], float) - one
    busy, hops = packets * slowest, one + max(packets - 1, 0.0) * slowest
    arrived, free = np.zeros((num_parts, count)), np.zeros(count)
    in_turn = np.arange(num_parts)[:, None] * busy  # when parts leave that wait for nothing else
    behind = (np.arange(count) - 1) % count
    for step in range(count - 1):
        earliest = arrived + (add_clocks if step else 0.0) - in_turn
        start = np.maximum(np.maximum.accumulate(earliest, axis=0), free) + in_turn
        free = start[-1] + busy
        arrived = (start + hops)[:, behind]
    return float(arrived.max())
