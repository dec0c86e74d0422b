"""Make the program fit: what lies in the nodes' memory when, and what has to go out to HBM.

    step 7 needs 1.4 MB at the fullest node, which has 1.25 MB   =>   exp_avg of layer1 stays in
    HBM; step 7 needs 1.2 MB, and the optimiser's kernel of that weight streams it

A value takes memory from the step that makes it to its last use; beside what lives, a step needs
its buffers. Where that is too much, the value that is not needed for longest goes out (Belady,
IBM Systems Journal 1966), and later reads of it stream from HBM. Weights and states that go out
lie out there all the time. A value that does not fit beside its own kernel's buffers never comes
in: the kernel streams it.
"""

from collections.abc import Callable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fsdtrain.backend import BackendError
from fsdtrain_dojo.lowering.kernel import KernelGraph, Value, ValueKind
from fsdtrain_dojo.lowering.mapping import Boxes, Layout, Storage
from fsdtrain_dojo.lowering.program import Pattern, Spill, Step, TileProgram, Transfer
from fsdtrain_dojo.timing.costs import Costs, picked_share

_LASTING = (ValueKind.WEIGHT, ValueKind.STATE)
_OUTSIDE = Layout(storage=Storage.HBM)


def allocate_sram(program: TileProgram, costs: Costs) -> TileProgram:
    """The program with spills, so that no node's memory is ever over its capacity.

    Raises:
        BackendError: a kernel's smallest share does not fit into a node, or what goes out does not
            fit into HBM; with numbers.
    """
    if not costs.fabric.keeps_values:
        return replace(program, sram_bytes=tuple(step.working_bytes for step in program.steps))
    memory = _Memory(program, costs)
    steps = tuple(memory.visit(number, step) for number, step in enumerate(program.steps))
    memory.check_outside()
    return replace(
        program,
        initial={
            name: _OUTSIDE if name in memory.always_outside else layout
            for name, layout in program.initial.items()
        },
        steps=tuple(
            with_outside(step, partial(memory.is_outside_at, number))
            for number, step in enumerate(steps)
        ),
        sram_bytes=tuple(memory.used),
        spills=tuple(memory.spills),
    )


@dataclass(kw_only=True)
class _Resident:
    value: Value
    num_bytes: NDArray[np.int64]  # at every node


@dataclass(kw_only=True)
class _Away:
    """A time during which a value is outside: steps from `first` to before `end`."""

    first: int
    end: int | None = None

    def has(self, number: int) -> bool:
        return self.first <= number and (self.end is None or number < self.end)


