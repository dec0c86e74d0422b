"""Boxes taken apart into ranges along the rows and along the columns of the grid.

A dimension of a value runs along the axis that its ranges depend on. One that depends on both is
taken as the range around all columns of a row, which is never too little to be needed.
"""

from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.mapping import Axis, Boxes, count_elements

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranges:
    """One dimension of boxes: where it runs along, and its ranges, (2, L); (2, 1) along none."""

    axis: Axis | None
    ranges: Ints

    @property
    def extent(self) -> Ints:
        extent: Ints = np.maximum(self.ranges[1] - self.ranges[0], 0)
        return extent

    @cached_property
    def key(self) -> bytes:
        return self.ranges.tobytes()

    def widened(self, length: int) -> bytes:
        """As a dimension that runs along an axis of this length."""
        if self.ranges.shape[1] == length:
            return self.key
        return np.repeat(self.ranges, length // self.ranges.shape[1], axis=1).tobytes()


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitBoxes:
    """See the top of this file.

    Two are equal if all that is in them is.

    Args:
        boxes: that were taken apart.
        dims: of the value, in order.
        rows: whether any node of a row has anything, bool (R).
        columns: the same of columns.
        is_exact: whether every dimension runs along one axis at most.
    """

    boxes: Boxes
    dims: tuple[Ranges, ...]
    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]
    is_exact: bool

    @cached_property
    def key(self) -> tuple[object, ...]:
        """All that is in it."""
        boxes = self.boxes
        dims: tuple[object, ...] = tuple((each.axis, each.key) for each in self.dims)
        if not self.is_exact:
            dims += tuple(each.tobytes() for each in (*boxes.first, *boxes.end))
        return boxes.shape, boxes.grid, dims, self.rows.tobytes(), self.columns.tobytes()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, SplitBoxes) and self.key == other.key)

    @cached_property
    def largest(self) -> int:
        """Elements of the fullest node's box."""
        return int(self.boxes.num_elements.max(initial=0))

    def along(self, axis: Axis | None) -> list[Ranges]:
        return [each for each in self.dims if each.axis is axis]

    def extent(self, axis: Axis | None) -> Floats:
        """Product of what dimensions along an axis (along none) extend over, by place."""
        if axis is None:
            start = np.ones(1)
        else:
            start = (self.rows if axis is Axis.ROW else self.columns).astype(np.float64)
        return reduce(lambda product, each: product * each.extent, self.along(axis), start)

    def busy(self, axis: Axis) -> NDArray[np.bool_]:
        return self.rows if axis is Axis.ROW else self.columns

    def busy_bytes(self, axis: Axis) -> bytes:
        """`busy` as a key."""
        return self._busy_bytes[0 if axis is Axis.ROW else 1]

    @cached_property
    def _busy_bytes(self) -> tuple[bytes, bytes]:
        return self.rows.tobytes(), self.columns.tobytes()


def split_boxes(boxes: Boxes) -> SplitBoxes:
    """Boxes by axis; found once for every `Boxes`."""
    known = boxes.__dict__.get("_split")
    if known is None:
        known = _split(boxes)
        boxes.__dict__["_split"] = known  # frozen, yet a property of nothing but its contents
    found: SplitBoxes = known
    return found


def _split(boxes: Boxes) -> SplitBoxes:
    dims = []
    is_exact = True
    for first, end in zip(boxes.first, boxes.end, strict=True):
        first, end = np.broadcast_arrays(first, end) if first.shape != end.shape else (first, end)
        shape = first.shape
        if shape[0] > 1 and shape[1] > 1:
            is_exact = False
            counts = boxes.busy & (end > first)
            low = np.where(counts, first, np.iinfo(np.int64).max).min(1)
            high = np.where(counts, end, 0).max(1)
            ranges = np.stack([np.minimum(low, high), high])
            dims.append(Ranges(axis=Axis.ROW, ranges=ranges))
        else:
            axis = Axis.ROW if shape[0] > 1 else Axis.COLUMN if shape[1] > 1 else None
            ranges = np.stack([first.ravel(), end.ravel()]).astype(np.int64)
            dims.append(Ranges(axis=axis, ranges=ranges))
    rows, columns = np.asarray(boxes.busy.any(1)), np.asarray(boxes.busy.any(0))
    assert (boxes.busy == (rows[:, None] & columns)).all(), "busy nodes are rows by columns"
    return SplitBoxes(
        boxes=boxes,
        dims=tuple(dims),
        rows=rows,
        columns=columns,
        is_exact=is_exact,
    )


def has_own(kept: Boxes, needed: Boxes) -> bool:
    """Whether every node has what it needs."""
    if kept is needed:
        return True
    # Bounds hang on the row, on the column or on both; those alike are put together first.
    lacks, is_empty = {(1, 1): np.zeros((1, 1), bool)}, {(1, 1): np.zeros((1, 1), bool)}
    for have, until, want, end in zip(kept.first, kept.end, needed.first, needed.end, strict=True):
        for found, these in ((lacks, (want < have) | (end > until)), (is_empty, end <= want)):
            shape = these.shape
            found[shape] = found[shape] | these if shape in found else these
    is_needed = needed.busy
    for these in is_empty.values():
        is_needed = is_needed & ~these
    if kept.busy is not needed.busy and (is_needed & ~kept.busy).any():
        return False
    return not any(bool((is_needed & these).any()) for these in lacks.values())


def num_common(kept: Boxes, needed: Boxes) -> Ints:
    """Elements of both boxes at each node."""
    busy = needed.busy if kept.busy is needed.busy else kept.busy & needed.busy
    bounds = zip(kept.first, kept.end, needed.first, needed.end, strict=True)
    return count_elements(
        busy,
        (np.minimum(until, end) - np.maximum(have, want) for have, until, want, end in bounds),
    )
