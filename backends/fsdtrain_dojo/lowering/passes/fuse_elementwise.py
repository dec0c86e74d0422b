"""Let element-wise kernels run where their operand is made, while it is still in registers.

    before   y[n, k] += x[n, c] w[k, c]        after   y[n, k] += x[n, c] w[k, c]
             z[n, k]  = y[n, k] + b[k]                 epilogue: z[n, k] = y[n, k] + b[k]
             r[n, k]  = relu(z[n, k])                            r[n, k] = relu(z[n, k])
             o[n, m] += r[n, k] v[m, k]                hidden: y, z
                                                       o[n, m] += r[n, k] v[m, k]

A kernel joins the kernel that makes one of its operands if it reads, at every point, just what that
one has made there, and if an order remains in which everything is made before it is read. Kernels
that read each other's results so end up as one: the optimiser's update of a weight is one kernel.
What a fused kernel makes is written to memory only where somebody else reads it. Where a loop
cannot be divided (the planes that the gradient of a sampling adds to), all that is fused lies
beside its whole range: nothing joins that does not fit into a node.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fsdtrain_dojo.lowering.kernel import (
    Access,
    Block,
    Compute,
    Kernel,
    KernelGraph,
    Loop,
    Range,
    Span,
    Unit,
    along,
    whole,
)
from fsdtrain_dojo.timing.node_rates import SUM_BYTES

# For each loop of a consumer: the loop of its producer that it is, or None where the producer
# always makes all of that loop's range.
Sources = tuple[int | None, ...]


@dataclass(eq=False)
class _Group:
    """Kernels that run as one: all of them have the loops of the first.

    Args:
        place: in the program.
        kernels: the main one and its epilogue.
        is_elementwise: all of them.
    """

    place: int
    kernels: list[Kernel]
    is_elementwise: bool

    @property
    def reads(self) -> Iterator[Access]:
        return (access for kernel in self.kernels for access in kernel.reads)

    @property
    def writes(self) -> dict[str, Access]:
        return {access.value: access for kernel in self.kernels for access in kernel.writes}


@dataclass
class _Groups:
    """All groups so far, and who makes and reads which value.

    `all_readers`: by value, the names of all kernels that read it, of groups to come as well.
    """

    graph: KernelGraph
    room_bytes: float
    makers: dict[str, _Group] = field(default_factory=dict)
    readers: dict[str, set[_Group]] = field(default_factory=dict)
    renewed_by: dict[str, str] = field(default_factory=dict)
    all_readers: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kernel in self.graph.kernels:
            for each in (kernel, *kernel.epilogue):
                for access in each.reads:
                    self.all_readers.setdefault(access.value, set()).add(each.name)
        self.renewed_by = {old: new for new, old in self.graph.renews.items()}

    def add(self, group: _Group) -> None:
        for name in group.writes:
            self.makers[name] = group
        for name in {access.value for access in group.reads}:
            self.readers.setdefault(name, set()).add(group)

    def drop(self, group: _Group) -> None:
        for name in {access.value for access in group.reads}:
            self.readers[name].discard(group)

    def producers(self, group: _Group) -> list[_Group]:
        """Who makes what a group reads, latest first."""
        makers = [self.makers[each.value] for each in group.reads if each.value in self.makers]
        return sorted(set(makers) - {group}, key=lambda each: -each.place)


def fuse_elementwise(graph: KernelGraph, *, room_bytes: float = math.inf) -> KernelGraph:
    """A graph of fewer kernels that makes the same outputs, bit for bit.

    An element-wise kernel is one of the vector unit without reductions whose writes run plainly
    along all its loops. It is fused into a matrix or vector kernel of the same phase; behind a
    reduction it runs when the sum is complete. Matrix kernels keep their place; element-wise ones
    may move to that of the kernel they are fused with, before or after their own.

    Args:
        graph: as `fold_views` leaves it.
        room_bytes: a node's memory.
    """
    groups = _Groups(graph, room_bytes)
    for place, kernel in enumerate(graph.kernels):
        parts = [replace(kernel, epilogue=(), hidden=frozenset()), *kernel.epilogue]
        group: _Group | None = _Group(place, parts, all(map(_is_elementwise, parts)))
        while group is not None:
            groups.add(group)
            group = _joined(groups, group)
    found = sorted(set(groups.makers.values()), key=lambda each: each.place)
    return replace(graph, kernels=tuple(_fused(groups, group) for group in found))


def _joined(groups: _Groups, group: _Group) -> _Group | None:
    """This group and one that makes an operand of it as one group, in place of both; or None."""
    if not group.is_elementwise:
        return None
    for producer in groups.producers(group):
        main = producer.kernels[0]
        if main.unit is Unit.MOVE or main.phase is not group.kernels[0].phase:
            continue
        sources = _loop_sources(groups.graph, producer, group)
        if sources is None:
            continue
        if _may_move_up(groups, producer, group):
            place = producer.place
        elif _may_move_down(groups, producer, group):
            place = group.place
        else:
            continue
        moved = [_in_loops_of(main, kernel, sources) for kernel in group.kernels]
        joined = _Group(place, [*producer.kernels, *moved], producer.is_elementwise)
        if _least_bytes(groups, joined) > groups.room_bytes:
            continue
        groups.drop(producer)
        groups.drop(group)
        return joined
    return None


def _least_bytes(groups: _Groups, joined: _Group) -> int:
    """What a node holds at once of a group, in the smallest steps; 0 where all can be divided."""
    main = joined.kernels[0]
    if all(loop.is_splittable for loop in main.loops):
        return 0
    ranges = [(0, 1 if loop.is_splittable else loop.size) for loop in main.loops]
    values = groups.graph.values
    made = joined.writes
    hidden = {
        name
        for name in made
        if not values[name].is_output
        and name not in groups.graph.renews
        and groups.all_readers.get(name, set()) <= {kernel.name for kernel in joined.kernels}
    }
    held = {each.value: (each, values[each.value].element_bytes) for each in joined.reads}
    for name in made:
        held.pop(name, None)
    for name in made.keys() - hidden:
        # Results wait until the sum is complete.
        sums = SUM_BYTES if main.reductions else 0
        held[name] = (made[name], values[name].element_bytes + sums)
    return sum(
        _num_touched(access, ranges, values[name].shape) * num_bytes
        for name, (access, num_bytes) in held.items()
    )


def _num_touched(access: Access, ranges: Sequence[Range], shape: Sequence[int]) -> int:
    touched = (span.touched(ranges, size) for span, size in zip(access.spans, shape, strict=True))
    return math.prod(last - first for first, last in touched)


def _is_elementwise(kernel: Kernel) -> bool:
    """See `fuse_elementwise`."""
    if kernel.unit is not Unit.VECTOR or any(access.is_gathered for access in kernel.reads):
        return False
    if any(kernel.loops[loop].size > 1 for loop in kernel.reductions):
        return False
    return all(
        span.terms == () or _plain_loop(span) is not None
        for access in kernel.writes
        for span in access.spans
    )


def _plain_loop(span: Span) -> int | None:
    """The loop that a span runs along, index by index; None for other spans."""
    if len(span.terms) == 1 and span == along(span.terms[0][0]):
        return span.terms[0][0]
    return None


def _loop_sources(graph: KernelGraph, producer: _Group, consumer: _Group) -> Sources | None:
    """What the consumer's loops are to the producer; None where it needs more than is made."""
    made, made_loops = producer.writes, producer.kernels[0].loops
    loops = consumer.kernels[0].loops
    sources: dict[int, int | None] = {}
    for read in consumer.reads:
        if read.value not in made:
            continue
        shape = graph.value_shape(read.value)
        for span, written, size in zip(read.spans, made[read.value].spans, shape, strict=True):
            if size == 1:
                continue
            loop, source = _plain_loop(span), _plain_loop(written)
            if loop is None or loops[loop].size != size:
                return None
            if written != whole(size) and (source is None or made_loops[source].size != size):
                return None
            if sources.setdefault(loop, source) != source:
                return None
    found = tuple(sources.get(number) for number in range(len(loops)))
    return found if _is_one_to_one(producer.kernels[0], loops, sources, found) else None


