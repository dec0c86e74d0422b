"""When every step of a program runs, and what is busy meanwhile.

Steps run in order, a kernel at a time over all nodes: the next one starts when what it reads is
there. Three things go on beside them:

- loads from HBM start a step early where the nodes' memory has room for their buffers, as much as
  these hold;
- sums over nodes whose result is not needed at once (gradients of weights) travel while the next
  kernels compute, as far as links are free;
- so do stores to HBM.

Every resource serves one after another, so no link or memory moves more than it can. All times are
MODELLED, in seconds from the start of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from fsdtrain_dojo.lowering.kernel import Value
from fsdtrain_dojo.lowering.mapping import Layout, Storage
from fsdtrain_dojo.lowering.program import Pattern, Step, TileProgram, Transfer
from fsdtrain_dojo.timing.cost import KernelTime, Resource, TransferCost
from fsdtrain_dojo.timing.costs import NOTHING, Costs, picked_share

_REDUCTIONS = (Pattern.REDUCE, Pattern.REDUCE_SCATTER, Pattern.ALL_REDUCE)
_BESIDE = (Resource.LINK, Resource.HBM, Resource.NETWORK)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A resource's work for one step."""

    resource: Resource
    step: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One step in the schedule.

    Args:
        start_s: of its kernel.
        end_s: of its kernel; results that still travel are there later.
        alone: its time by itself, stores included.
        exposed_s: by how much it makes the program longer; these add up to the whole.
    """

    start_s: float
    end_s: float
    alone: KernelTime
    exposed_s: float


@dataclass(frozen=True, kw_only=True)
class ProgramTime:
    """The schedule of a program.

    Args:
        seconds: from the start of the first step until all results are in place.
        steps: in order.
        intervals: of every resource, in the order in which they start.
        busy_s: sums of `intervals` by resource.
    """

    seconds: float
    steps: tuple[StepTime, ...]
    intervals: tuple[Interval, ...]
    busy_s: dict[Resource, float]


def schedule_steps(program: TileProgram, costs: Costs) -> ProgramTime:
    """The program's schedule on the machine of `costs`."""
    schedule = _Schedule(program, costs)
    for number, step in enumerate(program.steps):
        schedule.run(number, step)
    return schedule.result()


def num_pieces(step: Step) -> int:
    """Into how many pieces steps over time divide the results."""
    counts = step.mapping.steps
    return prod(count for loop, count in counts.items() if loop not in step.kernel.reductions)


def _busy_seconds(resource: Resource, time: KernelTime, fetches: Sequence[TransferCost]) -> float:
    """Of a step with all that it loads again, and of what comes back before it."""
    return time.busy_s.get(resource, 0.0) + sum(each.busy_s.get(resource, 0.0) for each in fetches)


def _first_seconds(step: Step, loads: Sequence[TransferCost]) -> float:
    """For what lies outside to fill the buffers of the first step over time."""
    busy_s, latency_s = 0.0, 0.0
    for access, cost in zip(step.kernel.loaded, loads, strict=True):
        if cost.busy_s.get(Resource.HBM):
            loops = {loop for span in access.spans for loop, _ in span.terms}
            counts = step.mapping.steps
            pieces = prod(count for loop, count in counts.items() if loop in loops)
            busy_s += cost.busy_s[Resource.HBM] / pieces
            latency_s = max(latency_s, cost.latency_s)
    return latency_s + busy_s


