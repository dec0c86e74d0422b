"""The all-reduce of gradients: against hand computation, closed forms and the network's models."""

from dataclasses import replace

import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.layout import mesh_layout
from fsdtrain_dojo.network import closed_forms, collectives
from fsdtrain_dojo.network.closed_forms import Line, ring_clocks
from fsdtrain_dojo.network.flow_model import simulate_flows
from fsdtrain_dojo.network.packet_model import simulate_packets
from fsdtrain_dojo.network.program import FlowProgram
from fsdtrain_dojo.network.topology import Level
from fsdtrain_dojo.scale.all_reduce import all_reduce
from fsdtrain_dojo.scale.join import Block, join_homes
from fsdtrain_dojo.scale.rings import parallel_ring_clocks
from fsdtrain_dojo.timing.hops import build_network

from fsdtrain.backend import BackendError
from tests.backends.dojo.scale.stubs import small_tile

EXAPOD = read_machine("exapod")


def bucket_over_dies(machine, num_bytes):
    """A ring over dies for every node of a die, all at once."""
    die, tile = machine.levels
    layout = mesh_layout(machine)
    program = FlowProgram()
    for row in range(die.rows):
        for column in range(die.columns):
            nodes = [
                [
                    (down * die.rows + row) * layout.columns + right * die.columns + column
                    for right in range(tile.columns)
                ]
                for down in range(tile.rows)
            ]
            collectives.bucket_all_reduce(program, nodes, num_bytes / die.num_places)
    return program.build(build_network(machine, layout))


@pytest.mark.parametrize(
    ("rows", "columns", "edge"), [(2, 3, 0.512), (3, 3, 0.512), (2, 3, 0.256), (2, 4, 0.512)]
)
@pytest.mark.parametrize("num_packets", [30, 4])
def test_a_bucket_over_dies_takes_what_the_network_models_say(rows, columns, edge, num_packets):
    tile = small_tile(rows, columns, die_edge_tb_per_s=edge)
    num_bytes = 64 * 16 * rows * columns * num_packets
    join = replace(join_homes(tile, "die"), add_s_per_byte=0.0)
    found = all_reduce(join, num_bytes)
    traffic = bucket_over_dies(tile, num_bytes)
    expected = [simulate(traffic).makespan for simulate in (simulate_flows, simulate_packets)]
    clocks = found.seconds * join.clock_hz
    if "bucket" in found.how:
        assert clocks == pytest.approx(max(expected), rel=0.12)
    else:
        assert clocks < min(expected)


def test_bytes_over_borders_are_those_of_the_flows():
    tile = small_tile(3, 4)
    num_bytes = 64 * 16 * 12 * 30
    found = all_reduce(join_homes(tile, "die"), num_bytes)
    assert found.how == "rows first, bucket on the mesh"
    traffic = bucket_over_dies(tile, num_bytes)
    routes = traffic.routes
    crosses = routes.topology.link_level[routes.edge_link] == Level.DIE_EDGE
    packets = traffic.num_packets[routes.edge_flow] * crosses
    assert found.num_bytes["mesh"] == packets.sum() * 64
    assert found.num_bytes["SRAM"] == traffic.num_packets.sum() * 64


def test_a_bucket_over_nodes_is_the_closed_form():
    die = read_machine({"name": "d1_die", "die_rows": 4, "die_columns": 6, "missing_nodes": 0})
    join = replace(join_homes(die, "node"), add_s_per_byte=0.0)
    num_bytes = 64 * 24 * 200
    clocks = all_reduce(join, num_bytes).seconds * join.clock_hz
    line = {size: Line(latency=(1,) * (size - 1), packet_clocks=(1.0,) * (size - 1),
                       packet_bytes=64) for size in (4, 6)}  # fmt: skip
    forms = [closed_forms.bucket_clocks(line[a], line[b], num_bytes) for a, b in ((4, 6), (6, 4))]
    assert clocks == pytest.approx(min(forms), rel=0.01)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("phase", ["reduce_scatter", "all_gather"])
