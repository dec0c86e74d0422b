"""Loops over the ways to cut a line of nodes into groups, compiled; see `reduce_line`."""

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.arithmetic.compiled import compiled

Floats = NDArray[np.float64]


@compiled
def cut_into_groups(latency_s: Floats, byte_s: Floats) -> tuple[Floats, Floats]:
    """For groups of 2 and more nodes: the slowest group, and the line of all first nodes.

    Args:
        latency_s: of every hop of the line.
        byte_s: seconds a byte takes of it.

    Returns:
        Of both the number of hops, their latency, and the sum and the maximum of their seconds a
        byte, (4, sizes of groups).
    """
    num_nodes = len(latency_s) + 1
    num_sizes = max(num_nodes - 2, 0)
    within, between = np.zeros((4, num_sizes)), np.zeros((4, num_sizes))
    for number in range(num_sizes):
        size = number + 2
        for start in range(0, num_nodes, size):
            stop = min(start + size, num_nodes)
            latency, total, most = 0.0, 0.0, 0.0
            for hop in range(start, stop - 1):
                latency += latency_s[hop]
                total += byte_s[hop]
                most = max(most, byte_s[hop])
            slowest, slowest_total = within[1, number], within[2, number]
            is_slower = latency > slowest or (latency == slowest and total > slowest_total)
            if start == 0 or is_slower:
                within[0, number], within[1, number] = stop - 1 - start, latency
                within[2, number], within[3, number] = total, most
            if stop < num_nodes:  # and on to the first node of the next group
                between[0, number] += 1
                between[1, number] += latency + latency_s[stop - 1]
                between[2, number] += max(most, byte_s[stop - 1])
                between[3, number] = max(between[3, number], most, byte_s[stop - 1])
    return within, between
