"""A captured step on all of a large machine: replicas, what joining them costs, and in words."""

import functools

import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.modelled_scale import model_scale
from fsdtrain_dojo.modelling import ModelledStep

from fsdtrain.step_profile import ScaleProfile
from tests.backends.dojo.lowering.steps import training_graph

SMALL = {
    "tile_rows": 1, "tile_columns": 2, "die_rows": 3, "die_columns": 4, "missing_nodes": 0,
}  # fmt: skip
BATCH = 4


@functools.cache
def scaled(cabinets: int) -> tuple[ModelledStep, ScaleProfile]:
    machine = read_machine({"name": "exapod", "exapod_cabinets": cabinets, **SMALL})
    return model_scale(training_graph(), machine, batch_size=BATCH, matrix_format="bf16")


def tiles(cabinets: int):
    _, profile = scaled(cabinets)
    return next(row for row in profile.rows if "tile" in row.placement)


def test_rows_count_replicas_and_their_samples():
    _, profile = scaled(1)
    for row in profile.rows:
        assert row.machine == "exapod"
        assert row.num_samples == BATCH * row.num_replicas
        assert row.placement.startswith(f"{row.num_replicas} x one ")
    trays = next(row for row in profile.rows if "tray" in row.placement)
    assert tiles(1).num_replicas == 2 * 3 * trays.num_replicas


def test_homes_are_weighed_down_to_the_smallest_that_trains_more():
    _, profile = scaled(1)
    assert [row.placement.split(",")[0] for row in profile.rows] == [
        "24 x one die", "12 x one tile", "2 x one tray",
    ]  # fmt: skip


def test_the_best_row_comes_first():
    _, profile = scaled(1)
    rates = [row.num_samples / row.step_time_s for row in profile.rows]
    assert rates == sorted(rates, reverse=True)


def test_one_replica_on_all_of_it_is_one_row():
    _, profile = model_scale(
        training_graph(), read_machine("a100"), batch_size=BATCH, matrix_format="bf16"
    )
    (row,) = profile.rows
    assert row.num_replicas == 1


def test_efficiency_is_the_share_of_time_that_is_not_waited():
    for row in scaled(1)[1].rows:
        assert 0 < row.efficiency <= 1
        assert 0 <= row.exposed_s <= row.step_time_s
        assert row.efficiency == pytest.approx(1 - row.exposed_s / row.step_time_s)
        assert row.energy_j > 0


def test_more_replicas_are_never_quicker_a_step():
    few, many = tiles(1), tiles(2)
    assert many.num_replicas == 2 * few.num_replicas
    assert few.step_time_s <= many.step_time_s
    assert many.energy_j > 2 * few.energy_j, "the network costs energy as well"


def test_the_shown_step_is_that_of_a_replica():
    modelled, profile = scaled(1)
    row = profile.rows[0]
    assert modelled.machine.levels[-1].name == "die"
    assert modelled.time.seconds + row.exposed_s == pytest.approx(row.step_time_s)


def test_the_note_names_the_placement():
    _, profile = scaled(1)
    assert f"{profile.rows[0].num_replicas} replicas of one die" in profile.note
    assert "MODELLED" in profile.note
    assert "All-reduce" in profile.note


@pytest.mark.parametrize("name", ["d1_die", "a100"])
def test_a_machine_of_one_home_has_one_replica(name):
    knobs = {"die_rows": 3, "die_columns": 4, "missing_nodes": 0} if name == "d1_die" else {}
    machine = read_machine({"name": name, **knobs})
    modelled, profile = model_scale(
        training_graph(), machine, batch_size=BATCH, matrix_format="bf16"
    )
    assert modelled.machine is machine
    assert [row.num_replicas for row in profile.rows[:1]] == [1]
    assert profile.rows[0].efficiency == 1
    assert profile.rows[0].step_time_s == pytest.approx(modelled.time.seconds)
