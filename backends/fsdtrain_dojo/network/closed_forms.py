"""How long collectives take where nothing else is on the network, in clocks, as formulas.

Knows no flow model, route or program: a `Line` of plain numbers goes in. The formulas hold for
lines without missing nodes, whose memories send and receive as fast as the links move. A block
fills whole packets. `add_clocks` is what a node takes to add a block that has arrived.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fsdtrain.backend import BackendError
from fsdtrain_dojo.network.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Line:
    """Nodes in a row: clocks of each hop between neighbours, and clocks a packet takes up there."""

    latency: tuple[int, ...]
    packet_clocks: tuple[float, ...]
    packet_bytes: int

    def __len__(self) -> int:
        """How many nodes."""
        return len(self.latency) + 1

    def num_packets(self, num_bytes: float) -> int:
        return math.ceil(num_bytes / self.packet_bytes)

    def transfer(self, first: int, last: int, num_packets: int) -> float:
        """Clocks that packets take between two places, either way."""
        hops = slice(min(first, last), max(first, last))
        slowest = max(self.packet_clocks[hops])
        return sum(self.latency[hops]) + (num_packets - 1) * slowest


def measure_line(topology: Topology, nodes: Sequence[int]) -> Line:
    """The line of these grid nodes, each the next one's neighbour.

    Raises:
        BackendError: two that follow one another are no neighbours.
    """
    latency, clocks = [], []
    for here, there in zip(nodes, nodes[1:], strict=False):
        links = [link for link in topology.link_from[here] if topology.link_target[link] == there]
        if not links or links[0] < 0:
            raise BackendError(f"nodes {here} and {there} are no neighbours: not a line")
        latency.append(int(topology.link_latency[links[0]]))
        clocks.append(topology.packet_bytes / float(topology.link_bytes_per_clock[links[0]]))
    return Line(
        latency=tuple(latency), packet_clocks=tuple(clocks), packet_bytes=topology.packet_bytes
    )


def multicast_clocks(line: Line, num_bytes: float) -> float:
    """From the first node to all others: the last hop's latency, behind all packets."""
    return line.transfer(0, len(line) - 1, line.num_packets(num_bytes))


def shift_clocks(line: Line, num_bytes: float, *, by: int = 1, wrap: bool = False) -> float:
    """All nodes' blocks `by` places on: every link carries up to `by` of them, shared fairly.

    With `by` > 1 this is what fair shares would reach. Routers that give their inputs turns take
    up to 1.4 times as long (packet model, 8 nodes, by 3); shifts by one in turn do not.
    `wrap` (for by = 1) adds the last node's block to the first one, over the links' other
    direction.
    """
    packets, places = line.num_packets(num_bytes), range(len(line) - by)
    carried = [
        min(by, hop + 1, len(line) - 1 - hop, len(line) - by) for hop in range(len(line) - 1)
    ]
    longest = max(
        sum(line.latency[i : i + by])
        + max(
            packets * count * clocks - clocks
            for count, clocks in zip(
                carried[i : i + by], line.packet_clocks[i : i + by], strict=True
            )
        )
        for i in places
    )
    return max(longest, line.transfer(0, len(line) - 1, packets) if wrap else 0.0)


def chain_clocks(
    line: Line, num_bytes: float, *, num_chunks: int = 1, add_clocks: float = 0.0
) -> float:
    """To the first node over all others: one chunk all the way, the others right behind it."""
    packets = line.num_packets(num_bytes / num_chunks)
    hops = [line.transfer(i, i + 1, packets) for i in range(len(line) - 1)]
    behind = (num_chunks - 1) * packets * max(line.packet_clocks)
    return sum(hops) + (len(hops) - 1) * add_clocks + behind


def tree_clocks(line: Line, num_bytes: float, *, add_clocks: float = 0.0) -> float:
    """To the first node over pairs, pairs of pairs and so on; every round has links to itself."""
    packets, done = line.num_packets(num_bytes), [0.0] * len(line)
    last = [0.0] * len(line)  # the arrival that a node has yet to add
    distance = 1
    while distance < len(line):
        for place in range(distance, len(line), 2 * distance):
            arrival = done[place] + line.transfer(place - distance, place, packets)
            last[place - distance] = max(last[place - distance], arrival)
            done[place - distance] = last[place - distance] + add_clocks
        distance *= 2
    return last[0]