class _Schedule:
    def __init__(self, program: TileProgram, costs: Costs) -> None:
        self.program, self.costs = program, costs
        self.now = 0.0  # the end of the last kernel
        self.last_start = 0.0
        self.end = 0.0  # of all that has been started
        self.free = dict.fromkeys(_BESIDE, 0.0)
        self.ready: dict[str, float] = {}
        self.steps: list[StepTime] = []
        self.intervals: list[Interval] = []
        self.spills: dict[int, list[Transfer]] = {}
        self.fetches: dict[int, list[Transfer]] = {}
        self._note_spills()

    def _note_spills(self) -> None:
        """Values that have to be written out before a step, and those that come back."""
        places = {
            store.value: store.target for step in self.program.steps for store in step.stores
        } | dict(self.program.initial)
        made = {
            store.value: number
            for number, step in enumerate(self.program.steps)
            for store in step.stores
        }
        written = set()
        for spill in self.program.spills:
            place = places[spill.value]
            if spill.out_before < 0 or place is None or place.boxes is None:
                continue  # it has never been in the nodes
            if made.get(spill.value) != spill.out_before and spill.value not in written:
                self.spills.setdefault(spill.out_before, []).append(
                    Transfer(value=spill.value, pattern=Pattern.HBM_STORE, boxes=place.boxes)
                )
            written.add(spill.value)
            if spill.back_before is not None:
                back = Transfer(
                    value=spill.value,
                    pattern=Pattern.HBM_LOAD,
                    boxes=place.boxes,
                    source=Layout(storage=Storage.HBM),
                )
                self.fetches.setdefault(spill.back_before, []).append(back)

    def run(self, number: int, step: Step) -> None:
        """Put one step behind those before it."""
        values = self.program.graph.values
        for transfer in self.spills.get(number, ()):
            self._send(number, transfer, self.now, self.now, 1)
        loads = [self._load(each, step, index) for index, each in enumerate(step.loads)]
        fetches = [self._fetch(each) for each in self.fetches.get(number, ())]
        later = [each for each in step.stores if self._can_travel(step, each)]
        stores = [self.costs.store(each, values[each.value]) for each in step.stores]
        at_once = [
            NOTHING if self._can_travel(step, each) else cost
            for each, cost in zip(step.stores, stores, strict=True)
        ]
        time = self.costs.time(step, loads, at_once, values)
        start = max([self.now, *(self.ready.get(each.value, 0.0) for each in step.loads)])
        end = start + time.seconds
        outer = [*(cost for cost in loads if cost.busy_s.get(Resource.HBM)), *fetches]
        latency_s = max((cost.latency_s for cost in fetches), default=0.0)
        hbm_s = _busy_seconds(Resource.HBM, time, fetches)
        in_turn = max(end, max(start, self.free[Resource.HBM]) + hbm_s + latency_s * bool(hbm_s))
        if outer and number > 0 and self._has_room(number):
            # What its buffers hold is there early; the rest comes as they are emptied.
            inner = [NOTHING if cost.busy_s.get(Resource.HBM) else cost for cost in loads]
            waited = start + self.costs.time(step, inner, at_once, values).seconds
            there = self._occupy(Resource.HBM, number, hbm_s, self.last_start)
            there += max(cost.latency_s for cost in outer)
            end = min(in_turn, max(waited, there, end - _first_seconds(step, loads)))
        else:
            self._occupy(Resource.HBM, number, hbm_s, start)
            end = in_turn
        link_s = _busy_seconds(Resource.LINK, time, fetches)
        end = max(end, self._occupy(Resource.LINK, number, link_s, start))
        for resource in (Resource.MATRIX, Resource.VECTOR, Resource.SRAM_PORT):
            busy = time.busy_s.get(resource, 0.0)
            if busy:
                self._note(resource, number, start, start + busy)
        for transfer in later:
            # The first pieces of a result are there before the last ones are computed.
            pieces = num_pieces(step)
            self._send(number, transfer, start + (end - start) / pieces, end, pieces)
        alone = self.costs.time(step, loads, stores, values) if later else time
        self.steps.append(StepTime(start_s=start, end_s=end, alone=alone, exposed_s=end - self.now))
        self.last_start, self.now = start, end
        self.end = max(self.end, end)

    def _load(self, load: Transfer, step: Step, index: int) -> TransferCost:
        assert load.source is not None
        share = picked_share(step.kernel, step.kernel.loaded[index], step.mapping)
        return self.costs.load(load.source, load.boxes, self._value(load), share)

    def _fetch(self, transfer: Transfer) -> TransferCost:
        assert transfer.source is not None
        return self.costs.load(transfer.source, transfer.boxes, self._value(transfer), 1.0)

    def _value(self, transfer: Transfer) -> Value:
        return self.program.graph.values[transfer.value]

    def _can_travel(self, step: Step, store: Transfer) -> bool:
        """Whether a result is on its way while the next kernels run."""
        if not self.costs.fabric.keeps_values:
            return False
        if step.kernel.epilogue and store.pattern in _REDUCTIONS:
            return False  # the epilogue computes with the sum, and others with its results
        return store.pattern in _REDUCTIONS or store.pattern is Pattern.HBM_STORE

    def _has_room(self, number: int) -> bool:
        """Whether the buffers of a step fit beside all of the step before it."""
        if not self.costs.fabric.keeps_values:
            return False
        before = self.program.sram_bytes[number - 1] if self.program.sram_bytes else 0
        capacity = self.costs.machine.node.memory.capacity_bytes
        return before + self.program.steps[number].working_bytes <= capacity

    def _occupy(self, resource: Resource, number: int, busy: float, earliest: float) -> float:
        """Let a resource do this work as soon as it is free; when it has ended."""
        if not busy:
            return 0.0
        start = max(earliest, self.free[resource])
        self._note(resource, number, start, start + busy)
        self.free[resource] = start + busy
        return start + busy

    def _send(
        self, number: int, transfer: Transfer, earliest: float, made: float, pieces: int
    ) -> None:
        """Let a result travel from `earliest` on, the last piece after all is `made`."""
        cost = self.costs.store(transfer, self._value(transfer))
        start = max([earliest, *(self.free[each] for each in _BESIDE if cost.busy_s.get(each))])
        there = max(start + cost.seconds, made + cost.latency_s + cost.seconds / pieces)
        for resource in _BESIDE:
            busy = cost.busy_s.get(resource, 0.0)
            if busy:
                self._note(resource, number, start, start + busy)
                self.free[resource] = start + busy
        self.ready[transfer.value] = there
        self.end = max(self.end, there)

    def _note(self, resource: Resource, number: int, start: float, end: float) -> None:
        self.intervals.append(Interval(resource=resource, step=number, start_s=start, end_s=end))

    def result(self) -> ProgramTime:
        busy: dict[Resource, float] = {}
        for each in self.intervals:
            busy[each.resource] = busy.get(each.resource, 0.0) + each.end_s - each.start_s
        steps = self.steps
        if steps and self.end > self.now:
            # What still travels when the last kernel has ended counts for that.
            last = steps[-1]
            steps = [*steps[:-1], replace(last, exposed_s=last.exposed_s + self.end - self.now)]
        return ProgramTime(
            seconds=self.end,
            steps=tuple(steps),
            intervals=tuple(sorted(self.intervals, key=lambda each: each.start_s)),
            busy_s=busy,
        )
