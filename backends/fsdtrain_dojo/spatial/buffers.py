"""What nodes hold of a value: pieces of it, each in the memory of one node, and copies between.

A piece is a box of the value and a tensor of that box. Nothing here reads a piece but to copy it,
and every copy between two memories is counted. Knows no kernel.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsdtrain_dojo.lowering.kernel import Range
from fsdtrain_dojo.lowering.mapping import Boxes, Layout, Storage

Place = tuple[int, int]  # row, column of a node
Box = tuple[Range, ...]

HBM: Place = (-1, -1)  # the memory outside the nodes, as a place


@dataclass(frozen=True)
class Piece:
    """A box of a value, and its elements."""

    box: Box
    tensor: Tensor

    def cut(self, box: Box) -> Tensor:
        """The part of it in `box`, which lies within its own; a view."""
        return self.tensor[_slices(box, self.box)]


Pieces = dict[Place, Piece]


def volume(box: Box) -> int:
    """Elements of a box."""
    return prod(max(end - first, 0) for first, end in box)


def whole_box(shape: Iterable[int]) -> Box:
    """The box of everything."""
    return tuple((0, size) for size in shape)


def contains(outer: Box, inner: Box) -> bool:
    """Whether all of a box lies in another."""
    return all(
        first <= begin and stop <= end
        for (first, end), (begin, stop) in zip(outer, inner, strict=True)
    )


def boxes_by_place(boxes: Boxes) -> dict[Place, Box]:
    """The box of every node that has one."""
    found = {}
    for row, column in zip(*np.nonzero(boxes.num_elements), strict=True):
        found[int(row), int(column)] = boxes.at(int(row), int(column))
    return found


def layout_boxes(layout: Layout, shape: Iterable[int]) -> dict[Place, Box]:
    """The box at every place that holds one."""
    if layout.storage is Storage.HBM:
        return {HBM: whole_box(shape)}
    assert layout.boxes is not None
    return boxes_by_place(layout.boxes)


class Holders:
    """The pieces of one value, to be copied from."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self._places = list(pieces)
        boxes = [piece.box for piece in pieces.values()]
        bounds = np.array(boxes, dtype=np.int64).reshape(len(boxes), -1, 2)
        self._first: NDArray[np.int64] = bounds[:, :, 0]
        self._end: NDArray[np.int64] = bounds[:, :, 1]

    def copy(self, box: Box, place: Place) -> tuple[Tensor, int]:
        """A new tensor of a box for one place, and how many elements came from other places.

        What lies in several memories comes from the nearest; a place's own is no traffic.
        """
        own = self.pieces.get(place)
        if own is not None and contains(own.box, box):
            return own.cut(box).clone(), 0
        found = torch.empty([end - first for first, end in box], dtype=self._dtype())
        is_missing = torch.ones_like(found, dtype=torch.bool)
        moved = 0
        for part, source in self._parts(box, place):
            where = _slices(part, box)
            if source != place:
                moved += int(is_missing[where].sum())
            is_missing[where] = False
            found[where] = self.pieces[source].cut(part)
        assert not is_missing.any(), f"{int(is_missing.sum())} elements of {box} are nowhere"
        return found, moved

    def _dtype(self) -> torch.dtype:
        return next(iter(self.pieces.values())).tensor.dtype

    def _parts(self, box: Box, place: Place) -> Iterator[tuple[Box, Place]]:
        """Parts of a box that lie at some place, each at the nearest one, nearer ones first."""
        wanted = np.array(box, dtype=np.int64).reshape(-1, 2)
        first = np.maximum(self._first, wanted[:, 0])
        end = np.minimum(self._end, wanted[:, 1])
        able = [int(each) for each in np.flatnonzero((first < end).all(axis=1))]
        nearest: dict[Box, Place] = {}
        for each in sorted(able, key=lambda each: _distance(self._places[each], place)):
            part = tuple(zip(first[each].tolist(), end[each].tolist(), strict=True))
            nearest.setdefault(part, self._places[each])
        yield from nearest.items()

    def assemble(self, shape: Iterable[int]) -> Tensor:
        """The whole value.

        Asserts that the pieces cover it and that copies of an element agree bit for bit.
        """
        found, _ = self.copy(whole_box(shape), HBM)
        for place, piece in self.pieces.items():
            assert _is_same(found[_slices(piece.box)], piece.tensor), f"another copy at {place}"
        return found


def distribute(tensor: Tensor, layout: Layout) -> Pieces:
    """Pieces of a whole tensor, as its layout says."""
    return {
        place: Piece(box, tensor[_slices(box)].clone())
        for place, box in layout_boxes(layout, tensor.shape).items()
    }


def _slices(box: Box, within: Box | None = None) -> tuple[slice, ...]:
    offsets = [first for first, _ in within] if within is not None else [0] * len(box)
    return tuple(
        slice(first - offset, end - offset)
        for (first, end), offset in zip(box, offsets, strict=True)
    )


def _distance(one: Place, other: Place) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, NaNs included; signs of zero are bits too."""
    if one.is_floating_point():
        kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        kind = kinds[one.element_size()]
        return torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))
    return torch.equal(one, other)
