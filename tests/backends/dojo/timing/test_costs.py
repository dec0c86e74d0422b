"""Answers that are remembered are those made anew; bounds of the search are bounds."""

import random
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from fsdtrain_dojo.lowering.candidates import divisions, largest_share
from fsdtrain_dojo.lowering.finish import finishes, home_division
from fsdtrain_dojo.lowering.kernel import Unit
from fsdtrain_dojo.lowering.mapping import Layout, Storage, access_boxes, divided_boxes
from fsdtrain_dojo.lowering.program import Pattern, Step, Transfer
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.costs import NOTHING, Costs, one_after_another, picked_share
from fsdtrain_dojo.timing.transfer_cost import cost_transfer

from fsdtrain.backend import BackendError
from tests.backends.dojo.lowering.steps import gemm_graph
from tests.backends.dojo.spatial.programs import all_within, divided, make_kernel, value

DIE = {"name": "d1_die", "die_rows": 5, "die_columns": 6, "missing_nodes": 3}


@lru_cache
def die() -> Costs:
    return Costs(read_machine(DIE))


def layouts(costs: Costs, shape: tuple[int, ...]) -> list[Layout]:
    grid = costs.fabric.grid
    ways = [
        home_division(shape, grid),
        divided({0: 3}),
        divided({}, {0: 4}),
        divided({1: 2}, {0: 3}),
    ]
    return [Layout(storage=Storage.SRAM, boxes=costs.divided(shape, way)) for way in ways]


def test_the_same_question_has_the_same_answer_and_another_its_own():
    costs, fresh = die(), Costs(read_machine(DIE))
    (kernel,) = gemm_graph(60, 50, 40).kernels
    values = gemm_graph(60, 50, 40).values
    mappings = list(divisions(kernel, costs.fabric.grid, costs.grains(kernel)))
    for mapping in random.Random(0).sample(mappings, 30):
        for access in kernel.loaded:
            each = values[access.value]
            boxes = costs.boxes(kernel, access, mapping, each)
            assert boxes is costs.boxes(kernel, access, mapping, each)
            alone = access_boxes(kernel, access, mapping, each.shape, costs.fabric.grid)
            assert all_within(boxes, alone)
            assert all_within(alone, boxes)
            for source in layouts(costs, each.shape):
                found = costs.load(source, boxes, each, 1.0)
                assert found is costs.load(source, boxes, each, 1.0)
                assert found == fresh.load(source, alone, each, 1.0)
                wider = costs.load(source, boxes, replace(each, element_bytes=4), 1.0)
                assert wider.moved_bytes == 2 * found.moved_bytes


def test_a_division_is_not_mistaken_for_an_access():
    costs = die()
    shape = (12, 10)
    home = costs.divided(shape, home_division(shape, costs.fabric.grid))
    same = divided_boxes(shape, home_division(shape, costs.fabric.grid), costs.fabric.grid)
    assert all_within(home, same)
    assert all_within(same, home)


def test_loads_of_what_is_there_cost_nothing():
    costs, each = die(), value("x", 30, 40)
    for source in layouts(costs, each.shape):
        assert costs.load(source, source.boxes, each, 1.0) is NOTHING


def test_the_quick_bound_of_a_load_is_below_its_cost():
    costs = Costs(read_machine(DIE))
    each = value("x", 30, 40)
    ways = layouts(costs, each.shape)
    outside = Layout(storage=Storage.HBM)
    for source in (*ways, outside):
        for target in ways:
            least = costs.least_arriving_s(source, target.boxes, each, 1.0)
            found = costs.load(source, target.boxes, each, 1.0)
            assert least <= found.seconds
            assert (least > 0) is (found is not NOTHING)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_bound_of_a_load_has_its_latency_and_is_below_its_cost(share):
    for costs in (Costs(read_machine(DIE)), die()):
        each = value("x", 30, 40)
        ways = layouts(costs, each.shape)
        for source in ways:
            for target in ways:
                least = costs.least_load(source, target.boxes, each, share)
                found = costs.load(source, target.boxes, each, share)
                assert least.latency_s == found.latency_s
                assert least.seconds <= found.seconds
                assert least.busy_s.get(Resource.LINK, 0.0) <= found.busy_s.get(Resource.LINK, 0.0)
                assert (least is NOTHING) is (found is NOTHING)
                assert costs.least_load(source, target.boxes, each, share) is found


@pytest.mark.parametrize("seed", range(30))
def test_moved_bytes_are_what_is_needed_minus_what_is_there(seed):
    chance, costs = random.Random(seed), die()
    each = value("x", chance.randint(3, 40), chance.randint(3, 40))
    source, target = (
        Layout(storage=Storage.SRAM, boxes=costs.divided(each.shape, way))
        for way in chance.sample(
            [home_division(each.shape, costs.fabric.grid), divided({0: 3}), divided({}, {0: 3}),
             divided({1: 3}, {0: 2}), divided()], 2)
    )  # fmt: skip
    lacking = 0
    for place in np.ndindex(costs.fabric.grid):
        if not target.boxes.num_elements[place]:
            continue
        mine = np.zeros(each.shape, bool)
        mine[tuple(slice(*one) for one in target.boxes.at(*place))] = True
        if source.boxes.num_elements[place]:
            mine[tuple(slice(*one) for one in source.boxes.at(*place))] = False
        lacking += int(mine.sum())
    found = costs.load(source, target.boxes, each, 1.0)
    assert found.moved_bytes == pytest.approx(lacking * each.element_bytes)


