"""What a profile of a modelled step says agrees with the schedule, and with counts by others."""

import functools

import msgspec
import numpy as np
import pytest
import torch
from fsdtrain_dojo.lowering.kernel import Phase
from fsdtrain_dojo.lowering.mapping import Storage
from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros
from fsdtrain_dojo.lowering.record_step import record_step
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.modelled_profile import make_profile
from fsdtrain_dojo.modelling import ModelledStep, model_step
from fsdtrain_dojo.recipe import bf16_options, read_recipe
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fsdtrain.engine.profile_record import ProfileRecord
from fsdtrain.step_profile import HeatMap, StepProfile
from tests.backends.dojo.lowering.steps import gemm_graph, training_graph

MACHINES = {
    "die": {"name": "d1_die", "die_rows": 4, "die_columns": 5, "missing_nodes": 2},
    "tile": {
        "name": "d1_tile", "tile_rows": 1, "tile_columns": 2, "die_rows": 3, "die_columns": 4,
        "missing_nodes": 0,
    },
    "full die": {"name": "d1_die", "die_rows": 4, "die_columns": 5, "missing_nodes": 2,
                 "sram_kb": 4},
    "a100": {"name": "a100"},
    "tpu_v3": {"name": "tpu_v3"},
}  # fmt: skip
MESHES = ("die", "tile", "full die")


@functools.cache
def modelled(name: str) -> ModelledStep:
    return model_step(training_graph(), read_machine(MACHINES[name]))


@functools.cache
def profile_of(name: str) -> StepProfile:
    return make_profile(modelled(name), backend="dojo")


def find_map(profile: StepProfile, title: str) -> HeatMap:
    return next(each for each in profile.heat_maps if each.title.startswith(title))


def values_of(heat_map: HeatMap) -> list[float]:
    return [each for row in heat_map.rows for each in row if each is not None]


def all_leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for pair in value.items() for each in pair for leaf in all_leaves(each)]
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in all_leaves(each)]
    return [value]


@pytest.mark.parametrize("name", MACHINES)
def test_ops_add_up_to_the_step(name):
    profile = profile_of(name)
    assert sum(op.time_s for op in profile.ops) == pytest.approx(profile.step_time_s, rel=1e-9)
    assert profile.step_time_s == modelled(name).time.seconds
    assert {op.phase for op in profile.ops} == {phase.value for phase in Phase}
    times = [op.time_s for op in profile.ops]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("name", MACHINES)
def test_nothing_is_busy_for_longer_than_the_step(name):
    profile = profile_of(name)
    assert profile.busy_s
    assert all(0 < busy <= profile.step_time_s * (1 + 1e-9) for busy in profile.busy_s.values())
    for event in profile.timeline:
        assert 0 <= event.start_s <= event.end_s <= profile.step_time_s * (1 + 1e-9)
    for resource, busy in profile.busy_s.items():
        shown = sum(e.end_s - e.start_s for e in profile.timeline if e.resource == resource)
        assert shown == pytest.approx(busy)


@pytest.mark.parametrize("name", MACHINES)
def test_peaks_and_roofs_are_not_exceeded(name):
    profile = profile_of(name)
    assert 0 < profile.roofline_s <= profile.step_time_s
    assert 0 < profile.utilisation < 1
    for op in profile.ops:
        assert op.roofline_s <= op.alone * (1 + 1e-9)
        assert 0 <= op.utilisation <= 1
        assert op.sram_peak_bytes <= profile.sram_capacity_bytes
    for memory in profile.memory:
        assert memory.peak_bytes <= memory.capacity_bytes


@pytest.mark.parametrize("name", MACHINES)
def test_a_profile_is_of_plain_numbers_and_is_read_back_as_it_was(name):
    plain = msgspec.to_builtins(profile_of(name))
    assert {type(leaf) for leaf in all_leaves(plain)} <= {int, float, str, type(None)}
    record = ProfileRecord(num_clips=4, profile=profile_of(name))
    text = msgspec.json.encode(record)
    assert (
        msgspec.json.decode(text, type=ProfileRecord).profile.heat_maps == record.profile.heat_maps
    )


def test_heat_maps_have_the_shape_of_the_mesh():
    die = find_map(profile_of("die"), "compute")
    assert (len(die.rows), {len(row) for row in die.rows}) == (4, {5})
    assert len(values_of(die)) == 4 * 5 - 4, "a row or column loses as many as the fullest has lost"
    assert die.group is None
    missing = modelled("die").machine.levels[0].missing[0]
    assert len(missing) == 2
    for row, column in missing:
        assert die.rows[row][column] is None
    tile = find_map(profile_of("tile"), "compute")
    assert (len(tile.rows), {len(row) for row in tile.rows}) == (3, {8})
    assert len(values_of(tile)) == 24
    assert tile.group == (3, 4)
    assert [each.title.split(":")[0] for each in profile_of("a100").heat_maps] == ["compute"]
    assert len(values_of(profile_of("a100").heat_maps[0])) == 108


def cells_of(heat_map: HeatMap) -> np.ndarray:
    """[slices, rows, columns] in the map's unit, NaN where nothing is."""
    shape = (len(heat_map.rows), len(heat_map.rows[0]))
    cells = np.stack([np.frombuffer(each, np.uint8) for each in heat_map.slices.cells])
    values = cells.reshape(-1, *shape) / 254 * heat_map.slices.top
    return np.where(cells.reshape(values.shape) == 255, np.nan, values)


