"""Collectives along lines and over the grid, against the network's closed forms and flows."""

import numpy as np
import pytest
from fsdtrain_dojo.lowering.mapping import Axis, Layout, Storage
from fsdtrain_dojo.lowering.program import Pattern, Transfer
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.network import closed_forms, collectives
from fsdtrain_dojo.network.closed_forms import Line
from fsdtrain_dojo.network.flow_model import simulate_flows
from fsdtrain_dojo.network.program import FlowProgram
from fsdtrain_dojo.timing.box_axes import split_boxes
from fsdtrain_dojo.timing.cost import Resource
from fsdtrain_dojo.timing.fabric import build_fabric
from fsdtrain_dojo.timing.reduce_cost import group_places
from fsdtrain_dojo.timing.reduce_line import ReduceLine, multicast_along, reduce_along, ring_along
from fsdtrain_dojo.timing.transfer_cost import cost_transfer

from tests.backends.dojo.timing.flows_on_grid import GridRoutes
from tests.backends.dojo.timing.small_boxes import boxes_of

CLOCK = 2e9
FREE = 1e-20  # seconds a byte to add
UNIFORM = [1] * 7
CROSSING = [1, 1, 1, 201, 1, 1, 1]


def line_of(latency, *, add_s=FREE, narrow=1.0):
    """The same line in clocks, for the closed forms, and in seconds."""
    clocks = tuple(narrow if hop > 1 else 1.0 for hop in latency)
    return Line(latency=tuple(latency), packet_clocks=clocks, packet_bytes=64), ReduceLine(
        latency_s=tuple(hop / CLOCK for hop in latency),
        byte_s=tuple(each / 64 / CLOCK for each in clocks),
        packet_bytes=64,
        add_s=add_s,
    )


@pytest.mark.parametrize("latency", [UNIFORM, CROSSING, [1] * 84, [1], [1] * 4 + [201] + [1] * 12])
@pytest.mark.parametrize("packets", [1, 30, 480, 20_000])
def test_a_reduce_takes_what_the_best_closed_form_says(latency, packets):
    clocks, seconds = line_of(latency)
    expected = closed_forms.choose_reduce(clocks, packets * 64).clocks
    found = reduce_along(seconds, packets * 64).seconds * CLOCK
    assert found <= expected * 1.01
    if latency == [1]:
        assert found == pytest.approx(expected)
    if latency in (UNIFORM, [1] * 84, [1]):
        assert found >= expected * 0.9  # groups that do not divide the line are tried here, too


@pytest.mark.parametrize("latency", [UNIFORM, CROSSING, [1] * 84, [1]])
@pytest.mark.parametrize("packets", [8, 480, 16_000])
def test_rings_take_what_the_closed_form_says(latency, packets):
    clocks, seconds = line_of(latency, narrow=1.3)
    size = packets * 64
    for is_adding, phase in ((True, "reduce_scatter"), (False, "all_gather")):
        expected = closed_forms.ring_clocks(clocks, size, phase=phase)
        assert ring_along(seconds, size, is_adding).seconds * CLOCK == pytest.approx(
            expected, rel=0.01, abs=2
        )


def test_adding_takes_its_time():
    clocks, seconds = line_of(UNIFORM, add_s=9 / 64 / 60 / CLOCK)
    size = 64 * 480  # parts of 60 packets, each added in 9 clocks
    expected = closed_forms.ring_clocks(clocks, size, add_clocks=9, phase="reduce_scatter") + 9
    cost = ring_along(seconds, size, True)
    assert cost.seconds * CLOCK == pytest.approx(expected, rel=0.01)
    assert cost.add_s * CLOCK == pytest.approx(7 * 9)


def test_a_multicast_takes_what_the_closed_form_says():
    clocks, seconds = line_of(CROSSING, narrow=1.3)
    expected = closed_forms.multicast_clocks(clocks, 64 * 480)
    assert multicast_along(seconds, 64 * 480).seconds * CLOCK == pytest.approx(expected)


