"""Whether boxes lie within others, cover a value, or cover it without overlap.

    [0, 4) [4, 7)     cover 7 once
    [0, 5) [4, 7)     cover it, 4 twice
    [0, 3) [4, 7)     do not

Boxes are counted on the grid of their own borders, so that what it takes depends on how many there
are and not on how large they are.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.mapping import Boxes

Corners = NDArray[np.int64]  # (boxes, dimensions, 2): [first, end)


def is_within(inner: Boxes, outer: Boxes) -> bool:
    """Whether every node's box of the one lies in its box of the other; empty ones do."""
    fits = outer.busy
    bounds = zip(inner.first, inner.end, outer.first, outer.end, strict=True)
    for first, end, begin, stop in bounds:
        fits = fits & (begin <= first) & (end <= stop)
    return bool((fits | (inner.num_elements == 0)).all())


def is_same(one: Boxes, other: Boxes) -> bool:
    """Whether every node has the same box in both; empty ones are all the same."""
    return one is other or (
        one.shape == other.shape and is_within(one, other) and is_within(other, one)
    )


def corners(boxes: Boxes, chosen: NDArray[np.bool_] | None = None) -> Corners:
    """The boxes of all nodes, or of some, that are not empty."""
    present = boxes.num_elements > 0
    if chosen is not None:
        present = present & chosen
    sides = [
        np.stack(
            [
                np.broadcast_to(first, present.shape)[present],
                np.broadcast_to(end, present.shape)[present],
            ],
            axis=-1,
        )
        for first, end in zip(boxes.first, boxes.end, strict=True)
    ]
    if not sides:
        return np.zeros((int(present.sum()), 0, 2), np.int64)
    return np.stack(sides, axis=1)


def covers(found: Corners, shape: Sequence[int]) -> bool:
    """Whether every element lies in at least one of the boxes."""
    return bool((_count(found, shape) >= 1).all())


def covers_once(found: Corners, shape: Sequence[int]) -> bool:
    """Whether every element lies in exactly one of the boxes."""
    return bool((_count(found, shape) == 1).all())


def _count(found: Corners, shape: Sequence[int]) -> NDArray[np.int64]:
    """In how many boxes each cell of the grid of their borders lies."""
    if not shape or 0 in shape:
        return np.array([1 if shape else len(found)])
    places, lengths = [], []
    for dim, size in enumerate(shape):
        borders = np.unique(np.concatenate([[0, size], found[:, dim].ravel()]))
        assert borders[0] == 0, "boxes are cut to the value"
        assert borders[-1] == size, "boxes are cut to the value"
        places.append(np.searchsorted(borders, found[:, dim]))
        lengths.append(len(borders))
    # +1 at the first corner of a box, -1 past its end, ...: sums along all dimensions fill the box.
    counts = np.zeros(lengths, np.int64)
    for ends in product((0, 1), repeat=len(shape)):
        where = tuple(place[:, end] for place, end in zip(places, ends, strict=True))
        np.add.at(counts, where, (-1) ** sum(ends))
    for dim in range(len(shape)):
        counts = counts.cumsum(dim)
    inside = tuple(slice(0, length - 1) for length in lengths)
    filled: NDArray[np.int64] = np.asarray(counts[inside])
    return filled
