"""Boxes of many nodes at once, as arrays: [node, dimension, (first, end)].

What `lowering` says of one node by ranges of Python integers is said here of all of them by one
array. Knows no tensor.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.kernel import Access, Span
from fsdtrain_dojo.lowering.mapping import Boxes

Ints = NDArray[np.int64]
Place = tuple[int, int]  # row, column of a node


def boxes_by_place(boxes: Boxes) -> tuple[Ints, Ints]:
    """(places, boxes) of the nodes that have some of a value."""
    places = np.argwhere(boxes.num_elements)
    found = np.empty((len(places), len(boxes.first), 2), dtype=np.int64)
    for dim, sides in enumerate(zip(boxes.first, boxes.end, strict=True)):
        for side, bounds in enumerate(sides):
            found[:, dim, side] = np.broadcast_to(bounds, boxes.grid)[places[:, 0], places[:, 1]]
    return places, found


def lengths(boxes: Ints) -> Ints:
    """Points along every dimension."""
    found: Ints = np.maximum(boxes[:, :, 1] - boxes[:, :, 0], 0)
    return found


def volumes(boxes: Ints) -> Ints:
    """Elements of every box."""
    found: Ints = lengths(boxes).prod(axis=1)
    return found


def touched_boxes(access: Access, ranges: Ints, shape: Sequence[int]) -> Ints:
    """`Kernel.touched` of many nodes' ranges of all loops."""
    found = np.empty((len(ranges), len(shape), 2), dtype=np.int64)
    for dim, (span, size) in enumerate(zip(access.spans, shape, strict=True)):
        found[:, dim, 0], found[:, dim, 1] = _touched(span, ranges, size)
    return found


def _touched(span: Span, ranges: Ints, size: int) -> tuple[Ints, Ints]:
    """`Span.touched`."""
    first: Ints = np.full(len(ranges), span.low)
    last: Ints = np.full(len(ranges), span.high)
    is_empty = np.zeros(len(ranges), dtype=bool)
    for loop, scale in span.terms:
        first += scale * ranges[:, loop, 0]
        last += scale * (ranges[:, loop, 1] - 1)
        is_empty |= ranges[:, loop, 0] >= ranges[:, loop, 1]
    first, last = first // span.divide, last // span.divide
    if span.modulo is not None:
        is_split = first // span.modulo != last // span.modulo
        first = np.where(is_split, 0, first % span.modulo)
        last = np.where(is_split, span.modulo - 1, last % span.modulo)
    first = np.clip(first, 0, size)
    end = np.maximum(np.minimum(last + 1, size), first)
    return np.where(is_empty, 0, first), np.where(is_empty, 0, end)


def equal_rows(keys: Ints) -> list[Ints]:
    """Numbers of the rows, those of equal ones together, in order."""
    if not len(keys) or (keys == keys[0]).all():
        return [np.arange(len(keys))] if len(keys) else []
    _, group = np.unique(keys, axis=0, return_inverse=True)
    return grouped(group.reshape(-1))


def grouped(group: Ints) -> list[Ints]:
    """Indices of equal numbers together, in order."""
    order = np.argsort(group, kind="stable")
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    return np.split(order, cuts)


def strides_of(boxes: Ints) -> Ints:
    """How far apart neighbours along each dimension are where a box lies in memory."""
    sizes = lengths(boxes)
    strides = np.ones_like(sizes)
    for dim in range(sizes.shape[1] - 2, -1, -1):
        strides[:, dim] = strides[:, dim + 1] * sizes[:, dim + 1]
    return strides


def whole_box(shape: Sequence[int]) -> Ints:
    """One box, of everything."""
    return np.array([(0, size) for size in shape], dtype=np.int64).reshape(1, len(shape), 2)


def spread_starts(sizes: Ints) -> Ints:
    """Where runs of these lengths begin when they lie one behind the other."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)[:-1]])[: len(sizes)]


def runs(starts: Ints, sizes: Ints) -> Ints:
    """All numbers of runs: start, start + 1, ... of every one, in order."""
    if not len(starts):
        return np.zeros(0, np.int64)
    return np.repeat(starts - spread_starts(sizes), sizes) + np.arange(int(sizes.sum()))


def positions_in(held: Ints, starts: Ints, boxes: Ints) -> Ints:
    """Where boxes of one shape lie in memory, each within the box that is held: [box, element].

    What is held begins at `starts` and lies in C order.
    """
    shape = lengths(boxes[:1])[0]
    strides = strides_of(held)
    shifts = ((boxes[:, :, 0] - held[:, :, 0]) * strides).sum(axis=1)
    found: Ints = (starts + shifts)[:, None]
    if ((strides == strides_of(boxes[:1])) | (shape == 1)).all():  # in one run
        steps: Ints = found + np.arange(shape.prod())
        return steps
    for dim, size in enumerate(shape.tolist()):
        steps = strides[:, dim, None] * np.arange(size)
        found = (found[:, :, None] + steps[:, None, :]).reshape(len(boxes), -1)
    return found
