"""Programs are right, their mappings good, and a choice that is looked up is the one made anew."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from fsdtrain_dojo.lowering.finish import home_division
from fsdtrain_dojo.lowering.kernel import KernelGraph, Phase, ValueKind
from fsdtrain_dojo.lowering.lower import lower, transform_graph
from fsdtrain_dojo.lowering.mapping import divided_boxes
from fsdtrain_dojo.lowering.passes import choose_layouts as module_under_test
from fsdtrain_dojo.lowering.passes.choose_layouts import choose_layouts
from fsdtrain_dojo.lowering.program import Pattern, TileProgram
from fsdtrain_dojo.lowering.verify import verify_graph, verify_program
from fsdtrain_dojo.lowering.words import describe_choice
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.spatial.execute import execute
from fsdtrain_dojo.timing.costs import Costs
from fsdtrain_dojo.timing.schedule_steps import ProgramTime, schedule_steps

from fsdtrain.backend import BackendError
from tests.backends.dojo.lowering.steps import gemm_graph, training_graph
from tests.backends.dojo.spatial.programs import (
    all_within,
    graph_of,
    make_kernel,
    operand,
    product,
    random_tensors,
    value,
)

MACHINES = {
    "holes": {"name": "d1_die", "die_rows": 5, "die_columns": 6, "missing_nodes": 4},
    "column": {"name": "d1_die", "die_rows": 7, "die_columns": 1, "missing_nodes": 0},
    "node": {"name": "d1_die", "die_rows": 1, "die_columns": 1, "missing_nodes": 0},
    "die": {"name": "d1_die"},
    "gpu": {"name": "a100"},
    "core": {"name": "tpu_v3"},
}


def as_fp32(graph: KernelGraph) -> KernelGraph:
    """For machines without the formats of the recipe."""
    values = {
        name: replace(each, format="fp32", element_bytes=4) if "int" not in each.format else each
        for name, each in graph.values.items()
    }
    return replace(graph, values=values)


@lru_cache
def costs_of(name: str) -> Costs:
    return Costs(read_machine(MACHINES[name]))


@lru_cache
def step_on(name: str) -> tuple[TileProgram, ProgramTime]:
    graph = training_graph()
    costs = costs_of(name)
    program = lower(as_fp32(graph) if name == "core" else graph, costs)
    return program, schedule_steps(program, costs)


@pytest.mark.parametrize("name", MACHINES)
def test_a_training_step_is_lowered_to_a_right_program(name):
    program, _ = step_on(name)
    verify_graph(program.graph)
    costs = costs_of(name)
    verify_program(program, sram_bytes=costs.machine.node.memory.capacity_bytes)
    assert program.grid == costs.fabric.grid


SIZES = [(8, 8, 8), (100, 30, 7), (1, 513, 64), (257, 255, 129), (512, 512, 512)]


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("sizes", SIZES)
def test_products_are_lowered_to_right_programs_no_quicker_than_their_roofline(name, sizes):
    narrow = () if name != "core" else ("fp32", 4)
    costs = costs_of(name)
    program = lower(gemm_graph(*sizes, *narrow), costs)
    verify_program(program, sram_bytes=costs.machine.node.memory.capacity_bytes)
    (step,) = schedule_steps(program, costs).steps
    assert step.alone.roofline_s <= step.alone.seconds


@pytest.mark.parametrize("name", MACHINES)
def test_no_kernel_of_a_step_is_quicker_than_its_roofline(name):
    program, time = step_on(name)
    for step, each in zip(program.steps, time.steps, strict=True):
        assert each.alone.roofline_s <= each.alone.seconds * (1 + 1e-12), step.kernel.name
    assert time.seconds >= max(each.alone.roofline_s for each in time.steps)


def test_a_large_product_comes_near_the_roofline_of_a_die():
    costs = costs_of("die")
    program = lower(gemm_graph(8192, 8192, 8192), costs)
    time = schedule_steps(program, costs)
    assert 0.9 <= time.steps[0].alone.roofline_s / time.seconds <= 1
    assert time.steps[0].alone.matrix_share >= 0.9


def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel is unlike all others."""
    count = iter(range(10**9))
    monkeypatch.setattr(module_under_test, "signature", lambda kernel, values: next(count))


