"""Collectives as flow programs: multicast, shift, reduce, all-reduce. Times: `closed_forms`.

Every function adds flows to a `FlowProgram` and gives those that whoever goes on has to wait for.
`nodes` are neighbours along a row or column (or any row of nodes), the root first where there is
one. D1 routers are not known to add, so nodes do: an arrived block is added to the local one in
`add_clocks` clocks before it is passed on. Algorithms are those of Luczynski et al., Near-Optimal
Wafer-Scale Reduce (arXiv 2404.15888: chain, tree, two-phase) and the bucket algorithm of ring
reduce-scatter and all-gather, in one dimension and two (Thakur et al., IJHPCA 2005; Sack and
Gropp, PPoPP 2012).
"""

from collections.abc import Sequence

from fsdtrain_dojo.network.program import FlowProgram

Waits = Sequence[Sequence[int]]  # for each node of a collective, the flows that it waits for


def multicast(
    program: FlowProgram, nodes: Sequence[int], num_bytes: float, *, after: Sequence[int] = ()
) -> list[int]:
    """`num_bytes` from the first node to all others, copied by the routers on the way."""
    return [program.add(nodes[0], nodes[1:], num_bytes, after=after)]


def shift(
    program: FlowProgram, nodes: Sequence[int], num_bytes: float, *, by: int = 1, wrap: bool = False
) -> list[int]:
    """Each node's block to the node `by` places on; with `wrap`, the last ones' to the first."""
    count = len(nodes)
    senders = range(count if wrap else count - by)
    return [program.add(nodes[i], [nodes[(i + by) % count]], num_bytes) for i in senders]


def chain_reduce(
    program: FlowProgram,
    nodes: Sequence[int],
    num_bytes: float,
    *,
    num_chunks: int = 1,
    add_clocks: float = 0.0,
    after: Waits | None = None,
) -> list[int]:
    """Sum of all nodes' blocks to the first node: each adds its own and passes it on, in chunks.

    Gives the flow of each chunk into the first node, which has yet to be added there.
    """
    ready = after or [()] * len(nodes)
    arrived: list[int] = []
    for place in range(len(nodes) - 1, 0, -1):
        sent: list[int] = []
        for chunk in range(num_chunks):
            waits = [*ready[place], *arrived[chunk : chunk + 1]]
            sent.append(
                program.add(
                    nodes[place],
                    [nodes[place - 1]],
                    num_bytes / num_chunks,
                    after=waits,
                    behind=sent[-1:],
                    delay=add_clocks if waits else 0.0,
                )
            )
        arrived = sent
    return arrived


def tree_reduce(
    program: FlowProgram, nodes: Sequence[int], num_bytes: float, *, add_clocks: float = 0.0
) -> list[int]:
    """Sum of all nodes' blocks to the first node, over pairs, pairs of pairs and so on."""
    received: list[list[int]] = [[] for _ in nodes]
    distance = 1
    while distance < len(nodes):
        for place in range(distance, len(nodes), 2 * distance):
            waits = received[place]
            delay = add_clocks if waits else 0.0
            target = place - distance
            flow = program.add(nodes[place], [nodes[target]], num_bytes, after=waits, delay=delay)
            received[target].append(flow)
        distance *= 2
    return received[0]


def two_phase_reduce(
    program: FlowProgram,
    nodes: Sequence[int],
    num_bytes: float,
    *,
    group: int,
    num_chunks: int = 1,
    add_clocks: float = 0.0,
) -> list[int]:
    """Sum of all nodes' blocks: a chain in each group of neighbours, then one over their firsts."""
    leaders = nodes[::group]
    summed = [
        chain_reduce(
            program,
            nodes[first : first + group],
            num_bytes,
            num_chunks=num_chunks,
            add_clocks=add_clocks,
        )
        for first in range(0, len(nodes), group)
    ]
    last = chain_reduce(
        program, leaders, num_bytes, num_chunks=num_chunks, add_clocks=add_clocks, after=summed
    )
    return [*summed[0], *last]


def fold(nodes: Sequence[int]) -> list[int]:
    """A line of nodes as a ring whose neighbours are at most two places apart.

    Its hops cross every link of the line once in each direction, so they share none.
    """
    return [*nodes[::2], *reversed(nodes[1::2])]


