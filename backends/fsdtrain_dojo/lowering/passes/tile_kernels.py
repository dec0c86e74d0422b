"""Divide a node's share of a kernel over time, so that what a step needs fits into its memory.

    conv: n 4, k 64, oh 28, ow 28, c 256   =>   oh in 4 steps, k in 2: 1.1 MB of operands
    per node: 3.9 MB of operands                become 2 buffers of 300 kB, 500 kB of results

Steps also let loads go on while the step before is computed. Of the divisions that fit, the one
with the least time is looked for by climbing: from a few plain ones, one group of loops at a time
into more or fewer steps. Knows the machine's timing, not how transfers go.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product
from math import ceil

from fsdtrain_dojo.lowering.candidates import largest_share
from fsdtrain_dojo.lowering.kernel import Kernel, Unit, Value
from fsdtrain_dojo.lowering.mapping import Mapping as NodeMapping
from fsdtrain_dojo.machine.node import MatrixUnit, Stationary
from fsdtrain_dojo.timing.cost import TransferCost
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.kernel_time import cache_bytes, is_partial
from fsdtrain_dojo.timing.kernel_work import Work, describe_work, keeps_sums, nodes_time
from fsdtrain_dojo.timing.node_rates import NodeTime
from fsdtrain_dojo.timing.overlap import overlap
from fsdtrain_dojo.timing.step_loads import DOUBLE, StepPlan, plan_steps

MAX_ROUNDS = 64  # of climbing
POOR = 1.3  # times that: another start is tried
GOOD_ENOUGH = 1.05  # times the least that any division could take: the search ends
MIN_DEPTH = 64  # of a step of a matrix product: shorter ones are mostly latency
FIRST_CHOICES = 3  # steps that each group of loops is tried with at first

Steps = dict[int, int]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """What was found: the mapping with its steps; see `Step` for the others."""

    mapping: NodeMapping
    buffers: int
    working_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Search:
    """All that stays the same while steps are looked for."""

    fabric: Fabric
    kernel: Kernel
    work: Work
    sizes: tuple[int, ...]
    free_bytes: float
    load_costs: Sequence[TransferCost]
    store_costs: Sequence[TransferCost]
    local_reads: Sequence[bool]
    local_writes: Sequence[bool]
    is_partial: bool
    buffers: int = DOUBLE

    def plan(self, steps: Steps) -> StepPlan:
        return plan_steps(
            self.work,
            self.sizes,
            steps,
            room_bytes=self.free_bytes,
            local_reads=self.local_reads,
            local_writes=self.local_writes,
            is_partial=self.is_partial,
            keeps_sums=keeps_sums(self.fabric.machine.node, self.work, self.sizes, steps),
            buffers=self.buffers,
        )

    def units(self, steps: Steps) -> NodeTime:
        return nodes_time(self.fabric.machine.node, self.work, self.sizes, steps)

    def rank(self, steps: Steps) -> tuple[float, float]:
        """Bytes that do not fit, then seconds (0 while it does not fit)."""
        plan = self.plan(steps)
        excess = max(plan.num_bytes - self.free_bytes, 0.0)
        if excess:
            return excess, 0.0
        found = overlap(
            plan,
            self.units(steps).seconds,
            self.load_costs,
            self.store_costs,
            cache_bytes(self.fabric),
        )
        return 0.0, found.seconds


def choose_steps(
    fabric: Fabric,
    kernel: Kernel,
    mapping: NodeMapping,
    values: Mapping[str, Value],
    *,
    free_bytes: float,
    load_costs: Sequence[TransferCost],
    store_costs: Sequence[TransferCost],
    local_loads: Sequence[bool],
    local_stores: Sequence[bool],
) -> Tiling | str:
    """The mapping with the steps that take the least time, or in words why not even small ones fit.

    Args:
        fabric: what it runs on.
        kernel: what is computed.
        mapping: over nodes; its steps are chosen anew.
        values: by name.
        free_bytes: of a node's memory, beside what layouts hold while the kernel runs.
        load_costs: of `kernel.loaded`, each box of a node loaded once.
        store_costs: of `kernel.stored`.
        local_loads: which operands lie at the nodes that need them, in their boxes.
        local_stores: which results stay where they are computed.
    """
    work = describe_work(kernel, values)
    search = _Search(
        fabric=fabric,
        kernel=kernel,
        work=work,
        sizes=largest_share(kernel, mapping),
        free_bytes=free_bytes,
        load_costs=load_costs,
        store_costs=store_costs,
        local_reads=local_loads,
        local_writes=local_stores,
        is_partial=is_partial(work, mapping),
    )
    (excess, _), steps = _climb(search)
    if excess:  # rather than not at all, without overlap
        search = replace(search, buffers=1)
        (excess, _), steps = _climb(search)
    plan = search.plan(steps)
    if excess:
        return (
            f"a node needs {plan.num_bytes:,} B for {kernel.name} even in {plan.num_steps} steps "
            f"and has {max(int(free_bytes), 0):,} B free: {-int(-excess // 1):,} B too few"
        )
    return Tiling(
        mapping=replace(mapping, steps=steps),
        buffers=plan.buffers if plan.num_steps > 1 else 1,
        working_bytes=plan.num_bytes,
    )


def _climb(search: _Search) -> tuple[tuple[float, float], Steps]:
    groups = _groups(search)
    counts = [_counts(search.sizes, loops, quantum) for loops, quantum in groups]
    orders = _orders(search.work, groups)
    seen: dict[tuple[int, ...], tuple[float, float]] = {}

    def steps_of(point: tuple[int, ...]) -> Steps:
        *places, order = point
        found: Steps = {}
        for group in orders[order]:
            _spread(found, search.sizes, groups[group][0], counts[group][places[group]])
        return found

    def rank(point: tuple[int, ...]) -> tuple[float, float]:
        if point not in seen:
            seen[point] = search.rank(steps_of(point))
        return seen[point]

    start = (*(0 for _ in groups), 0)
    enough = GOOD_ENOUGH * _least_seconds(search)
    best, point = rank(start), start
    if not (best[0] == 0 and best[1] <= enough):
        for other in _plain_points(counts):
            best, point = min((best, point), (rank(other), other))
    if best[0]:
        is_deep = [set(loops) <= search.work.reductions for loops, _ in groups]
        for other in _square_points(counts, is_deep):
            best, point = min((best, point), (rank(other), other))

    def climb(
        best: tuple[float, float], point: tuple[int, ...]
    ) -> tuple[tuple[float, float], tuple[int, ...]]:
        for _ in range(MAX_ROUNDS):
            if best[0] == 0 and best[1] <= enough:
                break
            reached = [
                _neighbours(point, counts, len(orders)),
                _exchanges(point, counts, by=1),  # one more and another fewer
                _exchanges(point, counts, by=2),  # the room of a fewer may take two more
            ]
            for points in reached:
                moves = [(rank(each), each) for each in points]
                if min(moves, default=(best,))[0] < best:
                    break
            else:
                break
            best, point = min(moves)
        return best, point

    best, point = climb(best, point)
    if best[0] or best[1] > POOR * enough:
        # A hill of its own: begin again with two groups in a few steps each.
        pairs = [(rank(each), each) for each in _pair_points(counts)]
        if pairs:
            best, point = min((best, point), climb(*min(pairs)))
    return best, steps_of(point)


def _least_seconds(search: _Search) -> float:
    """That no steps can go below: all resources busy without a gap."""
    plan = search.plan({})
    found = overlap(plan, 0.0, search.load_costs, search.store_costs, 0.0)
    transfers = max(found.busy_s.values(), default=0.0)
    return max(transfers, search.units({}).seconds)


def _plain_points(counts: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """One group in a few steps, the others in one."""
    for group, each in enumerate(counts):
        for place in range(1, min(FIRST_CHOICES, len(each) - 1) + 1):
            yield (*(place if other == group else 0 for other in range(len(counts))), 0)


def _square_points(
    counts: Sequence[Sequence[int]], is_deep: Sequence[bool]
) -> Iterator[tuple[int, ...]]:
    """Equally many times the smallest step along every side of the result, any steps of depth."""
    depths = [
        range(len(each)) if deep else range(1) for each, deep in zip(counts, is_deep, strict=True)
    ]
    for larger in range(max(map(len, counts), default=0)):
        sides = [max(len(each) - 1 - larger, 0) for each in counts]
        for places in product(*depths):
            yield (
                *(
                    place if deep else side
                    for place, side, deep in zip(places, sides, is_deep, strict=True)
                ),
                0,
            )


def _pair_points(counts: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Two groups in a few steps each, the others in one."""
    for first, second in combinations(range(len(counts)), 2):
        for here, there in ((1, 1), (1, 3), (3, 1), (2, 2)):
            if here < len(counts[first]) and there < len(counts[second]):
                places = {first: here, second: there}
                yield (*(places.get(group, 0) for group in range(len(counts))), 0)