def _is_one_to_one(
    main: Kernel, loops: Sequence[Loop], sources: Mapping[int, int | None], found: Sources
) -> bool:
    """Whether the consumer visits each of the producer's result points once."""
    used = [source for source in found if source is not None]
    results = {
        loop for loop in range(len(main.loops)) if main.loops[loop].size > 1
    } - main.reductions
    return (
        len(used) == len(set(used))
        and results <= set(used)
        and all(number in sources or loop.size == 1 for number, loop in enumerate(loops))
        and all(
            loop.is_splittable or source is None or not main.loops[source].is_splittable
            for loop, source in zip(loops, found, strict=True)
        )
    )


def _may_move_up(groups: _Groups, producer: _Group, group: _Group) -> bool:
    """Whether a group may run at its producer's place already.

    All else that it reads must be there by then, and nobody in between may still need a weight or
    state that it renews.
    """
    for access in group.reads:
        maker = groups.makers.get(access.value)
        if maker not in (None, group, producer) and maker.place > producer.place:
            return False
    renewed = (groups.graph.renews.get(name) for name in group.writes)
    return not any(
        producer.place < reader.place < group.place
        for old in renewed
        if old is not None
        for reader in groups.readers.get(old, ())
    )


def _may_move_down(groups: _Groups, producer: _Group, group: _Group) -> bool:
    """Whether a producer may wait until the place of a group that it is fused with.

    Only element-wise ones wait. Nobody in between may need what it makes, nor renew what it reads.
    """
    if not producer.is_elementwise:
        return False
    if any(
        producer.place < reader.place < group.place
        for name in producer.writes
        for reader in groups.readers.get(name, ())
    ):
        return False
    renewed = (groups.renewed_by.get(access.value) for access in producer.reads)
    return not any(
        producer.place < groups.makers[new].place < group.place
        for new in renewed
        if new in groups.makers
    )


