"""The fluid simulation, compiled; `flow_model` says what it models.

Between two events every flow has one rate, found by filling: the flow that all its resources
together give least keeps that rate and leaves the rest to the others, and so on (Bertsekas and
Gallager, Data Networks, 6.5.2, with weights). Units: packets and clocks.
"""

import heapq
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.arithmetic.compiled import compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Events = list[tuple[Any, np.int64]]  # a heap of start clocks and flows

_SAME_MOMENT = 1e-9  # relative; sums of rates differ in their last bits
_NEXT_TO_NOTHING = 0.005  # of a resource
_MOST_ROUNDS = 8


class Resources(NamedTuple):
    """Flow f shares resource[offsets[f]:offsets[f + 1]], each of which moves packets_per_clock.

    `way` numbers the pairs of a resource and the one before it on a flow's route. With `by_port`
    a resource is shared evenly by the ways into it, and each by the flows that come it; without,
    evenly by flows.
    """

    offsets: Ints
    resource: Ints
    way: Ints
    num_ways: int
    packets_per_clock: Floats
    by_port: bool


class Program(NamedTuple):
    """The flows: sizes, earliest starts, who waits for whom.

    Flow f releases release_flow[release_offsets[f]:release_offsets[f + 1]]; its delivery comes
    `tail` clocks after its last packet has left.
    """

    num_packets: Floats
    start: Floats
    delay: Floats
    num_waits: Ints
    release_offsets: Ints
    release_flow: Ints
    release_by_delivery: NDArray[np.bool_]
    tail: Floats


class _Scratch(NamedTuple):
    """Room for filling.

    Per flow, the resource that sets its rate; per resource, how many active flows it does that
    for, how many ways lead in, what is left, and for how much weight; per way, its active flows.
    """

    limit: Ints
    num_limited: Ints
    num_ways_in: Ints
    left: Floats
    weight_left: Floats
    flows_on_way: Ints


@compiled
def _weight(entry: int, resources: Resources, scratch: _Scratch) -> float:
    """What a flow weighs at one of its resources."""
    if not resources.by_port:
        return 1.0
    ways_in = scratch.num_ways_in[resources.resource[entry]]
    return 1.0 / float(ways_in * scratch.flows_on_way[resources.way[entry]])


@compiled
def _count_flows(active: Ints, resources: Resources, scratch: _Scratch) -> None:
    """Count the ways into every resource that these flows use, and their weights."""
    for flow in active:
        for i in range(resources.offsets[flow], resources.offsets[flow + 1]):
            resource = resources.resource[i]
            scratch.flows_on_way[resources.way[i]] = 0
            scratch.num_ways_in[resource] = 0
            scratch.weight_left[resource] = 0.0
    for flow in active:
        for i in range(resources.offsets[flow], resources.offsets[flow + 1]):
            if scratch.flows_on_way[resources.way[i]] == 0:
                scratch.num_ways_in[resources.resource[i]] += 1
            scratch.flows_on_way[resources.way[i]] += 1
    for flow in active:
        for i in range(resources.offsets[flow], resources.offsets[flow + 1]):
            scratch.weight_left[resources.resource[i]] += _weight(i, resources, scratch)


@compiled
def _least_share(flow: int, resources: Resources, scratch: _Scratch) -> float:
    """The rate that what is left of a flow's resources allows it; notes which of them sets it."""
    least = np.inf
    for i in range(resources.offsets[flow], resources.offsets[flow + 1]):
        resource = resources.resource[i]
        weight = _weight(i, resources, scratch)
        share = scratch.left[resource] * weight / max(scratch.weight_left[resource], weight)
        if share < least:
            least = share
            scratch.limit[flow] = resource
    return max(least, _SAME_MOMENT)  # never 0, whatever the sums lost


@compiled
def _settle(active: Ints, resources: Resources, scratch: _Scratch, rate: Floats) -> None:
    """Add to the rate of every active flow its fair share of what is left."""
    heap = [(_least_share(flow, resources, scratch), flow) for flow in active]
    heapq.heapify(heap)
    while len(heap) > 0:
        was, flow = heapq.heappop(heap)
        share = _least_share(flow, resources, scratch)
        # Shares only grow while others are settled, so the least of the old ones is looked at
        # again before it counts.
        if share > was * (1.0 + _SAME_MOMENT) and len(heap) > 0 and share > heap[0][0]:
            heapq.heappush(heap, (share, flow))
            continue
        rate[flow] += share
        for i in range(resources.offsets[flow], resources.offsets[flow + 1]):
            resource = resources.resource[i]
            scratch.left[resource] = max(scratch.left[resource] - share, 0.0)
            scratch.weight_left[resource] -= _weight(i, resources, scratch)


@compiled
def _share_left(resource: int, resources: Resources, scratch: _Scratch) -> float:
    return float(scratch.left[resource] / resources.packets_per_clock[resource])


