"""The packet simulation, compiled; `packet_model` says what router it models.

A packet is the number of the tree edge that it takes next (or has just taken); at its target, in
the queue to memory, the number of its flow. A queue belongs to an input (a link in a layer, or a
node's sender) and a slot (a way out of the node; the last slot is its memory).
"""

import heapq
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.arithmetic.compiled import compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Events = list[tuple[Any, np.int64]]  # a heap of start clocks and flows


class Wires(NamedTuple):
    """The network; `interval`s are clocks from one packet to the next, `room`s packets a queue.

    `into[into_offsets[n]:into_offsets[n + 1]]` are the links that end at node n.
    """

    num_layers: int
    num_slots: int
    source: Ints
    target: Ints
    latency: Ints
    interval: Floats
    room: Ints
    sender_room: int
    slot: Ints
    into_offsets: Ints
    into: Ints
    send_interval: Floats
    receive_interval: Floats


class Trees(NamedTuple):
    """Edges of all flows; edge e goes on to child[child_offsets[e]:child_offsets[e + 1]]."""

    flow: Ints
    link: Ints
    layer: Ints
    delivers: NDArray[np.bool_]
    child_offsets: Ints
    child: Ints
    root_offsets: Ints
    root: Ints


class Plan(NamedTuple):
    """The flows; f lets go after[after_offsets[f]:...] and behind[behind_offsets[f]:...]."""

    source: Ints
    num_packets: Ints
    num_deliveries: Ints
    start: Floats
    delay: Floats
    num_waits: Ints
    after_offsets: Ints
    after: Ints
    behind_offsets: Ints
    behind: Ints


class _Queues(NamedTuple):
    """Rings of packets: `taken` counts those in a queue and those on their way to it."""

    ring: Ints  # [queue, place]
    head: Ints
    length: Ints
    taken: Ints
    wanted: Ints  # per link, then per node's memory: packets in all queues to it


class _Flight(NamedTuple):
    """Packets on each link, oldest first: edge and clock of arrival."""

    edge: Ints  # [link, place]
    arrival: Ints
    head: Ints
    length: Ints


class _Turns(NamedTuple):
    """Whose turn it is, and when a link, sender or receiver may move the next packet."""

    link: Ints
    memory: Ints
    sender: Ints
    link_free: Floats
    send_free: Floats
    receive_free: Floats


class _Senders(NamedTuple):
    """The flows that each node sends now: flows[first[node]:first[node] + number[node]]."""

    first: Ints
    flows: Ints
    number: Ints
    num_sent: Ints  # per flow, packets


@compiled
def _input_of(wires: Wires, edge: int, trees: Trees) -> int:
    return int(trees.link[edge] * wires.num_layers + trees.layer[edge])


@compiled
def _push(queues: _Queues, queue: int, packet: int) -> None:
    place = (queues.head[queue] + queues.length[queue]) % queues.ring.shape[1]
    queues.ring[queue, place] = packet
    queues.length[queue] += 1


@compiled
def _pop(queues: _Queues, queue: int) -> int:
    packet = queues.ring[queue, queues.head[queue]]
    queues.head[queue] = (queues.head[queue] + 1) % queues.ring.shape[1]
    queues.length[queue] -= 1
    queues.taken[queue] -= 1
    return int(packet)


@compiled
def _next_free(free: float, clock: int, interval: float) -> float:
    """When a wire is free again that takes a packet now; what a clock lost is made good."""
    return (free if free > clock - 1.0 else clock) + interval


