"""Loads and stores of the memory outside, of meshes and behind switches."""

import numpy as np
import pytest
from fsdtrain_dojo.lowering.mapping import Layout, Storage
from fsdtrain_dojo.lowering.program import Pattern, Transfer
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.timing.box_axes import split_boxes
from fsdtrain_dojo.timing.cost import Resource
from fsdtrain_dojo.timing.fabric import build_fabric
from fsdtrain_dojo.timing.memory_cost import access_waste
from fsdtrain_dojo.timing.traffic import link_loads
from fsdtrain_dojo.timing.transfer_cost import cost_transfer

from tests.backends.dojo.timing.small_boxes import boxes_of, draw_parts, has

MEBI = 2**20
OUTSIDE = Layout(storage=Storage.HBM)


def load(boxes):
    return Transfer(value="x", pattern=Pattern.HBM_LOAD, boxes=boxes, source=OUTSIDE)


def store(boxes):
    return Transfer(value="x", pattern=Pattern.HBM_STORE, boxes=boxes, target=OUTSIDE)


def small_fabric(**constants):
    return build_fabric(
        read_machine(
            {"name": "d1_tile", "die_rows": 4, "die_columns": 3, "tile_rows": 2, "tile_columns": 2,
             "missing_nodes": 0, **constants}
        )
    )  # fmt: skip


@pytest.mark.parametrize("transfer", [load, store])
def test_a_value_in_parts_takes_what_the_memory_takes(transfer):
    fabric = small_fabric(hbm_gb_per_s=400)
    boxes = boxes_of((4096, 4096), fabric.grid, [(0, 8)], [(1, 6)])
    cost = cost_transfer(fabric, transfer(boxes), 4)
    expected = 4 * 4096**2 / (2 * 400e9 * 0.9)
    assert cost.busy_s[Resource.HBM] == pytest.approx(expected, rel=0.01)
    assert cost.seconds == pytest.approx(cost.busy_s[Resource.HBM] + cost.latency_s)
    assert cost.latency_s == pytest.approx(1000e-9 + 150.5e-9 + (5 + 7) * 0.5e-9 + 100e-9, rel=0.02)
    assert cost.num_bytes["HBM"] == pytest.approx(4 * 4096**2, rel=0.01)


def test_what_all_need_is_read_once_and_written_to_every_node():
    fabric = small_fabric()
    boxes = boxes_of((MEBI,), fabric.grid, [(-1, 8)], [(-1, 6)])
    cost = cost_transfer(fabric, load(boxes), 4)
    assert cost.num_bytes["HBM"] == 4 * MEBI
    assert cost.moved_bytes == 48 * 4 * MEBI
    # a node takes in a packet a clock, and no column link has more to carry than that
    assert cost.busy_s[Resource.LINK] == pytest.approx(4 * MEBI / 128e9, rel=0.01)
    back = cost_transfer(fabric, store(boxes), 4)
    assert back.num_bytes["HBM"] == back.moved_bytes == 4 * MEBI


def test_what_one_row_needs_comes_from_all_interfaces_where_that_is_quicker():
    fabric = small_fabric(hbm_gb_per_s=400)
    boxes = boxes_of((6 * MEBI,), fabric.grid, [], [(0, 6)])
    cost = cost_transfer(fabric, load(boxes), 1)
    one_row_of_links, one_interface = 6 * MEBI / 128e9, 6 * MEBI / 360e9
    assert cost.seconds < one_row_of_links
    assert cost.busy_s[Resource.HBM] < one_interface
    assert cost.busy_s[Resource.HBM] == pytest.approx(6 * MEBI / 720e9)


@pytest.mark.parametrize("num_sides", [1, 2])
@pytest.mark.parametrize("is_load", [True, False])
def test_the_rows_carry_what_the_memory_moves(num_sides, is_load):
    """Bytes over the hops, interfaces and into nodes, against counting elements."""
    fabric = small_fabric(num_interface_sides=num_sides)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        shape = tuple(int(size) for size in rng.integers(1, 9, size=3))
        boxes = boxes_of(shape, fabric.grid, *draw_parts(rng, shape, fabric.grid))
        loads = link_loads(fabric, (load if is_load else store)(boxes), 1)
        anyone = {
            element: [node for node in np.ndindex(fabric.grid) if has(boxes, node, element)]
            for element in np.ndindex(shape)
        }
        assert loads.by_interface.sum() == pytest.approx(sum(1 for each in anyone.values() if each))
        inward, outward = (loads.east, loads.west) if is_load else (loads.west, loads.east)
        farthest = [max(c for _, c in nodes) for nodes in anyone.values() if nodes]
        crossing = np.array([sum(last > hop for last in farthest) for hop in range(5)])
        if num_sides == 1:
            assert inward.sum(0) == pytest.approx(crossing)
            assert not outward.any()
        else:
            nearest = [min(c for _, c in nodes) for nodes in anyone.values() if nodes]
            back = np.array([sum(first <= hop for first in nearest) for hop in range(5)])
            assert inward.sum(0) == pytest.approx(crossing / 2)
            assert outward.sum(0) == pytest.approx(back / 2)


