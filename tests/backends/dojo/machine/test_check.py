from dataclasses import replace

import pytest
from fsdtrain_dojo.machine.catalog import PRESETS, read_machine
from fsdtrain_dojo.machine.check import check_machine, remarks
from fsdtrain_dojo.machine.schema import Side, Topology

from fsdtrain.backend import BackendError


def check(machine, **changes):
    check_machine(replace(machine, **changes))


@pytest.fixture
def tile():
    return read_machine("d1_tile")


def test_bandwidth_without_a_link_between_dies(tile):
    die = replace(tile.levels[0], edge=None)
    with pytest.raises(
        BackendError,
        match=r"the 25 members of level tile meet over the edge of the die, which has none: "
        r"bandwidth without a link; give the edge a bandwidth",
    ):
        check(tile, levels=(die, tile.levels[1]))


def test_a_knob_that_takes_a_link_away_is_refused_too():
    with pytest.raises(BackendError, match=r"machine d1_tile contradicts itself:\n.*has 0 B/s"):
        read_machine({"name": "d1_tile", "die_edge_tb_per_s": 0})


def test_memory_without_a_link():
    with pytest.raises(
        BackendError, match=r"has bandwidth without a link: memory 8e\+11 B/s, host 3.2e\+10 B/s"
    ):
        read_machine({"name": "d1_tile", "interface_gb_per_s": 0})


def test_trays_that_meet_over_a_network_that_nothing_reaches():
    pod = read_machine("exapod")
    interface = replace(pod.interfaces[0], network=None)
    with pytest.raises(BackendError, match=r"10 members of level exapod meet over the network"):
        check(pod, interfaces=(interface,))


def test_a_format_that_can_be_multiplied_but_not_stored(tile):
    lanes = {"fp32": 16.0}
    node = replace(tile.node, vector=replace(tile.node.vector, lanes=lanes))
    with pytest.raises(
        BackendError,
        match=r"multiplies bf16, but its vector unit has no rate for it \(it has fp32\)",
    ):
        check(tile, node=node)


def test_a_format_without_a_rate_names_those_that_have_one(tile):
    with pytest.raises(BackendError, match=r"no rate for fp8_e4m3; its formats are fp32, bf16"):
        tile.node.matmul_flops_per_s("fp8_e4m3")


def test_a_rate_of_zero_and_an_unknown_format_are_told_together(tile):
    lanes = {**tile.node.vector.lanes, "bf16": 0.0, "posit8": 16.0}
    node = replace(tile.node, vector=replace(tile.node.vector, lanes=lanes))
    with pytest.raises(BackendError) as caught:
        check(tile, node=node)
    assert "its rate for bf16 is 0 vector lanes: give a positive one" in str(caught.value)
    assert "format 'posit8' is not known; known are fp32, bf16" in str(caught.value)


def test_ports_that_cannot_feed_the_matrix_unit():
    # An 8x4 and a 4x8 operand of BF16 are 128 B a clock; one port gives 64.
    with pytest.raises(
        BackendError,
        match=r"at its bf16 rate of 256 multiply-adds a cycle the matrix unit needs 128 B a cycle "
        r"of load ports, which give 64: lower the rate to 50% or widen the ports",
    ):
        read_machine({"name": "d1_die", "num_load_ports": 1})


def test_one_byte_operands_are_fed_by_half_the_ports():
    with pytest.raises(BackendError) as caught:
        read_machine({"name": "d1_die", "num_load_ports": 1})
    assert "cfloat8" not in str(caught.value)


def test_sums_that_leave_a_systolic_array_need_ports_too():
    # Two arrays put out 128 sums of 4 B a clock each: 1024 B a clock.
    with pytest.raises(BackendError, match=r"needs 1024 B a cycle of store ports, which give 512"):
        read_machine({"name": "tpu_v3", "port_bytes_per_cycle": 512})


def test_missing_members_that_are_elsewhere(tile):
    die = replace(tile.levels[0], missing=(((0, 0), (18, 3)),))
    with pytest.raises(
        BackendError, match=r"level die of 18 x 20 members misses \[\(18, 3\)\], which lie outside"
    ):
        check(tile, levels=(die, tile.levels[1]))


def test_a_group_without_members(tile):
    nothing = tuple((row, column) for row in range(18) for column in range(20))
    die = replace(tile.levels[0], missing=(nothing,))
    with pytest.raises(BackendError, match=r"misses all of its 360 members"):
        check(tile, levels=(die, tile.levels[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "wafer"}, r"attached to level 'wafer', which is none of die, tile"),
        ({"sides": ()}, r"hangs at the switch of level tile, which has none"),
        ({"count": 0}, r"has 0 pieces"),
        ({"memory": None, "host": None, "network": None}, r"neither memory nor host nor network"),
    ],
)
def test_interfaces_that_hang_nowhere(tile, changes, message):
    with pytest.raises(BackendError, match=message):
        check(tile, interfaces=(replace(tile.interfaces[0], **changes),))


def test_sides_of_a_switch():
    gpu = read_machine("a100")
    interface = replace(gpu.interfaces[0], sides=(Side.WEST,))
    with pytest.raises(BackendError, match=r"hangs at sides of level gpu, which is no mesh"):
        check(gpu, interfaces=(interface,))


def test_idle_power_beyond_the_limit(tile):
    power = replace(tile.power, idle_watts=16000.0)
    with pytest.raises(BackendError, match=r"idle it takes 16000 W, its limit is 15000 W"):
        check(tile, power=power)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_that_is_taken_apart_is_refused(name):
    machine = read_machine(name)
    still = replace(machine.node, clock_hz=0.0)
    with pytest.raises(BackendError, match=r"clock of the node: 0; give a positive number"):
        check(machine, node=still)


def test_a_member_at_a_switch_needs_an_edge():
    gpu = read_machine("mi300x")
    die = replace(gpu.levels[0], edge=None)
    assert gpu.levels[1].topology is Topology.SWITCH
    with pytest.raises(BackendError, match=r"8 members of level gpu meet over the edge"):
        check(gpu, levels=(die, gpu.levels[1]))


def test_remarks_tell_what_cannot_work_at_full_rate():
    told = remarks(read_machine("d1_tile"))
    assert any("issues 2 accesses a cycle for 3 load and store ports" in each for each in told)
    assert any("south edge of a die carries 2e+12 B/s" in each for each in told)
    fast = remarks(read_machine({"name": "d1_tile", "hbm_gb_per_s": 1000}))
    assert any("gives 1e+12 B/s, its link carries 9e+11" in each for each in fast)
