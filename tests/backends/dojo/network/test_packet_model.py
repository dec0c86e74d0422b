"""The packet model against hand-made cases, and what must hold for any traffic and mesh."""

import numpy as np
import pytest
from fsdtrain_dojo.network.packet_model import simulate_packets
from fsdtrain_dojo.network.routing import find_routes, find_trees
from fsdtrain_dojo.network.topology import LinkKind, MeshShape, build_mesh
from fsdtrain_dojo.network.traffic import make_traffic

from fsdtrain.backend import BackendError
from tests.backends.dojo.network.meshes import HOP, draw_ends, square, two_dies


def test_a_flow_alone_takes_its_latency_and_its_packets():
    mesh = two_dies(4, 1, crossing=200, rate=50)
    traffic = make_traffic(find_routes(mesh, [0, 7], [7, 5]), [6400, 65], start=[10, 0])
    assert simulate_packets(traffic).finish == pytest.approx([10 + 207 + 99 * 1.28, 2 + 1], abs=1)


def test_links_are_shared_by_turns_of_those_that_come_in():
    mesh = build_mesh(MeshShape(columns=6, rows=1), link=HOP)
    traffic = make_traffic(find_routes(mesh, [0, 1, 2], [4, 5, 3]), 64 * 100)
    finish = simulate_packets(traffic).finish
    # At 2 -> 3 the sender has every other turn, so it takes 200 clocks; the two that share the
    # link before are done at 300, one right after the other.
    assert finish == pytest.approx([302, 303, 200], abs=4)


def test_a_multicast_is_copied_where_its_tree_forks():
    mesh = square(4)
    delivery = simulate_packets(make_traffic(find_trees(mesh, [0], [list(range(1, 16))]), 6400))
    assert delivery.finish.tolist() == [6 + 99]
    assert delivery.sent.sum() == 100
    assert delivery.received.tolist() == [0] + [100] * 15
    assert delivery.link_packets.sum() == 15 * 100


def test_waits_are_for_delivery_or_for_having_left():
    mesh = two_dies(2, 1, crossing=200, rate=64)
    routes = find_routes(mesh, [0, 2, 0], [3, 3, 1])
    traffic = make_traffic(routes, 640, delay=[0, 5, 7], after=[(0, 1)], behind=[(0, 2)])
    delivery = simulate_packets(traffic)
    assert delivery.start.tolist() == [0, 212 + 5, 10]
    assert delivery.finish.tolist() == [212, 217 + 10, 10 + 10]


@pytest.mark.parametrize("buffer_packets", [1, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_crowded_meshes_with_gaps_deliver_every_packet_once(buffer_packets, seed):
    rng = np.random.default_rng(seed)
    missing = rng.choice(np.arange(1, 25), 3, replace=False)
    mesh = square(5, missing=missing.tolist())
    present = np.flatnonzero(mesh.present)
    sources, targets = rng.choice(present, 200), rng.choice(present, 200)
    apart = sources != targets
    routes = find_routes(mesh, sources[apart], targets[apart])
    traffic = make_traffic(routes, 20 * 64)
    delivery = simulate_packets(traffic, buffer_packets=buffer_packets)
    sent = np.bincount(routes.source, traffic.num_packets, mesh.num_nodes)
    assert (delivery.sent == sent).all()
    assert delivery.received.sum() == traffic.num_packets.sum()
    assert delivery.link_packets.sum() == (traffic.num_packets * np.diff(routes.offsets)).sum()
    assert (delivery.finish >= routes.latency + 19).all()
    busiest = max(delivery.link_packets.max(), delivery.sent.max(), delivery.received.max())
    assert delivery.makespan >= busiest - 1


def test_small_buffers_cost_time():
    mesh = square(5)
    sources, targets = draw_ends("random", 5, 150, np.random.default_rng(0))
    traffic = make_traffic(find_routes(mesh, sources, targets), 30 * 64)
    tight, roomy = (
        simulate_packets(traffic, buffer_packets=size).finish.mean() for size in (1, 16)
    )
    assert tight > roomy


@pytest.mark.parametrize(
    ("rate", "buffers", "says"), [(64, 0, "hold nothing"), (65, 1, "more than a packet of 64 B")]
)
def test_what_the_model_cannot_show_is_refused(rate, buffers, says):
    mesh = square(2, link=LinkKind(bytes_per_clock=rate, latency_clocks=1))
    with pytest.raises(BackendError, match=says):
        simulate_packets(make_traffic(find_routes(mesh, [0], [1]), 64), buffer_packets=buffers)