def fabric_of(rows, columns, **constants):
    """Two dies side by side, none of whose nodes is missing, that add in no time."""
    return build_fabric(
        read_machine(
            {"name": "d1_tile", "die_rows": rows, "die_columns": columns, "missing_nodes": 0,
             "tile_rows": 1, "tile_columns": 2, "num_address_units": 10**6, "num_load_ports": 10**6,
             "num_store_ports": 10**6, **constants}
        )
    )  # fmt: skip


def reduce_of(pattern, boxes):
    target = Layout(storage=Storage.SRAM, boxes=boxes)
    return Transfer(value="y", pattern=pattern, boxes=boxes, target=target)


@pytest.mark.parametrize("crossing_ns", [5, 100])
def test_an_all_reduce_over_the_grid_takes_what_its_flows_take(crossing_ns):
    fabric = fabric_of(4, 3, die_crossing_ns=crossing_ns)
    grid = GridRoutes(fabric)
    program, packets = FlowProgram(), 4 * 6 * 40
    collectives.bucket_all_reduce(program, grid.nodes.tolist(), packets * 64)
    expected = simulate_flows(program.build(grid.network)).makespan
    boxes = boxes_of((packets * 16,), fabric.grid, [(-1, 4)], [(-1, 6)])
    cost = cost_transfer(fabric, reduce_of(Pattern.ALL_REDUCE, boxes), 4)
    assert cost.seconds * CLOCK == pytest.approx(expected, rel=0.03)


def test_groups_are_nodes_with_equal_boxes():
    boxes = boxes_of((8,), (2, 8), [(-1, 2)], [(0, 2), (-1, 3)])
    assert group_places(split_boxes(boxes), Axis.ROW) == ((0, 1),)
    assert group_places(split_boxes(boxes), Axis.COLUMN) == ((0, 1, 2), (3, 4, 5))
    boxes = boxes_of((8,), (2, 8), [], [(-1, 3), (0, 2)])
    assert group_places(split_boxes(boxes), Axis.COLUMN) == ((0, 2, 4), (1, 3, 5))


def test_interleaved_groups_share_their_hops():
    fabric = fabric_of(4, 4)
    side_by_side = boxes_of((2, 32_000), fabric.grid, [(-1, 4)], [(0, 2), (-1, 4)])
    interleaved = boxes_of((2, 32_000), fabric.grid, [(-1, 4)], [(-1, 4), (0, 2)])
    alone = cost_transfer(fabric, reduce_of(Pattern.REDUCE_SCATTER, side_by_side), 4)
    shared = cost_transfer(fabric, reduce_of(Pattern.REDUCE_SCATTER, interleaved), 4)
    assert shared.busy_s[Resource.LINK] > 1.3 * alone.busy_s[Resource.LINK]
    assert shared.num_bytes["node link"] > alone.num_bytes["node link"]


def test_nothing_divided_costs_nothing():
    fabric = fabric_of(2, 2)
    boxes = boxes_of((8, 8), fabric.grid, [(0, 2)], [(1, 4)])
    assert cost_transfer(fabric, reduce_of(Pattern.ALL_REDUCE, boxes), 4).seconds == 0


def test_more_is_never_cheaper():
    fabric = fabric_of(3, 3)
    boxes = boxes_of((64, 64), fabric.grid, [(-1, 3)], [(1, 2), (-1, 3)])
    costs = [
        cost_transfer(fabric, reduce_of(pattern, boxes), 4)
        for pattern in (Pattern.REDUCE_SCATTER, Pattern.ALL_REDUCE)
    ]
    assert costs[0].seconds < costs[1].seconds
    assert costs[0].joules < costs[1].joules
    to_memory = Transfer(
        value="y", pattern=Pattern.REDUCE, boxes=boxes, target=Layout(storage=Storage.HBM)
    )
    cost = cost_transfer(fabric, to_memory, 4)
    assert cost.num_bytes["HBM"] == 64 * 64 * 4
    assert cost.seconds > cost_transfer(fabric, reduce_of(Pattern.REDUCE, boxes), 4).seconds
    assert np.isfinite(cost.joules)
