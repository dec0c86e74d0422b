"""Run a tile program node by node on real tensors: the proof that a lowering is right.

A node computes with what its own memory holds: the boxes that its loads have brought and the pieces
of values that layouts gave it. What the nodes hold at the end is put together and handed back. It
follows the program to the letter and is no faster than tests on small meshes need. Knows no clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.kernel import Kernel
from fsdtrain_dojo.lowering.mapping import Axis, Grid, Layout, Storage, node_ranges
from fsdtrain_dojo.lowering.program import Step, TileProgram, Transfer
from fsdtrain_dojo.spatial.buffers import (
    Box,
    Holders,
    Piece,
    Pieces,
    Place,
    boxes_by_place,
    distribute,
    layout_boxes,
)
from fsdtrain_dojo.spatial.node import NodeWork, Ranges, combine_in_order

OUTSIDE = Layout(storage=Storage.HBM)


@dataclass(frozen=True, kw_only=True)
class Copies:
    """What one transfer copied.

    Args:
        step: number of the step.
        value: name.
        is_store: after the computation; a load otherwise.
        moved_bytes: between different memories: what all nodes together received from elsewhere.
        delivered_bytes: all that the transfer has put in place, copies within a memory included.
    """

    step: int
    value: str
    is_store: bool
    moved_bytes: int
    delivered_bytes: int


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What a run has given.

    Args:
        outputs: every value with `is_output`, whole.
        copies: by transfer, in order: a step's loads, then its stores.
        combined_bytes: by step: partial results that left their node to be combined.
    """

    outputs: dict[str, Tensor]
    copies: tuple[Copies, ...]
    combined_bytes: tuple[int, ...]


