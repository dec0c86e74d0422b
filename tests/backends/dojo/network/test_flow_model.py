"""The flow model against hand-made cases, a naive simulation, and what holds for any traffic."""

import numpy as np
import pytest
from fsdtrain_dojo.network.flow_model import Sharing, bound_phase, simulate_flows
from fsdtrain_dojo.network.routing import find_routes, find_trees
from fsdtrain_dojo.network.topology import LinkKind, MeshShape, Topology, build_mesh
from fsdtrain_dojo.network.traffic import Traffic, make_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdtrain.backend import BackendError
from tests.backends.dojo.network.meshes import HOP, draw_ends, square, two_dies

CLOSE = 1e-6


def test_a_flow_alone_takes_its_latency_and_its_packets():
    mesh = two_dies(4, 1, crossing=200, rate=50)
    traffic = make_traffic(find_routes(mesh, [0, 7], [7, 5]), [6400, 65], start=[10, 0])
    # 7 hops and a crossing, then 99 packets at 50 of 64 bytes; 65 bytes fill two packets
    assert simulate_flows(traffic).finish == pytest.approx([10 + 207 + 99 * 1.28, 2 + 1])


def test_flows_share_a_link_evenly_and_take_what_others_leave():
    mesh = build_mesh(MeshShape(columns=6, rows=1), link=HOP)
    traffic = make_traffic(find_routes(mesh, [0, 1, 2], [4, 5, 3]), np.array([100, 200, 400]) * 64)
    # a third each for 300 clocks, a half each for 200, then one alone for the last 200 packets
    fair = simulate_flows(traffic, sharing=Sharing.FLOW)
    assert fair.finish == pytest.approx([303, 503, 700])
    # a quarter, a quarter and a half for 400 clocks; then a half each for 200, then one alone
    by_port = simulate_flows(traffic, sharing=Sharing.PORT)
    assert by_port.finish == pytest.approx([403, 603, 700])


def test_a_memory_sends_and_receives_a_packet_a_clock_over_all_links():
    mesh = square(3)
    out = make_traffic(find_routes(mesh, [4, 4, 4, 4], [1, 3, 5, 7]), 640)
    into = make_traffic(find_routes(mesh, [1, 3, 5, 7], [4, 4, 4, 4]), 640)
    assert simulate_flows(out).finish == pytest.approx(40)
    assert simulate_flows(into).finish == pytest.approx(40)


def test_a_multicast_reads_once_and_writes_everywhere():
    mesh = square(4)
    delivery = simulate_flows(make_traffic(find_trees(mesh, [0], [list(range(1, 16))]), 6400))
    assert delivery.finish == pytest.approx(6 + 99)
    assert delivery.sent.sum() == 100
    assert delivery.received.tolist() == [0] + [100] * 15
    assert delivery.link_packets.sum() == 15 * 100
    assert sum(delivery.bytes_by_level.values()) == 15 * 6400


def test_waits_are_for_delivery_or_for_having_left():
    mesh = two_dies(2, 1, crossing=200, rate=64)
    routes = find_routes(mesh, [0, 2, 0], [3, 3, 1])
    traffic = make_traffic(routes, 640, delay=[0, 5, 7], after=[(0, 1)], behind=[(0, 2)])
    # the first: 3 hops, a crossing, 9 packets; who is behind it takes the next clock, no delay
    assert simulate_flows(traffic).start == pytest.approx([0, 212 + 5, 10])


