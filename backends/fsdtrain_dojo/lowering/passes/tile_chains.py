"""Let kernels around large products take turns over blocks, and compute blocks again for gradients.

    s = q k;  top, total, p = softmax(s);  y = p v   |   dv = p' dy;  dp = dy v';  ds = dsoftmax(dp)
    =>  [s, top, total, p, y]   |   [s, p, dp, sums of dp p], [s, p, dp, ds, dq], [.. dk, dv]

A chain ends with results that lack one and the same axis of the blocks, and has all that these are
made of. What several chains need, p in the backward pass above all, each computes for itself: so
nothing of a block's size is kept. Where the row sums of a softmax are not complete yet, those who
can rescale (`Kernel.rescale`) go on with what there is; others follow in a chain of their own.
"""

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fsdtrain_dojo.lowering.chain import Chain, ChainAxis
from fsdtrain_dojo.lowering.chain_space import Space
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Combine,
    Kernel,
    KernelGraph,
    Phase,
    Unit,
    Value,
)
from fsdtrain_dojo.lowering.shorten_sums import shorten_sums


def tile_chains(graph: KernelGraph, spaces: Sequence[Space]) -> KernelGraph:
    """The graph with the members of these spaces in chains; itself, where none can be ordered."""
    for space in spaces:
        graph = _with_chains(graph, space)
    return graph


def _with_chains(graph: KernelGraph, space: Space) -> KernelGraph:
    original = graph
    graph, space = shorten_sums(graph, space)
    parts = _Splitting(graph, space).parts()
    members = {name for part in parts for name in part.originals}
    left = [each for each in graph.kernels if each.name not in space.loops]
    values = dict(graph.values) | {each.name: each for part in parts for each in part.values}
    kernels = _in_order(graph, [*([each] for each in left), *(part.kernels for part in parts)])
    if kernels is None or not all(set(part.results) <= members for part in parts):
        return original
    made = {access.value for each in kernels for access in _all_writes(each)}
    gone = {access.value for name in space.loops for access in _all_writes(_named(graph, name))}
    values = {name: each for name, each in values.items() if name in made or name not in gone}
    chains = [_make_chain(part, space, kernels) for part in parts]
    return replace(graph, values=values, kernels=kernels, chains=(*graph.chains, *chains))


def _named(graph: KernelGraph, name: str) -> Kernel:
    return next(each for each in graph.kernels if each.name == name)


def _all_writes(kernel: Kernel) -> Iterator[Access]:
    for each in (kernel, *kernel.epilogue):
        yield from each.writes