def test_partial_sums_travel_in_full_precision():
    costs = die()
    kernel = make_kernel({"m": 30, "n": 20, "k": 60}, {"a": "mk", "b": "kn"}, {"c": "mn"},
                         lambda a, b: a @ b)  # fmt: skip
    narrow = replace(value("c", 30, 20), format="bf16", element_bytes=2)
    mapping = divided({2: 4}, {0: 5})
    made = access_boxes(kernel, kernel.writes[0], mapping, narrow.shape, costs.fabric.grid)
    for finish in finishes(kernel, kernel.writes[0], narrow, mapping, made):
        target = Layout(storage=Storage.SRAM, boxes=finish.boxes)
        transfer = Transfer(value="c", pattern=finish.pattern, boxes=made, target=target)
        assert costs.store(transfer, narrow) == cost_transfer(costs.fabric, transfer, 4)
        assert costs.store(transfer, narrow).num_bytes


def test_stores_of_one_value_to_different_places_are_told_apart():
    costs, each = die(), value("x", 24, 30)
    made = costs.divided(each.shape, divided({0: 4}))
    found = [
        costs.store(Transfer(value="x", pattern=Pattern.SCATTER, boxes=made, target=way), each)
        for way in layouts(costs, each.shape)
    ]
    assert len({one.seconds for one in found}) > 1
    outside = Layout(storage=Storage.HBM)
    transfer = Transfer(value="x", pattern=Pattern.HBM_STORE, boxes=made, target=outside)
    assert costs.store(transfer, each).busy_s[Resource.HBM] > 0


@pytest.mark.parametrize("name", ["d1_die", "a100", "tpu_v3"])
@pytest.mark.parametrize("sizes", [(200, 100, 300), (64, 64, 64), (33, 1, 500)])
def test_the_bounds_of_the_search_are_below_the_time(name, sizes):
    costs = Costs(read_machine(name))
    narrow = ("fp32", 4) if name == "tpu_v3" else ()
    graph = gemm_graph(*sizes, *narrow)
    (kernel,), values = graph.kernels, graph.values
    mappings = list(divisions(kernel, costs.fabric.grid, costs.grains(kernel)))
    outside = Layout(storage=Storage.HBM)
    for mapping in random.Random(1).sample(mappings, min(8, len(mappings))):
        loads = tuple(
            Transfer(value=access.value, pattern=Pattern.HBM_LOAD, source=outside,
                     boxes=costs.boxes(kernel, access, mapping, values[access.value]))
            for access in kernel.loaded
        )  # fmt: skip
        made = costs.boxes(kernel, kernel.writes[0], mapping, values["c"])
        finish = next(iter(finishes(kernel, kernel.writes[0], values["c"], mapping, made)))
        pattern = Pattern.HBM_STORE if finish.pattern is Pattern.LOCAL else finish.pattern
        stores = (Transfer(value="c", pattern=pattern, boxes=made, target=outside),)
        load_costs = [costs.load(outside, each.boxes, values[each.value], 1.0) for each in loads]
        store_costs = [costs.store(each, values["c"]) for each in stores]
        tiling = costs.tile(kernel, mapping, values, 1e6, stores, load_costs, store_costs)
        assert not isinstance(tiling, str)
        step = Step(kernel=kernel, mapping=tiling.mapping, loads=loads, stores=stores,
                    working_bytes=tiling.working_bytes, buffers=tiling.buffers)  # fmt: skip
        seconds = costs.time(step, load_costs, store_costs, values).seconds
        least = costs.least_seconds(kernel, values, largest_share(kernel, mapping))
        assert least <= seconds
        assert costs.least_with_transfers(least, load_costs, store_costs) <= seconds * (1 + 1e-9)


def test_what_is_picked_is_shared_by_those_who_pick():
    kernel = make_kernel({"i": 40, "c": 8}, {"table": [100, "c"]}, {"y": "ic"}, lambda x: x)
    access = replace(kernel.reads[0], is_gathered=True, gathered_share=0.4)
    assert picked_share(kernel, kernel.reads[0], divided({0: 4})) == 1
    assert picked_share(kernel, access, divided()) == 0.4
    assert picked_share(kernel, access, divided({0: 4})) == pytest.approx(0.1)
    assert picked_share(kernel, access, divided({1: 4})) == 0.4
    assert picked_share(kernel, replace(access, gathered_share=9.0), divided({0: 4})) == 1


def test_one_transfer_after_another_is_both():
    one = TransferCost(seconds=3, latency_s=1, busy_s={Resource.LINK: 2}, num_bytes={"HBM": 5},
                       joules=7, moved_bytes=4)  # fmt: skip
    two = TransferCost(seconds=4, latency_s=2, busy_s={Resource.LINK: 1, Resource.HBM: 2},
                       num_bytes={"HBM": 1}, joules=1, moved_bytes=1)  # fmt: skip
    both = one_after_another(one, two)
    assert (both.seconds, both.latency_s, both.joules, both.moved_bytes) == (7, 3, 8, 5)
    assert both.busy_s == {Resource.LINK: 3, Resource.HBM: 2}
    assert both.num_bytes == {"HBM": 6}
    assert one_after_another(NOTHING, two) is two
    assert one_after_another(one, NOTHING) is one


def test_grains_are_those_of_the_matrix_unit():
    costs = Costs(read_machine("d1_die"))
    (kernel,) = gemm_graph(64, 64, 64).kernels
    assert kernel.unit is Unit.MATRIX
    assert costs.grains(kernel) == (8, 8, 4)
    assert costs.grains(replace(kernel, unit=Unit.VECTOR)) == (1, 1, 1)


def test_the_error_of_what_does_not_fit_says_what_to_do():
    (kernel,) = gemm_graph(8, 8, 8).kernels
    error = die().does_not_fit(replace(kernel, layer="head.last"), ["1 B too few", "2 B too few"])
    assert isinstance(error, BackendError)
    for words in ("aten.mm", "head.last", "d1_die", "2 B too few", "batch"):
        assert words in str(error)
