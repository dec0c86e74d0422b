"""Costs of transfers against the network's models, closed forms, and each other."""

import numpy as np
import pytest
from fsdtrain_dojo.lowering.mapping import Layout, Storage
from fsdtrain_dojo.lowering.program import Pattern, Transfer
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.network.flow_model import bound_phase, simulate_flows
from fsdtrain_dojo.timing.cost import Resource
from fsdtrain_dojo.timing.fabric import build_fabric
from fsdtrain_dojo.timing.traffic import link_loads
from fsdtrain_dojo.timing.transfer_cost import classify, cost_transfer
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.dojo.timing.flows_on_grid import GridRoutes
from tests.backends.dojo.timing.small_boxes import boxes_of, count_traffic, draw_parts, trees_of

CLOCK = 2e9
LINK = 64 * CLOCK  # bytes a second
SMALL = {
    "name": "d1_tile", "die_rows": 5, "die_columns": 4, "tile_rows": 1, "tile_columns": 2,
    "die_crossing_ns": 20,
}  # fmt: skip


def small_fabric(**constants):
    return build_fabric(read_machine({**SMALL, "missing_nodes": 0, **constants}))


def kept_in(boxes):
    return Layout(storage=Storage.SRAM, boxes=boxes)


def load(kept, needed):
    source = kept_in(kept)
    return Transfer(value="x", pattern=classify(source, needed), boxes=needed, source=source)


def draw_load(rng, grid, halo=0):
    shape = tuple(int(size) for size in rng.integers(3, 9, size=3))
    kept = boxes_of(shape, grid, *draw_parts(rng, shape, grid))
    return load(kept, boxes_of(shape, grid, *draw_parts(rng, shape, grid), halo=halo))


@pytest.mark.parametrize(("missing", "slack"), [(0, 1e-6), (1, 0.03)])
def test_no_schedule_of_the_routes_is_quicker(missing, slack):
    """Against the network's bound; latencies leave out what detours add, hence the slack."""
    fabric = small_fabric(missing_nodes=missing)
    routes, size = GridRoutes(fabric), 64 * 20
    for seed in range(25):
        transfer = draw_load(np.random.default_rng(seed), fabric.grid, halo=seed % 2)
        flows = trees_of(transfer.source.boxes, transfer.boxes)
        if flows:
            least = bound_phase(routes.traffic(flows, size)).makespan
            clocks = cost_transfer(fabric, transfer, size).seconds * CLOCK
            assert least * (1 - slack) <= clocks <= 1.1 * least, seed


PATTERNS = {  # of a matrix: parts over rows and columns of the grid, and how far flows are off
    # many multicasts at once slow each other at links that both have, which leaves others idle
    "all-gather along rows": (([(0, 0)], [(1, 0)]), ([(0, 0)], [(-1, 0)]), 0.15),
    "all-gather along columns": (([(0, 0)], [(1, 0)]), ([(-1, 0)], [(1, 0)]), 0.15),
    "all-gather": (([(0, 0)], [(1, 0)]), ([(-1, 0)], [(-1, 0)]), 0.05),
    "one to all": (([], []), ([(-1, 0)], [(-1, 0)]), 0.05),
    "a row to all": (([], [(1, 0)]), ([(-1, 0)], [(1, 0)]), 0.05),
    "a column to all": (([(0, 0)], []), ([(0, 0)], [(-1, 0)]), 0.05),
    "parts from copies": (([(0, 0)], [(-1, 0)]), ([(-1, 0)], [(0, 0)]), 0.05),
    "from one to each": (([], []), ([(0, 0)], [(1, 0)]), 0.05),
}


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_loads_take_what_flows_take(pattern, missing):
    fabric = small_fabric(missing_nodes=missing)
    rows, columns = fabric.grid
    *divided, slack = PATTERNS[pattern]

    def fill(parts, count):
        return [(dimension, count) for dimension, _ in parts]

    kept, needed = (
        boxes_of((rows * 8, columns * 5), fabric.grid, fill(down, rows), fill(across, columns))
        for down, across in divided
    )
    flows = simulate_flows(GridRoutes(fabric).traffic(trees_of(kept, needed), 64 * 8)).makespan
    clocks = cost_transfer(fabric, load(kept, needed), 64 * 8).seconds * CLOCK
    assert clocks == pytest.approx(flows, rel=slack)
    assert clocks <= 1.02 * flows


def test_halos_take_what_flows_take():
    fabric = small_fabric()
    shape = (40, 32)
    kept = boxes_of(shape, fabric.grid, [(0, 5)], [(1, 8)])
    needed = boxes_of(shape, fabric.grid, [(0, 5)], [(1, 8)], halo=1)
    transfer = load(kept, needed)
    assert transfer.pattern is Pattern.HALO
    flows = trees_of(kept, needed)
    expected = simulate_flows(GridRoutes(fabric).traffic(flows, 64 * 16)).makespan
    clocks = cost_transfer(fabric, transfer, 64 * 16).seconds * CLOCK
    assert clocks == pytest.approx(expected, rel=0.05)


