"""What a step time rests on: constants that are in doubt, varied one at a time."""

import functools

import pytest
from fsdtrain_dojo.machine.catalog import read_machine, with_constants
from fsdtrain_dojo.modelled_scale import model_scale
from fsdtrain_dojo.modelling import ModelledStep, model_step
from fsdtrain_dojo.sensitivity import find_sensitivities
from fsdtrain_dojo.timing.costs import Costs
from fsdtrain_dojo.timing.schedule_steps import schedule_steps

from fsdtrain.step_profile import Assumption
from tests.backends.dojo.lowering.steps import training_graph

TILE = {
    "name": "d1_tile", "tile_rows": 1, "tile_columns": 2, "die_rows": 3, "die_columns": 4,
    "missing_nodes": 0,
}  # fmt: skip
MACHINES = {"tile": TILE, "a100": {"name": "a100"}, "tpu_v3": {"name": "tpu_v3"}}
SPILLING = {**TILE, "sram_kb": 4}  # moves values out of the nodes and back
# More of these is never quicker.
WAITS = ("_ns", "_latency_cycles", "matrix_load_cycles")


@functools.cache
def modelled(name: str) -> ModelledStep:
    return model_step(training_graph(), read_machine(MACHINES.get(name, SPILLING)))


@functools.cache
def found(name: str) -> tuple[Assumption, ...]:
    return find_sensitivities(modelled(name), modelled(name).machine)


def swing(each: Assumption) -> float:
    if each.step_time_at_low_s is None:
        return -1.0
    return abs(each.step_time_at_high_s - each.step_time_at_low_s)


@pytest.mark.parametrize("name", MACHINES)
def test_all_constants_in_doubt_are_told_the_widest_swing_first(name):
    constants = modelled(name).machine.constants
    assert {each.name for each in found(name)} == {
        key for key, each in constants.items() if each.is_assumed or each.low is not None
    }
    swings = [swing(each) for each in found(name)]
    assert swings == sorted(swings, reverse=True)
    assert swings[0] > 0
    for each in found(name):
        constant = constants[each.name]
        assert (each.value, each.unit, each.low, each.high) == (
            constant.value, constant.unit, constant.low, constant.high
        )  # fmt: skip
        assert each.source


@pytest.mark.parametrize("name", MACHINES)
def test_longer_waits_are_never_quicker(name):
    waits = [each for each in found(name) if each.name.endswith(WAITS) and each.low is not None]
    assert len(waits) >= 5
    base = modelled(name).time.seconds
    for each in waits:
        low, high = each.step_time_at_low_s, each.step_time_at_high_s
        assert low <= base * (1 + 1e-9), each.name
        assert base <= high * (1 + 1e-9), each.name


def test_crossings_between_dies_cost_a_tile_time():
    crossing = next(each for each in found("tile") if each.name == "die_crossing_ns")
    assert crossing.step_time_at_low_s < modelled("tile").time.seconds
    assert crossing.step_time_at_high_s > 1.05 * modelled("tile").time.seconds


@pytest.mark.parametrize("name", MACHINES)
def test_energy_has_no_part_in_time(name):
    of_energy = [each for each in found(name) if "_pj" in each.name]
    assert of_energy
    for each in of_energy:
        assert each.step_time_at_low_s is None
        assert each.step_time_at_high_s is None


@pytest.mark.parametrize("name", ["tile", "spilling"])
def test_times_are_those_of_the_program_on_a_machine_built_anew(name):
    step = modelled(name)
    for each in found(name):
        if each.step_time_at_low_s is None:
            continue
        for value, seconds in (
            (each.low, each.step_time_at_low_s), (each.high, each.step_time_at_high_s)
        ):  # fmt: skip
            machine = with_constants(step.machine, {each.name: value})
            anew = schedule_steps(step.program, Costs(machine)).seconds
            assert seconds == pytest.approx(anew, rel=1e-12), each.name


def test_memory_outside_matters_only_to_a_step_that_uses_it():
    for name, moves in (("tile", False), ("spilling", True)):
        latency = next(each for each in found(name) if each.name == "hbm_latency_ns")
        assert (latency.step_time_at_low_s < latency.step_time_at_high_s) is moves


def test_what_the_user_has_given_is_no_assumption():
    machine = read_machine({"name": "tpu_v3", "op_start_ns": 60})
    step = model_step(training_graph(), machine)
    names = {each.name for each in find_sensitivities(step, machine)}
    assert names == {each.name for each in found("tpu_v3")} - {"op_start_ns"}


def test_a_slice_of_a_larger_machine_is_varied_as_the_whole_is():
    exapod = read_machine({**TILE, "name": "exapod", "exapod_cabinets": 1})
    step, _ = model_scale(training_graph(), exapod, batch_size=4, matrix_format="bf16")
    assert step.machine.levels[-1].name == "die"
    times = {each.name: each for each in find_sensitivities(step, exapod)}
    start = times["op_start_ns"]
    assert start.step_time_at_low_s < step.time.seconds < start.step_time_at_high_s
