"""Slices: what all of them have adds up to what the whole has."""

import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.check import check_machine
from fsdtrain_dojo.machine.layout import mesh_layout
from fsdtrain_dojo.machine.totals import totals
from fsdtrain_dojo.scale.slices import num_slices, slice_machine

from fsdtrain.backend import BackendError
from tests.backends.dojo.scale.stubs import small_tile

SLICES = [
    ("exapod", "tray", 20),
    ("exapod", "tile", 120),
    ("exapod", "die", 3000),
    ("d1_cabinet", "tile", 12),
    ("d1_tray", "tray", 1),
    ("d1_tray", "tile", 6),
    ("d1_tile", "die", 25),
    ("d1_die", "node", 354),
    ("d2_wafer", "wafer", 1),
    ("h100", "gpu", 1),
]


@pytest.mark.parametrize(("name", "level", "count"), SLICES)
def test_slices_add_up_to_the_machine(name, level, count):
    machine = read_machine(name)
    one = slice_machine(machine, level)
    check_machine(one)
    assert num_slices(machine, level) == count
    whole, each = totals(machine), totals(one)
    assert each.num_nodes * count == whole.num_nodes
    assert each.sram_bytes * count == whole.sram_bytes
    assert each.memory_bytes * count == pytest.approx(whole.memory_bytes, rel=1e-6)
    for what in (
        "memory_bytes_per_s",
        "interface_bytes_per_s",
        "host_bytes_per_s",
        "network_bytes_per_s",
        "limit_watts",
    ):
        assert getattr(each, what) * count == pytest.approx(getattr(whole, what)), what
    assert one.power.idle_watts * count == pytest.approx(machine.power.idle_watts)
    assert one.op_start_s == machine.op_start_s


@pytest.mark.parametrize("num_missing", [0, 3])
def test_a_slice_lacks_what_its_group_lacks(num_missing):
    tile = small_tile(2, 3, missing_nodes=num_missing, die_rows=6, die_columns=5)
    missing = set()
    for die in range(6):
        top, left = die // 3 * 6, die % 3 * 5
        mine = mesh_layout(slice_machine(tile, "die", group=die)).missing
        missing |= {(top + row, left + column) for row, column in mine}
    assert missing == set(mesh_layout(tile).missing)
    assert len(missing) == 6 * num_missing


def test_interfaces_further_out_are_shared_and_further_away():
    tray = read_machine("d1_tray")
    own, shared = tray.interfaces[0], slice_machine(tray, "tile").interfaces[0]
    # 20 processors over 6 tiles are 3 1/3, which is 2 on each of two sides, 5/6 as large
    assert (shared.level, shared.sides, shared.count) == ("tile", own.sides, 2)
    assert shared.memory.bytes_per_s == pytest.approx(own.memory.bytes_per_s * 5 / 6)
    # the middle one of three tiles reaches a side over a tile: 100 hops, 4 dies, 1 tile crossed
    way = 100 * 0.5e-9 + 4 * 100e-9 + 150e-9
    assert shared.link.latency_s == pytest.approx(own.link.latency_s + way)
    assert slice_machine(tray, "tray").interfaces == tray.interfaces


def test_slices_of_what_cannot_be_cut_are_refused():
    with pytest.raises(BackendError, match=r"cannot be cut into slices of a node.*switch"):
        slice_machine(read_machine("h100"), "node")
    with pytest.raises(BackendError, match="no level 'rack'; it has die, tile"):
        slice_machine(read_machine("d1_tile"), "rack")
