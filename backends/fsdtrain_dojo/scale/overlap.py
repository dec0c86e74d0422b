"""Which part of the all-reduce of gradients hides behind the backward pass.

Gradients are summed in buckets, as they become ready; a bucket is scattered on the mesh, summed
over the network, gathered on the mesh. Mesh and network serve one bucket after another, each in
the order in which buckets come to it. While the program runs, it has its share of the mesh. The
number of buckets is the one that suits best. All MODELLED.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from fsdtrain_dojo.scale.all_reduce import AllReduce
from fsdtrain_dojo.scale.replica import Gradient

MOST_BUCKETS = 64  # beyond, latency only grows


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
        how: in words.
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
        how=costs[-1].how if costs else "nothing to sum",
    )


def _finish(
    ready: Sequence[float], costs: Sequence[AllReduce], program_end_s: float, link_share: float
) -> float:
    """When the last bucket is everywhere."""
    free = {"mesh": 0.0, "network": 0.0}
    tasks: list[tuple[float, int, int]] = []  # ready, bucket, phase
    for bucket, start in enumerate(ready):
        heappush(tasks, (start, bucket, 0))
    end = 0.0
    while tasks:
        earliest, bucket, phase = heappop(tasks)
        cost = costs[bucket]
        name = "network" if phase == 1 else "mesh"
        work = (cost.scatter_s, cost.network_s, cost.gather_s)[phase]
        start = max(earliest, free[name])
        done = start + work
        if name == "mesh" and start < program_end_s:
            done = _beside(start, work, program_end_s, link_share)
        free[name] = done
        if phase < 2:
            heappush(tasks, (done, bucket, phase + 1))
        end = max(end, done)
    return end


def _beside(start: float, work: float, program_end_s: float, link_share: float) -> float:
    """The end of work on a mesh of which a program takes its share until it ends."""
    possible = (program_end_s - start) * (1 - link_share)
    if work <= possible and link_share < 1:
        return start + work / (1 - link_share)
    return program_end_s + work - possible