@compiled
def _reserve(edge: int, wires: Wires, trees: Trees, queues: _Queues) -> bool:
    """Keep room in all queues that a packet comes to over an edge; False if one has none."""
    base = _input_of(wires, edge, trees) * wires.num_slots
    room = wires.room[trees.link[edge]]
    memory = base + wires.num_slots - 1
    if trees.delivers[edge] and queues.taken[memory] >= room:
        return False
    for i in range(trees.child_offsets[edge], trees.child_offsets[edge + 1]):
        if queues.taken[base + wires.slot[trees.link[trees.child[i]]]] >= room:
            return False
    if trees.delivers[edge]:
        queues.taken[memory] += 1
    for i in range(trees.child_offsets[edge], trees.child_offsets[edge + 1]):
        queues.taken[base + wires.slot[trees.link[trees.child[i]]]] += 1
    return True


@compiled
def _land(clock: int, wires: Wires, trees: Trees, queues: _Queues, flight: _Flight) -> int:
    """Put the packets that have arrived into the queues that room was kept in."""
    moved = 0
    for link in range(len(wires.source)):
        while flight.length[link] > 0 and flight.arrival[link, flight.head[link]] <= clock:
            edge = flight.edge[link, flight.head[link]]
            flight.head[link] = (flight.head[link] + 1) % flight.edge.shape[1]
            flight.length[link] -= 1
            moved += 1
            base = _input_of(wires, edge, trees) * wires.num_slots
            if trees.delivers[edge]:
                _push(queues, base + wires.num_slots - 1, trees.flow[edge])
                queues.wanted[len(wires.source) + wires.target[link]] += 1
            for i in range(trees.child_offsets[edge], trees.child_offsets[edge + 1]):
                onward = trees.link[trees.child[i]]
                _push(queues, base + wires.slot[onward], trees.child[i])
                queues.wanted[onward] += 1
    return moved


