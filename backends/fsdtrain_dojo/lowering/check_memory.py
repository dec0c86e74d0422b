"""Where the values of a tile program are when, and what is wrong with it, in words."""

from collections.abc import Iterator

import numpy as np

from fsdtrain_dojo.lowering.check_program import BoxFacts
from fsdtrain_dojo.lowering.mapping import Boxes, Ints, Layout, Storage
from fsdtrain_dojo.lowering.program import Step, TileProgram

_OUTSIDE = Layout(storage=Storage.HBM)


def find_memory_problems(program: TileProgram, sram_bytes: int, facts: BoxFacts) -> Iterator[str]:
    """Problems of a whole program: a walk through it, with a note of where everything lies."""
    memory = _Memory(program, facts)
    yield from memory.initial_problems()
    if len(program.sram_bytes) != len(program.steps):
        yield f"{len(program.sram_bytes)} memory sizes for {len(program.steps)} steps"
        return
    for number, step in enumerate(program.steps):
        memory.begin(number, step)
        for problem in memory.load_problems(number, step):
            yield f"{step.kernel.name}: {problem}"
        memory.store(number, step)
        found = memory.fullest() + step.working_bytes
        noted = program.sram_bytes[number]
        if noted < found:
            yield f"{step.kernel.name}: takes {found} bytes of a node, {noted} were noted"
        if found > sram_bytes:
            yield f"{step.kernel.name}: takes {found} bytes of a node, which has {sram_bytes}"
        memory.forget(number)
    yield from memory.final_problems()


class _Memory:
    """Where values are at some time."""

    def __init__(self, program: TileProgram, facts: BoxFacts) -> None:
        self.program, self.facts = program, facts
        self.layouts: dict[str, Layout] = {}
        self.homes: dict[str, Layout] = {}
        self.held: dict[str, list[Boxes]] = {}  # passed on within an op, some rows at a time
        self.occupied = np.zeros(program.grid, np.int64)
        self.passed = {name for chain in program.graph.chains for name in chain.passed}
        self.ends: dict[int, list[str]] = {}
        for name, last in program.last_use.items():
            self.ends.setdefault(last, []).append(name)
        self.moves: dict[int, list[tuple[str, bool]]] = {}
        for each in program.spills:
            self.moves.setdefault(each.out_before, []).append((each.value, True))
            if each.back_before is not None:
                self.moves.setdefault(each.back_before, []).append((each.value, False))
        for name, layout in program.initial.items():
            self._put(name, layout)

    def _put(self, name: str, layout: Layout) -> None:
        self._take(name)
        self.layouts[name] = layout
        if layout.boxes is not None:
            self.occupied = self.occupied + self._bytes_of(name, layout)

    def _take(self, name: str) -> None:
        layout = self.layouts.pop(name, None)
        if layout is not None and layout.boxes is not None:
            self.occupied = self.occupied - self._bytes_of(name, layout)

    def _bytes_of(self, name: str, layout: Layout) -> Ints:
        assert layout.boxes is not None
        element_bytes = self.program.graph.values[name].element_bytes
        return self.facts.num_elements(layout.boxes) * element_bytes

    def fullest(self) -> int:
        """Bytes at the fullest node."""
        return int(self.occupied.max())

    def initial_problems(self) -> Iterator[str]:
        made = {access.value for step in self.program.steps for access in step.kernel.stored}
        for name, layout in self.program.initial.items():
            value = self.program.graph.values.get(name)
            if value is None or name in made:
                yield f"{name} is there from the beginning, but no such value or made by the step"
            elif layout.boxes is not None and (
                layout.boxes.shape != value.shape or not self.facts.covers(layout.boxes)
            ):
                yield f"{name} is not all there when the step begins"
        for name, _ in self.moves.get(-1, ()):
            layout = self.program.initial.get(name, _OUTSIDE)
            if layout.storage is not Storage.HBM:
                yield f"{name} was moved out before the step, and lies in the nodes"

    def begin(self, number: int, step: Step) -> None:
        """Move what goes out before a step, and what comes back."""
        if not step.is_continued:
            self.held = {}
        for name, is_out in self.moves.get(number, ()):
            if name not in self.layouts:
                continue  # made by this very step, to the place it says
            home = self.homes.setdefault(name, self.layouts[name])
            self._put(name, _OUTSIDE if is_out else home)

    def load_problems(self, number: int, step: Step) -> Iterator[str]:
        for load in step.loads:
            layout, source = self.layouts.get(load.value), load.source
            held = self.held.get(load.value, ())
            if (
                source is not None
                and source.boxes is not None
                and any(self.facts.is_same(source.boxes, boxes) for boxes in held)
            ):
                continue
            if layout is None:
                yield f"{load.value} is nowhere by then"
            elif source is not None and not self.facts.is_same_layout(source, layout):
                yield f"{load.value} lies elsewhere by then"

    def store(self, number: int, step: Step) -> None:
        """Results take their places, new weights those of the old.

        Steps that go on with an op pass on what they have touched, never all of it at once.
        """
        following = self.program.steps[number + 1 : number + 2]
        is_passed_on = any(each.is_continued for each in (step, *following))
        for each in step.stores:
            if each.target is None or each.value in step.kernel.hidden:
                continue
            is_kept = each.value not in self.passed if step.is_chained else not is_passed_on
            if is_kept or each.target.storage is not Storage.SRAM:
                self._put(each.value, each.target)
        if is_passed_on:
            for each in (*step.loads, *step.stores):
                self.held.setdefault(each.value, []).append(each.boxes)
        for each in step.stores:
            old = self.program.graph.renews.get(each.value)
            if old is not None:
                self._take(old)

    def forget(self, number: int) -> None:
        """Drop what no later step needs."""
        for name in self.ends.get(number, ()):
            self._take(name)

    def final_problems(self) -> Iterator[str]:
        for name, value in self.program.graph.values.items():
            if value.is_output and name not in self.layouts:
                yield f"{name} is wanted when the step has ended, and is gone"
        for new, old in self.program.graph.renews.items():
            before, after = self.program.initial.get(old), self.layouts.get(new)
            if before is None or after is None or not self.facts.is_same_layout(before, after):
                yield f"{new} does not lie where {old} did, and the next step begins there"