def test_a_row_multicast_by_hand():
    fabric = small_fabric()
    kept = boxes_of((5, 8), fabric.grid, [(0, 5)], [(1, 8)])
    needed = boxes_of((5, 8), fabric.grid, [(0, 5)], [(-1, 8)])
    cost = cost_transfer(fabric, load(kept, needed), 64 * 1000)
    # 4 of 8 blocks cross the die's edge one way, the narrowest: 2 TB/s over 5 rows are 400 GB/s;
    # 7 blocks cross the links at either end, and every node takes in 7
    assert cost.busy_s[Resource.LINK] == pytest.approx(7 * 64_000 / LINK)
    assert cost.latency_s == pytest.approx(7 / CLOCK + 20e-9)
    assert cost.seconds == pytest.approx(cost.latency_s + (7 * 64_000 - 64) / LINK)
    assert cost.moved_bytes == 40 * 7 * 64_000
    assert cost.num_bytes["die edge"] == 5 * 2 * 4 * 64_000
    assert cost.num_bytes["node link"] == 5 * 2 * 2 * (1 + 2 + 3 + 5 + 6 + 7) / 2 * 64_000
    sram = 1.75e-12 * 64_000 * (40 + 40 * 7)
    links = 1.2e-12 * cost.num_bytes["node link"] + 12e-12 * cost.num_bytes["die edge"]
    assert cost.joules == pytest.approx(sram + links)


def test_what_is_there_costs_nothing():
    fabric = small_fabric()
    halo = boxes_of((40, 8), fabric.grid, [(0, 5)], [(1, 8)], halo=2)
    plain = boxes_of((40, 8), fabric.grid, [(0, 5)], [(1, 8)])
    assert classify(kept_in(halo), plain) is Pattern.LOCAL
    assert cost_transfer(fabric, load(halo, plain), 4).seconds == 0
    assert classify(Layout(storage=Storage.HBM), plain) is Pattern.HBM_LOAD


@pytest.mark.parametrize(
    ("kept", "needed", "pattern"),
    [
        (([(0, 5)], [(1, 8)]), ([(0, 5)], [(-1, 8)]), Pattern.MULTICAST),
        (([(0, 5)], [(-1, 8)]), ([(-1, 5)], [(0, 8)]), Pattern.MULTICAST),
        (([(0, 5)], [(1, 8)]), ([(1, 5)], [(0, 8)]), Pattern.SCATTER),
        (([], []), ([(-1, 5)], [(-1, 8)]), Pattern.MULTICAST),
    ],
)
def test_patterns_have_names(kept, needed, pattern):
    fabric = small_fabric()
    kept, needed = (boxes_of((40, 40), fabric.grid, *parts) for parts in (kept, needed))
    assert classify(kept_in(kept), needed) is pattern


def test_gathered_elements_are_sent_one_by_one():
    fabric = small_fabric()
    kept = boxes_of((64,), fabric.grid, [], [(0, 8)])
    needed = boxes_of((64,), fabric.grid, [], [(-1, 8)])
    copied = cost_transfer(fabric, load(kept, needed), 64)
    picked = cost_transfer(fabric, load(kept, needed), 64, share=0.5)
    assert picked.moved_bytes == copied.moved_bytes / 2
    # over the middle, 32 elements cross for each of 4 nodes, not once for all of them
    assert picked.num_bytes["die edge"] == 4 * copied.num_bytes["die edge"] / 2


def test_heat_maps_show_what_counting_gives():
    fabric = small_fabric()
    for seed in range(10):
        transfer = draw_load(np.random.default_rng(seed), fabric.grid)
        counted = count_traffic(transfer.source.boxes, transfer.boxes)
        loads = link_loads(fabric, transfer, 4)
        for way in ("east", "west", "south", "north"):
            assert getattr(loads, way).tolist() == (4 * getattr(counted, way)).tolist()


def test_loads_are_conserved():
    """What crosses hops into a node less what crosses them out of it is what it keeps or sends."""
    fabric = small_fabric()
    for seed in range(20):
        transfer = draw_load(np.random.default_rng(seed), fabric.grid)
        moved = cost_transfer(fabric, transfer, 64, share=0.5).moved_bytes
        loads = link_loads(fabric, transfer, 64, share=0.5)
        net = np.zeros(fabric.grid)
        net[:, 1:] += loads.east - loads.west
        net[:, :-1] += loads.west - loads.east
        net[1:] += loads.south - loads.north
        net[:-1] += loads.north - loads.south
        assert net.sum() == pytest.approx(0)
        assert np.abs(net).sum() <= 2 * moved + 1e-6


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 300),
    knob=st.sampled_from(
        ["link_bytes_per_cycle", "die_edge_tb_per_s", "die_crossing_ns", "element", "hbm_gb_per_s"]
    ),
)
def test_better_links_and_fewer_bytes_are_never_slower(seed, size, knob):
    better = {"link_bytes_per_cycle": 128, "die_edge_tb_per_s": 4, "die_crossing_ns": 5,
              "hbm_gb_per_s": 1600}.get(knob)  # fmt: skip
    fabric = small_fabric()
    quicker = small_fabric(**{knob: better}) if better else fabric
    transfer = draw_load(np.random.default_rng(seed), fabric.grid)
    from_memory = Transfer(
        value="x", pattern=Pattern.HBM_LOAD, boxes=transfer.boxes,
        source=Layout(storage=Storage.HBM),
    )  # fmt: skip
    for each in (transfer, from_memory):
        slow = cost_transfer(fabric, each, size + 1)
        fast = cost_transfer(quicker, each, size if knob == "element" else size + 1)
        assert fast.seconds <= slow.seconds * (1 + 1e-12)
        assert fast.joules <= slow.joules * (1 + 1e-12)
        assert slow.seconds >= slow.latency_s
