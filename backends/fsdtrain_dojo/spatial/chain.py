"""What one node does with a chain: all kernels over one block, then over the next.

    for a block of queries, for a block of keys:  scores, maximum, sum, weights, result

A block of what the chain passes on is all that there is of it. Sums over the inner axis add up from
block to block; those that were made with sums in the making are rescaled first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from fsdtrain_dojo.lowering.chain import Chain
from fsdtrain_dojo.lowering.chain_roles import find_followers, find_shared, is_sum
from fsdtrain_dojo.lowering.kernel import Access, Combine, Kernel, Range
from fsdtrain_dojo.lowering.mapping import node_block, part_bounds
from fsdtrain_dojo.lowering.program import Step
from fsdtrain_dojo.spatial.boxes import Place, spread_starts, volumes
from fsdtrain_dojo.spatial.buffers import Pieces

Ranges = tuple[Range, ...]
_COMBINE: dict[Combine, Callable[[Tensor, Tensor], Tensor]] = {
    Combine.SUM: torch.add,
    Combine.MAX: torch.maximum,
    Combine.MIN: torch.minimum,
}


@dataclass(frozen=True)
class Piece:
    """A box of a value in the memory of one node, and its elements."""

    box: Ranges
    tensor: Tensor

    def cut(self, box: Ranges) -> Tensor:
        """The part of it in `box`, which lies within its own; a view."""
        assert all(
            first <= begin and stop <= end
            for (first, end), (begin, stop) in zip(self.box, box, strict=True)
        ), f"{box} is read, {self.box} is there"
        inside = zip(self.box, box, strict=True)
        return self.tensor[tuple(slice(begin - first, stop - first)
                                 for (first, _), (begin, stop) in inside)]  # fmt: skip


def split_pieces(pieces: Pieces) -> dict[Place, Piece]:
    """Those of all nodes, each by itself."""
    boxes = [tuple((first, end) for first, end in box) for box in pieces.boxes.tolist()]
    return {
        (row, column): Piece(box, tensor)
        for (row, column), box, tensor in zip(
            pieces.places.tolist(), boxes, pieces.tensors(), strict=True
        )
    }


def join_pieces(pieces: Mapping[Place, Piece]) -> Pieces:
    """Those of all nodes together; the reverse of `split_pieces`."""
    boxes = np.array([each.box for each in pieces.values()], np.int64)
    boxes = boxes.reshape(len(pieces), -1, 2)
    return Pieces(
        places=np.array(list(pieces)),
        boxes=boxes,
        starts=spread_starts(volumes(boxes)),
        elements=torch.cat([each.tensor.reshape(-1) for each in pieces.values()]),
    )


@dataclass(kw_only=True)
class ChainWork:
    """A chain at one node.

    Args:
        chain: see `lowering.chain`.
        steps: of its kernels.
        shapes: of all values.
        rounding: value -> what rounds a piece of it in place, when it is complete.
        ranges: of every kernel at this node.
        loaded: by kernel, for each of `Kernel.loaded`: what the node has of it.
    """

    chain: Chain
    steps: Sequence[Step]
    shapes: Mapping[str, tuple[int, ...]]
    rounding: Mapping[str, Callable[[Tensor], object]]
    ranges: Sequence[Ranges]
    loaded: Sequence[Sequence[Piece | None]]
    made: dict[str, Piece] = field(default_factory=dict)
    before: dict[str, Piece] = field(default_factory=dict)  # sums, without the last block
    factors: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kernels = [step.kernel for step in self.steps]
        self.shared = find_shared(self.chain, self.kernels)
        self.followers = find_followers(self.chain, self.kernels)
        self.followed = {maker for makers in self.followers.values() for maker in makers}

    def run(self) -> dict[str, Piece]:
        """All blocks; what the node has of everything that is not passed on."""
        for block, is_first in self._blocks():
            for number in range(len(self.kernels)):
                self._run_kernel(number, block[number], is_first)
        for number, kernel in enumerate(self.kernels):
            if is_sum(self.chain, number, kernel):
                for access in kernel.writes:
                    self._round(self.made[access.value], access.value)
                self._run_epilogue(number, self.ranges[number])
        return {name: each for name, each in self.made.items() if name not in self.chain.passed}

    def _blocks(self) -> Iterator[tuple[list[Ranges], bool]]:
        """The ranges of all kernels in each block, and whether it is the first along the inner."""
        options = []
        for axis in self.chain.axes:
            parts = [self._parts_of(number, loops) for number, loops in enumerate(axis.loops)]
            assert len({len(each) for each in parts}) == 1, "kernels with other blocks"
            options.append(list(zip(*parts, strict=True)))
        for places in product(*(range(len(each)) for each in options)):
            ranges: list[list[Range]] = [list(each) for each in self.ranges]
            for axis, option, place in zip(self.chain.axes, options, places, strict=True):
                for number, loops in enumerate(axis.loops):
                    for loop, part in zip(loops, option[place][number], strict=True):
                        ranges[number][loop] = part
            yield [tuple(each) for each in ranges], places[-1] == 0

    def _parts_of(self, number: int, loops: Sequence[int]) -> list[tuple[Range, ...]]:
        """The ranges of an axis's loops in one block after another."""
        steps, options = self.steps[number].mapping.steps, []
        for loop in loops:
            first, end = self.ranges[number][loop]
            cuts = [first + int(each) for each in part_bounds(end - first, steps.get(loop, 1), 1)]
            options.append([each for each in pairwise(cuts) if each[0] < each[1]])
        return list(product(*options))

    def _run_kernel(self, number: int, ranges: Ranges, is_first: bool) -> None:
        kernel = self.kernels[number]
        held = [self._operand(number, index) for index in range(len(kernel.loaded))]
        tensors = self._run_block(kernel, ranges, held)
        boxes = [
            kernel.touched(access, ranges, self.shapes[access.value]) for access in kernel.writes
        ]
        pieces = [Piece(box, tensor) for box, tensor in zip(boxes, tensors, strict=True)]
        for access, piece in zip(kernel.writes, pieces, strict=True):
            if is_sum(self.chain, number, kernel):
                self._add(number, access, ranges, piece, is_first)
            else:
                self._round(piece, access.value)
                self.made[access.value] = piece
        if not is_sum(self.chain, number, kernel):
            self._run_epilogue(number, ranges)
            if number in self.followed and not is_first:
                self.factors[number] = self._factor(kernel)

    def _run_epilogue(self, number: int, ranges: Ranges) -> None:
        kernel = self.kernels[number]
        rest = iter(range(len(kernel.reads), len(kernel.loaded)))
        own = {access.value for access in kernel.writes}
        for each in kernel.epilogue:
            held = [
                self.made[read.value] if read.value in own else self._operand(number, next(rest))
                for read in each.reads
            ]
            results = self._run_block(each, ranges, held)
            for access, tensor in zip(each.writes, results, strict=True):
                box = each.touched(access, ranges, self.shapes[access.value])
                self.made[access.value] = Piece(box, tensor)
                self._round(self.made[access.value], access.value)
                own.add(access.value)

    def _run_block(
        self, kernel: Kernel, ranges: Ranges, held: Sequence[Piece | None]
    ) -> list[Tensor]:
        """The kernel's results for some ranges; `held` are the boxes of its reads, first of all."""
        block = node_block(kernel, ranges, self.shapes)
        tensors = []
        for piece, box in zip(held, block.boxes[: len(kernel.reads)], strict=False):
            assert piece is not None, kernel.name
            tensors.append(piece.cut(box).clone())
        return kernel.compute(tensors, block)

    def _round(self, piece: Piece, name: str) -> None:
        if name in self.rounding:
            self.rounding[name](piece.tensor)

    def _operand(self, number: int, index: int) -> Piece | None:
        """What a kernel reads: a block of what another has just made, or what was loaded."""
        name = self.kernels[number].loaded[index].value
        if name in self.made:
            return self.made[name]
        number, index = self.shared.get((number, index), (number, index))
        return self.loaded[number][index]

    def _add(
        self, number: int, access: Access, ranges: Ranges, piece: Piece, is_first: bool
    ) -> None:
        """Add a block to a sum; what is there by now is noted for who has used it."""
        kernel, name = self.kernels[number], access.value
        if name not in self.made:
            box = kernel.touched(access, self.ranges[number], self.shapes[name])
            shape = [end - first for first, end in box]
            self.made[name] = Piece(box, torch.empty(shape, dtype=piece.tensor.dtype))
        total = self.made[name].cut(piece.box)
        self.before[name] = Piece(piece.box, total.clone())
        if is_first:
            total.copy_(piece.tensor)
            return
        old = total.clone()
        for maker in self.followers.get(number, ()):
            factor = self._factor(kernel) if maker == number else self.factors[maker]
            factor = self._along(factor, maker, number, access, ranges)
            old = torch.where(factor == 0, 0.0, old * factor)
        total.copy_(_COMBINE[kernel.combine](old, piece.tensor))

    def _factor(self, kernel: Kernel) -> Tensor:
        """By how much results made with the sums before the last block are to be multiplied."""
        assert kernel.rescale is not None, kernel.name
        names = [kernel.reads[index].value for index in kernel.rescale.reads]
        olds = [self.before[name] for name in names]
        news = [self.made[name].cut(old.box) for name, old in zip(names, olds, strict=True)]
        return kernel.rescale.factor([each.tensor for each in olds], news)

    def _along(
        self, factor: Tensor, maker: int, number: int, access: Access, ranges: Ranges
    ) -> Tensor:
        """A factor of rows, in the dimensions of a maker's statistics, along those of a sum."""
        rescale = self.kernels[maker].rescale
        assert rescale is not None
        statistic = self.kernels[maker].reads[rescale.reads[0]]
        order = [dim for dims in self._axis_dims(maker, statistic) for dim in dims]
        rest = [dim for dim in range(factor.dim()) if dim not in order]  # of one element
        factor = factor.permute(*order, *rest)
        wanted = self._axis_dims(number, access)
        shape = [1] * len(access.spans)
        target: list[int] = []
        for axis, dims in zip(self.chain.outer, wanted, strict=True):
            for loop, dim in zip(axis.loops[number], dims, strict=True):
                first, end = ranges[loop]
                shape[dim] = end - first
                target.append(dim)
        factor = factor.reshape([shape[dim] for dim in target])
        order = [target.index(dim) for dim in sorted(target)]
        return factor.permute(order).reshape(shape)

    def _axis_dims(self, number: int, access: Access) -> list[list[int]]:
        """Of every outer axis the dimensions of a value that its loops run along."""
        dims = {span.terms[0][0]: dim for dim, span in enumerate(access.spans) if span.terms}
        return [
            [dims[loop] for loop in axis.loops[number] if loop in dims] for axis in self.chain.outer
        ]