@compiled
def _receive(
    clock: int, wires: Wires, queues: _Queues, turns: _Turns, arrived: Ints, received: Ints
) -> int:
    """Let every memory take a packet; the flows of those taken, in `arrived`, and how many."""
    num_links, layers = len(wires.source), wires.num_layers
    num_arrived = 0
    for node in range(len(wires.receive_interval)):
        if queues.wanted[num_links + node] == 0:
            continue
        first = wires.into_offsets[node]
        num_inputs = (wires.into_offsets[node + 1] - first) * layers
        for turn in range(num_inputs):
            if turns.receive_free[node] > clock:
                break
            i = (turns.memory[node] + turn) % num_inputs
            source = wires.into[first + i // layers] * layers + i % layers
            queue = source * wires.num_slots + wires.num_slots - 1
            if queues.length[queue] > 0:
                arrived[num_arrived] = _pop(queues, queue)
                num_arrived += 1
                received[node] += 1
                queues.wanted[num_links + node] -= 1
                turns.memory[node] = i + 1
                free = turns.receive_free[node]
                turns.receive_free[node] = _next_free(free, clock, wires.receive_interval[node])
                break
    return num_arrived


@compiled
def _send(
    clock: int, node: int, wires: Wires, trees: Trees, queues: _Queues, turns: _Turns,
    senders: _Senders, num_packets: Ints,
) -> int:  # fmt: skip
    """Let a memory read a packet of the flow whose turn it is; the flow, or -1."""
    if turns.send_free[node] > clock:
        return -1
    base = (len(wires.source) * wires.num_layers + node) * wires.num_slots
    for turn in range(senders.number[node]):
        place = (turns.sender[node] + turn) % senders.number[node]
        flow = senders.flows[senders.first[node] + place]
        first, last = trees.root_offsets[flow], trees.root_offsets[flow + 1]
        fits = True
        for i in range(first, last):
            queue = base + wires.slot[trees.link[trees.root[i]]]
            fits = fits and queues.length[queue] < wires.sender_room
        if not fits:
            continue
        for i in range(first, last):
            link = trees.link[trees.root[i]]
            _push(queues, base + wires.slot[link], trees.root[i])
            queues.taken[base + wires.slot[link]] += 1
            queues.wanted[link] += 1
        free = turns.send_free[node]
        turns.send_free[node] = _next_free(free, clock, wires.send_interval[node])
        turns.sender[node] = place + 1
        senders.num_sent[flow] += 1
        if senders.num_sent[flow] == num_packets[flow]:
            _leave(senders, node, place)
            turns.sender[node] = place
        return int(flow)
    return -1


@compiled
def _leave(senders: _Senders, node: int, place: int) -> None:
    """Take a flow that is sent off its sender's list, the others in their order."""
    senders.number[node] -= 1
    for i in range(senders.first[node] + place, senders.first[node] + senders.number[node]):
        senders.flows[i] = senders.flows[i + 1]


@compiled
def _switch(
    clock: int, wires: Wires, trees: Trees, queues: _Queues, flight: _Flight, turns: _Turns,
    over_link: Ints,
) -> int:  # fmt: skip
    """Let every link take a packet; how many did."""
    moved, layers = 0, wires.num_layers
    for link in range(len(wires.source)):
        if queues.wanted[link] == 0 or turns.link_free[link] > clock:
            continue
        node = wires.source[link]
        first = wires.into_offsets[node]
        num_inputs = (wires.into_offsets[node + 1] - first) * layers + 1
        for turn in range(num_inputs):
            i = (turns.link[link] + turn) % num_inputs
            source = len(wires.source) * layers + node  # the sender's turn is the last
            if i < num_inputs - 1:
                source = wires.into[first + i // layers] * layers + i % layers
            queue = source * wires.num_slots + wires.slot[link]
            if queues.length[queue] == 0:
                continue
            edge = queues.ring[queue, queues.head[queue]]
            if not _reserve(edge, wires, trees, queues):
                continue
            _pop(queues, queue)
            place = (flight.head[link] + flight.length[link]) % flight.edge.shape[1]
            flight.edge[link, place] = edge
            flight.arrival[link, place] = clock + wires.latency[link]
            flight.length[link] += 1
            queues.wanted[link] -= 1
            turns.link[link] = i + 1
            free = turns.link_free[link]
            turns.link_free[link] = _next_free(free, clock, wires.interval[link])
            over_link[link] += 1
            moved += 1
            break
    return moved


@compiled
def _make_queues(wires: Wires, num_inputs: int) -> _Queues:
    num_queues = num_inputs * wires.num_slots
    places = max(wires.sender_room, wires.room.max()) if len(wires.room) else 1
    return _Queues(
        np.zeros((num_queues, places), np.int64),
        np.zeros(num_queues, np.int64),
        np.zeros(num_queues, np.int64),
        np.zeros(num_queues, np.int64),
        np.zeros(len(wires.source) + len(wires.send_interval), np.int64),
    )


@compiled
def _make_flight(wires: Wires) -> _Flight:
    num_links = len(wires.source)
    places = wires.latency.max() + 1 if num_links else 1
    return _Flight(
        np.zeros((num_links, places), np.int64),
        np.zeros((num_links, places), np.int64),
        np.zeros(num_links, np.int64),
        np.zeros(num_links, np.int64),
    )


@compiled
def _make_turns(num_links: int, num_nodes: int) -> _Turns:
    return _Turns(
        np.zeros(num_links, np.int64),
        np.zeros(num_nodes, np.int64),
        np.zeros(num_nodes, np.int64),
        np.zeros(num_links, np.float64),
        np.zeros(num_nodes, np.float64),
        np.zeros(num_nodes, np.float64),
    )


@compiled
def _make_senders(source: Ints, num_nodes: int) -> _Senders:
    first = np.zeros(num_nodes + 1, np.int64)
    for node in source:
        first[node + 1] += 1
    return _Senders(
        np.cumsum(first),
        np.zeros(len(source), np.int64),
        np.zeros(num_nodes, np.int64),
        np.zeros(len(source), np.int64),
    )


@compiled
def _let_go(
    later: Ints, moment: float, delay: Floats, start: Floats, waits: Ints,
    queue: Events,
) -> None:  # fmt: skip
    """Tell flows that one thing they wait for has happened; who waits for no more is queued."""
    for flow in later:
        start[flow] = max(start[flow], moment + delay[flow])
        waits[flow] -= 1
        if waits[flow] == 0:
            heapq.heappush(queue, (start[flow], flow))


@compiled
def _next_event(flight: _Flight, queue: Events) -> float:
    """The clock at which a packet lands or a flow starts, where nothing else is going on."""
    event = queue[0][0] if len(queue) > 0 else np.inf
    for link in range(len(flight.length)):
        if flight.length[link] > 0:
            event = min(event, float(flight.arrival[link, flight.head[link]]))
    return event


@compiled
def _admit(clock: int, plan: Plan, senders: _Senders, queue: Events) -> None:
    """Put the flows whose clock has come on their senders' lists."""
    while len(queue) > 0 and queue[0][0] <= clock:
        _, flow = heapq.heappop(queue)
        node = plan.source[flow]
        senders.flows[senders.first[node] + senders.number[node]] = flow
        senders.number[node] += 1


@compiled
def run_packets(
    wires: Wires, trees: Trees, plan: Plan
) -> tuple[Floats, Floats, Ints, Ints, Ints, int]:
    """Start and finish per flow, packets per link, sent and received per node.

    The last value is the clock from which on no packet can move, or -1.
    """
    count, num_links = len(plan.start), len(wires.source)
    num_nodes = len(wires.send_interval)
    queues = _make_queues(wires, num_links * wires.num_layers + num_nodes)
    flight, turns = _make_flight(wires), _make_turns(num_links, num_nodes)
    senders = _make_senders(plan.source, num_nodes)
    start, finish = plan.start.copy(), np.zeros(count, np.float64)
    waits, to_deliver = plan.num_waits.copy(), plan.num_deliveries.copy()
    over_link, sent = np.zeros(num_links, np.int64), np.zeros(num_nodes, np.int64)
    received, arrived = np.zeros(num_nodes, np.int64), np.zeros(num_nodes, np.int64)
    no_delay = np.zeros(count, np.float64)
    queue = [(start[i], np.int64(i)) for i in range(count) if waits[i] == 0]
    heapq.heapify(queue)
    patience = wires.latency.max() + wires.interval.max() + 4
    patience += wires.send_interval.max() + wires.receive_interval.max()
    clock, num_done, moved_at = 0, 0, 0
    while num_done < count:
        moved = _land(clock, wires, trees, queues, flight)
        num_arrived = _receive(clock, wires, queues, turns, arrived, received)
        for i in range(num_arrived):
            done = arrived[i]
            to_deliver[done] -= 1
            if to_deliver[done] == 0:
                finish[done] = clock
                num_done += 1
                later = plan.after[plan.after_offsets[done] : plan.after_offsets[done + 1]]
                _let_go(later, float(clock), plan.delay, start, waits, queue)
        _admit(clock, plan, senders, queue)
        for node in range(num_nodes):
            if senders.number[node] > 0:
                flow = _send(clock, node, wires, trees, queues, turns, senders, plan.num_packets)
                if flow >= 0:
                    sent[node] += 1
                    moved += 1
                    if senders.num_sent[flow] == plan.num_packets[flow]:
                        first, last = plan.behind_offsets[flow], plan.behind_offsets[flow + 1]
                        behind = plan.behind[first:last]
                        _let_go(behind, clock + 1.0, no_delay, start, waits, queue)
        moved += num_arrived + _switch(clock, wires, trees, queues, flight, turns, over_link)
        if moved > 0:
            moved_at = clock
        if clock - moved_at > patience:
            return start, finish, over_link, sent, received, moved_at
        clock += 1
        if queues.wanted.sum() == 0 and senders.number.sum() == 0:
            event = _next_event(flight, queue)
            if event < np.inf:
                clock = max(clock, int(np.ceil(event)))
                moved_at = clock
    return start, finish, over_link, sent, received, -1
