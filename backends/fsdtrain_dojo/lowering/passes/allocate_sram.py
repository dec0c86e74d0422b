"""Make the program fit: what lies in the nodes' memory when, and what has to go out to HBM.

    step 7 needs 1.4 MB at the fullest node, which has 1.25 MB   =>   exp_avg of layer1 stays in
    HBM; step 7 needs 1.2 MB, and the optimiser's kernel of that weight streams it

A value takes memory from the step that makes it to its last use; beside what lives, a step needs
its buffers. Where that is too much, the value that is not needed for longest goes out (Belady,
IBM Systems Journal 1966), and later reads of it stream from HBM through buffers of their own.
Weights and states that go out lie out there all the time: the program is walked through again
until none is added. A value that does not fit beside its own kernel's buffers never comes in: the
kernel streams it.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.kernel import KernelGraph, ValueKind
from fsdtrain_dojo.lowering.mapping import Boxes
from fsdtrain_dojo.lowering.outside import OUTSIDE, Away, check_outside, with_outside
from fsdtrain_dojo.lowering.program import Spill, Step, TileProgram, Transfer
from fsdtrain_dojo.timing.costs import Costs, picked_share

_LASTING = (ValueKind.WEIGHT, ValueKind.STATE)


def allocate_sram(program: TileProgram, costs: Costs) -> TileProgram:
    """The program with spills, so that no node's memory is ever over its capacity.

    Raises:
        BackendError: a kernel's smallest share does not fit into a node, or what goes out does not
            fit into HBM; with numbers.
    """
    if not costs.fabric.keeps_values:
        return replace(program, sram_bytes=tuple(step.working_bytes for step in program.steps))
    uses = _find_uses(program)
    memory = _Memory(program, costs, uses, set())
    steps = memory.walk()
    while True:  # ends: every round adds lasting values to those outside
        known = set(memory.always_outside)
        if known == memory.outside_at_first:
            break
        memory = _Memory(program, costs, uses, known)
        steps = memory.walk()
    values, num_steps = program.graph.values, len(program.steps)
    lasting = [name for name in program.initial if name in memory.always_outside]
    if lasting or memory.away:
        check_outside(costs, values, lasting, memory.away, program.last_use, num_steps)
    spills = [
        Spill(value=name, num_bytes=values[name].num_bytes, out_before=-1, back_before=None)
        for name in lasting
    ]
    return replace(
        program,
        initial={
            name: OUTSIDE if name in memory.always_outside else layout
            for name, layout in program.initial.items()
        },
        steps=tuple(
            with_outside(step, partial(memory.is_outside_at, number))
            for number, step in enumerate(steps)
        ),
        sram_bytes=tuple(memory.used),
        spills=(*spills, *memory.spills()),
    )


@dataclass
class _Memory:
    """The nodes' memories while the program is walked through."""

    program: TileProgram
    costs: Costs
    uses: Dict[str, Sequence[int]]
    always_outside: set[str]  # of WEIGHT and STATE
    residents: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # bytes at every node
    away: dict[str, list[Away]] = field(default_factory=dict)
    used: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph: KernelGraph = self.program.graph
        self.capacity = self.costs.machine.node.memory.capacity_bytes
        self.occupied = np.zeros(self.program.grid, np.int64)
        self.outside_at_first = set(self.always_outside)
        self.passed = {name for chain in self.graph.chains for name in chain.passed}
        self._sizes: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._kept: list[Boxes] = []  # ids of these are keys
        self._boxes: dict[str, Boxes] = {}  # of every value that has been in the nodes
        for name, layout in self.program.initial.items():
            assert layout.boxes is not None
            if name not in self.always_outside:
                self._add(name, layout.boxes)

    def walk(self) -> tuple[Step, ...]:
        """All steps, tiled anew where operands had to go out."""
        return tuple(self._visit(number, step) for number, step in enumerate(self.program.steps))

    def is_outside_at(self, number: int, name: str) -> bool:
        """Whether a value lies outside during a step."""
        return name in self.always_outside or any(
            each.has(number) for each in self.away.get(name, ())
        )

    def spills(self) -> list[Spill]:
        """Of values that do not lie outside all the time, in the order in which they go out."""
        values = self.graph.values
        found = [
            Spill(
                value=name,
                num_bytes=values[name].num_bytes,
                out_before=each.first,
                back_before=each.end,
            )
            for name, times in self.away.items()
            for each in times
        ]
        return sorted(found, key=lambda each: each.out_before)

    def _add(self, name: str, boxes: Boxes) -> None:
        self._boxes[name] = boxes
        self.residents[name] = self._bytes_of(boxes, self.graph.values[name].element_bytes)
        self.occupied = self.occupied + self.residents[name]

    def _bytes_of(self, boxes: Boxes, element_bytes: int) -> NDArray[np.int64]:
        key = (id(boxes), element_bytes)
        if key not in self._sizes:
            self._sizes[key] = boxes.num_elements * element_bytes
            self._kept.append(boxes)
        return self._sizes[key]

    def _remove(self, name: str) -> None:
        self.occupied = self.occupied - self.residents.pop(name)

    def _visit(self, number: int, step: Step) -> Step:
        mine = {each.value for each in (*step.loads, *step.stores)} - step.kernel.hidden
        mine -= self.passed
        for store in step.stores:
            if store.value not in mine:
                continue
            old = self.graph.renews.get(store.value, "")
            if old in self.residents:
                self._remove(old)
            assert store.target is not None
            assert store.target.boxes is not None
            if store.value not in self.always_outside:
                self._add(store.value, store.target.boxes)
        fitting = self._make_fit(number, step, mine)
        fitting = self._bring_back(number, step, fitting)
        self.used.append(int(self.occupied.max()) + fitting.working_bytes)
        for name in mine:
            if name in self.residents and self.program.last_use.get(name) == number:
                self._remove(name)
        return fitting

    def _make_fit(self, number: int, step: Step, mine: set[str]) -> Step:
        """The step as it fits, after others or, where that is not enough, its own have gone out."""
        reasons: list[str] = []
        while True:
            found = self._fitting(number, step)
            if isinstance(found, Step):
                return found
            reasons.append(found)
            name = self._next_out(number, mine)
            if name is None:
                raise self.costs.does_not_fit(step.kernel, reasons)
            self._spill(name, number)

    def _fitting(self, number: int, step: Step) -> Step | str:
        """The step with buffers that fit beside what is in the nodes, or why there are none."""
        free = self.capacity - int(self.occupied.max())
        moved = with_outside(step, partial(self.is_outside_at, number))
        if moved == step or step.is_chained:  # whose buffers are for whatever lies anywhere
            if step.working_bytes <= free:
                return step
            return f"it needs {step.working_bytes:,} B and has {max(free, 0):,} B free"
        values, kernel = self.graph.values, step.kernel
        load_costs = []
        for each, access in zip(moved.loads, kernel.loaded, strict=True):
            assert each.source is not None
            share = picked_share(kernel, access, step.mapping)
            load_costs.append(self.costs.load(each.source, each.boxes, values[each.value], share))
        store_costs = [self.costs.store(each, values[each.value]) for each in moved.stores]
        tiling = self.costs.tile(
            kernel, step.mapping, values, max(free, 0), moved.stores, load_costs, store_costs
        )
        if isinstance(tiling, str):
            return tiling
        if tiling.working_bytes > free:
            return f"it needs {tiling.working_bytes:,} B and has {max(free, 0):,} B free"
        return replace(
            step,
            mapping=tiling.mapping,
            buffers=tiling.buffers,
            working_bytes=tiling.working_bytes,
        )

    def _next_out(self, number: int, mine: set[str]) -> str | None:
        """What is not needed for longest at the fullest node; else the step's own largest value."""
        fullest = np.unravel_index(int(self.occupied.argmax()), self.occupied.shape)
        others = [
            (self._next_use(name, number), int(num_bytes[fullest]), name)
            for name, num_bytes in self.residents.items()
            if name not in mine and num_bytes[fullest] > 0
        ]
        if others:
            return max(others)[2]
        own = [(int(self.residents[name].max()), name) for name in mine & self.residents.keys()]
        return max(own)[1] if own else None

    def _next_use(self, name: str, number: int) -> int:
        later = [use for use in self.uses.get(name, ()) if use >= number]
        return later[0] if later else len(self.program.steps)

    def _spill(self, name: str, number: int) -> None:
        renews = self.graph.renews
        if self.graph.values[name].kind in _LASTING or name in renews:
            old = renews.get(name, name)
            self.always_outside |= {name, old, *(new for new in renews if renews[new] == old)}
        else:
            self.away.setdefault(name, []).append(Away(first=number))
        self._remove(name)

    def _bring_back(self, number: int, step: Step, fitting: Step) -> Step:
        """Let values that were out stay in from here on, if there is room and they are read again.

        The step reads them where they are then, in other buffers if these are better.
        """
        if step.is_chained:  # in the midst of which nothing moves
            return fitting
        back = [name for name in _names(step.loads) if self._comes_back(number, name, fitting)]
        if not back:
            return fitting
        found = self._fitting(number, step)
        return found if isinstance(found, Step) else fitting

    def _comes_back(self, number: int, name: str, fitting: Step) -> bool:
        times = self.away.get(name)
        if not times or times[-1].end is not None or times[-1].first == number:
            return False
        if self._next_use(name, number + 1) >= len(self.program.steps):
            return False
        num_bytes = self._bytes_of(self._boxes[name], self.graph.values[name].element_bytes)
        if int((self.occupied + num_bytes).max()) + fitting.working_bytes > self.capacity:
            return False
        times[-1].end = number
        self._add(name, self._boxes[name])
        return True


def _names(transfers: Iterable[Transfer]) -> list[str]:
    return list(dict.fromkeys(each.value for each in transfers))


def _find_uses(program: TileProgram) -> Dict[str, Sequence[int]]:
    uses: dict[str, list[int]] = {}
    for number, step in enumerate(program.steps):
        for name in _names((*step.loads, *step.stores)):
            uses.setdefault(name, []).append(number)
    return uses
