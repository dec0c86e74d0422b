"""How long partial sums of nodes in a line take to become one, by algorithm, in closed form.

The formulas of `network.closed_forms` (chain, tree, two-phase: Luczynski et al., arXiv 2404.15888;
rings: Thakur et al., IJHPCA 2005) for lines whose hops differ and nodes that take time to add, over
all numbers of chunks at once. Seconds and bytes. Where hops differ, a tree's and a ring's time is
an upper bound: every round waits for its slowest hop.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fsdtrain_dojo.timing.reduce_kernel import cut_into_groups

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ReduceLine:
    """Nodes in a line, each a hop from the next.

    Args:
        latency_s: of a packet over every hop.
        byte_s: seconds a byte takes of every hop.
        packet_bytes: of the links.
        add_s: for a node to add an arrived block to its own, per byte.
    """

    latency_s: tuple[float, ...]
    byte_s: tuple[float, ...]
    packet_bytes: int
    add_s: float

    def __len__(self) -> int:
        """How many nodes."""
        return len(self.latency_s) + 1

    @cached_property
    def _parts(self) -> tuple["_ManyHops", "_ManyHops"]:
        """For every number of nodes a group: the slowest group, and the line of first nodes."""
        latency_s, byte_s = np.array(self.latency_s), np.array(self.byte_s)
        within, between = cut_into_groups(latency_s, byte_s)
        return _ManyHops(within), _ManyHops(between)

    def _hops(self, first: int, last: int) -> "_Hops":
        """Between nodes first to before last."""
        hops = slice(first, last - 1)
        return _Hops(
            count=last - 1 - first,
            latency_s=sum(self.latency_s[hops]),
            sum_byte_s=sum(self.byte_s[hops]),
            max_byte_s=max(self.byte_s[hops], default=0.0),
        )

    @cached_property
    def _rounds(self) -> list["_Hops"]:
        """The slowest hop of every round of a tree."""
        found, distance = [], 1
        while distance < len(self):
            spans = [
                self._hops(place - distance, place + 1)
                for place in range(distance, len(self), 2 * distance)
            ]
            found.append(
                _Hops(
                    count=1,
                    latency_s=max(span.latency_s for span in spans),
                    sum_byte_s=max(span.max_byte_s for span in spans),
                    max_byte_s=max(span.max_byte_s for span in spans),
                )
            )
            distance *= 2
        return found

    @cached_property
    def _ring(self) -> tuple[Floats, Floats]:
        """Latency and seconds a byte of every hop of the line folded into a ring."""
        places = [*range(0, len(self), 2), *reversed(range(1, len(self), 2))]
        hops = [
            self._hops(min(a, b), max(a, b) + 1)
            for a, b in zip(places, [*places[1:], places[0]], strict=True)
        ]
        return np.array([h.latency_s for h in hops]), np.array([h.max_byte_s for h in hops])


@dataclass(frozen=True, kw_only=True)
class _Hops:
    """Several hops one after another."""

    count: int
    latency_s: float
    sum_byte_s: float
    max_byte_s: float


class _ManyHops:
    """Several `_Hops`, each figure a column of its own, given these as rows."""

    def __init__(self, figures: Floats) -> None:
        self.count, self.latency_s, self.sum_byte_s, self.max_byte_s = figures[:, :, None]


@dataclass(frozen=True, kw_only=True)
class LineCost:
    """Of a collective along a line.

    Args:
        seconds: all of it, the last addition included.
        add_s: that the busiest node adds for.
        link_s: that the busiest hop is busy.
        up: blocks that cross the mean hop towards the line's first node.
        down: the other way.
        added_blocks: that all nodes add together.
        received_blocks: that arrive at all nodes together.
        algorithm: "chain", "tree", "two-phase" or "ring".
    """

    seconds: float
    add_s: float
    link_s: float
    up: float
    down: float
    added_blocks: float
    received_blocks: float
    algorithm: str


@lru_cache(maxsize=16384)
def reduce_along(line: ReduceLine, num_bytes: float) -> LineCost:
    """The quickest way to the first node of a line: chain, tree or two-phase."""
    packets = math.ceil(num_bytes / line.packet_bytes)
    chunks = np.array(
        sorted({math.ceil(packets / 2**k) for k in range(packets.bit_length())} | {1})
    )
    each = np.ceil(packets / chunks)
    whole = line._hops(0, len(line))
    count = len(line)
    add = line.add_s * num_bytes
    plans = [
        (float(_chain(line, whole, chunks, each).min()), add, 1.0, "chain"),
        (
            sum(
                float(_chain(line, hop, np.ones(1), np.array([packets]))[0]) for hop in line._rounds
            ),
            add * len(line._rounds),
            sum(
                2**number * len(range(2**number, count, 2 ** (number + 1)))
                for number in range(len(line._rounds))
            )
            / (count - 1),
            "tree",
        ),
    ]
    within, between = line._parts
    if len(within.count):
        both = _chain(line, within, chunks, each).min(1) + _chain(line, between, chunks, each).min(
            1
        )
        best = int(both.argmin())
        passed = 1 - int(between.count[best, 0]) / (count - 1) + 1
        plans.append((float(both[best]), 2 * add, passed, "two-phase"))
    seconds, adding, blocks, algorithm = min(plans, key=lambda plan: plan[0])
    return LineCost(
        seconds=seconds,
        add_s=adding,
        link_s=packets * line.packet_bytes * whole.max_byte_s,
        up=blocks,
        down=0.0,
        added_blocks=count - 1,
        received_blocks=count - 1,
        algorithm=algorithm,
    )


def _chain(line: ReduceLine, hops: _Hops | _ManyHops, chunks: Floats, packets: Floats) -> Floats:
    """Over hops one after another, a node adding before it passes on, for several chunkings."""
    size = packets * line.packet_bytes
    add = line.add_s * size
    travel = hops.latency_s + (size - line.packet_bytes) * hops.sum_byte_s + hops.count * add
    return travel + (chunks - 1) * np.maximum(size * hops.max_byte_s, add)


@lru_cache(maxsize=16384)
def multicast_along(line: ReduceLine, num_bytes: float) -> LineCost:
    """From the first node to all others, copied by the routers."""
    size = math.ceil(num_bytes / line.packet_bytes) * line.packet_bytes
    slowest = max(line.byte_s)
    return LineCost(
        seconds=sum(line.latency_s) + (size - line.packet_bytes) * slowest,
        add_s=0.0,
        link_s=size * slowest,
        up=0.0,
        down=1.0,
        added_blocks=0.0,
        received_blocks=len(line) - 1,
        algorithm="multicast",
    )


@lru_cache(maxsize=16384)
def ring_along(line: ReduceLine, num_bytes: float, is_adding: bool) -> LineCost:
    """Half an all-reduce over the folded line: reduce-scatter (adding) or all-gather."""
    count = len(line)
    packets = math.ceil(num_bytes / count / line.packet_bytes)
    size = packets * line.packet_bytes
    latency, byte_s = line._ring
    add = line.add_s * size if is_adding else 0.0
    busy = max(float(size * byte_s.max()), add)
    hops = latency + (size - line.packet_bytes) * byte_s + add
    # A part waits at hops for those before it, or travels: the worst mix of n - 1 steps.
    steps = count - 1
    twice = np.concatenate([hops, hops])
    at = np.concatenate([[0.0], np.cumsum(twice - busy)])
    farthest = sliding_window_view(at[1:], steps).max(1)[:count]
    longest = float((farthest - at[:count]).max())
    return LineCost(
        seconds=steps * busy + longest,
        add_s=add * steps,
        link_s=steps * size * float(byte_s.max()),
        up=steps / count,
        down=steps / count,
        added_blocks=float(steps) if is_adding else 0.0,
        received_blocks=steps,
        algorithm="ring",
    )
