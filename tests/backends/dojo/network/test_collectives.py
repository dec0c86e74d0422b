"""Collectives as programs, on both network models, against their formulas."""

import numpy as np
import pytest
from fsdtrain_dojo.network import closed_forms, collectives
from fsdtrain_dojo.network.closed_forms import Line, choose_reduce, measure_line
from fsdtrain_dojo.network.flow_model import Sharing, simulate_flows
from fsdtrain_dojo.network.packet_model import simulate_packets
from fsdtrain_dojo.network.program import FlowProgram
from fsdtrain_dojo.network.topology import MeshShape, Topology, build_mesh
from fsdtrain_dojo.network.traffic import Traffic

from fsdtrain.backend import BackendError
from tests.backends.dojo.network.meshes import HOP, square, two_dies

ONE_DIE = build_mesh(MeshShape(columns=8, rows=1), link=HOP)
CROSSING = two_dies(4, 1, crossing=200, rate=64)
NARROW_CROSSING = two_dies(4, 1, crossing=200, rate=50)
ROW = list(range(8))
SIZE = 64 * 480

CASES = {
    "multicast": (collectives.multicast, closed_forms.multicast_clocks, {}),
    "shift": (collectives.shift, closed_forms.shift_clocks, {}),
    "shift_round": (collectives.shift, closed_forms.shift_clocks, {"wrap": True}),
    "chain": (collectives.chain_reduce, closed_forms.chain_clocks, {"add_clocks": 9}),
    "chain_of_chunks": (
        collectives.chain_reduce,
        closed_forms.chain_clocks,
        {"num_chunks": 16, "add_clocks": 9},
    ),
    "tree": (collectives.tree_reduce, closed_forms.tree_clocks, {"add_clocks": 9}),
    "two_phase": (
        collectives.two_phase_reduce,
        closed_forms.two_phase_clocks,
        {"group": 4, "num_chunks": 8, "add_clocks": 9},
    ),
    "ring": (collectives.ring_all_reduce, closed_forms.ring_clocks, {"add_clocks": 9}),
}


def program_of(mesh: Topology, collective, options) -> Traffic:
    program = FlowProgram()
    collective(program, ROW, SIZE, **options)
    return program.build(mesh)


@pytest.mark.parametrize("mesh", [ONE_DIE, CROSSING, NARROW_CROSSING])
@pytest.mark.parametrize("name", CASES)
def test_collectives_take_what_their_formulas_say(name, mesh):
    collective, formula, options = CASES[name]
    traffic = program_of(mesh, collective, options)
    expected = formula(measure_line(mesh, ROW), SIZE, **options)
    assert simulate_flows(traffic).makespan == pytest.approx(expected, rel=0.01)
    assert simulate_packets(traffic).makespan == pytest.approx(expected, rel=0.01)


def test_a_shift_by_several_places_loads_links_so_often():
    traffic = program_of(ONE_DIE, collectives.shift, {"by": 3})
    expected = closed_forms.shift_clocks(measure_line(ONE_DIE, ROW), SIZE, by=3)
    assert expected == 3 + 3 * 480 - 1
    fair = simulate_flows(traffic, sharing=Sharing.FLOW)
    assert fair.makespan == pytest.approx(expected, rel=0.01)
    # routers that give their inputs turns hold up who comes from afar, in both models
    assert simulate_flows(traffic).makespan > expected * 1.05
    assert simulate_packets(traffic).makespan > expected * 1.05


def test_root_all_reduce_is_a_chain_and_a_multicast():
    options = {"num_chunks": 16, "add_clocks": 9}
    traffic = program_of(ONE_DIE, collectives.root_all_reduce, options)
    line = measure_line(ONE_DIE, ROW)
    chain = closed_forms.chain_clocks(line, SIZE, **options)
    expected = chain + 9 + closed_forms.multicast_clocks(line, SIZE)
    assert simulate_flows(traffic).makespan == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("mesh", [square(4), two_dies(2, 4, crossing=100, rate=64)])
def test_bucket_all_reduce_takes_what_its_formula_says(mesh):
    rows = np.arange(16).reshape(4, 4)
    program = FlowProgram()
    collectives.bucket_all_reduce(program, rows.tolist(), SIZE, add_clocks=9)
    lines = [measure_line(mesh, nodes.tolist()) for nodes in (rows[0], rows[:, 0])]
    expected = closed_forms.bucket_clocks(*lines, SIZE, add_clocks=9)
    delivery = simulate_flows(program.build(mesh))
    assert delivery.makespan == pytest.approx(expected, rel=0.01)
    # every node sends and receives each part but its own twice
    assert delivery.sent.tolist() == delivery.received.tolist() == [2 * 480 * 15 / 16] * 16


@pytest.mark.parametrize("reduce", ["chain", "tree", "two_phase", "ring"])
@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_every_node_s_block_reaches_the_sum(reduce, count):
    """Follow the data: what each flow carries is what its sender had when its waits were over."""
    collective, _, options = CASES[reduce]
    if reduce == "two_phase":
        options = {**options, "num_chunks": 1, "group": 2}
    program = FlowProgram()
    last = collective(program, ROW[:count], SIZE, **options)
    traffic = program.build(ONE_DIE)
    carried: list[set[int]] = []
    for flow in range(len(traffic)):
        earlier = traffic.after[traffic.after[:, 1] == flow, 0]
        carried.append({int(traffic.routes.source[flow])}.union(*(carried[i] for i in earlier)))
    everyone = {*range(count)}
    if reduce == "ring":
        assert all(len(flows) == count - 1 for flows in last)
        assert all(carried[flow] == everyone for flows in last for flow in flows)
    else:
        assert {0}.union(*(carried[flow] for flow in last)) == everyone


def line_of(count: int) -> Line:
    return Line(latency=(1,) * (count - 1), packet_clocks=(1.0,) * (count - 1), packet_bytes=64)


def test_the_reduce_is_chosen_by_length():
    short = choose_reduce(line_of(64), 64, add_clocks=40)
    medium = choose_reduce(line_of(64), 64 * 200, add_clocks=40)
    long = choose_reduce(line_of(64), 64 * 10_000, add_clocks=40)
    assert [plan.algorithm for plan in (short, medium, long)] == ["tree", "two_phase", "chain"]
    assert long.num_chunks > 1
    # no algorithm has the root receive more than a packet a clock, or a message hop for nothing
    assert short.clocks >= 63
    assert 10_000 <= long.clocks < 1.5 * 10_000


def test_lines_are_of_neighbours():
    with pytest.raises(BackendError, match="nodes 1 and 3 are no neighbours"):
        measure_line(ONE_DIE, [0, 1, 3])
