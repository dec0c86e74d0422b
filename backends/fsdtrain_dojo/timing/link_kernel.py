"""Loads of hops added up on the links that they take, compiled."""

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.arithmetic.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def add_loads(load: Floats, links: Ints, offsets: Ints, forward: Floats, backward: Floats) -> None:
    """Add to `load`, by link, what hops carry: forward those first, then backward.

    Hop h takes links[offsets[h]] to links[offsets[h + 1]]; `forward` and `backward` are of half of
    the hops each.
    """
    count = len(forward)
    for hop in range(2 * count):
        amount = forward[hop] if hop < count else backward[hop - count]
        if amount != 0.0:
            for entry in range(offsets[hop], offsets[hop + 1]):
                load[links[entry]] += amount


@compiled
def busiest(load: Floats, byte_s: Floats, scale: float, packet_bytes: float) -> tuple[float, float]:
    """Longest time of any link for its load, and that without a packet."""
    longest, after_first = 0.0, 0.0
    for link in range(len(load)):
        size = load[link] * scale
        longest = max(longest, size * byte_s[link])
        after_first = max(after_first, (size - packet_bytes) * byte_s[link])
    return longest, after_first
