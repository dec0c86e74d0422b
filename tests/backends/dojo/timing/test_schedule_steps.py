"""Schedules keep the order and the resources, waste nothing, and follow the machine."""

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import pytest
from fsdtrain_dojo.lowering.lower import lower
from fsdtrain_dojo.lowering.outside import OUTSIDE
from fsdtrain_dojo.lowering.passes.allocate_sram import allocate_sram
from fsdtrain_dojo.lowering.passes.choose_layouts import choose_layouts
from fsdtrain_dojo.lowering.program import Pattern, TileProgram
from fsdtrain_dojo.machine.catalog import read_machine, with_constants
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.timing.cost import Resource
from fsdtrain_dojo.timing.costs import Costs, picked_share
from fsdtrain_dojo.timing.schedule_steps import ProgramTime, schedule_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.dojo.lowering.steps import training_graph
from tests.backends.dojo.spatial.programs import graph_of, make_kernel, operand, value

DIE = {"name": "d1_die", "die_rows": 4, "die_columns": 5, "missing_nodes": 2}
SINGLE = {"name": "d1_die", "die_rows": 1, "die_columns": 1, "missing_nodes": 0}
MACHINES = {
    "die": DIE,
    "little memory": DIE | {"sram_kb": 5},
    "slow links": DIE | {"link_bytes_per_cycle": 2, "sram_kb": 40},
    "slow HBM": DIE | {"hbm_gb_per_s": 5, "sram_kb": 5},
    "one node": SINGLE | {"sram_kb": 60},
    "gpu": {"name": "a100"},
}


@lru_cache
def machine_of(name: str) -> Machine:
    return read_machine(MACHINES[name])


@lru_cache
def program_on(name: str) -> TileProgram:
    return lower(training_graph(), Costs(machine_of(name)))


@lru_cache
def time_on(name: str) -> ProgramTime:
    return schedule_steps(program_on(name), Costs(machine_of(name)))


def check(time: ProgramTime) -> None:
    """What is true of every schedule."""
    slack = 1e-9 * time.seconds
    for resource in Resource:
        mine = [each for each in time.intervals if each.resource is resource]
        for before, after in pairwise(mine):
            assert before.end_s <= after.start_s + slack, (before, after)
        busy = sum(each.end_s - each.start_s for each in mine)
        assert busy == pytest.approx(time.busy_s.get(resource, 0.0))
        assert busy <= time.seconds + slack
        assert all(0 <= each.start_s <= each.end_s <= time.seconds + slack for each in mine)
    for before, after in pairwise(time.steps):
        assert before.start_s <= before.end_s <= after.start_s + slack
    assert sum(each.exposed_s for each in time.steps) == pytest.approx(time.seconds)
    assert all(each.exposed_s >= 0 for each in time.steps)


@pytest.mark.parametrize("name", MACHINES)
def test_resources_serve_one_after_another_and_parts_add_up(name):
    check(time_on(name))


@pytest.mark.parametrize("name", MACHINES)
def test_a_program_takes_no_longer_than_its_kernels_and_what_is_moved_between_them(name):
    program, time, costs = program_on(name), time_on(name), Costs(machine_of(name))
    alone = sum(each.alone.seconds for each in time.steps)
    values, moved = program.graph.values, 0.0
    targets = {s.value: s.target for step in program.steps for s in step.stores}
    for spill in program.spills:
        place = targets.get(spill.value)
        if spill.out_before >= 0 and place is not None and place.boxes is not None:
            moved += 2 * costs.load(OUTSIDE, place.boxes, values[spill.value], 1.0).seconds
    assert time.seconds <= (alone + moved) * 1.05
    assert time.seconds >= max(each.alone.roofline_s for each in time.steps)


@pytest.mark.parametrize("name", MACHINES)
def test_every_step_uses_what_it_uses_alone(name):
    """With what is loaded again; transfers that go on beside are the step's, too."""
    time = time_on(name)
    for number, step in enumerate(time.steps):
        mine: dict[Resource, float] = {}
        for each in time.intervals:
            if each.step == number:
                mine[each.resource] = mine.get(each.resource, 0.0) + each.end_s - each.start_s
        spilled = any(s.out_before == number or s.back_before == number
                      for s in program_on(name).spills)  # fmt: skip
        for resource in (Resource.MATRIX, Resource.LINK, Resource.HBM):
            if not spilled:
                wanted = step.alone.busy_s.get(resource, 0.0)
                assert mine.get(resource, 0.0) == pytest.approx(wanted), (number, resource)


def test_sums_of_gradients_travel_while_the_next_kernels_compute():
    program, time = program_on("slow links"), time_on("slow links")
    late = 0
    for number, (step, each) in enumerate(zip(program.steps, time.steps, strict=True)):
        if any(store.pattern is Pattern.REDUCE_SCATTER for store in step.stores):
            ends = [i.end_s for i in time.intervals
                    if i.step == number and i.resource is Resource.LINK]  # fmt: skip
            late += max(ends) > each.end_s
    assert late > 0
    assert time.seconds < sum(each.alone.seconds for each in time.steps)


