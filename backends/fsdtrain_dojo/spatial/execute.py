"""Run a tile program on real tensors, all nodes at once: the proof that a lowering is right.

A node computes with what its own memory holds: the boxes that its loads have brought and the pieces
of values that layouts gave it. What the nodes hold at the end is put together and handed back. It
follows the program to the letter; nodes that do the same with boxes of the same shapes do it
together, but none sees what another one holds. Knows no clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fsdtrain_dojo.lowering.chain import Chain
from fsdtrain_dojo.lowering.chain_roles import chains_by_start
from fsdtrain_dojo.lowering.kernel import Kernel
from fsdtrain_dojo.lowering.mapping import Axis, Grid, Layout, Storage, axis_ranges
from fsdtrain_dojo.lowering.program import Step, TileProgram, Transfer
from fsdtrain_dojo.spatial.boxes import Ints, boxes_by_place
from fsdtrain_dojo.spatial.buffers import Pieces, layout_boxes, whole_piece
from fsdtrain_dojo.spatial.chain import ChainWork, join_pieces, split_pieces
from fsdtrain_dojo.spatial.copying import assemble, copy_pieces
from fsdtrain_dojo.spatial.node import NodeWork, Work, combine_in_order

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
        places, boxes = layout_boxes(layout, tensors[name].shape)
        run.hold(name, copy_pieces(whole_piece(tensors[name]), places, boxes)[0], layout)
    chains = chains_by_start(program.graph)
    passed = {name for chain in chains.values() for name in chain.passed}
    for number, step in enumerate(program.steps):
        run.spill(number)
        if not step.is_chained:
            run.step(number, step)
        elif number in chains:
            run.chain(number, chains[number])
        for name, last in program.last_use.items():
            if last == number and name not in passed:
                del run.memory[name]
    outputs = {
        name: assemble(run.memory[name], value.shape)
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
    memory: dict[str, Pieces] = field(default_factory=dict)
    homes: dict[str, Layout] = field(default_factory=dict)
    copies: list[Copies] = field(default_factory=list)
    combined: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes = {name: value.shape for name, value in self.program.graph.values.items()}
        self.node = NodeWork(shapes=self.shapes, given=self.given)

    def hold(self, name: str, pieces: Pieces, layout: Layout) -> None:
        """From now on a value lies in these pieces; what it renews is gone."""
        self.memory[name] = pieces
        self.homes[name] = layout
        self.memory.pop(self.program.graph.renews.get(name, ""), None)

    def spill(self, number: int) -> None:
        """Move what goes out of the nodes' memory before this step, and what comes back."""
        for each in self.program.spills:
            if each.value in self.memory and number in (each.out_before, each.back_before):
                layout = OUTSIDE if number == each.out_before else self.homes[each.value]
                self.memory[each.value], _ = self._rearrange(
                    self.memory[each.value], each.value, layout
                )

    def step(self, number: int, step: Step) -> None:
        """Loads, the computation, what divided sums become, and stores."""
        kernel = step.kernel
        loaded = [self._load(number, transfer) for transfer in step.loads]
        assert len(loaded) == len(kernel.loaded), kernel.name
        work, group = _in_order_of_sums(step, _busy_work(self.program.grid, step))
        made = self.node.run_kernel(step, work, loaded)
        self.combined.append(0)
        made = {name: self._complete(kernel, each, name, group) for name, each in made.items()}
        firsts = np.unique(group, return_index=True)[1]
        complete = Work(work.places[firsts], work.ranges[firsts])
        self._run_epilogue(kernel, complete, made, loaded[len(kernel.reads) :])
        stored = [each for each in step.stores if each.value not in kernel.hidden]
        assert [each.value for each in stored] == [each.value for each in kernel.stored]
        for transfer in stored:
            held = made[transfer.value]
            if len(held) < len(work.places):  # every node of a group gets the result
                held = held.shared(work.places, group)
            self._store(number, transfer, held)

    def chain(self, first: int, chain: Chain) -> None:
        """All steps of a chain: what its nodes pass on is nowhere but there."""
        steps = self.program.steps[first : first + len(chain.kernels)]
        loaded = [
            [
                {} if index in step.inside else split_pieces(self._load(number, each))
                for index, each in enumerate(step.loads)
            ]
            for number, step in enumerate(steps, first)
        ]
        works = [_busy_work(self.program.grid, step) for step in steps]
        found = {
            (row, column): ChainWork(
                chain=chain,
                steps=steps,
                shapes=self.shapes,
                rounding=self.rounding,
                ranges=[
                    tuple((first, end) for first, end in each.ranges[node].tolist())
                    for each in works
                ],
                loaded=[[pieces.get((row, column)) for pieces in each] for each in loaded],
            ).run()
            for node, (row, column) in enumerate(works[0].places.tolist())
        }
        for number, step in enumerate(steps, first):
            self.combined.append(0)
            for each in step.stores:
                if each.value not in chain.passed:
                    made = {place: own[each.value] for place, own in found.items()}
                    self._store(number, each, join_pieces(made))

    def _load(self, number: int, transfer: Transfer) -> Pieces:
        """What every node gets of a value, in memory of its own."""
        places, boxes = boxes_by_place(transfer.boxes)
        pieces, moved = copy_pieces(self.memory[transfer.value], places, boxes)
        self._count(number, transfer.value, False, moved, pieces)
        return pieces

    def _store(self, number: int, transfer: Transfer, held: Pieces) -> None:
        assert transfer.target is not None
        pieces, moved = self._rearrange(held, transfer.value, transfer.target)
        self._count(number, transfer.value, True, moved, pieces)
        self.hold(transfer.value, pieces, transfer.target)

    def _rearrange(self, held: Pieces, name: str, layout: Layout) -> tuple[Pieces, int]:
        return copy_pieces(held, *layout_boxes(layout, self.shapes[name]))

    def _count(self, number: int, name: str, is_store: bool, moved: int, pieces: Pieces) -> None:
        element_bytes = self.program.graph.values[name].element_bytes
        self.copies.append(
            Copies(
                step=number,
                value=name,
                is_store=is_store,
                moved_bytes=moved * element_bytes,
                delivered_bytes=int(pieces.volumes.sum()) * element_bytes,
            )
        )

    def _complete(self, kernel: Kernel, parts: Pieces, name: str, group: Ints) -> Pieces:
        """The results of nodes that hold parts of the same sums, each at the first of them."""
        total = combine_in_order(parts, group, kernel.combine)
        num_combined = int(parts.volumes.sum()) - int(total.volumes.sum())
        self.combined[-1] += num_combined * self.program.graph.values[name].element_bytes
        self._round(total, name)
        return total

    def _run_epilogue(
        self, kernel: Kernel, work: Work, made: dict[str, Pieces], loaded: Sequence[Pieces]
    ) -> None:
        """Add what the epilogue makes of complete results and of what was loaded for it."""
        rest = iter(loaded)
        for each in kernel.epilogue:
            held = [made[read.value] if read.value in made else next(rest) for read in each.reads]
            pieces = self.node.run_block(each, work, held)
            for access, results in zip(each.writes, pieces, strict=True):
                made[access.value] = results
                self._round(results, access.value)

    def _round(self, pieces: Pieces, name: str) -> None:
        if name in self.rounding:
            for tensor in pieces.tensors():
                self.rounding[name](tensor)