def test_rings_of_one_node_each_are_the_closed_form(count, phase):
    line = Line(latency=(7,) * (count - 1), packet_clocks=(1.5,) * (count - 1), packet_bytes=64)
    add = 9.0 if phase == "reduce_scatter" else 0.0
    one = parallel_ring_clocks(line, 64 * 960, num_parts=1, add_clocks=add)
    assert one == pytest.approx(ring_clocks(line, 64 * 960, add_clocks=add, phase=phase))
    # parts beside each other hide the latency, and no more than that
    many = parallel_ring_clocks(line, 64 * 960, num_parts=20, add_clocks=add)
    assert (count - 1) * 960 / count * 1.5 <= many <= one


def test_over_trays_a_ring_of_all_interfaces_by_hand():
    num_bytes = 184e6
    found = all_reduce(join_homes(EXAPOD, "tray"), num_bytes)
    # 38 steps of a twentieth over 20 x 50 GB/s; a message takes 1.3 us and two links of 150.5 ns
    steps = 38 * (num_bytes / 20 / 1e12 + 1.3e-6 + 2 * 150.5e-9)
    steps += 19 * num_bytes / 20 / 354 * 3 / 128 / 2e9  # 18 + 18 rows of nodes add what arrives
    into_and_out = 2 * (150 * 0.5e-9 + 7 * 100e-9 + 50e-9)
    assert found.seconds == pytest.approx(steps + into_and_out, rel=0.01)
    assert found.mesh_s == 0
    assert found.num_bytes["network"] == 38 * num_bytes
    assert "ring of 20" in found.how


def test_little_goes_up_and_down_a_tree_of_trays():
    found = all_reduce(join_homes(EXAPOD, "tray"), 4096)
    # 5 levels up and 5 down, a packet each
    steps = 10 * (1.3e-6 + 2 * 150.5e-9 + 1024 / 50e9)
    assert found.seconds == pytest.approx(steps + 2 * 0.825e-6, rel=0.01)
    assert "tree of 20" in found.how


@pytest.mark.parametrize(("cabinets", "levels"), [(1, 1), (2, 2), (4, 3), (5, 4)])
def test_a_tree_has_as_many_levels_as_doublings_reach_all_trays(cabinets, levels):
    machine = read_machine({"name": "exapod", "exapod_cabinets": cabinets})
    join = replace(join_homes(machine, "tray"), add_s_per_byte=0.0)
    steps = 2 * levels * join.network.message_s(4096)
    assert all_reduce(join, 4096).network_s == pytest.approx(steps + 2 * join.network.way_s)


def test_tiles_scatter_and_gather_in_their_tray_by_hand():
    num_bytes = 1.8e9  # so much that latency hardly counts
    join = replace(join_homes(EXAPOD, "tile"), add_s_per_byte=0.0)
    found = all_reduce(join, num_bytes)
    # two tiles side by side scatter first: over an edge of 4.5 TB/s, a half each way
    columns = num_bytes / 2 / 4.5e12
    rows = 2 * num_bytes / 2 / 3 / 4.5e12
    assert found.scatter_s == pytest.approx(columns + rows, rel=0.01)
    assert found.gather_s == pytest.approx(found.scatter_s, rel=0.01)
    # every tile sends 2 (n - 1) / n of it within its tray
    assert found.num_bytes["SRAM"] == pytest.approx(2 * 5 / 6 * num_bytes * 120)


def test_gradients_in_memory_outside_are_read_and_written_there():
    join = join_homes(EXAPOD, "die")
    inside, outside = all_reduce(join, 184e6), all_reduce(join, 184e6, lies_outside=True)
    # 400 processors of 800 GB/s at 90 % are shared by 3000 dies
    assert outside.memory_s == pytest.approx(2 * 184e6 / (400 * 720e9 / 3000))
    assert outside.seconds == max(outside.memory_s, inside.seconds)
    assert outside.num_bytes["HBM"] == 2 * 184e6 * 3000
    assert outside.joules > inside.joules


def test_adding_takes_its_time():
    tile = small_tile(2, 3)
    join = join_homes(tile, "die")
    free = all_reduce(replace(join, add_s_per_byte=0.0), 16e6)
    # 2 of 3 blocks of a row, then 1 of 2 blocks of a column, over 16 nodes; sums read twice and
    # write once through 2 addresses of 64 B a clock
    added = (2 * 16e6 / 3 + 16e6 / 3 / 2) / 16 * 3 / 128 / 2e9
    assert all_reduce(join, 16e6).seconds - free.seconds <= added * 1.001
    assert all_reduce(join, 16e6).seconds > free.seconds