@dataclass
class _Memory:
    """The nodes' memories while the program is walked through."""

    program: TileProgram
    costs: Costs
    residents: dict[str, _Resident] = field(default_factory=dict)
    always_outside: set[str] = field(default_factory=set)  # of WEIGHT and STATE
    away: dict[str, list[_Away]] = field(default_factory=dict)
    spills: list[Spill] = field(default_factory=list)
    used: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph: KernelGraph = self.program.graph
        self.capacity = self.costs.machine.node.memory.capacity_bytes
        self.uses = _find_uses(self.program)
        self.occupied = np.zeros(self.program.grid, np.int64)
        self._sizes: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._kept: list[Boxes] = []  # ids of these are keys
        self._boxes: dict[str, Boxes] = {}  # of every value that has been in the nodes
        for name, layout in self.program.initial.items():
            assert layout.boxes is not None
            self._add(name, layout.boxes)

    def _add(self, name: str, boxes: Boxes) -> None:
        value = self.graph.values[name]
        self._boxes[name] = boxes
        num_bytes = self._bytes_of(boxes, value.element_bytes)
        self.residents[name] = _Resident(value=value, num_bytes=num_bytes)
        self.occupied = self.occupied + num_bytes

    def _bytes_of(self, boxes: Boxes, element_bytes: int) -> NDArray[np.int64]:
        key = (id(boxes), element_bytes)
        if key not in self._sizes:
            self._sizes[key] = boxes.num_elements * element_bytes
            self._kept.append(boxes)
        return self._sizes[key]

    def _remove(self, name: str) -> None:
        self.occupied = self.occupied - self.residents.pop(name).num_bytes

    def visit(self, number: int, step: Step) -> Step:
        """The step, tiled anew where its operands had to go out."""
        renewed = self.graph.renews
        for store in step.stores:
            old = renewed.get(store.value)
            if old is not None and old in self.residents and store.target is not None:
                self._remove(old)
            if store.target is not None and store.target.boxes is not None:
                if old in self.always_outside:
                    self.always_outside.add(store.value)
                else:
                    self._add(store.value, store.target.boxes)
        mine = {each.value for each in (*step.loads, *step.stores)}
        step = self._make_room(number, step, mine)
        for name in {each.value for each in step.loads}:
            self._bring_back(number, step, name)
        self.used.append(int(self.occupied.max()) + step.working_bytes)
        for name in mine:
            if name in self.residents and self.program.last_use.get(name) == number:
                self._remove(name)
        return step

    def _bring_back(self, number: int, step: Step, name: str) -> None:
        """Let a value that was out stay in from here on, if there is room and it is read again."""
        stays = self.away.get(name)
        if not stays or stays[-1].end is not None:
            return
        if stays[-1].first == number or self._next_use(name, number + 1) >= len(self.program.steps):
            return
        value = self.graph.values[name]
        num_bytes = self._bytes_of(self._boxes[name], value.element_bytes)
        if int((self.occupied + num_bytes).max()) + step.working_bytes > self.capacity:
            return
        stays[-1].end = number
        self._add(name, self._boxes[name])
        last = max(i for i, spill in enumerate(self.spills) if spill.value == name)
        self.spills[last] = replace(self.spills[last], back_before=number)

    def _make_room(self, number: int, step: Step, mine: set[str]) -> Step:
        working = step.working_bytes
        while int(self.occupied.max()) + working > self.capacity:
            fullest = np.unravel_index(int(self.occupied.argmax()), self.occupied.shape)
            others = [
                (self._next_use(name, number), int(each.num_bytes[fullest]), name)
                for name, each in self.residents.items()
                if name not in mine and each.num_bytes[fullest] > 0
            ]
            if others:
                self._spill(max(others)[2], number)
                continue
            return self._stream(number, step, mine)
        return step

    def _stream(self, number: int, step: Step, mine: set[str]) -> Step:
        """The step with its own largest values outside, as many as it takes."""
        reasons: list[str] = []
        while True:
            own = [name for name in mine if name in self.residents]
            if not own:
                raise self.costs.does_not_fit(step.kernel, reasons)
            largest = max(own, key=lambda name: (int(self.residents[name].num_bytes.max()), name))
            self._spill(largest, number)
            free = self.capacity - int(self.occupied.max())
            values = self.graph.values
            moved = with_outside(step, partial(self.is_outside_at, number))
            shares = [
                picked_share(step.kernel, access, step.mapping) for access in step.kernel.loaded
            ]
            load_costs = [
                self.costs.load(_source(each), each.boxes, values[each.value], share)
                for each, share in zip(moved.loads, shares, strict=True)
            ]
            store_costs = [self.costs.store(each, values[each.value]) for each in moved.stores]
            tiling = self.costs.tile(
                step.kernel, step.mapping, values, max(free, 0), moved.stores,
                load_costs, store_costs,
            )  # fmt: skip
            if isinstance(tiling, str):
                reasons.append(tiling)
            else:
                return replace(
                    step,
                    mapping=tiling.mapping,
                    buffers=tiling.buffers,
                    working_bytes=tiling.working_bytes,
                )

    def is_outside_at(self, number: int, name: str) -> bool:
        """Whether a value lies outside during a step."""
        return name in self.always_outside or any(
            each.has(number) for each in self.away.get(name, ())
        )

    def _next_use(self, name: str, number: int) -> int:
        later = [use for use in self.uses.get(name, ()) if use >= number]
        return later[0] if later else len(self.program.steps)

    def _spill(self, name: str, number: int) -> None:
        value = self.residents[name].value
        is_lasting = value.kind in _LASTING or name in self.graph.renews
        if is_lasting:
            self.always_outside |= {name, self.graph.renews.get(name, name)}
            self.always_outside |= {new for new, old in self.graph.renews.items() if old == name}
        else:
            self.away.setdefault(name, []).append(_Away(first=number))
        self.spills.append(
            Spill(
                value=name,
                num_bytes=value.num_bytes,
                out_before=-1 if is_lasting else number,
                back_before=None,
            )
        )
        self._remove(name)

    def check_outside(self) -> None:
        """Whether HBM holds what went out.

        Raises:
            BackendError: it does not, or there is none.
        """
        if not self.spills:
            return
        needed = sum(spill.num_bytes for spill in self.spills)
        memory = self.costs.fabric.memory
        capacity = 0.0 if memory is None else memory.capacity_bytes
        if needed > capacity:
            largest = max(self.spills, key=lambda spill: spill.num_bytes)
            raise BackendError(
                f"the step does not fit on machine {self.costs.machine.name}: "
                f"{needed / 1e9:.2f} GB do not fit into the nodes' memory at some time, and the "
                f"memory outside holds {capacity / 1e9:.2f} GB; the largest of it is "
                f"{largest.value} with {largest.num_bytes / 1e9:.2f} GB: take a smaller batch "
                "(data.batch_size), a narrower recipe (backend/recipe=cfp8), activation "
                "checkpointing, or a larger machine (backend/machine=d1_tray)"
            )


def _find_uses(program: TileProgram) -> Dict[str, Sequence[int]]:
    uses: dict[str, list[int]] = {}
    for number, step in enumerate(program.steps):
        for name in {each.value for each in (*step.loads, *step.stores)}:
            uses.setdefault(name, []).append(number)
    return uses


def _source(load: Transfer) -> Layout:
    assert load.source is not None, load.value
    return load.source


def with_outside(step: Step, is_outside: Callable[[str], bool]) -> Step:
    """The step with the transfers of values that lie outside."""

    def load(each: Transfer) -> Transfer:
        if not is_outside(each.value):
            return each
        return replace(each, pattern=Pattern.HBM_LOAD, source=_OUTSIDE)

    def store(each: Transfer) -> Transfer:
        if not is_outside(each.value):
            return each
        pattern = Pattern.HBM_STORE if each.pattern is Pattern.LOCAL else each.pattern
        return replace(each, pattern=pattern, target=_OUTSIDE)

    return replace(
        step,
        loads=tuple(load(each) for each in step.loads),
        stores=tuple(store(each) for each in step.stores),
    )
