"""What one node does with what it holds: a kernel over its ranges, one step of time after another.

It sees its own pieces only; where they came from is `execute`'s business.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise, product

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.kernel import Combine, Kernel, Range
from fsdtrain_dojo.lowering.mapping import node_block, part_bounds
from fsdtrain_dojo.lowering.program import Step
from fsdtrain_dojo.spatial.buffers import Box, Piece, contains, volume, whole_box

Ranges = tuple[Range, ...]

_COMBINE: dict[Combine, Callable[[Tensor, Tensor], Tensor]] = {
    Combine.SUM: torch.add,
    Combine.MAX: torch.maximum,
    Combine.MIN: torch.minimum,
}


@dataclass(frozen=True, kw_only=True)
class NodeWork:
    """How a node computes.

    Args:
        shapes: of all values.
        dtypes: of the values that there are.
        given: values that kernels cannot compute again.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    given: Mapping[str, Tensor]

    def run_kernel(
        self, step: Step, ranges: Ranges, loaded: Sequence[Piece | None]
    ) -> dict[str, Piece]:
        """What one node makes of its ranges, one step of time after another."""
        kernel = step.kernel
        results = [loop for loop in step.mapping.steps if loop not in kernel.reductions]
        reductions = [loop for loop in step.mapping.steps if loop in kernel.reductions]
        found: dict[str, Piece] = {}
        for part in _divided_over_time(ranges, results, step.mapping.steps):
            sums = [
                self.run_block(kernel, each, loaded)
                for each in _divided_over_time(part, reductions, step.mapping.steps)
            ]
            for write, access in enumerate(kernel.writes):
                total = combine_in_order((each[write] for each in sums), kernel.combine)
                box = kernel.touched(access, ranges, self.shapes[access.value])
                if access.value not in found:
                    empty = torch.empty([end - first for first, end in box], dtype=total.dtype)
                    found[access.value] = Piece(box, empty)
                part_box = kernel.touched(access, part, self.shapes[access.value])
                found[access.value].cut(part_box).copy_(total)
        return found

    def run_block(
        self, kernel: Kernel, ranges: Ranges, held: Sequence[Piece | None]
    ) -> list[Tensor]:
        """The kernel's results for some ranges; `held` are the boxes of its reads, first of all."""
        block = node_block(kernel, ranges, self.shapes)
        boxes = block.boxes[len(kernel.reads) :]
        if kernel.is_random:
            wholes = [self.given[access.value] for access in kernel.writes]
            return [
                Piece(whole_box(each.shape), each).cut(box).clone()
                for each, box in zip(wholes, boxes, strict=True)
            ]
        tensors = [
            _cut(piece, box, self.dtypes[access.value])
            for piece, box, access in zip(held, block.boxes, kernel.reads, strict=False)
        ]
        made = kernel.compute(tensors, block)
        for tensor, box, access in zip(made, boxes, kernel.writes, strict=True):
            shape = [end - first for first, end in box]
            assert list(tensor.shape) == shape, (kernel.name, access.value, tensor.shape, shape)
        return made


def combine_in_order(parts: Iterable[Tensor], combine: Combine) -> Tensor:
    """((first + second) + third) + ..."""
    return reduce(_COMBINE[combine], parts)


def _cut(piece: Piece | None, box: Box, dtype: torch.dtype) -> Tensor:
    """A node's own copy of a box of what it holds; windows may lie beside the value."""
    if volume(box) == 0:
        return torch.empty([max(end - first, 0) for first, end in box], dtype=dtype)
    assert piece is not None
    assert contains(piece.box, box), f"{box} is read, {piece.box} was loaded"
    return piece.cut(box).clone()


def _divided_over_time(
    ranges: Ranges, loops: Sequence[int], steps: Mapping[int, int]
) -> Iterator[Ranges]:
    """The ranges of one step of time after another, the last of these loops fastest."""
    bounds = {}
    for loop in loops:
        first, end = ranges[loop]
        cuts = [first + int(each) for each in part_bounds(end - first, steps[loop], 1)]
        bounds[loop] = [part for part in pairwise(cuts) if part[0] < part[1]]
    for parts in product(*bounds.values()):
        chosen = dict(zip(loops, parts, strict=True))
        yield tuple(chosen.get(loop, part) for loop, part in enumerate(ranges))
