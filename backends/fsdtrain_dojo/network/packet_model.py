"""The slow model, a reference for small meshes: every packet, link and buffer, clock by clock.

The router modelled: each link ends in buffers, one queue for each way on (virtual output queues)
and for each routing layer (virtual channels, see `routing`), of `buffer_packets` beyond what the
link's own round trip needs. In a clock every link takes one packet from the queues that want it,
in turns (round robin over the links that come in and the sender), if all queues that the packet
will come to have room; a memory sends and receives one packet. A link that moves less than a
packet a clock takes one as often as its rate allows. A multicast packet is copied where its tree
forks. A sender gives its flows turns. Buffer space is given back at once.

Not modelled: arbitration or memory pipelines of more than a clock, which nothing published tells
for Dojo; a machine description adds them to latencies. Shares nothing with `flow_model` but
topology, routes and traffic.
"""

import numpy as np
from numpy.typing import NDArray

from fsdtrain.backend import BackendError
from fsdtrain_dojo.network.packet_kernel import Plan, Trees, Wires, run_packets
from fsdtrain_dojo.network.routing import Routes
from fsdtrain_dojo.network.topology import Topology
from fsdtrain_dojo.network.traffic import Delivery, Traffic

Ints = NDArray[np.int64]


def simulate_packets(traffic: Traffic, *, buffer_packets: int = 8) -> Delivery:
    """Run the flows packet by packet to the end.

    Raises:
        BackendError: buffers without room, or links or memories that move more than a packet a
            clock, which this model cannot show.
    """
    routes = traffic.routes
    topology = routes.topology
    if buffer_packets < 1:
        raise BackendError(f"buffers of {buffer_packets} packets hold nothing; give 1 or more")
    used = np.unique(routes.edge_link)
    if (topology.link_bytes_per_clock[used] > topology.packet_bytes).any():
        raise BackendError(
            f"a link moves more than a packet of {topology.packet_bytes} B a clock; larger "
            "packets (packet_bytes) let the packet model show it"
        )
    start, finish, link_packets, sent, received, stuck_at = run_packets(
        _wires(topology, routes.num_layers, buffer_packets), _trees(routes), _plan(traffic)
    )
    assert stuck_at < 0, f"packets wait for one another from clock {stuck_at} on"
    return Delivery(
        topology=topology,
        start=start,
        finish=finish,
        link_packets=link_packets.astype(np.float64),
        sent=sent.astype(np.float64),
        received=received.astype(np.float64),
    )


def _grouped(keys: Ints, num_groups: int) -> tuple[Ints, Ints]:
    """Positions of `keys` sorted by key, and where each key's begin."""
    offsets = np.searchsorted(np.sort(keys), np.arange(num_groups + 1))
    return offsets.astype(np.int64), np.argsort(keys, kind="stable").astype(np.int64)


def _wires(topology: Topology, num_layers: int, buffer_packets: int) -> Wires:
    num_nodes, num_links = topology.num_nodes, topology.num_links
    into_offsets, into = _grouped(topology.link_target, num_nodes)
    out_offsets, out = _grouped(topology.link_source, num_nodes)
    slot = np.empty(num_links, np.int64)
    slot[out] = np.arange(num_links) - out_offsets[topology.link_source[out]]
    interval = topology.packet_bytes / topology.link_bytes_per_clock
    return Wires(
        num_layers=num_layers,
        num_slots=int(np.diff(out_offsets).max(initial=0)) + 1,
        source=topology.link_source,
        target=topology.link_target,
        latency=topology.link_latency,
        interval=interval,
        room=buffer_packets + np.ceil(topology.link_latency / interval).astype(np.int64),
        sender_room=buffer_packets,
        slot=slot,
        into_offsets=into_offsets,
        into=into,
        send_interval=topology.packet_bytes / topology.send_bytes_per_clock,
        receive_interval=topology.packet_bytes / topology.receive_bytes_per_clock,
    )


def _trees(routes: Routes) -> Trees:
    num_edges = len(routes.edge_link)
    roots = np.flatnonzero(routes.edge_parent < 0)
    root_offsets = np.searchsorted(routes.edge_flow[roots], np.arange(len(routes) + 1))
    child_offsets, by_parent = _grouped(routes.edge_parent + 1, num_edges + 1)
    return Trees(
        flow=routes.edge_flow,
        link=routes.edge_link,
        layer=routes.edge_layer,
        delivers=routes.edge_delivers,
        # Group 0 holds the roots, group e + 1 the children of edge e.
        child_offsets=child_offsets[1:],
        child=by_parent,
        root_offsets=root_offsets.astype(np.int64),
        root=roots,
    )


def _plan(traffic: Traffic) -> Plan:
    routes = traffic.routes
    after_offsets, after = _grouped(traffic.after[:, 0], len(traffic))
    behind_offsets, behind = _grouped(traffic.behind[:, 0], len(traffic))
    return Plan(
        source=routes.source,
        num_packets=traffic.num_packets,
        num_deliveries=traffic.num_packets * routes.num_targets,
        start=traffic.start,
        delay=traffic.delay,
        num_waits=traffic.num_waits,
        after_offsets=after_offsets,
        after=traffic.after[after, 1],
        behind_offsets=behind_offsets,
        behind=traffic.behind[behind, 1],
    )
