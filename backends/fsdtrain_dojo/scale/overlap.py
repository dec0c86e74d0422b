"""Which part of the all-reduce of gradients hides behind the backward pass.

Gradients are summed in buckets, as they become ready; a bucket is scattered on the mesh, summed
over the network, gathered on the mesh. Mesh and network serve one bucket after another. While the
program runs, it has its share of the mesh. The number of buckets is the one that suits best. All
MODELLED.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fsdtrain_dojo.scale.all_reduce import AllReduce
from fsdtrain_dojo.scale.replica import Gradient

MOST_BUCKETS = 32  # beyond, latency only grows


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The all-reduce beside the program.

    Args:
        num_buckets: of gradients.
        end_s: when all sums are everywhere, from the start of the step.
        exposed_s: by how much that is later than the program could go on.
        alone_s: what it takes with all gradients there and nothing else on the mesh.
        mesh_s: for how long the mesh works for it.
        network_s: for how long the network does.
        memory_s: for how long the memory outside does.
        joules: of it.
        how: the longest bucket is summed, in words.
    """

    num_buckets: int
    end_s: float
    exposed_s: float
    alone_s: float
    mesh_s: float
    network_s: float
    memory_s: float
    joules: float
    how: str

    @property
    def hidden_share(self) -> float:
        """Of the time that it takes alone."""
        return max(0.0, 1 - self.exposed_s / self.alone_s) if self.alone_s else 1.0


def overlap(
    gradients: Sequence[Gradient],
    needed_s: float,
    link_share: float,
    all_reduce: Callable[[float], AllReduce],
) -> Overlap:
    """The all-reduce of these gradients beside a program, in the best number of buckets.

    Args:
        gradients: with the times at which they are ready.
        needed_s: when the program has nothing else to do but to wait for them.
        link_share: of the mesh, that the program takes until then.
        all_reduce: of so many bytes by itself.
    """
    counts, count = [], 1
    while count <= min(MOST_BUCKETS, max(1, len(gradients))):
        counts.append(count)
        count *= 2
    return min(
        (_run(bucketise(gradients, each), needed_s, link_share, all_reduce) for each in counts),
        key=lambda each: (each.end_s, each.num_buckets),
    )


def bucketise(gradients: Sequence[Gradient], count: int) -> list[Gradient]:
    """At most `count` buckets of about equal size, each ready with its last gradient."""
    total = sum(each.num_bytes for each in gradients)
    buckets: list[Gradient] = []
    held, done = 0.0, 0.0
    in_order = sorted(gradients, key=lambda each: each.ready_s)
    for number, each in enumerate(in_order, start=1):
        held += each.num_bytes
        is_full = done + held >= total * (len(buckets) + 1) / count
        if is_full or number == len(in_order):
            buckets.append(Gradient(num_bytes=held, ready_s=each.ready_s))
            done, held = done + held, 0.0
    return [each for each in buckets if each.num_bytes > 0]


def _run(
    buckets: Sequence[Gradient],
    needed_s: float,
    link_share: float,
    all_reduce: Callable[[float], AllReduce],
) -> Overlap:
    costs = [all_reduce(each.num_bytes) for each in buckets]
    ready = [each.ready_s for each in buckets]
    end = _finish(ready, costs, needed_s, link_share)
    memory_s = sum(each.memory_s for each in costs)
    end = max(end, min(ready, default=0.0) + memory_s, needed_s)
    alone = max(_finish([0.0] * len(costs), costs, 0.0, 0.0), memory_s)
    return Overlap(
        num_buckets=len(buckets),
        end_s=end,
        exposed_s=end - needed_s,
        alone_s=alone,
        mesh_s=sum(each.mesh_s for each in costs),
        network_s=sum(each.network_s for each in costs),
        memory_s=memory_s,
        joules=sum(each.joules for each in costs),
        how=max(costs, key=lambda each: each.seconds).how if costs else "nothing to sum",
    )


def _finish(
    ready: Sequence[float], costs: Sequence[AllReduce], program_end_s: float, link_share: float
) -> float:
    """When the last bucket is everywhere, by the best of several orders that are fixed.

    In an order that depends on who comes first, a slower network could make for an earlier end.
    """
    lags, lag = [max(1, len(ready))], 1
    while lag < len(ready):
        lags.append(lag)
        lag *= 2
    return min(_finish_in_order(each, ready, costs, program_end_s, link_share) for each in lags)


def _finish_in_order(
    lag: int,
    ready: Sequence[float],
    costs: Sequence[AllReduce],
    program_end_s: float,
    link_share: float,
) -> float:
    """The mesh scatters `lag` buckets, then gathers one and scatters one by turns."""
    mesh_free = network_free = 0.0
    summed: list[float] = []  # when the network has a bucket's sums
    for turn in range(len(ready) + lag):
        if turn >= lag:
            gathered = costs[turn - lag].gather_s
            start = max(mesh_free, summed[turn - lag])
            mesh_free = _beside(start, gathered, program_end_s, link_share)
        if turn < len(ready):
            start = max(mesh_free, ready[turn])
            mesh_free = _beside(start, costs[turn].scatter_s, program_end_s, link_share)
            network_free = max(network_free, mesh_free) + costs[turn].network_s
            summed.append(network_free)
    return mesh_free


def _beside(start: float, work: float, program_end_s: float, link_share: float) -> float:
    """The end of work on a mesh of which a program takes its share until it ends."""
    possible = max(0.0, program_end_s - start) * (1 - link_share)
    if work <= possible and link_share < 1:
        return start + work / (1 - link_share)
    return max(start, program_end_s) + work - possible