def test_short_runs_waste_accesses():
    shape = (64, 64)
    whole_rows = boxes_of(shape, (4, 4), [(0, 4)], [])
    narrow = boxes_of(shape, (4, 4), [], [(1, 4)])
    assert access_waste(whole_rows, 2, 64) == 1
    assert access_waste(narrow, 2, 64) == 2  # runs of 32 bytes
    assert access_waste(narrow, 4, 64) == 1
    assert access_waste(whole_rows, 1, 512, is_gather=True) == 8  # one row at a time


def test_picked_elements_are_read_for_every_node():
    fabric = small_fabric()
    boxes = boxes_of((1024, 64), fabric.grid, [(-1, 8)], [(-1, 6)])
    picked = cost_transfer(fabric, load(boxes), 4, share=0.25)
    assert picked.num_bytes["HBM"] == pytest.approx(48 * 1024 * 64)
    assert picked.moved_bytes == pytest.approx(48 * 1024 * 64)


@pytest.mark.parametrize(
    ("name", "rate"), [("a100", 2.039e12 * 0.9), ("tpu_v3", 450e9 * 0.9), ("mi300x", 5.3e12 * 0.85)]
)
def test_a_copy_on_a_gpu_is_as_quick_as_its_memory(name, rate):
    fabric = build_fabric(read_machine(name))
    boxes = boxes_of((fabric.num_nodes * 64 * MEBI,), fabric.grid, [], [(0, fabric.num_nodes)])
    read, written = (cost_transfer(fabric, way(boxes), 4) for way in (load, store))
    total = 4 * fabric.num_nodes * 64 * MEBI
    assert read.busy_s[Resource.HBM] == pytest.approx(total / rate)
    assert read.seconds + written.seconds == pytest.approx(2 * total / rate, rel=0.01)
    assert read.busy_s[Resource.LINK] < read.busy_s[Resource.HBM]


def test_the_cache_gives_again_what_other_nodes_just_asked_for():
    fabric = build_fabric(read_machine("a100"))
    nodes = fabric.num_nodes

    def cost(num_bytes, **options):
        boxes = boxes_of((num_bytes,), fabric.grid, [], [(-1, nodes)])
        return cost_transfer(fabric, load(boxes), 1, **options)

    small, large = cost(8 * MEBI), cost(80 * MEBI)
    assert small.num_bytes["HBM"] == 8 * MEBI
    assert small.num_bytes["node link"] == nodes * 8 * MEBI
    assert small.busy_s[Resource.LINK] == pytest.approx(nodes * 8 * MEBI / 7.2e12)
    assert large.num_bytes["HBM"] == 80 * MEBI
    resident = cost(8 * MEBI, resident_share=1.0)
    assert resident.num_bytes.get("HBM", 0) == 0
    assert resident.latency_s < small.latency_s


@pytest.mark.parametrize("num_served", [1, 2, 4])
def test_one_read_of_the_cache_reaches_the_nodes_of_a_cluster_that_share_it(num_served):
    fabric = build_fabric(read_machine({"name": "h100", "multicast_sms": num_served}))
    nodes = fabric.num_nodes
    shared = boxes_of((8 * MEBI,), fabric.grid, [], [(-1, nodes)])
    cost = cost_transfer(fabric, load(shared), 1)
    assert cost.num_bytes["node link"] == nodes * 8 * MEBI, "every node takes all of it"
    assert cost.num_bytes["shared memory"] == nodes * 8 * MEBI / num_served
    own = boxes_of((nodes * MEBI,), fabric.grid, [], [(0, nodes)])
    for way in (load(own), store(own)):
        assert cost_transfer(fabric, way, 1).num_bytes["shared memory"] == nodes * MEBI


def test_partial_results_are_added_in_the_cache():
    fabric = build_fabric(read_machine("a100"))
    boxes = boxes_of((54 * MEBI // 16,), fabric.grid, [], [(0, 54), (-1, 2)])
    partial = Transfer(value="y", pattern=Pattern.REDUCE, boxes=boxes, target=OUTSIDE)
    whole, added = cost_transfer(fabric, store(boxes), 4), cost_transfer(fabric, partial, 4)
    assert whole.num_bytes["HBM"] == added.num_bytes["HBM"] == 54 * MEBI / 4
    assert added.num_bytes["node link"] == 2 * whole.num_bytes["node link"]


def test_each_die_of_a_chiplet_gpu_asks_the_last_cache_once():
    fabric = build_fabric(read_machine("mi300x"))
    boxes = boxes_of((MEBI,), fabric.grid, [], [(-1, 304)])
    cost = cost_transfer(fabric, load(boxes), 1)
    assert cost.num_bytes["node link"] == 304 * MEBI
    assert cost.num_bytes["switch link"] == 8 * MEBI
    assert cost.num_bytes["HBM"] == MEBI
    loads = link_loads(fabric, load(boxes), 1)
    assert loads.by_interface.sum() == MEBI
    assert split_boxes(boxes).largest == MEBI