def _neighbours(
    point: tuple[int, ...], counts: Sequence[Sequence[int]], num_orders: int
) -> Iterator[tuple[int, ...]]:
    *places, order = point
    for group, place in enumerate(places):
        for moved in (place - 1, place + 1):
            if 0 <= moved < len(counts[group]):
                yield (*places[:group], moved, *places[group + 1 :], order)
    for other in range(num_orders):
        if other != order:
            yield (*places, other)


def _exchanges(
    point: tuple[int, ...], counts: Sequence[Sequence[int]], *, by: int
) -> Iterator[tuple[int, ...]]:
    *places, order = point
    for more, fewer in permutations(range(len(counts)), 2):
        if places[fewer] > 0 and places[more] + by < len(counts[more]):
            moved = list(places)
            moved[more] += by
            moved[fewer] -= 1
            yield (*moved, order)


def _groups(search: _Search) -> list[tuple[tuple[int, ...], int]]:
    """Loops that are divided together, and how many of their points make the smallest step."""
    work, matrix = search.work, search.fabric.machine.node.matrix
    loops = search.kernel.loops

    def free(numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            each for each in numbers if loops[each].is_splittable and search.sizes[each] > 1
        )

    if work.unit is not Unit.MATRIX or matrix is None:
        return [((each,), 1) for each in free(range(len(loops)))]
    by_size = sorted(work.k, key=lambda each: -search.sizes[each])
    side = _least_side(matrix)
    found = [
        (free(work.batch), 1),
        (free(work.m), side),
        (free(work.n), side),
        (free(by_size), max(MIN_DEPTH, matrix.depth)),
    ]
    return [each for each in found if each[0]]