def naive_finish(traffic: Traffic) -> np.ndarray:
    """The same fluid, written anew: a matrix of who uses what, the rates by repeated filling."""
    routes, mesh = traffic.routes, traffic.routes.topology
    uses = np.zeros((mesh.num_links + 2 * mesh.num_nodes, len(routes)))
    for flow in range(len(routes)):
        edges = slice(routes.offsets[flow], routes.offsets[flow + 1])
        uses[routes.edge_link[edges], flow] = 1
        uses[mesh.num_links + routes.source[flow], flow] = 1
        targets = mesh.link_target[routes.edge_link[edges]][routes.edge_delivers[edges]]
        uses[mesh.num_links + mesh.num_nodes + targets, flow] = 1
    rates = [mesh.link_bytes_per_clock, mesh.send_bytes_per_clock, mesh.receive_bytes_per_clock]
    capacity = np.concatenate(rates) / mesh.packet_bytes
    left, left_at = traffic.num_packets.astype(float), np.full(len(routes), np.inf)
    now = 0.0
    while np.isinf(left_at).any():
        going = (traffic.start <= now) & np.isinf(left_at)
        rate, open_flows = np.zeros(len(routes)), going.copy()
        while open_flows.any():
            users = uses @ open_flows
            spare = np.where(users > 0, (capacity - uses @ rate) / np.maximum(users, 1), np.inf)
            rate[open_flows] += spare.min()
            full = (users > 0) & (capacity - uses @ rate < 1e-9)
            open_flows &= ~(uses[full].sum(0) > 0)
        to_start = traffic.start[traffic.start > now].min(initial=np.inf) - now
        step = min(to_start, (left[going] / rate[going]).min(initial=np.inf))
        left -= rate * step
        now += step
        left_at[going & (left < 1e-7)] = now
    alone = mesh.packet_bytes / routes.bytes_per_clock
    return left_at + routes.latency - alone


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 25), st.booleans())
def test_times_are_those_of_a_naive_simulation(seed, count, together):
    rng = np.random.default_rng(seed)
    mesh = two_dies(2, 4, crossing=7, rate=40)
    sources, targets = rng.integers(0, 16, count), rng.integers(0, 16, count)
    targets = np.where(targets == sources, (sources + 1) % 16, targets)
    start = 0 if together else rng.integers(0, 60, count)
    routes = find_routes(mesh, sources, targets)
    traffic = make_traffic(routes, rng.integers(1, 50, count) * 64, start=start)
    fair = simulate_flows(traffic, sharing=Sharing.FLOW)
    assert fair.finish == pytest.approx(naive_finish(traffic), rel=CLOSE)


traffics = st.tuples(st.integers(0, 10_000), st.integers(1, 40))


def draw_traffic(seed: int, count: int, mesh: Topology | None = None) -> Traffic:
    rng = np.random.default_rng(seed)
    sources, targets = draw_ends("random", 4, count, rng)
    sizes = rng.integers(1, 2000, count)
    return make_traffic(find_routes(mesh or square(4), sources, targets), sizes)


@settings(max_examples=30, deadline=None)
@given(traffics)
def test_no_byte_is_lost_and_no_flow_beats_the_bound_by_more_than_latencies(drawn):
    traffic = draw_traffic(*drawn)
    delivery, bound = simulate_flows(traffic), bound_phase(traffic)
    assert delivery.sent.sum() == delivery.received.sum() == traffic.num_packets.sum()
    hops = np.diff(traffic.routes.offsets)
    assert delivery.link_packets.sum() == (traffic.num_packets * hops).sum()
    assert delivery.makespan >= bound.makespan - traffic.routes.latency.max() - CLOSE
    alone = traffic.routes.latency + traffic.num_packets - 1
    assert (delivery.finish >= alone - CLOSE).all()
    assert (bound.finish >= alone - CLOSE).all()


@settings(max_examples=30, deadline=None)
@given(traffics, st.sampled_from([0.5, 1, 2, 4, 8]))
def test_more_bandwidth_everywhere_makes_every_flow_quicker_in_proportion(drawn, factor):
    """Powers of two: other factors round, and where two inputs of a router tie, rounding decides
    which is served (traffic (1, 36) at 3 times the bandwidth: 9 % apart).
    """
    faster = square(4, link=LinkKind(bytes_per_clock=64 * factor, latency_clocks=1))
    slow, fast = draw_traffic(*drawn), draw_traffic(*drawn, mesh=faster)
    latency = slow.routes.latency
    before = simulate_flows(slow).finish - latency + 1
    after = simulate_flows(fast).finish - latency + 1 / factor
    assert after == pytest.approx(before / factor, rel=CLOSE)