def _busy_work(grid: Grid, step: Step) -> Work:
    """The ranges of every node that has points to visit."""
    mapping = step.mapping
    used = grid if mapping.is_everywhere else tuple(mapping.num_used(axis) for axis in Axis)
    places = np.argwhere(np.ones(used, bool))
    ranges = np.array([[(0, loop.size) for loop in step.kernel.loops]] * len(places))
    ranges = ranges.reshape(len(places), -1, 2)
    for axis in Axis:
        divided = axis_ranges(step.kernel, mapping, axis, used[axis.value])
        for loop, bounds in divided.items():
            ranges[:, loop] = bounds[:, places[:, axis.value]].T
    is_busy = (ranges[:, :, 0] < ranges[:, :, 1]).all(axis=1)
    return Work(places[is_busy], ranges[is_busy])


def _in_order_of_sums(step: Step, work: Work) -> tuple[Work, Ints]:
    """Nodes that hold parts of the same results together, as what they have summed up follows.

    Returns:
        (the work in this order, the number of each one's group)
    """
    reductions = sorted(step.kernel.reductions)
    if step.mapping.is_everywhere or not reductions:
        return work, np.arange(len(work.places))
    results = np.delete(work.ranges, reductions, axis=1).reshape(len(work.places), -1)
    _, group = np.unique(results, axis=0, return_inverse=True)
    group = group.reshape(-1)
    firsts = [work.ranges[:, loop, 0] for loop in reversed(reductions)]
    order = np.lexsort([*firsts, group])
    return Work(work.places[order], work.ranges[order]), group[order]
