"""Copies of a value from memory to memory, all nodes' at once, counted.

A node takes what it needs from its own memory, and the rest from the nearest that has it. What is
decided here is where each element comes from; nothing of a value is looked at.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fsdtrain_dojo.spatial.boxes import (
    Ints,
    equal_rows,
    lengths,
    positions_in,
    spread_starts,
    volumes,
    whole_box,
)
from fsdtrain_dojo.spatial.buffers import HBM, Pieces, is_same

_MOST_PAIRS = 4_000_000  # of boxes that are held against each other at a time


def copy_pieces(source: Pieces, places: Ints, boxes: Ints) -> tuple[Pieces, int]:
    """New memories with a box for each place, and how many elements came from other places.

    Asserts that everything that is needed lies somewhere.
    """
    sizes = volumes(boxes)
    starts = spread_starts(sizes)
    where = np.full(int(sizes.sum()), -1, dtype=np.int64)
    for some in _chunks(np.flatnonzero(sizes), len(source)):
        at = _Meeting(source, places[some], boxes[some])
        at.fill_from_one(where, starts[some])
        at.fill_from_several(where, starts[some])
    for each in np.unique(np.searchsorted(starts, np.flatnonzero(where < 0), side="right") - 1):
        raise AssertionError(f"elements of {boxes[each].tolist()} are nowhere")
    moved = len(where) - _num_own(source, places, boxes)
    elements = source.elements[torch.from_numpy(where)]
    return Pieces(places=places, boxes=boxes, starts=starts, elements=elements), moved


def assemble(pieces: Pieces, shape: Sequence[int]) -> Tensor:
    """The whole value.

    Asserts that the pieces cover it and that copies of an element agree bit for bit.
    """
    found, _ = copy_pieces(pieces, np.array([HBM]), whole_box(shape))
    for group in equal_rows(lengths(pieces.boxes)):
        boxes = pieces.boxes[group]
        agrees = is_same(found.stack(np.zeros_like(group), boxes), pieces.stack(group, boxes))
        differ = group[~agrees.reshape(len(group), -1).all(dim=1).numpy()]
        assert not len(differ), f"another copy at {pieces.places[differ[0]].tolist()}"
    return found.elements.reshape(tuple(shape))


class _Meeting:
    """Boxes that are held against those that places need; pieces with one box are of one kind."""

    def __init__(self, source: Pieces, places: Ints, boxes: Ints) -> None:
        self.source = source
        self.boxes = boxes
        kinds = equal_rows(source.boxes.reshape(len(source), -1))
        self._nearest = _find_nearest(source, kinds, places)
        held = source.boxes[[kind[0] for kind in kinds]]
        self._held = held
        inside = np.ones(self._nearest.shape, dtype=bool)
        meets = inside.copy()
        for dim in range(boxes.shape[1]):
            (first, end), (begin, stop) = held[:, dim].T, boxes[:, dim, :, None].swapaxes(0, 1)
            inside &= (first <= begin) & (stop <= end)
            meets &= np.maximum(first, begin) < np.minimum(end, stop)
        self._inside = inside
        self._meets = meets & ~inside.any(axis=1, keepdims=True)

    def fill_from_one(self, where: Ints, starts: Ints) -> None:
        """Where the elements of those come from that one piece has all of."""
        able = np.flatnonzero(self._inside.any(axis=1))
        far = np.where(self._inside[able], self._nearest[able], np.iinfo(np.int64).max)
        pieces = far.min(axis=1, initial=np.iinfo(np.int64).max) % len(self.source)
        for group in equal_rows(lengths(self.boxes[able])):
            boxes = self.boxes[able[group]]
            found = self.source.positions(pieces[group], boxes)
            where[starts[able[group]][:, None] + np.arange(found.shape[1])] = found

    def fill_from_several(self, where: Ints, starts: Ints) -> None:
        """Where the elements of the others come from; of copies the nearest one is taken."""
        need, kind = np.nonzero(self._meets)
        parts = np.stack(
            [
                np.maximum(self._held[kind, :, 0], self.boxes[need, :, 0]),
                np.minimum(self._held[kind, :, 1], self.boxes[need, :, 1]),
            ],
            axis=2,
        )
        distances, pieces = np.divmod(self._nearest[need, kind], len(self.source))
        size = max(self.source.elements.numel(), 1)
        best = np.full(len(where), np.iinfo(np.int64).max)
        for group in equal_rows(lengths(parts)):
            to = positions_in(self.boxes[need[group]], starts[need[group]], parts[group])
            found = self.source.positions(pieces[group], parts[group])
            np.minimum.at(best, to, distances[group][:, None] * size + found)
        is_found = best < np.iinfo(np.int64).max
        where[is_found] = best[is_found] % size


def _find_nearest(source: Pieces, kinds: Sequence[Ints], places: Ints) -> Ints:
    """[place, kind]: distance of the nearest piece of a kind x number of pieces + its number."""
    order = np.concatenate(kinds)
    apart = np.abs(source.places[order][None] - places[:, None]).sum(axis=2)
    found: Ints = np.minimum.reduceat(
        apart * len(source) + order, spread_starts(np.array([len(kind) for kind in kinds])), axis=1
    )
    return found


def _num_own(source: Pieces, places: Ints, boxes: Ints) -> int:
    """Elements that places need and have themselves."""
    own = source.find(places)
    held, boxes = source.boxes[own], boxes
    first = np.maximum(held[:, :, 0], boxes[:, :, 0])
    end = np.minimum(held[:, :, 1], boxes[:, :, 1])
    return int((np.maximum(end - first, 0).prod(axis=1) * (own >= 0)).sum())


def _chunks(numbers: Ints, num_others: int) -> Iterator[Ints]:
    """Parts of a list, few enough to be held against each of the others."""
    length = max(_MOST_PAIRS // max(num_others, 1), 1)
    for first in range(0, len(numbers), length):
        yield numbers[first : first + length]
