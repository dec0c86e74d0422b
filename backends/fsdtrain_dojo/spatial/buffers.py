"""What nodes hold of a value: a piece each, a box of it in memory of the node's own.

The memories lie one behind the other in one tensor, so that what all nodes do is done at once; each
is only ever read at the positions of its own node. Knows no kernel; copies between nodes are
`copying`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsdtrain_dojo.lowering.mapping import Layout, Storage
from fsdtrain_dojo.spatial.boxes import (
    Ints,
    Place,
    boxes_by_place,
    equal_rows,
    lengths,
    positions_in,
    runs,
    spread_starts,
    volumes,
    whole_box,
)

HBM: Place = (-1, -1)  # the memory outside the nodes, as a place


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Pieces of one value.

    Args:
        places: who holds each: [piece, (row, column)].
        boxes: which part of the value it is: [piece, dimension, (first, end)].
        starts: where it begins in `elements`; nodes with the same result may share one.
        elements: the memories: one dimension, each piece in C order.
    """

    places: Ints
    boxes: Ints
    starts: Ints
    elements: Tensor

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def volumes(self) -> Ints:
        return volumes(self.boxes)

    @cached_property
    def _rows(self) -> dict[Place, int]:
        return {(row, column): at for at, (row, column) in enumerate(self.places.tolist())}

    def find(self, places: Ints) -> Ints:
        """Numbers of the pieces at these places; -1 where there is none."""
        if places.shape == self.places.shape and np.array_equal(places, self.places):
            return np.arange(len(places))
        found = [self._rows.get((row, column), -1) for row, column in places.tolist()]
        return np.array(found, dtype=np.int64)

    def contain(self, pieces: Ints, boxes: Ints) -> NDArray[np.bool_]:
        """Whether each box lies in its piece."""
        own = self.boxes[pieces]
        inside = (own[:, :, 0] <= boxes[:, :, 0]) & (boxes[:, :, 1] <= own[:, :, 1])
        return np.asarray(inside.all(axis=1))

    def positions(self, pieces: Ints, boxes: Ints) -> Ints:
        """Where boxes of one shape lie in `elements`, one in each of these pieces: [box, element].

        Boxes lie within their pieces.
        """
        return positions_in(self.boxes[pieces], self.starts[pieces], boxes)

    def stack(self, pieces: Ints, boxes: Ints) -> Tensor:
        """Copies of boxes of one shape, one in each of these pieces: [box, *shape]."""
        shape = lengths(boxes[:1])[0].tolist()
        at = torch.from_numpy(self.positions(pieces, boxes).reshape(-1))
        return self.elements[at].reshape(len(boxes), *shape)

    def take(self, pieces: Ints) -> "Pieces":
        """Copies of some of them."""
        sizes = self.volumes[pieces]
        at = torch.from_numpy(runs(self.starts[pieces], sizes))
        return Pieces(
            places=self.places[pieces],
            boxes=self.boxes[pieces],
            starts=spread_starts(sizes),
            elements=self.elements[at],
        )

    def shared(self, places: Ints, pieces: Ints) -> "Pieces":
        """The same memories, held by others: piece `pieces[i]` by `places[i]`."""
        return replace(self, places=places, boxes=self.boxes[pieces], starts=self.starts[pieces])

    def tensors(self) -> list[Tensor]:
        """The memory of every piece, to be changed in place."""
        sizes = lengths(self.boxes).tolist()
        ends = self.starts + self.volumes
        bounds = zip(self.starts.tolist(), ends.tolist(), strict=True)
        return [
            self.elements[first:end].view(size)
            for (first, end), size in zip(bounds, sizes, strict=True)
        ]


def whole_piece(tensor: Tensor) -> Pieces:
    """A value outside the nodes."""
    return Pieces(
        places=np.array([HBM]),
        boxes=whole_box(tensor.shape),
        starts=np.zeros(1, np.int64),
        elements=tensor.reshape(-1),
    )


def empty_pieces(places: Ints, boxes: Ints, dtype: torch.dtype) -> Pieces:
    """Memories that are yet to be filled."""
    sizes = volumes(boxes)
    elements = torch.empty(int(sizes.sum()), dtype=dtype)
    return Pieces(places=places, boxes=boxes, starts=spread_starts(sizes), elements=elements)


def layout_boxes(layout: Layout, shape: Sequence[int]) -> tuple[Ints, Ints]:
    """(places, boxes) of all that hold some of a value."""
    if layout.storage is Storage.HBM:
        return np.array([HBM]), whole_box(shape)
    assert layout.boxes is not None
    return boxes_by_place(layout.boxes)


def put_together(pieces: Pieces, into: Pieces, at: Ints) -> None:
    """Copy every piece to where it belongs in piece `at[i]` of `into`."""
    for group in equal_rows(lengths(pieces.boxes)):
        boxes = pieces.boxes[group]
        target = torch.from_numpy(into.positions(at[group], boxes))
        into.elements[target] = pieces.stack(group, boxes).reshape(target.shape)


def is_same(one: Tensor, other: Tensor) -> Tensor:
    """Where they are equal bit for bit, NaNs included; signs of zero are bits too."""
    if one.is_floating_point():
        kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        kind = kinds[one.element_size()]
        return one.contiguous().view(kind) == other.contiguous().view(kind)
    return one == other
