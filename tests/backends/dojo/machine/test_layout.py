import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.layout import mesh_layout
from fsdtrain_dojo.machine.presets.d1_node import draw_missing
from fsdtrain_dojo.machine.schema import Side
from fsdtrain_dojo.machine.totals import num_nodes

from fsdtrain.backend import BackendError

SMALL_TRAY = {
    "name": "d1_tray", "die_rows": 4, "die_columns": 5, "missing_nodes": 2, "tile_rows": 2,
    "tile_columns": 2,
}  # fmt: skip


def reachable(layout):
    """Nodes that neighbours' links reach from the first one."""
    present = {
        (row, column) for row in range(layout.rows) for column in range(layout.columns)
    } - set(layout.missing)
    waiting = [min(present)]
    seen = set(waiting)
    while waiting:
        row, column = waiting.pop()
        near = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)}
        found = {each for each in near if each in present and each not in seen}
        seen |= found
        waiting += found
    return seen


def test_a_tray_is_one_grid_of_nodes():
    layout = mesh_layout(read_machine(SMALL_TRAY))
    assert (layout.rows, layout.columns) == (2 * 2 * 4, 3 * 2 * 5)
    assert layout.num_nodes == 6 * 4 * (20 - 2)
    assert [(each.level, each.rows, each.columns) for each in layout.crossings] == [
        ("die", 4, 5),
        ("tile", 8, 10),
    ]


def test_every_die_misses_its_own_places_and_every_tile_the_same():
    layout = mesh_layout(read_machine(SMALL_TRAY))
    by_die = {}
    for row, column in layout.missing:
        by_die.setdefault((row // 4, column // 5), set()).add((row % 4, column % 5))
    assert len(by_die) == 24
    assert {len(places) for places in by_die.values()} == {2}
    assert by_die[0, 0] == by_die[2, 0] == by_die[0, 4]  # the first die of three tiles
    assert len({frozenset(places) for places in by_die.values()}) > 1


@pytest.mark.parametrize("name", ["d1_die", "d1_tile", "d1_tray", "exapod", "d2_wafer"])
def test_grids_hold_together_and_have_all_nodes(name):
    machine = read_machine(name)
    layout = mesh_layout(machine)
    assert len(reachable(layout)) == layout.num_nodes
    assert layout.num_nodes * layout.num_copies == num_nodes(machine)


def test_shares_of_an_edge_add_up_to_it():
    die, tile = mesh_layout(read_machine("d1_tray")).crossings
    assert 18 * die.row_link.bytes_per_s == pytest.approx(2e12)
    assert 20 * die.column_link.bytes_per_s == pytest.approx(2e12)
    assert 90 * tile.row_link.bytes_per_s == pytest.approx(5 * 900e9)
    assert 100 * tile.column_link.bytes_per_s == pytest.approx(5 * 900e9)


def test_interface_processors_share_the_western_and_eastern_rim():
    layout = mesh_layout(read_machine("d1_tray"))
    west = [site for site in layout.sites if site.side is Side.WEST]
    east = [site for site in layout.sites if site.side is Side.EAST]
    assert len(west) == len(east) == 10
    assert {len(site.nodes) for site in layout.sites} == {18}  # a die's rows
    assert [node for site in west for node in site.nodes] == [(row, 0) for row in range(180)]
    assert [node for site in east for node in site.nodes] == [(row, 299) for row in range(180)]


def test_a_pod_is_twenty_such_grids():
    layout = mesh_layout(read_machine("exapod"))
    assert (layout.rows, layout.columns, layout.num_copies) == (180, 300, 20)


def test_a_switch_is_no_mesh():
    with pytest.raises(BackendError, match=r"machine a100 has no mesh: .* joined by a switch"):
        mesh_layout(read_machine("a100"))


def test_missing_nodes_do_not_touch_and_follow_the_seed():
    drawn = draw_missing(18, 20, 6, "3/1")
    assert drawn == draw_missing(18, 20, 6, "3/1")
    assert drawn != draw_missing(18, 20, 6, "4/1")
    for first in drawn:
        for other in drawn:
            if first != other:
                assert max(abs(first[0] - other[0]), abs(first[1] - other[1])) > 1