def ring_reduce_scatter(
    program: FlowProgram,
    ring: Sequence[int],
    num_bytes: float,
    *,
    add_clocks: float = 0.0,
    after: Waits | None = None,
) -> Waits:
    """Each node gets a part of the sum of all nodes' blocks, 1 / len(ring) of it.

    Gives, per node, the flows after which (and after adding) it has its part.
    """
    count = len(ring)
    ready: Waits = after or [()] * count
    delay = [add_clocks if waits else 0.0 for waits in ready]
    sent: list[list[int]] = [[] for _ in ring]
    for _ in range(count - 1):
        sent = [
            [
                program.add(
                    ring[i],
                    [ring[(i + 1) % count]],
                    num_bytes / count,
                    after=ready[i],
                    behind=sent[i],
                    delay=delay[i],
                )
            ]
            for i in range(count)
        ]
        ready = [sent[i - 1] for i in range(count)]
        delay = [add_clocks] * count
    return ready


def ring_all_gather(
    program: FlowProgram,
    ring: Sequence[int],
    num_bytes: float,
    *,
    first_delay: float = 0.0,
    after: Waits | None = None,
) -> Waits:
    """Each node gets all nodes' parts of `num_bytes` together, its own being 1 / len(ring) of it.

    A node passes on its own part `first_delay` clocks after what it waits for. Gives, per node,
    the flows after which it has all.
    """
    count = len(ring)
    ready: Waits = after or [()] * count
    delay = first_delay
    received: list[list[int]] = [[] for _ in ring]
    sent: list[int] = []
    for _ in range(count - 1):
        sent = [
            program.add(
                ring[i],
                [ring[(i + 1) % count]],
                num_bytes / count,
                after=ready[i],
                behind=sent[i : i + 1],
                delay=delay,
            )
            for i in range(count)
        ]
        ready = [[sent[i - 1]] for i in range(count)]
        for i in range(count):
            received[i].append(sent[i - 1])
        delay = 0.0
    return received


def ring_all_reduce(
    program: FlowProgram, nodes: Sequence[int], num_bytes: float, *, add_clocks: float = 0.0
) -> Waits:
    """Each node gets the sum of all nodes' blocks, over the line folded into a ring."""
    ring = fold(nodes)
    parts = ring_reduce_scatter(program, ring, num_bytes, add_clocks=add_clocks)
    return ring_all_gather(program, ring, num_bytes, first_delay=add_clocks, after=parts)


def root_all_reduce(
    program: FlowProgram,
    nodes: Sequence[int],
    num_bytes: float,
    *,
    num_chunks: int = 1,
    add_clocks: float = 0.0,
) -> list[int]:
    """Each node gets the sum: a chain to the first node, and a multicast of all from there.

    The multicast waits for the last chunk: memories that write a packet a clock could not take
    both at once any quicker.
    """
    arrived = chain_reduce(program, nodes, num_bytes, num_chunks=num_chunks, add_clocks=add_clocks)
    return [program.add(nodes[0], nodes[1:], num_bytes, after=arrived, delay=add_clocks)]


def bucket_all_reduce(
    program: FlowProgram,
    rows: Sequence[Sequence[int]],
    num_bytes: float,
    *,
    add_clocks: float = 0.0,
) -> None:
    """Each node of a rectangle gets the sum: rows scatter it, columns sum it up, rows gather it.

    `rows` are the nodes by row and column, all rows equally long and there being two at least.
    """
    rings = [fold(row) for row in rows]
    height, width = len(rings), len(rings[0])
    parts = [ring_reduce_scatter(program, ring, num_bytes, add_clocks=add_clocks) for ring in rings]
    summed: list[list[Sequence[int]]] = [[()] * width for _ in rings]
    folded = fold(range(height))
    for column in range(width):
        ring = [rings[row][column] for row in folded]
        ready = [parts[row][column] for row in folded]
        share = num_bytes / width
        scattered = ring_reduce_scatter(program, ring, share, add_clocks=add_clocks, after=ready)
        gathered = ring_all_gather(program, ring, share, first_delay=add_clocks, after=scattered)
        for place, row in enumerate(folded):
            summed[row][column] = [*scattered[place], *gathered[place]]
    for row, ring in enumerate(rings):
        ring_all_gather(program, ring, num_bytes, after=summed[row])
