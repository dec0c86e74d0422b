"""What a block of a kernel asks of one node: how big its operands are, how long its units work.

A `Work` is a kernel in numbers, read once; then any block of it is arithmetic. It knows neither
where operands come from nor how many nodes there are. All figures are MODELLED.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product as combinations
from math import prod

from fsdtrain_dojo.lowering.kernel import Access, Kernel, Unit, Value
from fsdtrain_dojo.machine.node import MatrixUnit, Node
from fsdtrain_dojo.timing.node_rates import SUM_BYTES, NodeTime, Product, known, slowest
from fsdtrain_dojo.timing.node_time import matrix_time, times, together, vector_time

Sizes = Sequence[int]  # of a range of every loop
MOST_BLOCKS = 65536  # whose times are remembered, some tens of MB


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A value as a kernel reads or writes it.

    Args:
        value: name.
        element_bytes: of it.
        spans: of every dimension: terms, how many indices a single point touches less one, the
            divisor, the size.
        share: of the box that is touched (gathers).
        loops: that it runs over.
    """

    value: str
    element_bytes: int
    spans: tuple[tuple[tuple[tuple[int, int], ...], int, int, int], ...]
    share: float
    loops: frozenset[int]

    def num_bytes(self, sizes: Sizes) -> float:
        """Of the box that ranges of these sizes touch, away from borders."""
        count = 1
        for terms, extra, divide, size in self.spans:
            last = extra
            for loop, scale in terms:
                last += scale * (sizes[loop] - 1)
            count *= min(last // divide + 1, size)
        return count * self.element_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """A kernel in numbers. Two are equal if they are one.

    Args:
        unit: that does the work.
        sizes: of all loops.
        reductions: loops that no result runs over.
        batch: loops of a matrix kernel; so are `m`, `n` and `k`, see `Kernel.matrix_loops`.
        folds: of `k` those that begin the depth anew: all loops of a window but the last, whose
            elements lie one beside the other.
        density: multiply-adds for each point; below 1 where strides leave points without any.
        formats: of the operands; the slowest counts.
        macs: of all points; so are `flops` and `specials`, those of the epilogue included.
        flops: see `Kernel`.
        specials: see `Kernel`.
        reads: as `Kernel.loaded`.
        writes: as `Kernel.stored`.
        num_own: of `reads`, those of the kernel itself; the others are the epilogue's.
    """

    unit: Unit
    sizes: tuple[int, ...]
    reductions: frozenset[int]
    batch: tuple[int, ...] = ()
    m: tuple[int, ...] = ()
    n: tuple[int, ...] = ()
    k: tuple[int, ...] = ()
    folds: tuple[int, ...] = ()
    density: float = 1.0
    formats: tuple[str, ...]
    macs: int
    flops: int
    specials: int
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    num_own: int

    @cached_property
    def num_points(self) -> int:
        return max(prod(self.sizes), 1)


def describe_work(kernel: Kernel, values: Mapping[str, Value]) -> Work:
    """The numbers of a kernel; `values` by name."""
    accesses = (*kernel.reads, *kernel.writes)
    accesses += tuple(access for each in kernel.epilogue for access in (*each.reads, *each.writes))
    return _describe_work(
        kernel, tuple({each.value: values[each.value] for each in accesses}.values())
    )


@lru_cache(maxsize=4096)
def _describe_work(kernel: Kernel, touched: tuple[Value, ...]) -> Work:
    values = {each.name: each for each in touched}
    reads = tuple(_describe_operand(each, values[each.value]) for each in kernel.loaded)
    writes = tuple(_describe_operand(each, values[each.value]) for each in kernel.stored)
    own = kernel.reads[:2] if kernel.unit is Unit.MATRIX else (*kernel.reads, *kernel.writes)
    work = Work(
        unit=kernel.unit,
        sizes=tuple(loop.size for loop in kernel.loops),
        reductions=kernel.reductions,
        formats=tuple(dict.fromkeys(values[each.value].format for each in own)),
        macs=kernel.macs,
        flops=kernel.flops + sum(each.flops for each in kernel.epilogue),
        specials=kernel.specials + sum(each.specials for each in kernel.epilogue),
        reads=reads,
        writes=writes,
        num_own=len(kernel.reads),
    )
    return _add_product(work, kernel) if kernel.unit is Unit.MATRIX else work


def _describe_operand(access: Access, value: Value) -> Operand:
    spans = tuple(
        (span.terms, span.high - span.low, span.divide, size)
        for span, size in zip(access.spans, value.shape, strict=True)
    )
    return Operand(
        value=access.value,
        element_bytes=value.element_bytes,
        spans=spans,
        share=access.gathered_share,
        loops=frozenset(loop for span in access.spans for loop, _ in span.terms),
    )


def _add_product(work: Work, kernel: Kernel) -> Work:
    batch, m, n, k = (tuple(sorted(loops)) for loops in kernel.matrix_loops())
    # A window's loops may not be divided, nor may a group's channels, which come before them.
    whole = [loop for loop in k if not kernel.loops[loop].is_splittable]
    windows = whole[1:] if len(whole) == len(k) else whole
    return replace(
        work,
        batch=batch,
        m=m,
        n=n,
        k=k,
        folds=tuple(windows[:-1]),
        density=kernel.macs / work.num_points,
    )


def nodes_time(node: Node, work: Work, sizes: Sizes, steps: Mapping[int, int]) -> NodeTime:
    """How long one node works on ranges of these sizes, divided over time into `steps`.

    Args:
        node: that does it.
        work: the kernel.
        sizes: of the node's range of every loop.
        steps: loop -> into how many ranges it is divided, as equal as can be.
    """
    if not steps:
        return _block_time(node, work, sizes, 1, True)
    total = NodeTime(seconds=0.0)
    kept = keeps_sums(node, work, sizes, steps)
    deep = prod(steps.get(loop, 1) for loop in work.reductions)
    for count, block in _blocks(sizes, steps):
        each = times(_block_time(node, work, block, deep, kept), count)
        total = NodeTime(
            seconds=total.seconds + each.seconds,
            matrix_s=total.matrix_s + each.matrix_s,
            vector_s=total.vector_s + each.vector_s,
            port_s=total.port_s + each.port_s,
            sram_bytes=total.sram_bytes + each.sram_bytes,
        )
    return total


def keeps_sums(node: Node, work: Work, sizes: Sizes, steps: Mapping[int, int]) -> bool:
    """Whether the sums of a step over a divided depth stay in the accumulators of the unit."""
    matrix = node.matrix
    if work.unit is not Unit.MATRIX or matrix is None:
        return False
    return _num_sums(work, step_sizes(sizes, steps)) <= _room_for_sums(matrix)


def _num_sums(work: Work, block: Sizes) -> int:
    return prod(block[loop] for loop in (*work.batch, *work.m, *work.n))


def _room_for_sums(matrix: MatrixUnit) -> int:
    return matrix.num_units * matrix.num_accumulators * matrix.rows * matrix.columns


def step_sizes(sizes: Sizes, steps: Mapping[int, int]) -> tuple[int, ...]:
    """Of the largest step."""
    return tuple(-(-size // steps.get(loop, 1)) for loop, size in enumerate(sizes))


def _blocks(sizes: Sizes, steps: Mapping[int, int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Sizes of blocks that differ, and how many there are of each."""
    options = []
    for loop, size in enumerate(sizes):
        count = min(steps.get(loop, 1), max(size, 1))
        small, rest = divmod(size, count)
        options.append([(count - rest, small), (rest, small + 1)] if rest else [(count, small)])
    for choice in combinations(*options):
        yield prod(count for count, _ in choice), tuple(size for _, size in choice)


def _read_bytes(work: Work, operand: Operand, block: Sizes) -> float:
    """From the node's memory; of a gathered box, what this block's points pick."""
    picked = operand.share
    if picked != 1.0:
        for loop, size in enumerate(block):
            if loop not in operand.loops:
                picked *= size / work.sizes[loop]
    return operand.num_bytes(block) * picked


def _block_time(node: Node, work: Work, block: Sizes, deep: int, kept: bool) -> NodeTime:
    """Of one step; `deep`: steps over the depth, `kept`: whether the unit keeps sums meanwhile."""
    blocks, key = known(node).blocks, (work, tuple(block), deep, kept)
    if key not in blocks:
        if len(blocks) >= MOST_BLOCKS:
            blocks.clear()
        blocks[key] = _find_block_time(node, work, block, deep, kept)
    return blocks[key]


def _find_block_time(node: Node, work: Work, block: Sizes, deep: int, kept: bool) -> NodeTime:
    share = prod(block) / work.num_points
    loads = work.reads[work.num_own :] if work.unit is Unit.MATRIX else work.reads
    stores = work.writes[1:] if work.unit is Unit.MATRIX else work.writes
    vector = vector_time(
        node,
        slowest(node, work.formats),
        flops=work.flops * share,
        specials=work.specials * share,
        load_bytes=sum(_read_bytes(work, each, block) for each in loads) / deep,
        store_bytes=sum(each.num_bytes(block) for each in stores) / deep,
    )
    if work.unit is not Unit.MATRIX:
        return vector
    result_bytes = work.writes[0].element_bytes if work.writes else 0
    product = Product(
        batch=prod(block[loop] for loop in work.batch),
        m=prod(block[loop] for loop in work.m),
        n=prod(block[loop] for loop in work.n),
        k=prod(block[loop] for loop in work.k if loop not in work.folds),
        folds=prod(block[loop] for loop in work.folds) * work.density,
        result_bytes=result_bytes / deep if kept or deep == 1 else SUM_BYTES,
        sum_bytes=0 if kept or deep == 1 else SUM_BYTES,
    )
    return together(matrix_time(node, slowest(node, work.formats), product), vector)
