"""Where and when the points of a kernel are visited: over a grid of nodes, and over time.

A `Mapping` divides loops over the two axes of the grid. A node's share of each loop is a range;
what it reads and writes of a value is then a box whose every side depends on the node's row alone,
on its column alone, or (where one dimension runs over loops of both axes) on both. A `Layout` says
which box of a value each node keeps. Knows no machine: the grid is a number of rows and columns.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.kernel import Access, Block, Kernel, Range, Span, along

Grid = tuple[int, int]  # rows, columns of nodes that work together
Ints = NDArray[np.int64]


class Axis(Enum):
    """Of the grid."""

    ROW = 0  # nodes in different rows hold different parts
    COLUMN = 1


@dataclass(frozen=True)
class Part:
    """One loop divided over one axis into `count` ranges, as equal as `grain` allows.

    Args:
        loop: its number.
        count: parts; at most the loop's points.
        grain: ranges begin at multiples of it, the last one ends with the loop.
    """

    loop: int
    count: int
    grain: int = 1


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """How the points of a kernel are divided over a grid of nodes.

    Along an axis the parts are counted like digits, the last one fastest: rows=(Part(n, 4),
    Part(oh, 4)) puts part (n, oh) = (i, j) on row 4 i + j and leaves rows from 16 on idle. A loop
    is divided over one axis at most. A node on an idle row or column does nothing.

    Args:
        rows: parts over the rows of the grid.
        columns: parts over the columns of the grid.
        steps: loop -> into how many steps a node divides its own range over time, so that what a
            step needs fits into its memory; loops of one step are left out. Steps of a reduction
            add up one after another.
        is_everywhere: whether every node of the grid does all of it for itself, as with a number
            that all need (rows and columns are empty then).
    """

    rows: tuple[Part, ...] = ()
    columns: tuple[Part, ...] = ()
    steps: Dict[int, int] = field(default_factory=dict)
    is_everywhere: bool = False

    def parts(self, axis: Axis) -> tuple[Part, ...]:
        return self.rows if axis is Axis.ROW else self.columns

    def num_used(self, axis: Axis) -> int:
        """Rows or columns that work; where all of the grid does, the first one stands for it."""
        return prod(part.count for part in self.parts(axis))

    @property
    def num_steps(self) -> int:
        return prod(self.steps.values())


@lru_cache(maxsize=65536)
def part_bounds(size: int, count: int, grain: int) -> Ints:
    """Where the parts of a loop begin, and where the last one ends: count + 1 numbers.

    Parts differ by at most one grain; where there are fewer grains than parts, some are empty.
    """
    grains = -(-size // grain)
    bounds = np.minimum(np.arange(count + 1) * grains // count * grain, size)
    bounds[-1] = size
    bounds.setflags(write=False)
    return bounds


def divide_axis(sizes: Sequence[int], parts: Sequence[Part], length: int) -> dict[int, Ints]:
    """For every divided loop: [first, end) at each of the axis's `length` places, (2, length).

    Places that do nothing get the empty range (0, 0). `sizes` are those of all loops.
    """
    return dict(_divide(tuple(sizes[part.loop] for part in parts), tuple(parts), length))


@lru_cache(maxsize=4096)
def _divide(sizes: tuple[int, ...], parts: tuple[Part, ...], length: int) -> dict[int, Ints]:
    """`divide_axis`, given the sizes of the divided loops."""
    found = {}
    inner = prod(part.count for part in parts)
    places = np.arange(length)
    busy = places < inner
    for size, part in zip(sizes, parts, strict=True):
        inner //= part.count
        index = np.where(busy, places // inner % part.count, 0)
        bounds = part_bounds(size, part.count, part.grain)
        found[part.loop] = np.where(busy, np.stack([bounds[index], bounds[index + 1]]), 0)
        found[part.loop].setflags(write=False)
    return found


def axis_ranges(kernel: Kernel, mapping: Mapping, axis: Axis, length: int) -> dict[int, Ints]:
    """`divide_axis` of a kernel's loops."""
    return divide_axis([loop.size for loop in kernel.loops], mapping.parts(axis), length)


def node_ranges(kernel: Kernel, mapping: Mapping, row: int, column: int) -> tuple[Range, ...]:
    """The range of every loop that the node at this place of the grid visits; see `axis_ranges`."""
    ranges: list[Range] = [(0, loop.size) for loop in kernel.loops]
    if mapping.is_everywhere:
        return tuple(ranges)
    for axis, place in ((Axis.ROW, row), (Axis.COLUMN, column)):
        if place >= mapping.num_used(axis):
            return tuple((0, 0) for _ in kernel.loops)
        for loop, found in axis_ranges(kernel, mapping, axis, place + 1).items():
            ranges[loop] = (int(found[0, place]), int(found[1, place]))
    return tuple(ranges)