def execute(
    program: TileProgram,
    tensors: Mapping[str, Tensor],
    *,
    stores: Mapping[str, Callable[[Tensor], object]] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The outputs of `run_program`."""
    return run_program(program, tensors, stores=stores, given=given).outputs


def run_program(
    program: TileProgram,
    tensors: Mapping[str, Tensor],
    *,
    stores: Mapping[str, Callable[[Tensor], object]] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> Execution:
    """Run a program.

    Args:
        program: verified.
        tensors: of all values that are there when the step begins.
        stores: value -> what rounds a piece of it in place, as soon as that is complete.
        given: values that kernels cannot compute again (`Kernel.is_random`).
    """
    run = _Run(program, dict(stores or {}), dict(given or {}))
    for name, layout in program.initial.items():
        run.hold(name, distribute(tensors[name], layout), layout)
    for number, step in enumerate(program.steps):
        run.spill(number)
        run.step(number, step)
        for name, last in program.last_use.items():
            if last == number:
                del run.memory[name]
    outputs = {
        name: run.memory[name].assemble(value.shape)
        for name, value in program.graph.values.items()
        if value.is_output
    }
    return Execution(outputs=outputs, copies=tuple(run.copies), combined_bytes=tuple(run.combined))


@dataclass
class _Run:
    """A program on its way: who holds what, and what has been copied."""

    program: TileProgram
    rounding: dict[str, Callable[[Tensor], object]]
    given: dict[str, Tensor]
    memory: dict[str, Holders] = field(default_factory=dict)
    homes: dict[str, Layout] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    copies: list[Copies] = field(default_factory=list)
    combined: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes = {name: value.shape for name, value in self.program.graph.values.items()}
        self.node = NodeWork(shapes=self.shapes, dtypes=self.dtypes, given=self.given)

    def hold(self, name: str, pieces: Pieces, layout: Layout) -> None:
        """From now on a value lies in these pieces; what it renews is gone."""
        self.memory[name] = Holders(pieces)
        self.homes[name] = layout
        self.dtypes[name] = next(iter(pieces.values())).tensor.dtype
        self.memory.pop(self.program.graph.renews.get(name, ""), None)

    def spill(self, number: int) -> None:
        """Move what goes out of the nodes' memory before this step, and what comes back."""
        for each in self.program.spills:
            if each.value in self.memory and number in (each.out_before, each.back_before):
                layout = OUTSIDE if number == each.out_before else self.homes[each.value]
                pieces, _ = self._rearrange(self.memory[each.value], each.value, layout)
                self.memory[each.value] = Holders(pieces)

    def step(self, number: int, step: Step) -> None:
        kernel = step.kernel
        loaded = [self._load(number, transfer) for transfer in step.loads]
        assert len(loaded) == len(kernel.loaded), kernel.name
        ranges = _busy_ranges(self.program.grid, step)
        made = {
            place: self.node.run_kernel(step, ranges[place], [each.get(place) for each in loaded])
            for place in ranges
        }
        self.combined.append(0)
        for group in _groups(step, ranges):
            first = group[0]
            found = self._combine(kernel, [made[place] for place in group])
            extra = [each.get(first) for each in loaded[len(kernel.reads) :]]
            self._run_epilogue(kernel, ranges[first], found, extra)
            made.update(dict.fromkeys(group, found))
        stored = [each for each in step.stores if each.value not in kernel.hidden]
        assert [each.value for each in stored] == [each.value for each in kernel.stored]
        for transfer in stored:
            held = Holders({place: pieces[transfer.value] for place, pieces in made.items()})
            self._store(number, transfer, held)

    def _load(self, number: int, transfer: Transfer) -> Pieces:
        """What every node gets of a value, in memory of its own."""
        held = self.memory[transfer.value]
        pieces, moved = self._fill(held, boxes_by_place(transfer.boxes))
        self._count(number, transfer.value, False, moved, pieces)
        return pieces

    def _store(self, number: int, transfer: Transfer, held: Holders) -> None:
        assert transfer.target is not None
        pieces, moved = self._rearrange(held, transfer.value, transfer.target)
        self._count(number, transfer.value, True, moved, pieces)
        self.hold(transfer.value, pieces, transfer.target)

    def _rearrange(self, held: Holders, name: str, layout: Layout) -> tuple[Pieces, int]:
        return self._fill(held, layout_boxes(layout, self.shapes[name]))

    def _fill(self, held: Holders, boxes: Mapping[Place, Box]) -> tuple[Pieces, int]:
        pieces: Pieces = {}
        total = 0
        for place, box in boxes.items():
            tensor, moved = held.copy(box, place)
            pieces[place] = Piece(box, tensor)
            total += moved
        return pieces, total

    def _count(self, number: int, name: str, is_store: bool, moved: int, pieces: Pieces) -> None:
        element_bytes = self.program.graph.values[name].element_bytes
        delivered = sum(piece.tensor.numel() for piece in pieces.values())
        self.copies.append(
            Copies(
                step=number,
                value=name,
                is_store=is_store,
                moved_bytes=moved * element_bytes,
                delivered_bytes=delivered * element_bytes,
            )
        )

    def _combine(self, kernel: Kernel, parts: Sequence[dict[str, Piece]]) -> dict[str, Piece]:
        """The complete results of nodes that hold parts of the same sums."""
        found = {}
        for access in kernel.writes:
            name = access.value
            tensors = [each[name].tensor for each in parts]
            total = combine_in_order(tensors, kernel.combine)
            element_bytes = self.program.graph.values[name].element_bytes
            self.combined[-1] += (len(parts) - 1) * total.numel() * element_bytes
            found[name] = Piece(parts[0][name].box, total)
            self._round(found[name], name)
        return found

    def _run_epilogue(
        self,
        kernel: Kernel,
        ranges: Ranges,
        made: dict[str, Piece],
        loaded: Sequence[Piece | None],
    ) -> None:
        """Add what the epilogue makes at one node of its results and of what was loaded for it."""
        rest = iter(loaded)
        for each in kernel.epilogue:
            held = [made[read.value] if read.value in made else next(rest) for read in each.reads]
            for name, piece in made.items():
                self.dtypes[name] = piece.tensor.dtype
            tensors = self.node.run_block(each, ranges, held)
            for access, tensor in zip(each.writes, tensors, strict=True):
                box = each.touched(access, ranges, self.shapes[access.value])
                made[access.value] = Piece(box, tensor)
                self._round(made[access.value], access.value)

    def _round(self, piece: Piece, name: str) -> None:
        if name in self.rounding:
            self.rounding[name](piece.tensor)


def _busy_ranges(grid: Grid, step: Step) -> dict[Place, Ranges]:
    """The ranges of every node that has points to visit."""
    mapping = step.mapping
    used = grid if mapping.is_everywhere else [mapping.num_used(axis) for axis in Axis]
    found = {}
    for place in product(range(used[0]), range(used[1])):
        ranges = node_ranges(step.kernel, mapping, *place)
        if all(first < end for first, end in ranges):
            found[place] = ranges
    return found


def _groups(step: Step, ranges: Mapping[Place, Ranges]) -> list[list[Place]]:
    """Nodes that hold parts of the same results, in the order of what they have summed up."""
    if step.mapping.is_everywhere:
        return [[place] for place in ranges]
    reductions = sorted(step.kernel.reductions)
    groups: dict[Ranges, list[Place]] = {}
    for place, each in ranges.items():
        results = tuple(part for loop, part in enumerate(each) if loop not in reductions)
        groups.setdefault(results, []).append(place)
    return [
        sorted(group, key=lambda place: [ranges[place][loop] for loop in reductions])
        for group in groups.values()
    ]