def two_phase_clocks(
    line: Line, num_bytes: float, *, group: int, num_chunks: int = 1, add_clocks: float = 0.0
) -> float:
    """Chains in groups of `group` (which divides the line), then one over their first nodes."""
    firsts = range(0, len(line), group)
    within = max(
        chain_clocks(part(line, i, i + group), num_bytes, num_chunks=num_chunks,
                     add_clocks=add_clocks)
        for i in firsts
    )  # fmt: skip
    between = chain_clocks(
        thinned(line, group), num_bytes, num_chunks=num_chunks, add_clocks=add_clocks
    )
    return within + add_clocks + between


def part(line: Line, first: int, last: int) -> Line:
    """The line's nodes from `first` to before `last`."""
    return Line(
        latency=line.latency[first : last - 1],
        packet_clocks=line.packet_clocks[first : last - 1],
        packet_bytes=line.packet_bytes,
    )


def thinned(line: Line, step: int) -> Line:
    """Every `step`-th node of the line, hops going past the others."""
    starts = range(0, len(line) - step, step)
    return Line(
        latency=tuple(sum(line.latency[i : i + step]) for i in starts),
        packet_clocks=tuple(max(line.packet_clocks[i : i + step]) for i in starts),
        packet_bytes=line.packet_bytes,
    )


def ring_clocks(
    line: Line,
    num_bytes: float,
    *,
    add_clocks: float = 0.0,
    phase: Literal["reduce_scatter", "all_gather", "all_reduce"] = "all_reduce",
) -> float:
    """Over the line folded into a ring, by recursion: parts follow one another over every hop.

    A node sends a part when it has come (and has been added), and the part before has left.
    Reduce-scatter and all-gather take n - 1 hops each. Adding after a reduce-scatter's last hop
    is not counted in it.
    """
    count = len(line)
    places = [*range(0, count, 2), *reversed(range(1, count, 2))]
    packets = line.num_packets(num_bytes / count)
    ends = list(zip(places, [*places[1:], places[0]], strict=True))
    busy = [line.transfer(a, b, packets + 1) - line.transfer(a, b, 1) for a, b in ends]
    hops = [line.transfer(a, b, packets) for a, b in ends]
    num_steps = (count - 1) * (2 if phase == "all_reduce" else 1)
    num_adds = {"reduce_scatter": count - 2, "all_gather": 0, "all_reduce": count - 1}[phase]
    arrived, free = [0.0] * count, [0.0] * count
    for step in range(num_steps):
        add = add_clocks if 1 <= step <= num_adds else 0.0
        start = [max(arrived[i] + add, free[i]) for i in range(count)]
        free = [start[i] + busy[i] for i in range(count)]
        arrived = [start[i - 1] + hops[i - 1] for i in range(count)]
    return max(arrived)


def bucket_clocks(row: Line, column: Line, num_bytes: float, *, add_clocks: float = 0.0) -> float:
    """A rectangle's rows scatter, its columns all-reduce the parts, its rows gather."""
    parts = column.packet_bytes * row.num_packets(num_bytes / len(row))
    return (
        ring_clocks(row, num_bytes, add_clocks=add_clocks, phase="reduce_scatter")
        + add_clocks
        + ring_clocks(column, parts, add_clocks=add_clocks)
        + ring_clocks(row, num_bytes, phase="all_gather")
    )


@dataclass(frozen=True, kw_only=True)
class ReducePlan:
    """How a reduce along a line is done best, and its clocks."""

    algorithm: Literal["chain", "tree", "two_phase"]
    clocks: float
    num_chunks: int = 1
    group: int = 1


def choose_reduce(line: Line, num_bytes: float, *, add_clocks: float = 0.0) -> ReducePlan:
    """The quickest of chain, tree and two-phase, over chunks of 1, 2, 4, ... packets."""
    packets = line.num_packets(num_bytes)
    chunkings = {math.ceil(packets / 2**power) for power in range(packets.bit_length())} | {1}
    groups = [size for size in range(2, len(line)) if len(line) % size == 0]
    plans = [
        ReducePlan(algorithm="tree", clocks=tree_clocks(line, num_bytes, add_clocks=add_clocks))
    ]
    for chunks in sorted(chunkings):
        clocks = chain_clocks(line, num_bytes, num_chunks=chunks, add_clocks=add_clocks)
        plans.append(ReducePlan(algorithm="chain", clocks=clocks, num_chunks=chunks))
        for group in groups:
            clocks = two_phase_clocks(
                line, num_bytes, group=group, num_chunks=chunks, add_clocks=add_clocks
            )
            plans.append(
                ReducePlan(algorithm="two_phase", clocks=clocks, num_chunks=chunks, group=group)
            )
    return min(plans, key=lambda plan: plan.clocks)