def _least_side(matrix: MatrixUnit) -> int:
    if matrix.stationary is Stationary.OUTPUT:
        return max(matrix.rows, matrix.columns)
    return max(matrix.columns, matrix.depth)


def _orders(work: Work, groups: Sequence[tuple[tuple[int, ...], int]]) -> list[tuple[int, ...]]:
    """Of the nest of groups, the outermost first; reductions innermost, so that sums stay."""
    inner = [g for g, (loops, _) in enumerate(groups) if set(loops) <= work.reductions]
    outer = [g for g in range(len(groups)) if g not in inner]
    if len(outer) < 2:
        return [(*outer, *inner)]
    return [(*outer, *inner), (*reversed(outer), *inner)]


def _counts(sizes: Sequence[int], loops: Sequence[int], quantum: int) -> list[int]:
    """Numbers of steps worth trying for a group: powers of two, and of so many smallest steps."""
    size = 1
    for loop in loops:
        size *= sizes[loop]
    found, count = {1}, 1
    while count * quantum < size:
        found |= {count, ceil(size / (count * quantum))}
        count *= 2
    return sorted(found)


def _spread(found: Steps, sizes: Sequence[int], loops: Sequence[int], count: int) -> None:
    """`count` steps over loops, as many as can be over the first of them."""
    for loop in loops:
        own = min(count, sizes[loop])
        if own > 1:
            found[loop] = own
        count = ceil(count / own)
