"""Place a chain of kernels: over which nodes its outer axes lie, and how large its blocks are.

    5 kernels over 16 heads, 4096 queries | 4096 keys, on 108 nodes   =>   heads over 4, queries
    over 27 nodes; at each, blocks of a head, 76 queries and 128 keys, 390 us, no transfer between

All kernels divide the axes alike, so every node finds in its own memory what the kernel before has
left there: a block of it, beside the buffers of all kernels' operands. The quickest of the
divisions and blocks that fit is taken.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod

from fsdtrain_dojo.lowering.candidates import largest_share
from fsdtrain_dojo.lowering.chain import Chain, ChainAxis, fits_all, split_count
from fsdtrain_dojo.lowering.chain_roles import find_followers, find_shared, made_inside, most_alive
from fsdtrain_dojo.lowering.kernel import Access, Kernel, Value
from fsdtrain_dojo.lowering.mapping import Boxes, Layout, Part, Storage
from fsdtrain_dojo.lowering.mapping import Mapping as NodeMapping
from fsdtrain_dojo.lowering.program import Pattern, Step, Transfer
from fsdtrain_dojo.timing.cost import TransferCost
from fsdtrain_dojo.timing.costs import NOTHING, Costs, picked_share
from fsdtrain_dojo.timing.kernel_time import cache_bytes
from fsdtrain_dojo.timing.kernel_work import Work, describe_work, keeps_sums, nodes_time, step_sizes
from fsdtrain_dojo.timing.overlap import overlap
from fsdtrain_dojo.timing.step_loads import plan_steps
from fsdtrain_dojo.timing.transfer_cost import classify

MAX_DIVISIONS = 8  # that are weighed with all blocks
LEAST_BLOCK = 32  # points along a side, unless nothing larger fits
_FIRST_COUNTS = (2, 4, 8, 16, 32, 64)  # of the outer of two axes that share rows or columns
NUM_EXPLAINED = 4

# Of each axis of the grid: (number of the chain's axis, parts, grain), as `Mapping.rows`.
Division = tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]]


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """The chain under one division, before its blocks are chosen."""

    division: Division
    mappings: tuple[NodeMapping, ...]
    load_costs: tuple[tuple[TransferCost, ...], ...]
    store_costs: tuple[tuple[TransferCost, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _Choice:
    seconds: float
    num_bytes: int
    placed: _Placed
    counts: tuple[int, ...]  # of blocks along every axis of the chain


ChainChoices = tuple[_Choice, ...]


class ChainPlacer:
    """Of one chain.

    Args:
        chain: to be placed.
        kernels: its own, in order.
        values: by name.
        costs: of the machine.
        source: where a value lies.
    """

    def __init__(
        self,
        chain: Chain,
        kernels: Sequence[Kernel],
        values: Mapping[str, Value],
        costs: Costs,
        *,
        source: Callable[[str], Layout],
    ) -> None:
        self.chain, self.kernels, self.values, self.costs = chain, kernels, values, costs
        self.source = source
        self.grid = costs.fabric.grid
        self.made = made_inside(kernels)
        self.followers = find_followers(chain, kernels)
        self.shared = find_shared(chain, kernels)
        # What lies in the node when the kernel's turn comes, by number of `Kernel.loaded`.
        self.is_inside = [
            [
                access.value in self.made or (number, index) in self.shared
                for index, access in enumerate(kernel.loaded)
            ]
            for number, kernel in enumerate(kernels)
        ]
        self.least_bytes = float("inf")
        self._works: dict[tuple[int, int], Work] = {}
        self.works = [describe_work(kernel, values) for kernel in kernels]

    def choose(self, free_bytes: float) -> ChainChoices:
        """The best divisions and blocks, best first; none, if none fits into a node's bytes."""
        found: list[_Choice] = []
        divisions = [self._placed(each) for each in self._divisions()]
        for least_side in (LEAST_BLOCK, 1):
            for placed in divisions:
                for counts in self._block_counts(placed, least_side):
                    choice = self._choice(placed, counts)
                    self.least_bytes = min(self.least_bytes, choice.num_bytes)
                    if choice.num_bytes <= free_bytes:
                        found.append(choice)
            if found:
                break
        found.sort(key=lambda each: each.seconds)
        return tuple(found[:NUM_EXPLAINED])

    @property
    def why_not(self) -> str:
        """Why nothing has been chosen."""
        return (
            f"a node needs {self.least_bytes:,} B for the kernels around {self.kernels[0].name} "
            "even in the smallest blocks"
        )

    def _divisions(self) -> Iterator[Division]:
        """Of the outer axes over the grid: the most even ones."""
        rows, columns = (list(self._axis_ways(length)) for length in self.grid)
        found = [
            (over_rows, over_columns)
            for over_rows, over_columns in product(rows, columns)
            if {each[0] for each in over_rows}.isdisjoint(each[0] for each in over_columns)
        ]
        found.sort(key=lambda each: (self._share(each), sum(map(len, each))))
        yield from found[:MAX_DIVISIONS]

    def _axis_ways(self, length: int) -> Iterator[tuple[tuple[int, int, int], ...]]:
        yield ()
        if length == 1:
            return
        axes = range(len(self.chain.outer))
        for axis in axes:
            for count, grain in self._counts_over(axis, length):
                yield ((axis, count, grain),)
                for other in axes:
                    if other == axis:
                        continue
                    firsts = {*_FIRST_COUNTS, count}
                    if length // count < 2:
                        firsts.discard(count)
                    for first in firsts:
                        if first > length // 2 or not fits_all(self._sizes(axis), first):
                            continue
                        for second, fine in self._counts_over(other, length // first):
                            yield ((axis, first, 1), (other, second, fine))

    def _counts_over(self, axis: int, length: int) -> Iterator[tuple[int, int]]:
        """Numbers of parts of an axis over so many places, with their grains."""
        sizes = self._sizes(axis)
        count = max(
            each for each in range(1, min(length, prod(sizes[0])) + 1) if fits_all(sizes, each)
        )
        if count < 2:
            return
        yield count, 1
        if all(len(each) == 1 for each in sizes) and sizes[0][0] >= LEAST_BLOCK * count:
            grains = -(-sizes[0][0] // LEAST_BLOCK)
            yield -(-grains // -(-grains // count)), LEAST_BLOCK

    def _sizes(self, axis: int) -> list[tuple[int, ...]]:
        """Of an axis's loops, by kernel."""
        return _loop_sizes(self.chain.axes[axis], [kernel.sizes for kernel in self.kernels])

    def _share(self, division: Division) -> float:
        share = 1.0
        for axis, count, grain in (*division[0], *division[1]):
            size = self.chain.outer[axis].size
            grains = -(-size // grain)
            share *= min(-(-grains // count) * grain, size) / size
        return share

    def _placed(self, division: Division) -> _Placed:
        mappings = [self._mapping(number, division) for number in range(len(self.kernels))]
        loads, stores = [], []
        for number, (kernel, mapping) in enumerate(zip(self.kernels, mappings, strict=True)):
            loads.append(
                tuple(
                    NOTHING if is_inside else self._load_cost(kernel, each, mapping)
                    for each, is_inside in zip(kernel.loaded, self.is_inside[number], strict=True)
                )
            )
            stores.append(
                tuple(
                    self.costs.store(self._store(kernel, each, mapping), self.values[each.value])
                    for each in kernel.stored
                )
            )
        return _Placed(
            division=division,
            mappings=tuple(mappings),
            load_costs=tuple(loads),
            store_costs=tuple(stores),
        )

    def _mapping(self, number: int, division: Division) -> NodeMapping:
        """Of one kernel."""
        axes = []
        for over in division:
            parts: list[Part] = []
            for axis, count, grain in over:
                loops = self.chain.outer[axis].loops[number]
                counts = split_count(self._sizes(axis)[number], count)
                assert counts is not None
                parts += [
                    Part(loop, own, grain) for loop, own in zip(loops, counts, strict=True)
                    if own > 1
                ]  # fmt: skip
            axes.append(tuple(parts))
        return NodeMapping(rows=axes[0], columns=axes[1])

    def _boxes(self, kernel: Kernel, access: Access, mapping: NodeMapping) -> Boxes:
        return self.costs.boxes(kernel, access, mapping, self.values[access.value])

    def _load_cost(self, kernel: Kernel, access: Access, mapping: NodeMapping) -> TransferCost:
        boxes = self._boxes(kernel, access, mapping)
        share = picked_share(kernel, access, mapping)
        return self.costs.load(self.source(access.value), boxes, self.values[access.value], share)

    def _store(self, kernel: Kernel, access: Access, mapping: NodeMapping) -> Transfer:
        boxes = self._boxes(kernel, access, mapping)
        if self.costs.fabric.keeps_values or access.value in self.chain.passed:
            pattern, target = Pattern.LOCAL, Layout(storage=Storage.SRAM, boxes=boxes)
        else:
            pattern, target = Pattern.HBM_STORE, Layout(storage=Storage.HBM)
        return Transfer(value=access.value, pattern=pattern, boxes=boxes, target=target)

    def _block_counts(self, placed: _Placed, least_side: int) -> Iterator[tuple[int, ...]]:
        """Numbers of blocks along every axis that are worth trying."""
        shares = [largest_share(*each) for each in zip(self.kernels, placed.mappings, strict=True)]
        options = []
        for axis in self.chain.axes:
            sizes = _loop_sizes(axis, shares)
            own = prod(sizes[0])
            if axis is self.chain.outer[0] and len(self.chain.outer) > 1:
                counts = {1, own}  # of a batch: one by one, or all at once
            else:
                counts = {ceil(own / block) for block in _block_sides(own, least_side)}
            options.append(sorted(each for each in counts if fits_all(sizes, each)))
        return product(*options)

    def _choice(self, placed: _Placed, counts: tuple[int, ...]) -> _Choice:
        """Time and bytes of a node with blocks of this size."""
        fabric = self.costs.fabric
        seconds, num_bytes = self.costs.machine.op_start_s, 0.0
        blocks: dict[str, float] = {}
        for number, (kernel, mapping) in enumerate(zip(self.kernels, placed.mappings, strict=True)):
            steps = self._steps_of(number, placed, counts)
            work = self._work(number, counts)
            sizes = largest_share(kernel, mapping)
            plan = plan_steps(
                work,
                sizes,
                steps,
                room_bytes=0,
                local_reads=self.is_inside[number],
                local_writes=[each.value in self.chain.passed for each in work.writes],
                is_partial=False,
                keeps_sums=keeps_sums(fabric.machine.node, work, sizes, steps),
            )
            units = nodes_time(fabric.machine.node, work, sizes, steps)
            found = overlap(
                plan,
                units.seconds,
                placed.load_costs[number],
                placed.store_costs[number],
                cache_bytes(fabric),
            )
            seconds += found.seconds
            num_bytes += plan.num_bytes
            block = step_sizes(sizes, steps)
            for each in work.writes:
                if each.value in self.chain.passed:
                    blocks[each.value] = each.num_bytes(block)
                elif fabric.keeps_values:  # it is there from the first block on
                    num_bytes += each.num_bytes(sizes)
        num_bytes += most_alive(self.chain, self.kernels, blocks)
        return _Choice(
            seconds=seconds, num_bytes=-int(-num_bytes // 1), placed=placed, counts=counts
        )

    def _steps_of(self, number: int, placed: _Placed, counts: tuple[int, ...]) -> dict[int, int]:
        """Steps of one kernel over time, from the outermost axis to the innermost."""
        share = largest_share(self.kernels[number], placed.mappings[number])
        found: dict[int, int] = {}
        for axis, count in zip(self.chain.axes, counts, strict=True):
            loops = axis.loops[number]
            split = split_count([share[loop] for loop in loops], count)
            assert split is not None
            found |= {loop: own for loop, own in zip(loops, split, strict=True) if own > 1}
        return found

    def _work(self, number: int, counts: tuple[int, ...]) -> Work:
        flops = self._rescaling_flops(number, counts)
        key = (number, flops)
        if key not in self._works:  # whose times are remembered one by one
            work = self.works[number]
            self._works[key] = replace(work, flops=work.flops + flops) if flops else work
        return self._works[key]

    def _rescaling_flops(self, number: int, counts: tuple[int, ...]) -> int:
        """To put a sum right for every block but the first."""
        if number not in self.followers:
            return 0
        elements = sum(self.values[each.value].num_elements for each in self.kernels[number].writes)
        return elements * (counts[-1] - 1)

    def steps(self, choices: ChainChoices) -> tuple[Step, ...]:
        """The steps of the first of these choices, for this chain or one that is equal."""
        best = choices[0]
        why = tuple(self._words(each) for each in choices)
        working_bytes = best.num_bytes
        found: list[Step] = []
        for number, kernel in enumerate(self.kernels):
            mapping = best.placed.mappings[number]
            stores = tuple(self._store(kernel, each, mapping) for each in kernel.stored)
            if self.costs.fabric.keeps_values:  # from here on, `sram_bytes` has these elsewhere
                working_bytes -= sum(
                    int(each.boxes.num_elements.max()) * self.values[each.value].element_bytes
                    for each in stores
                    if each.value not in self.chain.passed
                )
            flops = kernel.flops + self._rescaling_flops(number, best.counts)
            steps = self._steps_of(number, best.placed, best.counts)
            found.append(
                Step(
                    kernel=replace(kernel, flops=flops),
                    mapping=replace(mapping, steps=steps),
                    loads=tuple(
                        self._load(kernel, each, mapping, is_inside)
                        for each, is_inside in zip(
                            kernel.loaded, self.is_inside[number], strict=True
                        )
                    ),
                    stores=stores,
                    working_bytes=working_bytes,
                    buffers=2,
                    is_continued=number > 0,
                    is_chained=True,
                    inside=frozenset(
                        index for index, is_so in enumerate(self.is_inside[number]) if is_so
                    ),
                    why=why,
                )
            )
        return tuple(found)

    def _load(
        self, kernel: Kernel, access: Access, mapping: NodeMapping, is_inside: bool
    ) -> Transfer:
        boxes = self._boxes(kernel, access, mapping)
        source = Layout(storage=Storage.SRAM, boxes=boxes)
        if not is_inside:
            source = self.source(access.value)
        return Transfer(
            value=access.value, pattern=classify(source, boxes), boxes=boxes, source=source
        )

    def _words(self, choice: _Choice) -> str:
        def over(parts: Sequence[tuple[int, int, int]]) -> str:
            return " x ".join(f"{self._name(axis)}/{count}" for axis, count, _ in parts) or "-"

        rows, columns = choice.placed.division
        blocks = ", ".join(
            f"{self._name(axis)} in {count}" for axis, count in enumerate(choice.counts)
        )
        return (
            f"{1e6 * choice.seconds:.2f} us with {len(self.kernels) - 1} others in turn: rows "
            f"{over(rows)}, columns {over(columns)}, blocks: {blocks}"
        )

    def _name(self, axis: int) -> str:
        loops = self.chain.axes[axis].loops[0]
        return "*".join(self.kernels[0].loops[loop].name for loop in loops)


def _loop_sizes(axis: ChainAxis, sizes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Of the loops that make up an axis, by kernel, out of the sizes of all loops."""
    return [
        tuple(own[loop] for loop in loops) for loops, own in zip(axis.loops, sizes, strict=True)
    ]


def _block_sides(size: int, least: int) -> Iterator[int]:
    """Points along the side of a block: all, and powers of two below."""
    yield size
    side = least
    while side < size:
        yield side
        side *= 2