@pytest.mark.parametrize("level", ["die", "tile", "tray"])
@pytest.mark.parametrize("num_bytes", [1e3, 1e6, 1e9])
@pytest.mark.parametrize(
    ("constant", "more"),
    [
        ("die_edge_tb_per_s", 4),
        ("tile_edge_gb_per_s", 1800),
        ("ethernet_gb_per_s", 100),
        ("link_bytes_per_cycle", 128),
    ],
)
def test_more_bandwidth_is_never_slower(level, num_bytes, constant, more):
    wide = read_machine({"name": "exapod", constant: more})
    before = all_reduce(join_homes(EXAPOD, level), num_bytes).seconds
    assert all_reduce(join_homes(wide, level), num_bytes).seconds <= before * 1.0001


@pytest.mark.parametrize("num_bytes", [1e3, 1e6, 1e9])
def test_more_replicas_are_never_quicker(num_bytes):
    for knob, level in (("exapod_cabinets", "tray"), ("tray_columns", "tile")):
        times = [
            all_reduce(
                join_homes(read_machine({"name": "exapod", knob: count}), level), num_bytes
            ).network_s
            if level == "tray"
            else all_reduce(
                join_homes(read_machine({"name": "d1_tray", knob: count}), level), num_bytes
            ).seconds
            for count in (1, 2, 3, 4, 8)
        ]
        assert times == sorted(times)


def test_a_block_of_slices_is_as_wide_as_all_its_links():
    one, block = join_homes(EXAPOD, "die"), join_homes(EXAPOD, "die", Block(rows=5, columns=5))
    tile = join_homes(EXAPOD, "tile")
    assert block.num_replicas == tile.num_replicas == one.num_replicas // 25
    # a tile is five dies wide: hops between tiles are the same either way
    assert block.row == tile.row
    assert block.column == tile.column
    assert block.row_joules_per_byte == pytest.approx(tile.row_joules_per_byte)


def test_one_replica_has_nothing_to_sum():
    assert all_reduce(join_homes(read_machine("d1_tile"), "tile"), 1e9).seconds == 0
    assert all_reduce(join_homes(read_machine("h100"), "gpu"), 1e9).seconds == 0


def test_meshes_that_nothing_joins_are_refused():
    lonely = replace(
        EXAPOD, interfaces=tuple(replace(each, network=None) for each in EXAPOD.interfaces)
    )
    with pytest.raises(BackendError, match="no interface of it has a network link"):
        join_homes(lonely, "tile")
    with pytest.raises(BackendError, match=r"42 stages .* take fewer stages"):
        join_homes(EXAPOD, "tile", Block(rows=6, columns=7))


def simulate_to_the_middle(machine, num_bytes):
    """Clocks of a chain and a tree from both ends of a row of dies to its middle, and back."""
    die, tile = machine.levels
    layout = mesh_layout(machine)
    network, middle = build_network(machine, layout), tile.columns // 2
    found = []
    for reduce in (collectives.chain_reduce, collectives.tree_reduce):
        program = FlowProgram()
        for node in range(die.num_places):
            row, column = divmod(node, die.columns)
            line = [
                row * layout.columns + right * die.columns + column for right in range(tile.columns)
            ]
            arms = (line[middle::-1], line[middle:])
            share = num_bytes / die.num_places
            arrived = [flow for arm in arms for flow in reduce(program, arm, share)]
            for arm in arms:
                collectives.multicast(program, arm, share, after=arrived)
        found.append(simulate_packets(program.build(network)).makespan)
    return found


@pytest.mark.parametrize("columns", [3, 5])
def test_little_is_reduced_to_the_middle_as_the_packet_model_says(columns):
    tile = small_tile(1, columns)
    num_bytes = 64 * 16 * 4
    join = replace(join_homes(tile, "die"), add_s_per_byte=0.0)
    found = all_reduce(join, num_bytes)
    assert "multicast" in found.how
    clocks = found.seconds * join.clock_hz
    assert clocks == pytest.approx(min(simulate_to_the_middle(tile, num_bytes)), rel=0.10)
