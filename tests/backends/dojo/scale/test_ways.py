"""Messages between slices: over the mesh, or through interfaces and the network."""

import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.totals import corner_latency_s
from fsdtrain_dojo.scale.grid import lay_slices
from fsdtrain_dojo.scale.join import network_port
from fsdtrain_dojo.scale.ways import find_ways, network_way

TRAY = read_machine("d1_tray")
DIES = lay_slices(TRAY, "die")
PORT = network_port(TRAY, 1)


def test_a_message_over_the_mesh_crosses_every_hop_once():
    (way,) = find_ways(DIES, None, (0, 0), (9, 14), 0)
    assert way.num_hops == 14 * 20 + 9 * 18
    # from corner to corner are 19 + 17 hops more, which lie within one die
    within = (19 + 17) * TRAY.node.edge.latency_s
    assert way.seconds == pytest.approx(corner_latency_s(TRAY) - within)


def test_little_goes_through_the_z_plane_between_far_dies_and_much_over_the_mesh():
    little = find_ways(DIES, PORT, (0, 0), (9, 14), 64)
    assert [way.name for way in little] == ["Z plane", "mesh"]
    # 1.3 us of network, 2 links of 150.5 ns to interfaces, and half a die at each end
    assert little[0].seconds == pytest.approx(1.3e-6 + 2 * 150.5e-9 + 9.5e-9 + 64 / (1e12 / 150))
    assert little[0].num_hops == 4 + 20
    much = find_ways(DIES, PORT, (0, 0), (9, 14), 1e6)
    assert [way.name for way in much] == ["mesh", "Z plane"]


def test_neighbours_never_take_the_z_plane():
    assert find_ways(DIES, PORT, (4, 7), (4, 8), 64)[0].name == "mesh"


def test_between_meshes_there_is_only_the_network():
    way = network_way(PORT, 20 * 1024)
    inside = 150 * 0.5e-9 + 7 * 100e-9 + 50e-9  # half of a row of the tray: 150 nodes
    packet = 1024 / 50e9
    expected = 1.3e-6 + 2 * 150.5e-9 + packet + 2 * inside
    assert way.seconds == pytest.approx(expected, rel=0.02)
