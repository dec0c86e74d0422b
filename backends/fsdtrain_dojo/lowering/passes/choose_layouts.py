"""Give every kernel its nodes and every value its place: the search for mappings.

    y = conv(x, w)   =>   x stays divided by n over rows, w is multicast along rows to k over
                          columns, y lies divided by (n, k), 12.1 us, bound by matrix

Kernels are placed in program order, each with the mapping that is quickest given where its values
lie by then, transfers included; that fixes where its results lie. Mappings of equal kernels with
equally placed values are looked up. Weights and what belongs to them lie spread over all nodes
(`finish.home_division`) and go back there. What does not fit is left to `allocate_sram`.
"""

import gc
import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

from fsdtrain_dojo.lowering.candidates import divisions, follow, largest_share
from fsdtrain_dojo.lowering.chain import Chain
from fsdtrain_dojo.lowering.chain_roles import chains_by_start
from fsdtrain_dojo.lowering.finish import (
    Finish,
    finishes,
    home_division,
    settled,
    written_division,
)
from fsdtrain_dojo.lowering.held import Held
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Kernel,
    KernelGraph,
    Phase,
    Unit,
    Value,
    ValueKind,
)
from fsdtrain_dojo.lowering.keys import boxes_key, division_key, key_of, signature
from fsdtrain_dojo.lowering.mapping import (
    Boxes,
    Layout,
    Mapping,
    Storage,
)
from fsdtrain_dojo.lowering.place_chain import ChainChoices, ChainPlacer
from fsdtrain_dojo.lowering.program import Pattern, Step, TileProgram, Transfer
from fsdtrain_dojo.lowering.uses import find_last_uses, find_readers
from fsdtrain_dojo.lowering.words import describe_choice
from fsdtrain_dojo.timing.cost import KernelTime, Resource, TransferCost
from fsdtrain_dojo.timing.costs import NOTHING, Costs, picked_share
from fsdtrain_dojo.timing.transfer_cost import classify, has_own

# Mappings of one kernel whose transfers are looked at, beside those that follow its values.
MAX_EVALUATIONS = {Unit.MATRIX: 16, Unit.VECTOR: 10, Unit.MOVE: 10}
GROUP_SIZE = 4  # of these, after which those are passed over that the best one beats in any case
NUM_EXPLAINED = 4
# Numbers that all nodes need lie at all of them, and are computed by each for itself.
EVERYWHERE_BYTES = 64


