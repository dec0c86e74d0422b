"""What nodes do with what they hold: a kernel over their ranges, one step of time after another.

All nodes are worked on together, each with its own pieces and with nothing else; where these came
from is `execute`'s business.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fsdtrain_dojo.lowering.kernel import Combine, Kernel
from fsdtrain_dojo.lowering.program import Step
from fsdtrain_dojo.spatial.batch import compute_nodes
from fsdtrain_dojo.spatial.boxes import (
    Ints,
    equal_rows,
    lengths,
    runs,
    spread_starts,
    touched_boxes,
    volumes,
)
from fsdtrain_dojo.spatial.buffers import Pieces, empty_pieces, put_together, whole_piece

_COMBINE: dict[Combine, Callable[[Tensor, Tensor], Tensor]] = {
    Combine.SUM: torch.add,
    Combine.MAX: torch.maximum,
    Combine.MIN: torch.minimum,
}
_MOST_ELEMENTS = 2**24  # of all local tensors that are stacked at a time


class Work(NamedTuple):
    """Ranges of every loop that nodes visit, each at one place: [work, row and column], ..."""

    places: Ints
    ranges: Ints


@dataclass(frozen=True, kw_only=True)
class NodeWork:
    """How nodes compute.

    Args:
        shapes: of all values.
        given: values that kernels cannot compute again.
    """

    shapes: Mapping[str, tuple[int, ...]]
    given: Mapping[str, Tensor]

    def run_kernel(self, step: Step, work: Work, loaded: Sequence[Pieces]) -> dict[str, Pieces]:
        """What each node makes of its ranges, one step of time after another."""
        kernel = step.kernel
        node, part, ranges = _divide_over_time(step, work.ranges)
        over_time = Work(work.places[node], ranges)
        found = {}
        made = self.run_block(kernel, over_time, loaded)
        for access, pieces in zip(kernel.writes, made, strict=True):
            sums = combine_in_order(pieces, part, kernel.combine)
            if len(sums) == len(work.ranges):
                found[access.value] = sums
                continue
            boxes = touched_boxes(access, work.ranges, self.shapes[access.value])
            whole = empty_pieces(work.places, boxes, sums.elements.dtype)
            assert sums.volumes.sum() == whole.volumes.sum(), f"{access.value}: parts overlap"
            put_together(sums, whole, node[np.unique(part, return_index=True)[1]])
            found[access.value] = whole
        return found

    def run_block(self, kernel: Kernel, work: Work, held: Sequence[Pieces]) -> list[Pieces]:
        """The kernel's results for some ranges; `held` are the boxes of its reads, first of all."""
        reads, writes = (
            [touched_boxes(access, work.ranges, self.shapes[access.value]) for access in accesses]
            for accesses in (kernel.reads, kernel.writes)
        )
        if kernel.is_random:
            return [
                self._cut_given(access.value, work.places, boxes)
                for access, boxes in zip(kernel.writes, writes, strict=True)
            ]
        local = [
            _Local(pieces, work.places, boxes) for pieces, boxes in zip(held, reads, strict=False)
        ]
        sizes = np.concatenate([lengths(each) for each in (work.ranges, *reads, *writes)], axis=1)
        made: list[tuple[Ints, list[Tensor]]] = []
        for group in equal_rows(sizes):
            for some in _chunks(group, [*reads, *writes]):
                boxes = [each[some] for each in (*reads, *writes)]
                tensors = [each.stack(some) for each in local]
                found = compute_nodes(kernel, work.ranges[some], boxes, tensors)
                made += [(some[nodes], results) for nodes, results in found]
        return [
            _gathered(kernel, number, work.places, boxes, made)
            for number, boxes in enumerate(writes)
        ]

    def _cut_given(self, name: str, places: Ints, boxes: Ints) -> Pieces:
        whole = whole_piece(self.given[name])
        found = empty_pieces(places, boxes, whole.elements.dtype)
        for group in equal_rows(lengths(boxes)):
            at = torch.from_numpy(found.positions(group, boxes[group]))
            cut = whole.stack(np.zeros_like(group), boxes[group])
            found.elements[at] = cut.reshape(at.shape)
        return found


