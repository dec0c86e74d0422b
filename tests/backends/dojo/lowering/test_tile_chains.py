"""Which kernels take turns over blocks, what a wrong chain looks like, what blocks are worth."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import pytest
from fsdtrain_dojo.lowering.chain import fits_all, split_count
from fsdtrain_dojo.lowering.chain_space import find_spaces
from fsdtrain_dojo.lowering.kernel import Kernel, KernelGraph, Phase
from fsdtrain_dojo.lowering.lower import lower, place
from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros
from fsdtrain_dojo.lowering.program import Step, TileProgram
from fsdtrain_dojo.lowering.verify import LoweringError, verify_graph, verify_program
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.timing.costs import Costs
from fsdtrain_dojo.timing.schedule_steps import schedule_steps

from tests.backends.dojo.lowering.attentions import (
    forward_graph,
    place_chains,
    record_attention,
    with_chains,
    with_passes,
)
from tests.backends.dojo.lowering.steps import gemm_graph, training_graph

DIE = {"name": "d1_die", "die_rows": 2, "die_columns": 3, "missing_nodes": 0, "sram_kb": 1}
GPU = {"name": "a100", "num_sms": 8, "shared_kib": 48, "l2_mib": 2, "hbm_tb_per_s": 0.1}


@lru_cache
def graph() -> KernelGraph:
    return expand_macros(record_attention(2, 11, 13, 2, 3))


@lru_cache
def program() -> TileProgram:
    return place_chains(graph(), DIE)


def ops_of(found: KernelGraph) -> list[list[str]]:
    by_name = {kernel.name: kernel for kernel in found.kernels}
    return [
        [by_name[name].op.removeprefix("aten.") for name in chain.kernels] for chain in found.chains
    ]


def test_chains_of_an_attention():
    """As in the pass's docstring: one forward, one for gradients of columns, one for rows."""
    found = with_chains(graph())
    verify_graph(found)
    forward, columns, rows = ops_of(found)
    softmax = "_safe_softmax"
    assert forward == ["bmm", softmax, softmax, softmax, "bmm"]
    again = ["bmm", softmax]
    backward = "_softmax_backward_data"
    assert columns == [*again, "bmm", "bmm", backward, "bmm"]
    assert rows == [*again, "bmm", backward, "bmm"]
    scores = {"bmm", "_safe_softmax"}
    assert found.chains[0].passed == scores


def test_what_is_computed_again_is_not_counted_again():
    plain, found = with_passes(graph()), with_chains(graph())

    def counted(each: KernelGraph) -> int:
        return sum(kernel.counted_flops for kernel in each.kernels)

    assert counted(plain) == counted(found)
    macs = [sum(kernel.macs for kernel in each.kernels) for each in (plain, found)]
    product = next(kernel.macs for kernel in plain.kernels if kernel.name == "bmm")
    assert macs[1] - macs[0] == 3 * product  # scores twice, and gradients of weights once


@pytest.mark.parametrize("found", [training_graph, lambda: gemm_graph(64, 48, 32)])
def test_where_nothing_is_large_nothing_changes(found):
    lowered = lower(found(), Costs(read_machine(DIE | {"sram_kb": 1000})))
    assert not lowered.graph.chains
    assert lowered.graph == with_passes(found())


def test_products_of_weights_make_no_space():
    assert not list(find_spaces(with_passes(gemm_graph(64, 48, 32))))


def test_scores_that_are_wanted_make_no_space():
    found = with_passes(graph())
    wanted = dict(found.values)
    wanted["bmm"] = replace(wanted["bmm"], is_output=True)
    assert len(list(find_spaces(found))) == 1
    assert not list(find_spaces(replace(found, values=wanted)))


def test_parts_of_several_loops_are_ranges():
    assert split_count((6, 4), 3) == (3, 1)
    assert split_count((6, 4), 12) == (6, 2)
    assert split_count((6, 4), 4) is None
    assert split_count((7,), 3) == (3,)
    assert fits_all([(7,), (7,)], 3)
    assert not fits_all([(24,), (6, 4)], 5)
    assert fits_all([(24,), (6, 4)], 24)


# Ways to break a chain: the steps of the first one, and which of them becomes what.
def _other_steps(step: Step) -> Step:
    steps = {loop: count - 1 for loop, count in step.mapping.steps.items()}
    return replace(step, mapping=replace(step.mapping, steps=steps))


def _other_nodes(step: Step) -> Step:
    return replace(step, mapping=replace(step.mapping, rows=step.mapping.columns, columns=()))


