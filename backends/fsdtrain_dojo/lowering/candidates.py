"""Which mappings are worth weighing for a kernel. Knows no cost but the size of the largest share.

Two kinds: those that follow a value (the kernel divides its loops as the value it reads is
divided already), and divisions of one or two loops over each axis, those with the smallest largest
share first. For a matrix product C = A B these contain the known mesh algorithms: M and N divided
over the axes keep the output in place and multicast panels of A and B along rows and columns
(SUMMA); M and K, or K and N, keep A or B in place and reduce C; K over both divides the sum only.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

from fsdtrain_dojo.lowering.kernel import Access, Kernel
from fsdtrain_dojo.lowering.mapping import Grid, Mapping, Part

# Of one axis of two, those with the smallest largest share; of an only axis, all that are of use.
MAX_AXIS_DIVISIONS = 10
MAX_ONLY_AXIS_DIVISIONS = 64
_FIRST_COUNTS = (2, 4, 8, 16, 32, 64)  # of the outer of two loops on one axis


def follow(kernel: Kernel, access: Access, division: Mapping) -> Mapping | None:
    """The kernel's loops divided as the dimensions of a value that it reads; None: they cannot.

    Args:
        kernel: whose mapping it is.
        access: of the value.
        division: of the value's dimensions over the grid.
    """
    rows = _follow_axis(kernel, access, division.rows)
    columns = _follow_axis(kernel, access, division.columns)
    if rows is None or columns is None:
        return None
    loops = [part.loop for part in (*rows, *columns)]
    return Mapping(rows=rows, columns=columns) if len(set(loops)) == len(loops) else None


def _follow_axis(kernel: Kernel, access: Access, parts: Sequence[Part]) -> tuple[Part, ...] | None:
    found = []
    for part in parts:
        terms = access.spans[part.loop].terms
        if len(terms) > 1:  # groups of channels: the first loop is the outer one
            terms = (max(terms, key=lambda term: term[1]),)
        if not terms or access.spans[part.loop].modulo is not None:
            return None
        loop = kernel.loops[terms[0][0]]
        if not loop.is_splittable:
            return None
        # A dimension that is a multiple of the loop, or a fraction of it, is divided alike.
        scale = terms[0][1]
        grain = max(part.grain * access.spans[part.loop].divide // scale, 1)
        count = min(part.count, -(-loop.size // grain))
        found.append(Part(terms[0][0], count, grain))
    return tuple(found)


def divisions(kernel: Kernel, grid: Grid, grains: Sequence[int]) -> Iterator[Mapping]:
    """Mappings of one or two loops over each axis, not in any order.

    Args:
        kernel: whose loops they divide.
        grid: rows and columns.
        grains: of every loop: what a share should be a multiple of.
    """
    most = MAX_AXIS_DIVISIONS if min(grid) > 1 else MAX_ONLY_AXIS_DIVISIONS
    rows = _axis_divisions(kernel, grid[0], grains, most)
    columns = rows if grid[0] == grid[1] else _axis_divisions(kernel, grid[1], grains, most)
    for over_rows, over_columns in product(rows, columns):
        if {part.loop for part in over_rows}.isdisjoint(part.loop for part in over_columns):
            yield Mapping(rows=over_rows, columns=over_columns)


def _axis_divisions(
    kernel: Kernel, length: int, grains: Sequence[int], most: int
) -> list[tuple[Part, ...]]:
    """Ways to divide loops over one axis: none, and the most even ones of one or two loops."""
    if length == 1:
        return [()]
    found: dict[tuple[Part, ...], float] = {}

    @cache
    def part_of(loop: int, places: int) -> Part:
        return _part(kernel, loop, places, grains)

    loops = [
        number for number, loop in enumerate(kernel.loops) if loop.is_splittable and loop.size > 1
    ]
    for first in loops:
        part = part_of(first, length)
        if part.count > 1:
            found[part,] = _share(kernel, (part,))
        for second in loops:
            if second == first or part.count < 2:
                continue
            full = length // min(kernel.loops[second].size, length)
            for count in {*_FIRST_COUNTS, full, part.count}:
                outer = part_of(first, min(count, length // 2))
                inner = part_of(second, length // max(outer.count, 1))
                if outer.count > 1 and inner.count > 1 and (outer, inner) not in found:
                    found[outer, inner] = _share(kernel, (outer, inner))
    # The most even ones, but at least one of every set of loops: who is divided decides traffic.
    ordered = sorted(found, key=lambda parts: (found[parts], len(parts)))
    best_of: dict[frozenset[int], tuple[Part, ...]] = {}
    for parts in ordered:
        best_of.setdefault(frozenset(part.loop for part in parts), parts)
    best = list(best_of.values())
    rest = [parts for parts in ordered if parts not in best]
    return [(), *(best + rest)[: max(most, len(best_of))]]


def _part(kernel: Kernel, loop: int, length: int, grains: Sequence[int]) -> Part:
    """As many parts as there are, or places for them, but none empty."""
    size, grain = kernel.loops[loop].size, grains[loop]
    if grain > 1 and size < 2 * grain * length:
        grain = 1 if size < grain * length else grain
    num_grains = -(-size // grain)
    count = max(min(num_grains, length), 1)
    # Of divisions with an equally large largest share, the one with the fewest parts.
    return Part(loop, -(-num_grains // -(-num_grains // count)), grain)


def _share(kernel: Kernel, parts: Sequence[Part]) -> float:
    """The largest share of all points, of these loops."""
    share = 1.0
    for part in parts:
        size = kernel.loops[part.loop].size
        grains = -(-size // part.grain)
        share *= min(-(-grains // part.count) * part.grain, size) / size
    return share


def largest_share(kernel: Kernel, mapping: Mapping) -> tuple[int, ...]:
    """Points of every loop at the node with the most."""
    counts = [loop.size for loop in kernel.loops]
    for part in (*mapping.rows, *mapping.columns):
        grains = -(-counts[part.loop] // part.grain)
        counts[part.loop] = min(-(-grains // part.count) * part.grain, counts[part.loop])
    return tuple(counts)