@dataclass(kw_only=True)
class _Part:
    """A chain to be: its results' kernels, then all of its kernels and the values that are new.

    `names` are those of the members that its kernels are, or compute again.
    """

    phase: Phase
    axis: int
    results: list[str]
    names: tuple[str, ...] = ()
    originals: tuple[str, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    values: tuple[Value, ...] = ()


class _Splitting:
    """Of a space into chains."""

    def __init__(self, graph: KernelGraph, space: Space) -> None:
        self.graph, self.space = graph, space
        self.members = {each.name: each for each in graph.kernels if each.name in space.loops}
        self.makers = {
            access.value: each for each in self.members.values() for access in each.stored
        }
        self.used: set[str] = set()

    def parts(self) -> list[_Part]:
        """All chains, in an order in which they can run if there is one."""
        levels: dict[str, int] = {}
        found: dict[tuple[Phase, int, int], _Part] = {}
        for name in self.members:
            if name not in self.space.lacking:
                continue
            kernel, axis = self.members[name], self.space.lacking[name]
            level = 0
            for other, follows in self._statistics(kernel):
                if other.phase is kernel.phase and self.space.lacking[other.name] == axis:
                    level = max(level, levels[other.name] + (not follows))
            levels[name] = level
            key = (kernel.phase, axis, level)
            part = found.setdefault(key, _Part(phase=kernel.phase, axis=axis, results=[]))
            part.results.append(name)
        for part in found.values():
            self._fill(part)
        return list(found.values())

    def _slice(self, kernel: Kernel) -> dict[str, Kernel]:
        """Who makes the blocks that a kernel is made of, itself included."""
        found = {kernel.name: kernel}
        for access in kernel.loaded:
            if access.value in self.space.blocks:
                maker = self.makers[access.value]
                if maker.name not in found:
                    found |= self._slice(maker)
        return found

    def _statistics(self, result: Kernel) -> Iterator[tuple[Kernel, bool]]:
        """Who makes the sums that a result is made with, and whether it can follow these."""
        for kernel in self._slice(result).values():
            for number, access in enumerate(kernel.loaded):
                maker = self.makers.get(access.value)
                if maker is not None and access.value not in self.space.blocks:
                    yield maker, _can_follow(kernel, number, result)

    def _fill(self, part: _Part) -> None:
        """Find the kernels of a chain, as they are or, where others have them, once more."""
        needed: set[str] = set()
        for name in part.results:
            needed |= self._slice(self.members[name]).keys()
        part.names = tuple(name for name in self.members if name in needed)
        again = [
            name
            for name in part.names
            if name in self.used or self.members[name].phase is not part.phase
        ]
        part.originals = tuple(name for name in part.names if name not in again)
        self.used |= set(part.originals)
        copies: dict[str, str] = {}
        for name in again:
            for access in _all_writes(self.members[name]):
                copies[access.value] = _new_name(access.value, part, self.graph)
        part.values = tuple(
            replace(self.graph.values[old], name=new) for old, new in copies.items()
        )
        part.kernels = tuple(
            self._member(name, part, copies, is_copy=name in again) for name in part.names
        )

    def _member(
        self, name: str, part: _Part, copies: Mapping[str, str], *, is_copy: bool
    ) -> Kernel:
        kernel = _renamed(self.members[name], copies)
        if is_copy:
            kernel = replace(
                kernel,
                name=_new_name(name, part, self.graph),
                phase=part.phase,
                counted_flops=0,
                epilogue=tuple(
                    replace(each, name=_new_name(each.name, part, self.graph), phase=part.phase,
                            counted_flops=0)
                    for each in kernel.epilogue
                ),
            )  # fmt: skip
        calls = [self.members[each].call for each in part.names if each != name]
        if kernel.repeated_specials and kernel.call in calls:
            specials = kernel.specials - kernel.repeated_specials
            kernel = replace(kernel, specials=specials, repeated_specials=0)
        return kernel


def _can_follow(kernel: Kernel, number: int, result: Kernel) -> bool:
    """Whether a kernel may read a sum in the making, and the result be put right for it later."""
    if kernel.rescale is None or number not in kernel.rescale.reads or kernel.epilogue:
        return False
    if kernel is result:
        return kernel.combine is Combine.SUM
    mine = {access.value for access in kernel.writes}
    reads = [access for access in result.reads if access.value in mine]
    is_linear = result.unit is Unit.MATRIX and len(reads) == 1
    return is_linear and mine.isdisjoint(
        access.value for each in result.epilogue for access in each.reads
    )


def _new_name(name: str, part: _Part, graph: KernelGraph) -> str:
    return f"{name}.for.{part.results[0]}"


def _renamed(kernel: Kernel, names: Mapping[str, str]) -> Kernel:
    """The kernel with other values in the places of those that have new names."""

    def renamed(each: Access) -> Access:
        return replace(each, value=names.get(each.value, each.value))

    return replace(
        kernel,
        reads=tuple(map(renamed, kernel.reads)),
        writes=tuple(map(renamed, kernel.writes)),
        epilogue=tuple(_renamed(each, names) for each in kernel.epilogue),
        hidden=frozenset(names.get(each, each) for each in kernel.hidden),
    )


def _make_chain(part: _Part, space: Space, kernels: Collection[Kernel]) -> Chain:
    axes = [
        ChainAxis(size, tuple(space.loops[name][axis] for name in part.names))
        for axis, size in enumerate(space.sizes)
    ]
    names = {each.name for each in part.kernels}
    made = {access.value for each in part.kernels for access in each.stored}
    outside = {access.value for each in kernels if each.name not in names for access in each.loaded}
    return Chain(
        kernels=tuple(each.name for each in part.kernels),
        outer=tuple(each for axis, each in enumerate(axes) if axis != part.axis),
        inner=axes[part.axis],
        passed=frozenset(made - outside),
    )


def _in_order(graph: KernelGraph, units: Sequence[Sequence[Kernel]]) -> tuple[Kernel, ...] | None:
    """Units one after another so that all is made before it is read; None: there is no such order.

    As near to the order that was as can be: a unit has the place of its first result.
    """
    place = {kernel.name: number for number, kernel in enumerate(graph.kernels)}
    makers = {
        access.value: number
        for number, unit in enumerate(units)
        for kernel in unit
        for access in _all_writes(kernel)
    }
    renewed_by = {old: new for new, old in graph.renews.items()}
    before: list[set[int]] = [set() for _ in units]
    for number, unit in enumerate(units):
        for kernel in unit:
            for access in kernel.loaded:
                before[number] |= {makers[access.value]} if access.value in makers else set()
                new = renewed_by.get(access.value)
                if new in makers:
                    before[makers[new]].add(number)
    after: list[list[int]] = [[] for _ in units]
    lacks = []
    for number, others in enumerate(before):
        others.discard(number)
        lacks.append(len(others))
        for other in others:
            after[other].append(number)
    rank = [min(place.get(each.name, len(place)) for each in unit[-1:]) for unit in units]
    ready = [(rank[number], number) for number, count in enumerate(lacks) if not count]
    heapq.heapify(ready)
    found: list[Kernel] = []
    while ready:
        _, number = heapq.heappop(ready)
        found += units[number]
        for other in after[number]:
            lacks[other] -= 1
            if not lacks[other]:
                heapq.heappush(ready, (rank[other], other))
    return tuple(found) if len(found) == sum(map(len, units)) else None