@contextmanager
def _without_collector() -> Iterator[None]:
    """Without looks for reference cycles: the search makes none, but many objects that live on.

    Going through all objects of the process again and again would take a sixth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collector()
def choose_layouts(graph: KernelGraph, costs: Costs) -> TileProgram:
    """The program with a mapping for every kernel and a layout for every value.

    Raises:
        BackendError: a kernel whose smallest share does not fit into a node, or a format that the
            machine lacks.
    """
    walk = _Walk(graph, costs)
    initial = dict(walk.layouts)
    chains = chains_by_start(graph)
    steps: list[Step] = []
    while len(steps) < len(graph.kernels):
        number = len(steps)
        if number in chains:
            steps += walk.place_chain(number, chains[number])
        else:
            steps.append(walk.place(number, graph.kernels[number]))
    if not costs.fabric.keeps_values:
        steps = _with_needed_stores(graph, steps)
    return TileProgram(
        graph=graph, grid=walk.grid, initial=initial, steps=tuple(steps), last_use=walk.last_use
    )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a value is: its layout, how that divides its dimensions, and a key that says both."""

    layout: Layout
    division: Mapping | None
    key: object


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A mapping with all that follows from it, for one kernel and all that are equal."""

    mapping: Mapping
    finish: tuple[Finish, ...]
    loads: tuple[tuple[Pattern, Boxes], ...]
    working_bytes: int
    buffers: int
    why: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Draft:
    """A mapping with its transfers, not yet divided over time, costed one after another.

    Args:
        mapping: over nodes.
        finish: where the results lie in the end.
        boxes: of what is loaded.
        stores: of the results.
        compute_s: that the largest share takes at least.
        load_costs: of every load; of those in `by_size` the least that they can be.
        by_size: numbers of the loads that are not costed yet, the largest last.
        is_short: whether latencies may take longer than all else.
        late: if so, of the loads those whose latency is not known yet, though quick to tell.
        store_costs: of the first stores.
        later_s: of `least_s`, what it takes when the optimiser reads the results.
        least_s: that it takes in any case, as far as is known.
        is_complete: whether all transfers are costed.
    """

    mapping: Mapping
    finish: tuple[Finish, ...]
    boxes: list[Boxes]
    stores: tuple[Transfer, ...]
    compute_s: float
    load_costs: list[TransferCost]
    by_size: list[int]
    is_short: bool
    late: list[int]
    store_costs: list[TransferCost] = field(default_factory=list)
    later_s: float = 0.0
    least_s: float
    is_complete: bool = False


class _Walk:
    """Through the program, remembering where everything is."""

    def __init__(self, graph: KernelGraph, costs: Costs) -> None:
        self.graph, self.costs, self.machine = graph, costs, costs.machine
        self.grid = self.costs.fabric.grid
        self.places: dict[str, _Place] = {}
        self.last_use = find_last_uses(graph)
        self.readers = find_readers(graph)
        self.resident_bytes = 0  # at the fullest node, if no value lay where another does
        self.held = Held(self.costs)
        self._chosen: dict[object, _Choice] = {}
        self._placed_chains: dict[object, ChainChoices] = {}
        made = {access.value for kernel in graph.kernels for access in kernel.stored}
        made |= {name for kernel in graph.kernels for name in kernel.hidden}
        for name, value in graph.values.items():
            if name not in made:
                self._put(value, self._initial_division(value), None)

    @property
    def layouts(self) -> dict[str, Layout]:
        return {name: place.layout for name, place in self.places.items()}

    def _initial_division(self, value: Value) -> Mapping:
        if value.num_bytes <= EVERYWHERE_BYTES:
            return Mapping(is_everywhere=True)
        return home_division(value.shape, self.grid)

    def _put(self, value: Value, division: Mapping | None, boxes: Boxes | None) -> None:
        if not self.costs.fabric.keeps_values:
            self.places[value.name] = _Place(
                layout=Layout(storage=Storage.HBM), division=None, key="HBM"
            )
            return
        if boxes is None:
            assert division is not None
            boxes = self.costs.divided(value.shape, division)
        layout = Layout(storage=Storage.SRAM, boxes=boxes)
        key = (value.shape, division_key(division)) if division else (value.shape, boxes_key(boxes))
        self.places[value.name] = _Place(layout=layout, division=division, key=key)
        self.resident_bytes += layout.peak_elements * value.element_bytes

    def place(self, number: int, kernel: Kernel) -> Step:
        """The kernel's step; notes where its results lie."""
        values = self.graph.values
        budget = self._budget()
        self.held.begin(kernel)
        key = (
            signature(kernel, values),
            tuple(self.places[access.value].key for access in kernel.loaded),
            self.held.key(kernel),
            budget,
            kernel.phase,
            tuple(self._use_key(access.value) for access in kernel.stored),
        )
        if key not in self._chosen:
            self._chosen[key] = self._search(kernel, budget)
        choice = self._chosen[key]
        step = self._step(kernel, choice)
        for access, finish in zip(settled(kernel, choice.mapping), choice.finish, strict=True):
            if access.value not in kernel.hidden:
                self._put(values[access.value], finish.division, finish.boxes)
        self.held.add(step, values)
        self._forget(number, kernel)
        return step

    def _forget(self, number: int, kernel: Kernel, passed: Collection[str] = ()) -> None:
        """Count what nobody needs any more no longer; `passed` has never been counted."""
        for name in {access.value for access in (*kernel.loaded, *kernel.stored)}.difference(
            passed
        ):
            if self.last_use.get(name) == number and self.costs.fabric.keeps_values:
                num_bytes = self.graph.values[name].element_bytes
                self.resident_bytes -= self.places[name].layout.peak_elements * num_bytes

    def place_chain(self, first: int, chain: Chain) -> tuple[Step, ...]:
        """The steps of a chain's kernels; notes where what it leaves lies."""
        values = self.graph.values
        kernels = self.graph.kernels[first : first + len(chain.kernels)]
        self.held.end()
        budget = self._budget()
        key = (
            tuple(signature(kernel, values) for kernel in kernels),
            tuple(
                self.places[access.value].key if access.value in self.places else None
                for kernel in kernels
                for access in kernel.loaded
            ),
            chain.axes,
            budget,
        )
        known = self._placed_chains.get(key)
        placer = ChainPlacer(
            chain, kernels, values, self.costs, source=lambda name: self.places[name].layout
        )
        if known is None:
            known = placer.choose(budget) or placer.choose(self.machine.node.memory.capacity_bytes)
        if not known:
            raise self.costs.does_not_fit(kernels[0], [placer.why_not])
        self._placed_chains[key] = known
        steps = placer.steps(known)
        for number, step in enumerate(steps, first):
            for access, store in zip(step.kernel.stored, step.stores, strict=True):
                if access.value not in chain.passed:
                    division = written_division(step.kernel, access, step.mapping)
                    self._put(values[access.value], division, store.boxes)
            self._forget(number, step.kernel, chain.passed)
        return steps

    def _use_key(self, name: str) -> object:
        """What is to become of a result, as far as it decides where that should lie."""
        old = self.places.get(self.graph.renews.get(name, ""))
        return (
            None if old is None else old.key,
            self._is_for_optimizer(name),
            self.held.is_private(name, self.readers),
        )

    def _is_for_optimizer(self, name: str) -> bool:
        return any(each.phase is Phase.OPTIMIZER for each in self.readers.get(name, ()))

    def _step(self, kernel: Kernel, choice: _Choice) -> Step:
        loads = tuple(
            Transfer(
                value=access.value,
                pattern=pattern,
                boxes=boxes,
                source=self._source(access, boxes),
            )
            for access, (pattern, boxes) in zip(kernel.loaded, choice.loads, strict=True)
        )
        return Step(
            kernel=kernel,
            mapping=choice.mapping,
            loads=loads,
            stores=tuple(self._stores(kernel, choice.mapping, choice.finish)),
            working_bytes=choice.working_bytes,
            buffers=choice.buffers,
            is_continued=self.held.is_continued,
            why=choice.why,
        )

    def _source(self, access: Access, boxes: Boxes) -> Layout:
        """Where a kernel finds what it reads: in its nodes, if the op before has left it there."""
        return self.held.layout(access.value, boxes) or self.places[access.value].layout

    def _stores(
        self, kernel: Kernel, mapping: Mapping, finish: Sequence[Finish]
    ) -> Iterator[Transfer]:
        for access, each in zip(settled(kernel, mapping), finish, strict=True):
            boxes = self.costs.boxes(kernel, access, mapping, self.graph.values[access.value])
            pattern, target = each.pattern, Layout(storage=Storage.SRAM, boxes=each.boxes)
            stays = pattern is Pattern.LOCAL and self.held.is_private(access.value, self.readers)
            if not self.costs.fabric.keeps_values and not stays:
                pattern = Pattern.HBM_STORE if pattern is Pattern.LOCAL else pattern
                target = Layout(storage=Storage.HBM)
            yield Transfer(value=access.value, pattern=pattern, boxes=boxes, target=target)

    def _budget(self) -> int:
        """Bytes of a node for buffers: what is free, in coarse steps so that choices are reused."""
        capacity = self.machine.node.memory.capacity_bytes
        free = max(capacity - self.resident_bytes, 0)
        eighths = max(min(free * 8 // capacity, 8), 2)
        return capacity * eighths // 8

    def _search(self, kernel: Kernel, budget: int) -> _Choice:
        """The quickest mapping.

        Raises:
            BackendError: none fits.
        """
        weighed: list[tuple[float, int, _Choice, KernelTime]] = []
        reasons: list[str] = []
        best = float("inf")
        for candidates in self._candidates(kernel):
            drafts = [
                self._draft(kernel, mapping, finish, compute_s)
                for compute_s, mapping in candidates
                if compute_s < best
                for finish in self._finishes(kernel, mapping)
            ]
            # The quickest first, as far as their costs are known: most are passed over half costed.
            queue = [(draft.least_s, number, draft) for number, draft in enumerate(drafts)]
            heapq.heapify(queue)
            while queue and queue[0][0] < best:
                _, number, draft = heapq.heappop(queue)
                if not draft.is_complete:
                    self._cost_next(kernel, draft)
                    heapq.heappush(queue, (draft.least_s, number, draft))
                    continue
                found = self._evaluate(kernel, draft, budget)
                if isinstance(found, str):
                    reasons.append(found)
                    continue
                seconds = found[1].seconds + draft.later_s
                weighed.append((seconds, len(weighed), *found))
                best = min(best, seconds)
        if not weighed:
            capacity = self.machine.node.memory.capacity_bytes
            if budget < capacity:  # others have to make room
                return self._search(kernel, capacity)
            raise self.costs.does_not_fit(kernel, reasons)
        weighed.sort()
        chosen = weighed[0][2]
        why = tuple(
            describe_choice(kernel, each.mapping, time)
            for _, _, each, time in weighed[:NUM_EXPLAINED]
        )
        loads = tuple(
            (classify(self._source(access, boxes), boxes), boxes)
            for access, (_, boxes) in zip(kernel.loaded, chosen.loads, strict=True)
        )
        return replace(chosen, why=why, loads=loads)

    def _candidates(self, kernel: Kernel) -> Iterator[list[tuple[float, Mapping]]]:
        """Mappings with the least time that their largest share takes, in groups.

        First those that follow a value, which are often the best, and let others be passed over.
        """
        if self._is_everywhere(kernel):
            yield [(0.0, Mapping(is_everywhere=True))]
            return
        followed = self._followed(kernel)
        if kernel.phase is Phase.OPTIMIZER and followed:
            yield [(0.0, followed[0])]
            return
        followed += self._renewing(kernel)
        values = self.graph.values

        @cache
        def least_of(sizes: tuple[int, ...]) -> float:
            return self.costs.least_seconds(kernel, values, sizes)

        def least(mapping: Mapping) -> float:
            return least_of(largest_share(kernel, mapping))

        yield [(least(mapping), mapping) for mapping in followed]
        divided = divisions(kernel, self.grid, self.costs.grains(kernel))
        ranked = heapq.nsmallest(
            MAX_EVALUATIONS[kernel.unit],
            ((least(mapping), number, mapping) for number, mapping in enumerate(divided)),
        )
        others = [(compute_s, each) for compute_s, _, each in ranked if each not in followed]
        for first in range(0, len(others), GROUP_SIZE):
            yield others[first : first + GROUP_SIZE]

    def _is_everywhere(self, kernel: Kernel) -> bool:
        """Whether all that the kernel touches is a few numbers that every node has."""
        values = self.graph.values
        return all(
            values[access.value].num_bytes <= EVERYWHERE_BYTES for access in kernel.stored
        ) and all(self._lies_everywhere(access.value) for access in kernel.loaded)

    def _lies_everywhere(self, name: str) -> bool:
        division = self.places[name].division
        return division is not None and division.is_everywhere

    def _followed(self, kernel: Kernel) -> list[Mapping]:
        """Mappings after the values that are read, the largest first; weights in the optimiser."""
        values = self.graph.values

        def rank(access: Access) -> tuple[bool, int]:
            value = values[access.value]
            lasting = value.kind in (ValueKind.WEIGHT, ValueKind.STATE)
            return (kernel.phase is Phase.OPTIMIZER and lasting, value.num_bytes)

        found: list[Mapping] = []
        for access in sorted(kernel.loaded, key=rank, reverse=True)[:4]:
            division = self.places[access.value].division
            if division is None or division.is_everywhere:
                continue
            mapping = follow(kernel, access, division)
            if mapping is not None and mapping not in found:
                found.append(mapping)
        return found

    def _renewing(self, kernel: Kernel) -> list[Mapping]:
        """Mappings that leave new weights and states where the old ones lie, or can move them."""
        found: list[Mapping] = []
        for access in kernel.stored:
            old = self.places.get(self.graph.renews.get(access.value, ""))
            if old is None or old.division is None:
                continue
            mapping = None
            if not old.division.is_everywhere:
                mapping = follow(kernel, access, old.division)
            # What one node makes can always go there; of divided sums not every one can.
            for each in (mapping, Mapping()):
                if each is not None and each not in found:
                    found.append(each)
        return found

    def _finishes(self, kernel: Kernel, mapping: Mapping) -> list[tuple[Finish, ...]]:
        """Ways in which all writes of a kernel can end up; each write in the same way."""
        own = {each.value for each in kernel.writes}
        accesses = settled(kernel, mapping)
        options = [list(self._options(kernel, access, mapping)) for access in accesses]
        patterns = set.intersection(*({each.pattern for each in option} for option in options))
        found = []
        for pattern in sorted(patterns, key=lambda each: each.value):
            chosen = list[Finish]()
            for option, access in zip(options, accesses, strict=True):
                each = next(each for each in option if each.pattern is pattern)
                if access.value not in own:  # computed from what has been put together
                    each = replace(each, pattern=Pattern.LOCAL)
                at_old_place = self._at_old_place(access.value, each)
                if at_old_place is not None:
                    chosen.append(at_old_place)
            if len(chosen) == len(accesses):
                found.append(tuple(chosen))
        return found

    def _options(self, kernel: Kernel, access: Access, mapping: Mapping) -> Iterator[Finish]:
        value = self.graph.values[access.value]
        boxes = self.costs.boxes(kernel, access, mapping, value)
        return finishes(kernel, access, value, mapping, boxes)

    def _at_old_place(self, name: str, finish: Finish) -> Finish | None:
        """A new weight or state goes where the old one lies; see `KernelGraph.renews`.

        None: a sum does not, for nodes that put it together are others.
        """
        old = self.places.get(self.graph.renews.get(name, ""))
        if old is None or old.layout.boxes is None:
            return finish
        if finish.division is not None and division_key(finish.division) == key_of(old.division):
            return finish
        pattern = finish.pattern
        if not has_own(finish.boxes, old.layout.boxes):
            if pattern is not Pattern.LOCAL:
                return None
            pattern = Pattern.SCATTER
        return Finish(pattern=pattern, boxes=old.layout.boxes, division=old.division)

    def _draft(
        self, kernel: Kernel, mapping: Mapping, finish: tuple[Finish, ...], compute_s: float
    ) -> _Draft:
        """A mapping none of whose transfers is costed yet."""
        values, costs = self.graph.values, self.costs
        boxes = [
            costs.boxes(kernel, access, mapping, values[access.value]) for access in kernel.loaded
        ]
        sources = [
            self._source(access, each) for access, each in zip(kernel.loaded, boxes, strict=True)
        ]
        arriving_s = [
            costs.least_arriving_s(
                source, each, values[access.value], picked_share(kernel, access, mapping)
            )
            for access, source, each in zip(kernel.loaded, sources, boxes, strict=True)
        ]
        by_size = sorted(range(len(boxes)), key=lambda number: arriving_s[number])
        least_s = max(compute_s, sum(arriving_s))
        is_short = least_s < costs.farthest_s
        return _Draft(
            mapping=mapping,
            finish=finish,
            boxes=boxes,
            stores=tuple(self._stores(kernel, mapping, finish)),
            compute_s=compute_s,
            load_costs=[
                TransferCost(seconds=each, latency_s=0.0, busy_s={Resource.LINK: each})
                for each in arriving_s
            ],
            by_size=by_size,
            is_short=is_short,
            late=[
                number for number in by_size if is_short and sources[number].storage is Storage.SRAM
            ],
            least_s=least_s,
        )

    def _cost_next(self, kernel: Kernel, draft: _Draft) -> None:
        """More of what a draft's transfers cost, what tells most first.

        That is the longest load or, where latencies count, these and the sums over nodes.
        """
        values, costs = self.graph.values, self.costs
        if draft.late:
            self._cost_load(kernel, draft, draft.late.pop(), costs.least_load)
        elif draft.by_size and not draft.is_short:
            self._cost_load(kernel, draft, draft.by_size.pop(), costs.load)
        elif len(draft.store_costs) < len(draft.stores):
            store = draft.stores[len(draft.store_costs)]
            draft.store_costs.append(costs.store(store, values[store.value]))
        elif draft.by_size:
            self._cost_load(kernel, draft, draft.by_size.pop(), costs.load)
        else:
            draft.later_s = self._later_seconds(kernel, draft.mapping, draft.finish)
            draft.is_complete = True
        least_s = costs.least_with_transfers(draft.compute_s, draft.load_costs, draft.store_costs)
        draft.least_s = least_s + draft.later_s

    def _cost_load(
        self,
        kernel: Kernel,
        draft: _Draft,
        number: int,
        cost: Callable[[Layout, Boxes, Value, float], TransferCost],
    ) -> None:
        access, boxes = kernel.loaded[number], draft.boxes[number]
        share = picked_share(kernel, access, draft.mapping)
        source = self._source(access, boxes)
        draft.load_costs[number] = cost(source, boxes, self.graph.values[access.value], share)

    def _later_seconds(self, kernel: Kernel, mapping: Mapping, finish: tuple[Finish, ...]) -> float:
        """To bring gradients of weights to where these lie."""
        if kernel.phase is not Phase.BACKWARD or not self.costs.fabric.keeps_values:
            return 0.0
        total = 0.0
        for access, each in zip(settled(kernel, mapping), finish, strict=True):
            if self._is_for_optimizer(access.value):
                value = self.graph.values[access.value]
                home = self.costs.divided(value.shape, home_division(value.shape, self.grid))
                source = Layout(storage=Storage.SRAM, boxes=each.boxes)
                total += self.costs.load(source, home, value, 1.0).seconds
        return total

    def _evaluate(
        self, kernel: Kernel, draft: _Draft, budget: int
    ) -> tuple[_Choice, KernelTime] | str:
        """The choice with its time, or why it does not fit."""
        values = self.graph.values
        tiling = self.costs.tile(
            kernel,
            draft.mapping,
            values,
            budget,
            draft.stores,
            draft.load_costs,
            draft.store_costs,
        )
        if isinstance(tiling, str):
            return tiling
        loads = tuple(
            (Pattern.LOCAL if cost is NOTHING else Pattern.SCATTER, boxes)
            for cost, boxes in zip(draft.load_costs, draft.boxes, strict=True)
        )
        choice = _Choice(
            mapping=tiling.mapping,
            finish=draft.finish,
            loads=loads,
            working_bytes=tiling.working_bytes,
            buffers=tiling.buffers,
        )
        step = self._step(kernel, choice)
        return choice, self.costs.time(step, draft.load_costs, draft.store_costs, values)


def _with_needed_stores(graph: KernelGraph, steps: Sequence[Step]) -> list[Step]:
    """What was to stay in the nodes for kernels of the same op, and is needed outside after all."""
    outside = Layout(storage=Storage.HBM)
    needed = {load.value for step in steps for load in step.loads if load.source == outside}
    needed |= {name for name, value in graph.values.items() if value.is_output} | set(graph.renews)

    def store(each: Transfer) -> Transfer:
        if each.value not in needed or each.target == outside:
            return each
        assert each.pattern is Pattern.LOCAL, each.value
        return replace(each, pattern=Pattern.HBM_STORE, target=outside)

    return [replace(step, stores=tuple(map(store, step.stores))) for step in steps]
