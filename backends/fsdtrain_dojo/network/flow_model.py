"""The fast model: flows as fluids that share links fairly, and a bound on contention.

Simplifications, none of which `packet_model` makes: a flow takes its rate from all its links at
once (links far down a long route are in fact taken a latency later, and buffers on the way let
packets run ahead), rates change only when a flow starts or has left, and no flow is held up by
another that blocks a buffer. Message times then agree within 5 % below 70 % of saturation for
messages of 16 KiB and buffers of 32 packets, and to 50 % of it with buffers of 8 (random traffic at
70 %: 10 % too quick). Messages of 1 KiB come out up to 15 % too slow. Beyond saturation, and where
many flows join one after another (a shift by several places), only the packets tell: uneven shares
multiply from router to router there, of which this model knows the last one only.

`simulate_flows` gives every flow's times. `bound_phase` gives, far quicker, a lower bound for
flows that start together; it alone is monotone: more bandwidth on some links of a network that
shares fairly can make a program slower (a flow that is freed takes its share from another that
matters more), which the fluid, like the packets, shows.
"""

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.network.flow_kernel import Program, Resources, run_flows
from fsdtrain_dojo.network.routing import Routes
from fsdtrain_dojo.network.traffic import Delivery, Traffic


class Sharing(Enum):
    """Between what a link, sender or receiver is shared evenly.

    PORT is what routers do that give their inputs turns, as those of `packet_model`: a flow that
    comes by itself gets as much as all that come over another link together. FLOW is max-min
    fairness, which the network would show if each flow had buffers to itself.
    """

    PORT = "port"
    FLOW = "flow"


def simulate_flows(
    traffic: Traffic, *, sharing: Sharing = Sharing.PORT, tolerance: float = 0.0
) -> Delivery:
    """Run the flows to the end, sharing every link, sender and receiver.

    With a `tolerance`, flows that leave shortly after one another are taken together: what they
    leave behind is shared out up to `tolerance` times the age of the youngest flow too late.
    That is quicker for phases of thousands of different flows and makes them slower, by several
    times the tolerance where many of them matter in turn.
    """
    routes = traffic.routes
    offsets, releases, by_delivery = _releases(traffic)
    packet_clocks = routes.topology.packet_bytes / routes.bytes_per_clock
    program = Program(
        num_packets=traffic.num_packets.astype(np.float64),
        start=traffic.start,
        delay=traffic.delay,
        num_waits=traffic.num_waits,
        release_offsets=offsets,
        release_flow=releases,
        release_by_delivery=by_delivery,
        tail=routes.latency - packet_clocks,
    )
    start, finish = run_flows(program, _resources(routes, sharing), tolerance)
    return _delivery(traffic, start, finish)


def bound_phase(traffic: Traffic) -> Delivery:
    """The flows, all started at clock 0 and none waiting, each as its most loaded link allows.

    A flow's time is its latency and the time that its busiest link (sender, receiver) needs for
    all the traffic it carries: no schedule delivers the last flow of that link earlier than that
    by more than latencies. More bandwidth, less latency, fewer hops or less traffic never raise
    it. Start clocks and waits of `traffic` are not looked at.
    """
    routes = traffic.routes
    resources = _resources(routes, Sharing.FLOW)
    flow = np.repeat(np.arange(len(routes)), np.diff(resources.offsets))
    packets = traffic.num_packets.astype(np.float64)
    load = np.bincount(resources.resource, packets[flow], len(resources.packets_per_clock))
    last_leaves = (load - 1) / resources.packets_per_clock
    busiest = np.maximum.reduceat(last_leaves[resources.resource], resources.offsets[:-1])
    return _delivery(traffic, np.zeros(len(routes)), (routes.latency + busiest).astype(np.float64))


def _resources(routes: Routes, sharing: Sharing) -> Resources:
    """What each flow shares: its links, its sender, its receivers, numbered in this order."""
    topology = routes.topology
    num_links, num_nodes, num_flows = topology.num_links, topology.num_nodes, len(routes)
    flow, link, delivers = np.arange(num_flows), routes.edge_link, routes.edge_delivers
    sender = num_links + routes.source
    receiver = num_links + num_nodes + topology.link_target[link[delivers]]
    num_resources = num_links + 2 * num_nodes
    before = np.where(
        routes.edge_parent < 0, sender[routes.edge_flow], link[np.maximum(routes.edge_parent, 0)]
    )
    index = np.concatenate([link, sender, receiver])
    # A sender gives its flows turns, so each comes to it by a way of its own.
    came_from = np.concatenate([before, num_resources + flow, link[delivers]])
    owner = np.concatenate([routes.edge_flow, flow, routes.edge_flow[delivers]])
    order = np.argsort(owner, kind="stable")
    pair = came_from * num_resources + index
    ways, way = np.unique(pair[order], return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=num_flows))])
    capacity = np.concatenate(
        [
            topology.link_bytes_per_clock,
            topology.send_bytes_per_clock,
            topology.receive_bytes_per_clock,
        ]
    )
    return Resources(
        offsets=offsets.astype(np.int64),
        resource=index[order],
        way=way.astype(np.int64),
        num_ways=len(ways),
        packets_per_clock=capacity / topology.packet_bytes,
        by_port=sharing == Sharing.PORT,
    )


def _releases(
    traffic: Traffic,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Who waits for each flow: offsets by flow, the waiting flows, and what they wait for."""
    pairs = np.concatenate([traffic.after, traffic.behind])
    by_delivery = np.arange(len(pairs)) < len(traffic.after)
    order = np.argsort(pairs[:, 0], kind="stable")
    counts = np.bincount(pairs[:, 0], minlength=len(traffic))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return offsets, pairs[order, 1], by_delivery[order]


def _delivery(
    traffic: Traffic, start: NDArray[np.float64], finish: NDArray[np.float64]
) -> Delivery:
    routes, topology = traffic.routes, traffic.routes.topology
    packets = traffic.num_packets.astype(np.float64)
    over_edge = packets[routes.edge_flow]
    into = topology.link_target[routes.edge_link]
    num_nodes = topology.num_nodes
    return Delivery(
        topology=topology,
        start=start,
        finish=finish,
        link_packets=_total(routes.edge_link, over_edge, topology.num_links),
        sent=_total(routes.source, packets, num_nodes),
        received=_total(into, over_edge * routes.edge_delivers, num_nodes),
    )


def _total(keys: NDArray[np.int64], values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.bincount(keys, values, count).astype(np.float64)