@settings(max_examples=60, deadline=None)
@given(traffics, st.integers(0, 47), st.floats(1, 8), st.integers(0, 5))
def test_the_bound_never_rises_with_bandwidth_nor_falls_with_latency(drawn, link, factor, more):
    mesh = square(4)
    before = bound_phase(draw_traffic(*drawn, mesh=mesh)).finish
    mesh.link_bytes_per_clock[link] *= factor
    after = bound_phase(draw_traffic(*drawn, mesh=mesh)).finish
    assert (after <= before + CLOSE).all()
    mesh.link_latency[link] += more
    assert (bound_phase(draw_traffic(*drawn, mesh=mesh)).finish >= after - CLOSE).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(1, 5000))
def test_fewer_hops_are_never_slower(near, further, size):
    mesh = build_mesh(MeshShape(columns=13, rows=1), link=HOP)
    near_flow, far_flow = (
        simulate_flows(make_traffic(find_routes(mesh, [0], [hops]), size)).makespan
        for hops in (near, near + further)
    )
    assert near_flow <= far_flow + CLOSE


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=8, max_size=8))
def test_without_contention_a_program_is_the_sum_of_its_parts(sizes):
    mesh = square(8)
    routes = find_routes(mesh, range(0, 64, 8), range(7, 64, 8))  # a row for each
    together = simulate_flows(make_traffic(routes, sizes)).finish
    assert together == pytest.approx(7 + np.ceil(np.array(sizes) / 64) - 1)
    in_turn = make_traffic(routes, sizes, after=[(i, i + 1) for i in range(7)])
    assert simulate_flows(in_turn).makespan == pytest.approx(together.sum())


def test_a_faster_link_can_slow_a_network_that_shares_fairly():
    """Why schedules that must not get slower with a better machine rest on the bound."""
    mesh = build_mesh(MeshShape(columns=6, rows=1), link=HOP)
    slow = np.flatnonzero(mesh.link_source == 0)
    routes = find_routes(mesh, [0, 1, 3], [2, 5, 4])
    # The first flow and the second share 1 -> 2; the second and, later, the third share 3 -> 4.
    traffic = make_traffic(routes, np.array([10, 100, 2000]) * 64, start=[0, 0, 100])
    mesh.link_bytes_per_clock[slow] = 1
    before = simulate_flows(make_traffic(routes, [640, 6400, 128000], start=[0, 0, 100]))
    mesh.link_bytes_per_clock[slow] = 64
    after = simulate_flows(traffic)
    assert after.makespan > before.makespan + 1


def test_a_tolerance_changes_little_and_nothing_between_equal_flows_and_fair_shares():
    mesh = square(6)
    sources, targets = draw_ends("random", 6, 150, np.random.default_rng(0))
    routes = find_routes(mesh, sources, targets)
    equal = make_traffic(routes, 6400)
    exact, rough = (simulate_flows(equal, sharing=Sharing.FLOW, tolerance=t) for t in (0, 0.5))
    assert rough.finish == pytest.approx(exact.finish, rel=CLOSE)
    mixed = make_traffic(routes, np.random.default_rng(1).integers(64, 12800, 150))
    exact, rough = simulate_flows(mixed), simulate_flows(mixed, tolerance=0.01)
    assert rough.finish.mean() == pytest.approx(exact.finish.mean(), rel=0.01)
    assert rough.finish.mean() >= exact.finish.mean() - CLOSE


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_bytes": [0, 1]}, "at least one byte"),
        ({"num_bytes": 1, "start": -1}, "not negative"),
        ({"num_bytes": 1, "after": [(1, 0)]}, "the earlier one first"),
        ({"num_bytes": 1, "behind": [(0, 2)]}, "flows of 0 to 1"),
    ],
)
def test_traffic_that_cannot_be_is_refused(wrong, says):
    routes = find_routes(square(2), [0, 1], [1, 2])
    with pytest.raises(BackendError, match=says):
        make_traffic(routes, **wrong)