@pytest.mark.parametrize("name", ["holes", "gpu"])
def test_a_choice_that_is_looked_up_is_the_one_made_anew(name, monkeypatch):
    graph = transform_graph(training_graph(), costs_of(name))
    remembered = choose_layouts(graph, costs_of(name))
    without_memory(monkeypatch)
    anew = choose_layouts(graph, costs_of(name))
    for one, other in zip(remembered.steps, anew.steps, strict=True):
        assert one.mapping == other.mapping, one.kernel.name
        assert one.why == other.why, one.kernel.name
        assert one.working_bytes == other.working_bytes
        for mine, its in zip((*one.loads, *one.stores), (*other.loads, *other.stores), strict=True):
            assert (mine.value, mine.pattern) == (its.value, its.pattern), one.kernel.name
            assert_same_boxes(mine.boxes, its.boxes)


def assert_same_boxes(one, other):
    assert all_within(one, other)
    assert all_within(other, one)


def test_equal_kernels_of_which_one_makes_a_gradient_are_not_confused(monkeypatch):
    """Only that one goes on to where its weight lies."""
    side, depth = 16, 900
    loops = {"m": side, "n": side, "k": depth}
    values = [
        operand("x", side, depth), operand("y", depth, side),
        *(value(name, side, side) for name in "ag"),
        value("w", side, side, kind=ValueKind.WEIGHT),
        *(value(name, side, side, is_output=True) for name in ("new", "b")),
    ]  # fmt: skip

    def multiply(made):
        return make_kernel(
            loops, {"x": "mk", "y": "kn"}, {made: "mn"}, lambda a, b: a @ b,
            phase=Phase.BACKWARD, flops=2 * side**2 * depth,
        )  # fmt: skip

    square = {"i": side, "j": side}
    kernels = [
        multiply("a"),
        multiply("g"),
        make_kernel(square, {"a": "ij"}, {"b": "ij"}, lambda a: a),
        make_kernel(square, {"w": "ij", "g": "ij"}, {"new": "ij"}, lambda w, g: w - g,
                    phase=Phase.OPTIMIZER),
    ]  # fmt: skip
    graph = graph_of(values, kernels, renews={"new": "w"})
    remembered = choose_layouts(graph, costs_of("holes"))
    without_memory(monkeypatch)
    anew = choose_layouts(graph, costs_of("holes"))
    assert [step.mapping for step in remembered.steps] == [step.mapping for step in anew.steps]


@pytest.mark.parametrize("name", ["holes", "column", "die"])
def test_new_weights_and_states_lie_where_the_old_ones_do(name):
    program, _ = step_on(name)
    targets = {store.value: store.target for step in program.steps for store in step.stores}
    assert program.graph.renews
    num_local = 0
    for new, old in program.graph.renews.items():
        before, after = program.initial[old], targets[new]
        assert before.storage is after.storage
        assert_same_boxes(before.boxes, after.boxes)
        store = next(s for step in program.steps for s in step.stores if s.value == new)
        if program.graph.values[new].num_bytes > 64:  # others lie everywhere
            assert store.pattern is Pattern.LOCAL
            num_local += 1
    assert num_local >= 12


def test_the_optimiser_moves_no_weights():
    program, _ = step_on("holes")
    weights = {n for n, v in program.graph.values.items() if v.kind is ValueKind.WEIGHT}
    for step in program.steps:
        if step.kernel.phase is Phase.OPTIMIZER:
            for load in step.loads:
                assert load.value not in weights or load.pattern is Pattern.LOCAL