@compiled
def _fullest(flow: int, resources: Resources, scratch: _Scratch) -> int:
    """The resource of a flow that has the least share of itself left."""
    best = resources.resource[resources.offsets[flow]]
    for i in range(resources.offsets[flow], resources.offsets[flow + 1]):
        other = resources.resource[i]
        if _share_left(other, resources, scratch) < _share_left(best, resources, scratch):
            best = other
    return int(best)


@compiled
def _fill_rates(active: Ints, resources: Resources, scratch: _Scratch, rate: Floats) -> None:
    """Write the fair rate of every active flow, in packets a clock.

    Shares by port can leave something over (a flow that gets little elsewhere does not take its
    part), which is shared out again among those that can take it until next to nothing is left.
    """
    for flow in active:
        rate[flow] = 0.0
        for i in range(resources.offsets[flow], resources.offsets[flow + 1]):
            scratch.left[resources.resource[i]] = resources.packets_per_clock[resources.resource[i]]
            scratch.num_limited[resources.resource[i]] = 0
    growing = active.copy()
    for _ in range(_MOST_ROUNDS):
        _count_flows(growing, resources, scratch)
        _settle(growing, resources, scratch, rate)
        num_growing = 0
        for flow in growing:
            fullest = _fullest(flow, resources, scratch)
            if _share_left(scratch.limit[flow], resources, scratch) > _NEXT_TO_NOTHING:
                scratch.limit[flow] = fullest
            if _share_left(fullest, resources, scratch) > _NEXT_TO_NOTHING:
                growing[num_growing] = flow
                num_growing += 1
        growing = growing[:num_growing]
        if num_growing == 0:
            break
    for flow in active:
        scratch.num_limited[scratch.limit[flow]] += 1


@compiled
def _make_scratch(resources: Resources) -> _Scratch:
    count = len(resources.packets_per_clock)
    return _Scratch(
        np.zeros(len(resources.offsets) - 1, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.float64),
        np.zeros(count, np.float64),
        np.zeros(resources.num_ways, np.int64),
    )


@compiled
def _frees_others(gone: Ints, resources: Resources, scratch: _Scratch) -> bool:
    """Whether flows that leave had part of what limits one that stays.

    If not, the rates of those that stay are max-min fair still.
    """
    for flow in gone:
        scratch.num_limited[scratch.limit[flow]] -= 1
    for flow in gone:
        for i in range(resources.offsets[flow], resources.offsets[flow + 1]):
            if scratch.num_limited[resources.resource[i]] > 0:
                return True
    return False


@compiled
def _release(
    flow: int, left_at: float, program: Program, start: Floats, finish: Floats, waits: Ints,
    queue: Events,
) -> None:  # fmt: skip
    """Let go who waits for a flow that has left its sender."""
    finish[flow] = left_at + program.tail[flow]
    for i in range(program.release_offsets[flow], program.release_offsets[flow + 1]):
        later = program.release_flow[i]
        moment = left_at
        if program.release_by_delivery[i]:
            moment = finish[flow] + program.delay[later]
        start[later] = max(start[later], moment)
        waits[later] -= 1
        if waits[later] == 0:
            heapq.heappush(queue, (start[later], later))


@compiled
def run_flows(program: Program, resources: Resources, tolerance: float) -> tuple[Floats, Floats]:
    """Start and finish of every flow, in clocks."""
    count = len(program.start)
    start, finish = program.start.copy(), np.zeros(count, np.float64)
    waits, left = program.num_waits.copy(), program.num_packets.copy()
    rate = np.zeros(count, np.float64)
    scratch = _make_scratch(resources)
    queue = [(start[flow], np.int64(flow)) for flow in range(count) if waits[flow] == 0]
    heapq.heapify(queue)
    active, gone = np.empty(count, np.int64), np.empty(count, np.int64)
    num_active, now, youngest, changed = 0, 0.0, 0.0, False
    while num_active > 0 or len(queue) > 0:
        if num_active == 0:
            now = max(now, queue[0][0])
        while len(queue) > 0 and queue[0][0] <= now * (1.0 + _SAME_MOMENT):
            _, active[num_active] = heapq.heappop(queue)
            num_active += 1
            youngest, changed = now, True
        if changed:
            _fill_rates(active[:num_active], resources, scratch, rate)
        until = np.inf
        for flow in active[:num_active]:
            until = min(until, now + left[flow] / rate[flow])
        until += tolerance * (until - youngest)
        if len(queue) > 0:
            until = min(until, queue[0][0])
        num_left, num_gone = 0, 0
        for flow in active[:num_active]:
            left_at = now + left[flow] / rate[flow]
            if left_at > until * (1.0 + _SAME_MOMENT):
                left[flow] -= rate[flow] * (until - now)
                active[num_left] = flow
                num_left += 1
                continue
            gone[num_gone] = flow
            num_gone += 1
            _release(flow, left_at, program, start, finish, waits, queue)
        changed = _frees_others(gone[:num_gone], resources, scratch)
        num_active, now = num_left, until
    return start, finish
