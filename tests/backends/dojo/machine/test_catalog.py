from dataclasses import replace

import pytest
from fsdtrain_dojo.machine.catalog import PRESETS, read_machine, with_constants
from fsdtrain_dojo.machine.quantity import Confidence

from fsdtrain.backend import BackendError


def test_the_machines_that_can_be_asked_for():
    assert set(PRESETS) == {
        "d1_node", "d1_die", "d1_tile", "d1_tray", "d1_cabinet", "exapod", "d2_wafer",
        "tpu_v3", "tpu_v3_chip", "a100", "h100", "h200", "mi300x",
    }  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_says_of_every_constant_where_it_is_from(name):
    machine = read_machine(name)
    assert machine.name == name
    assert machine.constants
    for each in machine.constants.values():
        assert each.source
        assert each.confidence is not Confidence.GIVEN


def test_assumptions_have_a_range_to_vary_them_in():
    without = {
        (preset.name, name)
        for preset in PRESETS.values()
        for name, each in preset.constants.items()
        if each.confidence is Confidence.ASSUMED and each.low is None
    }
    # A seed has no range; the shape of a hypothetical machine is its definition.
    assert {name for _, name in without} <= {
        "missing_seed", "wafer_rows", "wafer_columns", "interfaces_per_wafer_edge",
    }  # fmt: skip


def other_values(name, constant):
    """Values near that of a constant, the first of which its machine may refuse."""
    value = constant.value
    if name in ("num_interface_sides", "num_cores"):
        return [3 - value]  # both are 1 or 2
    if constant.unit in ("count", "B", "KiB"):
        return [value + 1, value - 1]
    return [0.9 * value, 1.1 * value] if value <= 1 else [1.1 * value, 0.9 * value]


def changed(preset, name, value):
    try:
        return read_machine({"name": preset, name: value})
    except BackendError:
        return None


@pytest.mark.parametrize("preset", PRESETS)
def test_no_constant_is_dead(preset):
    was = read_machine(preset)
    for name, constant in was.constants.items():
        tried = [changed(preset, name, value) for value in other_values(name, constant)]
        now = next(each for each in tried if each is not None)
        assert replace(now, constants={}) != replace(was, constants={}), name
        assert now.constants[name].confidence is Confidence.GIVEN


@pytest.mark.parametrize("preset", PRESETS)
def test_machines_make_sense_at_both_ends_of_every_range(preset):
    for name, constant in PRESETS[preset].constants.items():
        for value in (constant.low, constant.high):
            assert read_machine({"name": preset, name: value}).name == preset


def test_a_knob_changes_what_it_names():
    tile = read_machine({"name": "d1_tile", "die_crossing_ns": 150})
    # One hop of half a nanosecond comes on top.
    assert tile.level("die").edge.latency_s == pytest.approx(150.5e-9)
    assert "preset: 100 ns" in tile.constants["die_crossing_ns"].source


def test_a_null_knob_leaves_the_preset_even_if_it_is_another_machines():
    machine = read_machine({"name": "a100", "die_crossing_ns": None, "num_sms": None})
    assert machine == read_machine("a100")


def test_giving_the_value_of_the_preset_is_not_an_override():
    assert read_machine({"name": "d1_die", "clock_ghz": 2}) == read_machine("d1_die")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("d3_die", r"backend.machine='d3_die': no such machine; there are d1_node, d1_die"),
        (None, r"backend.machine=None: must be the name of a machine"),
        ({"die_crossing_ns": 1}, r"must be the name of a machine .* or a mapping with `name`"),
        (
            {"name": "d1_die", "die_crosing_ns": 150},
            r"backend.machine.die_crosing_ns: machine d1_die has no such constant; did you mean "
            r"die_crossing_ns",
        ),
        ({"name": "a100", "die_crossing_ns": 150}, r"machine a100 has no such constant.*It has"),
        ({"name": "a100", "not_a_knob": None}, r"not_a_knob: machine a100 has no such constant"),
        (
            {"name": "d1_die", "die_crossing_ns": "fast"},
            r"die_crossing_ns='fast': must be a number in ns \(preset: 100 ns, attributed\)",
        ),
        ({"name": "d1_die", "die_crossing_ns": True}, r"=True: must be a number in ns"),
        ({"name": "d1_die", "die_crossing_ns": -1}, r"=-1: must be finite and at least 0"),
        ({"name": "d1_die", "clock_ghz": float("nan")}, r"=nan: must be finite and at least 0"),
        ({"name": "d1_die", "die_rows": 17.5}, r"die_rows=17.5: must be a whole number"),
        ({"name": "d1_die", "idle_share": 1.5}, r"idle_share=1.5: must be above 0 and at most 1"),
        ({"name": "d1_die", "num_interface_sides": 3}, r"=3: must be 1 \(west\) or 2"),
        (
            {"name": "d1_die", "die_rows": 2, "die_columns": 2, "missing_nodes": 2},
            r"2 missing nodes that do not touch each other do not fit into 2 x 2: lower "
            r"backend.machine.missing_nodes",
        ),
        ({"name": "d1_die", "die_rows": 0, "missing_nodes": 0}, r"do not fit into 0 x 20"),
    ],
)
def test_what_was_given_wrong_is_named(options, message):
    with pytest.raises(BackendError, match=message):
        read_machine(options)


def test_with_constants_keeps_what_the_user_had_given():
    given = read_machine({"name": "d1_tile", "die_crossing_ns": 150, "clock_ghz": 1})
    varied = with_constants(given, {"die_crossing_ns": 300})
    expected = read_machine({"name": "d1_tile", "die_crossing_ns": 300, "clock_ghz": 1})
    assert varied == expected


def test_small_machines_come_from_knobs():
    die = read_machine({"name": "d1_die", "die_rows": 3, "die_columns": 4, "missing_nodes": 1})
    assert len(die.levels[0].missing[0]) == 1
    assert die.levels[0].num_places == 12