def node_block(
    kernel: Kernel, ranges: Sequence[Range], shapes: Dict[str, tuple[int, ...]]
) -> Block:
    """What `Kernel.compute` is told of these ranges; `shapes` are those of all values by name."""
    return Block(
        ranges=tuple(ranges),
        boxes=tuple(
            kernel.touched(access, ranges, shapes[access.value])
            for access in (*kernel.reads, *kernel.writes)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The box of a value at every node of a grid.

    `first[d]` and `end[d]` hold dimension d's range [first, end) at each node, in arrays that
    broadcast to (rows, columns): (rows, 1) where it depends on the row alone, (1, columns) on the
    column alone, (1, 1) where it is the same everywhere. A node has nothing where a range is empty.
    """

    shape: tuple[int, ...]
    grid: Grid
    first: tuple[Ints, ...]
    end: tuple[Ints, ...]
    busy: NDArray[np.bool_]  # (rows, columns)

    @property
    def num_elements(self) -> Ints:
        """At each node, (rows, columns)."""
        extents = (end - first for first, end in zip(self.first, self.end, strict=True))
        return count_elements(self.busy, extents)

    def at(self, row: int, column: int) -> tuple[Range, ...]:
        """The box of one node."""
        return tuple(
            (
                int(first[row % first.shape[0], column % first.shape[1]]),
                int(end[row % end.shape[0], column % end.shape[1]]),
            )
            for first, end in zip(self.first, self.end, strict=True)
        )


def count_elements(busy: NDArray[np.bool_], extents: Iterable[Ints]) -> Ints:
    """At each node, (rows, columns), from every dimension's extent in arrays as those of `Boxes`.

    What depends on the row alone, or on the column alone, is multiplied first: it is short.
    """
    products: dict[tuple[int, ...], Ints] = {}
    for extent in extents:
        found = np.maximum(extent, 0)
        known = products.get(found.shape)
        products[found.shape] = found if known is None else known * found
    count = busy.astype(np.int64)
    for product in products.values():
        count *= product
    return count


def access_boxes(
    kernel: Kernel, access: Access, mapping: Mapping, shape: tuple[int, ...], grid: Grid
) -> Boxes:
    """What every node of the grid touches of a value through this access."""
    return span_boxes([loop.size for loop in kernel.loops], access.spans, mapping, shape, grid)


def divided_boxes(shape: tuple[int, ...], division: Mapping, grid: Grid) -> Boxes:
    """Boxes of a value whose dimensions are divided over the grid, as a mapping divides loops."""
    return span_boxes(shape, [along(dim) for dim in range(len(shape))], division, shape, grid)


def span_boxes(
    sizes: Sequence[int],
    spans: Sequence[Span],
    mapping: Mapping,
    shape: tuple[int, ...],
    grid: Grid,
) -> Boxes:
    """What every node touches through these spans of loops of these sizes."""
    by_row = divide_axis(sizes, mapping.rows, grid[0])
    by_column = divide_axis(sizes, mapping.columns, grid[1])
    whole = [(0, points) for points in sizes]
    bounds = {loop: (found[0][:, None], found[1][:, None]) for loop, found in by_row.items()}
    bounds |= {loop: (found[0][None, :], found[1][None, :]) for loop, found in by_column.items()}
    first, end = [], []
    for span, size in zip(spans, shape, strict=True):
        if not any(loop in bounds for loop, _ in span.terms):
            begin_at, stop_at = span.touched(whole, size)
            first.append(np.full((1, 1), begin_at))
            end.append(np.full((1, 1), stop_at))
            continue
        low: Ints = np.full((1, 1), span.low)
        high: Ints = np.full((1, 1), span.high)
        empty = np.zeros((1, 1), bool)
        for loop, scale in span.terms:
            start, last = bounds.get(loop, whole[loop])
            low = low + scale * start
            high = high + scale * (last - 1)
            empty = empty | (start >= last)
        low, high = low // span.divide, high // span.divide
        if span.modulo is not None:
            is_split = low // span.modulo != high // span.modulo
            low = np.where(is_split, 0, low % span.modulo)
            high = np.where(is_split, span.modulo - 1, high % span.modulo)
        begin = np.clip(low, 0, size)
        stop = np.minimum(high + 1, size)
        first.append(np.where(empty, 0, begin))
        end.append(np.where(empty, 0, np.maximum(stop, begin)))
    used = (mapping.num_used(Axis.ROW), mapping.num_used(Axis.COLUMN))
    busy = _busy_nodes(grid, grid if mapping.is_everywhere else used)
    return Boxes(shape=shape, grid=grid, first=tuple(first), end=tuple(end), busy=busy)


@lru_cache(maxsize=4096)
def _busy_nodes(grid: Grid, used: Grid) -> NDArray[np.bool_]:
    """The first of the rows and of the columns: the same array each time, not to be changed."""
    rows, columns = (np.arange(length) < count for length, count in zip(grid, used, strict=True))
    busy = rows[:, None] & columns
    busy.setflags(write=False)
    return busy


class Storage(Enum):
    """Where a value is kept between kernels."""

    SRAM = "sram"  # of the nodes, each its box
    HBM = "hbm"  # outside the nodes, once


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a value is kept, and which part of it by whom.

    Args:
        storage: see `Storage`.
        boxes: of every node; boxes may overlap (copies) and together cover the value. None in HBM.
    """

    storage: Storage
    boxes: Boxes | None = None

    @property
    def peak_elements(self) -> int:
        """At the fullest node."""
        return int(self.boxes.num_elements.max()) if self.boxes is not None else 0