@pytest.mark.parametrize("shape", [(7, 3), (100,), (2, 3, 40)])
def test_a_sum_that_renews_a_state_goes_where_that_lies(shape):
    """Though nodes that hold parts of the sum may be others."""
    spans = "abc"[: len(shape)]
    values = [
        operand("x", 500, *shape), value("old", *shape, kind=ValueKind.STATE),
        value("new", *shape, is_output=True),
    ]  # fmt: skip
    kernel = make_kernel(
        {"r": 500, **dict(zip(spans, shape, strict=True))}, {"x": f"r{spans}"}, {"new": spans},
        lambda x: x.sum(0), flops=500,
    )  # fmt: skip
    graph = graph_of(values, [kernel], renews={"new": "old"})
    for name in ("holes", "column", "die"):
        costs = costs_of(name)
        program = lower(graph, costs)
        verify_program(program, sram_bytes=costs.machine.node.memory.capacity_bytes)
    tensors = {each: tensor.double() for each, tensor in random_tensors(graph).items()}
    found = execute(program, tensors)["new"]
    torch.testing.assert_close(found, tensors["x"].sum(0))


def test_what_is_there_at_first_lies_at_home_and_small_numbers_everywhere():
    program, _ = step_on("holes")
    num_small = 0
    for name, layout in program.initial.items():
        each = program.graph.values[name]
        if each.num_bytes > 64:
            home = divided_boxes(each.shape, home_division(each.shape, program.grid), program.grid)
            assert_same_boxes(layout.boxes, home)
        else:
            num_small += 1
            assert layout.boxes.num_elements.min() == each.num_elements
    assert num_small > 0


@pytest.mark.parametrize("name", ["holes", "gpu"])
def test_what_is_explained_first_is_what_was_chosen(name):
    program, time = step_on(name)
    for step, each in zip(program.steps, time.steps, strict=True):
        assert 1 <= len(step.why) <= 4
        words = describe_choice(step.kernel, step.mapping, each.alone)
        assert step.why[0].split(";")[0].split(": ")[1] == words.split(";")[0].split(": ")[1]
        seconds = [float(line.split(" us: ")[0]) for line in step.why]
        if step.kernel.phase is Phase.FORWARD:
            assert seconds == sorted(seconds)


def test_rejected_mappings_stand_behind_the_chosen_one():
    program = lower(gemm_graph(2048, 2048, 2048), costs_of("die"))
    (step,) = program.steps
    assert len(set(step.why)) == 4
    for part in (*step.mapping.rows, *step.mapping.columns):
        assert f"{step.kernel.loops[part.loop].name}/{part.count}" in step.why[0]


def test_a_format_that_the_machine_lacks_is_an_error():
    with pytest.raises(BackendError, match=r"no rate for cfloat8_1_4_3; its formats are .*bf16"):
        lower(gemm_graph(64, 64, 64, "cfloat8_1_4_3", 1), costs_of("gpu"))


def test_what_follows_a_value_is_better_than_moving_it():
    """Element by element, a chain of kernels stays where it is."""
    size = 64
    loops = {"m": size, "n": size}
    values = [operand("x", size, size), *(value(f"a{n}", size, size) for n in range(4))]
    values[-1] = replace(values[-1], is_output=True)
    names = [each.name for each in values]
    kernels = [
        make_kernel(loops, {before: "mn"}, {after: "mn"}, lambda x: x, flops=size**2)
        for before, after in zip(names[:-1], names[1:], strict=True)
    ]
    program = choose_layouts(graph_of(values, kernels), costs_of("holes"))
    assert {load.pattern for step in program.steps for load in step.loads} == {Pattern.LOCAL}


@pytest.mark.parametrize("name", ["holes", "column"])
@pytest.mark.parametrize("sizes", [(40, 30, 900), (13, 300, 20), (64, 64, 64)])
def test_products_that_are_placed_compute_what_they_should(name, sizes):
    m, n, k = sizes
    graph = graph_of(
        [operand("a", m, k), operand("b", k, n), value("c", m, n, is_output=True)],
        [product("c", "a", "b", m, k, n)],
    )
    tensors = {each: tensor.double() for each, tensor in random_tensors(graph).items()}
    found = execute(lower(graph, costs_of(name)), tensors)["c"]
    torch.testing.assert_close(found, tensors["a"] @ tensors["b"])
