import numpy as np
import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.layout import mesh_layout
from fsdtrain_dojo.machine.schema import Side
from fsdtrain_dojo.timing.fabric import build_fabric
from fsdtrain_dojo.timing.logical_grid import lay_grid

SMALL_TILE = {"name": "d1_tile", "die_rows": 6, "die_columns": 7, "tile_rows": 2, "tile_columns": 2}


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_the_grid_has_no_holes_and_no_node_twice(missing):
    machine = read_machine({**SMALL_TILE, "missing_nodes": missing})
    fabric, layout = build_fabric(machine), mesh_layout(machine)
    places = list(zip(fabric.node_row.ravel(), fabric.node_column.ravel(), strict=True))
    assert len(set(places)) == len(places) == fabric.num_nodes
    assert not {*places} & {*layout.missing}
    assert (np.diff(fabric.node_row, axis=0) > 0).all()
    assert (np.diff(fabric.node_column, axis=1) > 0).all()


def test_as_many_nodes_take_part_as_the_emptiest_row_or_column_allows():
    rng = np.random.default_rng(0)
    for _ in range(30):
        present = rng.random((rng.integers(2, 12), rng.integers(2, 12))) > 0.1
        best = max(present.sum(0).min() * present.shape[1], present.sum(1).min() * present.shape[0])
        rows, columns = lay_grid(present)
        assert rows.size == best
        assert present[rows, columns].all()


def test_logical_neighbours_lie_side_by_side():
    present = np.ones((18, 20), bool)
    for place in mesh_layout(read_machine("d1_die")).missing:
        present[place] = False
    rows, columns = lay_grid(present)
    assert np.abs(np.diff(rows, axis=1)).max() <= 1
    assert np.abs(np.diff(columns, axis=0)).max() <= 1


@pytest.mark.parametrize("name", ["d1_die", "d1_tile"])
def test_most_nodes_take_part(name):
    machine = read_machine(name)
    assert build_fabric(machine).num_nodes > 0.9 * mesh_layout(machine).num_nodes
    assert build_fabric(machine) is build_fabric(machine)


def test_corner_to_corner_of_a_tile_is_188_hops_and_8_crossings():
    fabric = build_fabric(read_machine({"name": "d1_tile", "missing_nodes": 0}))
    assert fabric.grid == (90, 100)
    way = fabric.row_way_s[0, -1] + fabric.column_way_s[0, -1]
    assert way == pytest.approx(188 * 0.5e-9 + 8 * 100e-9)


def test_hops_have_the_links_of_the_machine():
    machine = read_machine({**SMALL_TILE, "missing_nodes": 0})
    fabric = build_fabric(machine)
    hops = fabric.along_rows
    link, edge = 1 / (64 * 2e9), 6 / 2e12
    expected = np.full((12, 13), link)
    expected[:, 6] = edge
    assert hops.seconds_per_byte == pytest.approx(expected)
    assert fabric.along_columns.seconds_per_byte[5] == pytest.approx(np.full(14, 7 / 2e12))
    assert hops.num_links["die edge"].sum() == 12
    assert hops.num_links["node link"].sum() == 12 * 12
    assert hops.latency_s[0, 6] == pytest.approx(100.5e-9)
    assert hops.joules_per_byte[0, 6] == pytest.approx(12e-12)
    assert (hops.shared_by == 1).all()


def test_going_around_a_missing_node_takes_links_of_others():
    present = np.ones((5, 6), bool)
    machine = read_machine(
        {"name": "d1_die", "die_rows": 5, "die_columns": 6, "missing_nodes": 1, "missing_seed": 3}
    )
    present[mesh_layout(machine).missing[0]] = False
    fabric = build_fabric(machine)
    hops = fabric.along_rows if fabric.grid == (5, 5) else fabric.along_columns
    assert hops.num_links["node link"].max() > 1
    assert hops.shared_by.max() == 2
    assert hops.seconds_per_byte.max() == pytest.approx(2 / (64 * 2e9))


def test_memory_is_all_interfaces_together():
    fabric = build_fabric(read_machine("d1_tile"))
    memory = fabric.memory
    assert memory.bytes_per_s == pytest.approx(5 * 800e9 * 0.9)
    assert memory.capacity_bytes == 5 * 32e9
    assert memory.latency_s == pytest.approx(1000e-9 + 150.5e-9)
    assert memory.shares == {Side.WEST: pytest.approx(1)}
    assert sorted(set(memory.fed[Side.WEST])) == [0, 1, 2, 3, 4]
    both = build_fabric(read_machine({"name": "d1_tile", "num_interface_sides": 2})).memory
    assert both.shares == {Side.WEST: pytest.approx(0.5), Side.EAST: pytest.approx(0.5)}


@pytest.mark.parametrize(
    ("name", "num_nodes", "caches"),
    [("a100", 108, [40]), ("h100", 132, [50]), ("tpu_v3", 1, [0]), ("mi300x", 304, [4, 256])],
)
def test_nodes_at_a_switch_are_one_row(name, num_nodes, caches):
    fabric = build_fabric(read_machine(name))
    assert fabric.grid == (1, num_nodes)
    assert not fabric.keeps_values
    assert [stage.capacity_bytes / 2**20 for stage in fabric.stages] == caches
    assert np.prod([stage.num_members for stage in fabric.stages]) == num_nodes


def test_a_pod_is_many_such_grids():
    machine = read_machine(
        {"name": "exapod", "die_rows": 3, "die_columns": 3, "missing_nodes": 0, "tile_rows": 1,
         "tile_columns": 1}
    )  # fmt: skip
    fabric = build_fabric(machine)
    assert fabric.num_copies == 20
    assert fabric.grid == (6, 9)
    assert fabric.along_rows.num_links["tile edge"].sum() == 2 * 6