@pytest.mark.parametrize("name", ["die", "slow links"])
def test_an_epilogue_waits_for_the_sum_that_it_computes_with(name):
    """So does the kernel after it: batch norm's deviation is that of all nodes' squares."""
    program, time, costs = program_on(name), time_on(name), Costs(machine_of(name))
    num_sums = 0
    for step, each in zip(program.steps, time.steps, strict=True):
        for store in step.stores if step.kernel.epilogue else ():
            if store.pattern in (Pattern.ALL_REDUCE, Pattern.REDUCE, Pattern.REDUCE_SCATTER):
                assert costs.store(store, program.graph.values[store.value]).seconds > 0
                assert each.end_s - each.start_s >= each.alone.seconds * (1 - 1e-9)
                num_sums += 1
    assert num_sums > 0


def test_without_anything_beside_a_program_is_the_sum_of_its_kernels():
    """On one node nothing is sent, and nothing lies outside."""
    machine = read_machine(SINGLE)
    program = lower(training_graph(), Costs(machine))
    assert not program.spills
    time = schedule_steps(program, Costs(machine))
    check(time)
    assert time.seconds == pytest.approx(sum(each.alone.seconds for each in time.steps))
    assert all(each.exposed_s == pytest.approx(each.alone.seconds) for each in time.steps)


def streams(num_kernels: int, size: int) -> TileProgram:
    """Kernels that each read another value from outside."""
    loops = {"m": size, "n": size}
    values = [operand(f"x{n}", size, size) for n in range(num_kernels)]
    values += [value(f"y{n}", size, size, is_output=True) for n in range(num_kernels)]
    kernels = [
        make_kernel(loops, {f"x{n}": "mn"}, {f"y{n}": "mn"}, lambda x: x, flops=200 * size**2)
        for n in range(num_kernels)
    ]
    machine = read_machine(DIE | {"sram_kb": 20})
    costs = Costs(machine)
    return allocate_sram(choose_layouts(graph_of(values, kernels), costs), costs)


def test_no_more_is_loaded_early_than_buffers_hold():
    program = streams(6, 200)
    machine = read_machine(DIE | {"sram_kb": 20, "hbm_gb_per_s": 20})
    costs = Costs(machine)
    time = schedule_steps(program, costs)
    check(time)
    values = program.graph.values
    num_outside = 0
    for number, step in enumerate(program.steps[1:], 1):
        (load,) = step.loads
        if load.pattern is not Pattern.HBM_LOAD:
            continue
        num_outside += 1
        share = picked_share(step.kernel, step.kernel.loaded[0], step.mapping)
        cost = costs.load(load.source, load.boxes, values[load.value], share)
        held = cost.busy_s[Resource.HBM] / step.mapping.num_steps + cost.latency_s
        took = time.steps[number].end_s - time.steps[number].start_s
        assert (
            took >= time.steps[number].alone.seconds - held - 1e-12 or step.mapping.num_steps == 1
        )
    assert num_outside >= 3


BETTER = {
    "hbm_gb_per_s": st.floats(1, 50),
    "link_bytes_per_cycle": st.floats(1, 16),
    "sram_kb": st.floats(1, 30),
    "clock_ghz": st.floats(1, 4),
    "num_load_ports": st.integers(1, 4),
    "hbm_latency_ns": st.floats(0.01, 1),
    "hop_cycles": st.floats(0.01, 1),
    "op_start_ns": st.floats(0.01, 1),
    "sram_latency_cycles": st.floats(0.2, 1),
}


@pytest.mark.parametrize("name", ["slow links", "slow HBM", "little memory"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(changes=st.fixed_dictionaries({}, optional=BETTER))
def test_the_same_program_is_never_slower_on_a_better_machine(name, changes):
    machine, program = machine_of(name), program_on(name)
    given_now = {each: machine.constants[each].value * factor for each, factor in changes.items()}
    if "num_load_ports" in given_now:
        given_now["num_load_ports"] = round(given_now["num_load_ports"])
    better = with_constants(machine, given_now)
    time = schedule_steps(program, Costs(better))
    check(time)
    assert time.seconds <= time_on(name).seconds * (1 + 1e-9), given_now


def test_energy_is_that_of_all_kernels_and_grows_with_its_constants():
    program, machine = program_on("die"), machine_of("die")

    def joules(**changes: float) -> float:
        made = with_constants(machine, {n: machine.constants[n].value * f
                                        for n, f in changes.items()})  # fmt: skip
        return sum(each.alone.joules for each in schedule_steps(program, Costs(made)).steps)

    plain = joules()
    more = joules(hop_pj_per_byte=2)
    both = joules(hop_pj_per_byte=2, bf16_mac_pj=3)
    assert both - more == pytest.approx(joules(bf16_mac_pj=3) - plain)
    assert plain < more < both


def test_a_longer_program_takes_longer():
    program, costs = program_on("die"), Costs(machine_of("die"))
    before = 0.0
    for length in (10, 30, len(program.steps)):
        time = schedule_steps(replace(program, steps=program.steps[:length]), costs)
        check(time)
        assert time.seconds > before
        before = time.seconds


def test_no_program_takes_no_time():
    program = replace(program_on("die"), steps=())
    assert schedule_steps(program, Costs(machine_of("die"))).seconds == 0