class _Local:
    """Boxes that nodes read of what they hold; windows may lie beside the value."""

    def __init__(self, held: Pieces, places: Ints, boxes: Ints) -> None:
        self._held = held
        self._boxes = boxes
        self._pieces = held.find(places)
        is_read = volumes(boxes) > 0
        assert (self._pieces[is_read] >= 0).all(), "a node reads what was not loaded for it"
        outside = np.flatnonzero(is_read)[~held.contain(self._pieces[is_read], boxes[is_read])]
        for each in outside:
            piece = held.boxes[self._pieces[each]].tolist()
            raise AssertionError(f"{boxes[each].tolist()} is read, {piece} was loaded")

    def stack(self, some: Ints) -> Tensor:
        """The copies of some nodes, whose boxes have one shape: [node, *shape]."""
        boxes = self._boxes[some]
        if not volumes(boxes[:1]).all():
            shape = lengths(boxes[:1])[0].tolist()
            return torch.empty([len(some), *shape], dtype=self._held.elements.dtype)
        return self._held.stack(self._pieces[some], boxes)


def combine_in_order(pieces: Pieces, group: Ints, combine: Combine) -> Pieces:
    """((first + second) + third) + ... of the pieces of each group, which hold the same box.

    Args:
        pieces: in order.
        group: number of each one's group: 0, 1, ...
        combine: what stands for +.

    Returns:
        A piece a group, in memory of its first piece's node.
    """
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    firsts = order[spread_starts(counts)]
    if len(firsts) == len(pieces):
        return pieces
    total = pieces.take(firsts)
    for number in range(1, int(counts.max())):
        having = np.flatnonzero(counts > number)
        more = order[spread_starts(counts)[having] + number]
        sizes = pieces.volumes[more]
        at = torch.from_numpy(runs(total.starts[having], sizes))
        others = pieces.elements[torch.from_numpy(runs(pieces.starts[more], sizes))]
        total.elements[at] = _COMBINE[combine](total.elements[at], others)
    return total


def _gathered(
    kernel: Kernel,
    write: int,
    places: Ints,
    boxes: Ints,
    made: Sequence[tuple[Ints, list[Tensor]]],
) -> Pieces:
    """One write's results of all nodes, which were computed in groups."""
    starts = np.zeros(len(places), dtype=np.int64)
    length = 0
    parts = []
    for nodes, results in made:
        shape = lengths(boxes[nodes[:1]])[0].tolist()
        tensor = results[write]
        assert list(tensor.shape) == [len(nodes), *shape], (kernel.name, tensor.shape, shape)
        size = tensor.numel() // len(nodes)
        starts[nodes] = length + np.arange(len(nodes)) * size
        length += tensor.numel()
        parts.append(tensor.reshape(-1))
    return Pieces(places=places, boxes=boxes, starts=starts, elements=torch.cat(parts))


def _chunks(group: Ints, boxes: Sequence[Ints]) -> list[Ints]:
    """Parts of a group of nodes whose local tensors fit into memory together."""
    each = sum(int(volumes(box[group[:1]])[0]) for box in boxes)
    length = max(_MOST_ELEMENTS // max(each, 1), 1)
    return [group[first : first + length] for first in range(0, len(group), length)]


def _divide_over_time(step: Step, ranges: Ints) -> tuple[Ints, Ints, Ints]:
    """Ranges of one step of time after another, the reductions' fastest.

    Returns:
        (node, part, ranges) of every step: whose it is, and which steps make parts of the same
        sums.
    """
    reductions = step.kernel.reductions
    order = sorted(step.mapping.steps, key=lambda loop: loop in reductions)  # stable
    node = np.arange(len(ranges))
    part = node
    for loop in order:
        count = step.mapping.steps[loop]
        first, end = ranges[:, loop, :1], ranges[:, loop, 1:]
        bounds = first + np.arange(count + 1) * (end - first) // count
        at, number = np.nonzero(bounds[:, :-1] < bounds[:, 1:])
        ranges = ranges[at]
        ranges[:, loop, 0], ranges[:, loop, 1] = bounds[at, number], bounds[at, number + 1]
        node = node[at]
        part = part[at] if loop in reductions else np.arange(len(at))
    return node, part, ranges