@pytest.mark.parametrize("name", MACHINES)
def test_the_slices_of_a_heat_map_are_the_whole_step(name):
    profile = profile_of(name)
    for heat_map in profile.heat_maps:
        edges = np.array(heat_map.slices.edges_s)
        assert edges[0] == 0
        assert edges[-1] == profile.step_time_s
        assert np.diff(edges) == pytest.approx(profile.step_time_s / 24)
        whole = np.array([[np.nan if each is None else each for each in row]
                          for row in heat_map.rows])  # fmt: skip
        mean = cells_of(heat_map).mean(axis=0)
        assert np.array_equal(np.isnan(mean), np.isnan(whole))
        there = ~np.isnan(whole)
        half_a_byte = heat_map.slices.top / 254 / 2
        if heat_map.title.startswith("links"):  # a node's busiest link is not the same all the time
            assert (mean[there] >= whole[there] - half_a_byte - 1e-12).all()
        else:
            assert np.abs(mean - whole)[there].max() <= half_a_byte + 1e-12
        assert heat_map.slices.top <= 1.01, "no more than always busy"


def test_heat_maps_name_their_levels():
    levels = {
        name: [
            (each.name, each.rows, each.columns) for each in profile_of(name).heat_maps[0].levels
        ]
        for name in MACHINES
    }
    assert levels["die"] == [("node", 1, 1)]
    assert levels["tile"] == [("node", 1, 1), ("die", 3, 4), ("tile", 3, 8)]
    assert levels["a100"] == [("node", 1, 1)]


@pytest.mark.parametrize("name", MACHINES)
def test_nothing_is_hotter_than_always_busy(name):
    for heat_map in profile_of(name).heat_maps:
        assert all(0 <= each <= 1.01 for each in values_of(heat_map))
    assert max(values_of(find_map(profile_of(name), "compute"))) > 0


def test_what_small_steps_load_again_is_on_the_maps():
    machine = {**MACHINES["die"], "sram_kb": 40}
    profile = make_profile(
        model_step(gemm_graph(1024, 1024, 1024), read_machine(machine)), backend="dojo"
    )
    hottest = max(values_of(find_map(profile, "HBM"))) * profile.step_time_s
    assert hottest == pytest.approx(profile.busy_s["HBM"])
    links = max(values_of(find_map(profile, "links"))) * profile.step_time_s
    assert 0.5 * profile.busy_s["link"] < links < 1.01 * profile.busy_s["link"]


@pytest.mark.parametrize("name", MACHINES)
def test_energy_is_that_of_moving_computing_and_idling(name):
    profile = profile_of(name)
    idle = modelled(name).machine.power.idle_watts * profile.step_time_s
    assert profile.energy_j == pytest.approx(idle + sum(op.energy_j for op in profile.ops))
    assert all(op.energy_j > 0 for op in profile.ops)


def test_what_does_not_fit_is_said():
    assert not profile_of("die").notes
    (note,) = profile_of("full die").notes
    assert f"{len(modelled('full die').program.spills)} values" in note
    assert "HBM" in note
    outside = {each.name: each.peak_bytes for each in profile_of("full die").memory}["HBM"]
    assert outside > 0
    assert {each.name: each.peak_bytes for each in profile_of("die").memory}["HBM"] == 0


@pytest.mark.parametrize("name", ["a100", "tpu_v3"])
def test_all_that_is_alive_lies_outside_the_nodes_of_a_switch(name):
    program = modelled(name).program
    made = {
        store.value: number
        for number, step in enumerate(program.steps)
        for store in step.stores
        if store.target.storage is Storage.HBM and store.value not in step.kernel.hidden
    }
    sizes = {value: program.graph.values[value].num_bytes for value in {*made, *program.initial}}
    alive = [
        sum(
            size
            for value, size in sizes.items()
            if made.get(value, -1) <= number <= program.last_use.get(value, len(program.steps))
            and value not in program.graph.renews
        )
        for number in range(len(program.steps))
    ]
    peak = {each.name: each.peak_bytes for each in profile_of(name).memory}["HBM"]
    largest = max(sizes.values())
    assert max(alive) <= peak <= max(alive) + largest
    assert peak > sum(sizes[value] for value in program.initial)


def test_flops_are_those_that_torch_counts():
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 20, 7))
    batch = torch.randn(3, 3, 9, 7)
    with FlopCounterMode(display=False) as counter:
        module(batch).square().mean().backward()
    module.zero_grad()
    recorded = record_step(
        module, batch, torch.optim.SGD(module.parameters(), lr=0.1),
        recipe=read_recipe(bf16_options()), run=lambda net, x: net(x).square().mean(),
    )  # fmt: skip
    graph = expand_macros(recorded)
    for name in ("die", "tpu_v3"):
        profile = make_profile(model_step(graph, read_machine(MACHINES[name])), backend="dojo")
        assert profile.flops == counter.get_total_flops() > 0
        assert sum(op.flops for op in profile.ops) >= profile.flops


def test_reasons_and_places_are_told():
    profile = profile_of("die")
    convolutions = [op for op in profile.ops if op.name.startswith("convolution")]
    assert convolutions
    for op in convolutions:
        assert op.layer
        assert op.explanation
        assert op.dtype == "bf16"
    assert sum(name.startswith("reads ") for op in profile.ops for name in op.explanation) > 10
    assert set(profile.rooflines.bytes_per_s) == {"SRAM", "node link", "HBM"}
    assert profile.peak_flops_per_s == profile.rooflines.flops_per_s["bf16"]