def _in_loops_of(main: Kernel, kernel: Kernel, sources: Sources) -> Kernel:
    """A kernel re-expressed in the loops of the kernel that it is fused into."""
    if sources == tuple(range(len(main.loops))):
        return replace(kernel, loops=main.loops)

    def moved(access: Access) -> Access:
        spans = tuple(_substituted(span, kernel.loops, sources) for span in access.spans)
        return replace(access, spans=spans)

    return replace(
        kernel,
        loops=main.loops,
        reads=tuple(moved(access) for access in kernel.reads),
        writes=tuple(moved(access) for access in kernel.writes),
        compute=_translated(kernel.compute, kernel.loops, sources),
    )


def _substituted(span: Span, loops: Sequence[Loop], sources: Sources) -> Span:
    terms, high = [], span.high
    for loop, scale in span.terms:
        source = sources[loop]
        if source is None:
            high += scale * (loops[loop].size - 1)
        else:
            terms.append((source, scale))
    return replace(span, terms=tuple(terms), high=high)


def _translated(compute: Compute, loops: Sequence[Loop], sources: Sources) -> Compute:
    """The same computation, told of the ranges of another kernel's loops."""

    def translated(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        ranges = tuple(
            (0, loop.size) if source is None else block.ranges[source]
            for loop, source in zip(loops, sources, strict=True)
        )
        return compute(tensors, replace(block, ranges=ranges))

    return translated


def _fused(groups: _Groups, group: _Group) -> Kernel:
    """One kernel of a group, with what only this group needs hidden."""
    main, *epilogue = group.kernels
    hidden = frozenset(
        name
        for name in group.writes
        if epilogue
        and not groups.graph.values[name].is_output
        and name not in groups.graph.renews
        and all(reader is group for reader in groups.readers.get(name, ()))
    )
    return replace(main, epilogue=tuple(epilogue), hidden=hidden)