def _no_room(step: Step) -> Step:
    return replace(step, working_bytes=40)


def _loaded(step: Step) -> Step:
    return replace(step, inside=frozenset())


def _no_rescale(step: Step) -> Step:
    return replace(step, kernel=replace(step.kernel, rescale=None))


BROKEN: dict[str, tuple[int, Callable[[Step], Step], str]] = {
    "steps": (1, _other_steps, "other blocks"),
    "nodes": (4, _other_nodes, "other blocks|not every|needs"),
    "room": (2, _no_room, "bytes for blocks"),
    "loads": (4, _loaded, "in the making"),
    "found": (0, lambda step: replace(step, inside=frozenset({0})), "nobody has left"),
    "start": (3, lambda step: replace(step, is_continued=False), "a start of its own"),
    "turns": (3, lambda step: replace(step, is_chained=False), "in no chain"),
    "factor": (3, _no_rescale, "in the making"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_chains_are_noticed(name):
    right = program()
    capacity = read_machine(DIE).node.memory.capacity_bytes
    number, change, words = BROKEN[name]
    first = next(i for i, step in enumerate(right.steps) if step.is_chained)
    steps = list(right.steps)
    steps[first + number] = change(steps[first + number])
    with pytest.raises(LoweringError, match=words):
        verify_program(replace(right, steps=tuple(steps)), sram_bytes=capacity)


def test_passed_values_that_others_read_are_noticed():
    right = program()
    capacity = read_machine(DIE).node.memory.capacity_bytes
    chain = right.graph.chains[0]
    passed = chain.passed | {"_safe_softmax.max"}  # gradients need it
    chains = (replace(chain, passed=passed), *right.graph.chains[1:])
    broken = replace(right, graph=replace(right.graph, chains=chains))
    with pytest.raises(LoweringError, match="only passed on"):
        verify_program(broken, sram_bytes=capacity)


@lru_cache
def on_gpu() -> tuple[TileProgram, TileProgram, Costs]:
    """An attention whose scores the nodes do not hold, without and with a chain."""
    found, costs = forward_graph(4, 1024, 64), Costs(read_machine(GPU))
    return place(with_passes(found), costs), lower(found, costs), costs


def moved(found: TileProgram, costs: Costs) -> float:
    """Bytes out of HBM and into it."""
    return sum(each.alone.num_bytes.get("HBM", 0.0) for each in schedule_steps(found, costs).steps)


def test_blocks_leave_the_memory_outside_alone():
    plain, found, costs = on_gpu()
    scores = 4 * 1024 * 1024 * 2
    assert len(found.graph.chains) == 1
    assert moved(plain, costs) > 3.9 * scores
    assert moved(found, costs) < moved(plain, costs) - 3.9 * scores
    assert schedule_steps(found, costs).seconds < schedule_steps(plain, costs).seconds


def test_no_kernel_of_a_chain_beats_its_roofline():
    _, found, costs = on_gpu()
    for step, time in zip(found.steps, schedule_steps(found, costs).steps, strict=True):
        assert time.alone.roofline_s <= time.alone.seconds * (1 + 1e-9), step.kernel.name


def test_more_memory_never_makes_a_chain_slower():
    seconds = []
    for kib in (24, 48, 164):
        costs = Costs(read_machine(GPU | {"shared_kib": kib}))
        found = place(with_chains(forward_graph(2, 512, 32)), costs)
        seconds.append(schedule_steps(found, costs).seconds)
    assert seconds == sorted(seconds, reverse=True)


def test_an_attention_of_an_a100_is_not_bound_by_memory():
    """16 heads x 4096 x 64 took 110 to 190 TFLOPS on silicon (FlashAttention, FlashAttention-2)."""
    costs = Costs(read_machine("a100"))
    found = lower(forward_graph(16, 4096, 64), costs)
    times = schedule_steps(found, costs).steps
    chained = [time for step, time in zip(found.steps, times, strict=True) if step.is_chained]
    seconds = sum(time.exposed_s for time in chained)
    assert 90e12 < 4 * 16 * 4096**2 * 64 / seconds < 312e12
    assert "HBM" not in {time.alone.bound.value for time in chained}


def test_kernels_of_all_ops_keep_their_rows():
    names = {step.kernel.name for step in program().steps}
    assert {kernel.name for kernel in with_passes(graph()).kernels} <= names
    again: list[Kernel] = [step.kernel for step in program().steps if ".for." in step.kernel.name]
    assert all(kernel.phase is Phase.BACKWARD for kernel in again)
    assert all("in turn" in step.why[0] for step in program().steps if step.is_chained)
