"""Attentions in blocks, run node by node, are those of the ops; so are all gradients."""

from collections.abc import Mapping
from functools import lru_cache

import pytest
import torch
from fsdtrain_dojo.lowering.chain_roles import is_sum
from fsdtrain_dojo.lowering.program import TileProgram
from fsdtrain_dojo.lowering.record_step import RecordedStep, run_directly
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.timing.costs import Costs

from tests.backends.dojo.lowering.attentions import place_chains, record_attention
from tests.backends.dojo.spatial.test_whole_step import check_in_double, graph_of, run

DIE = {"name": "d1_die", "die_rows": 2, "die_columns": 3, "missing_nodes": 0}
TIGHT = DIE | {"sram_kb": 1}  # blocks of a few rows and columns
MACHINES = {
    "die": DIE | {"sram_kb": 2}, "switch": {"name": "a100", "num_sms": 5, "shared_kib": 1},
}  # fmt: skip

# samples, rows, columns, heads, width
CASES = {
    "plain": (2, 11, 13, 2, 3), "causal": (1, 17, 17, 2, 5), "masked": (2, 13, 16, 2, 3),
    "by hand": (2, 20, 13, 1, 6),
}  # fmt: skip
LARGER = (3, 26, 17, 1, 6)  # by hand: every chain on the die has blocks of rows and of columns


@lru_cache
def recorded(kind: str) -> RecordedStep:
    return record_attention(*CASES[kind], kind)


@lru_cache
def tight_program() -> TileProgram:
    return place_chains(graph_of(recorded("plain")), TIGHT)


def num_blocks(program: TileProgram) -> list[int]:
    """Of every chain at a node."""
    return [
        step.mapping.num_steps
        for step in program.steps
        if step.is_chained and not step.is_continued
    ]


def check_blocks(step: RecordedStep, machine: Mapping[str, object]) -> None:
    program = place_chains(graph_of(step), machine)
    assert len(program.graph.chains) == 3  # forward; gradients of rows; gradients of columns
    assert max(num_blocks(program)) > 1
    check_in_double(step, program)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("machine", MACHINES)
def test_a_step_in_blocks_is_the_direct_one(kind, machine):
    check_blocks(recorded(kind), MACHINES[machine])


@pytest.mark.slow
def test_a_step_in_many_blocks_is_the_direct_one():
    check_blocks(record_attention(*LARGER, "by hand"), MACHINES["die"])


def test_blocks_over_all_axes_are_the_direct_ones():
    """Sums in the making are used, and put right, over rows and columns of many blocks."""
    program = tight_program()
    for chain in program.graph.chains:
        steps = [step for step in program.steps if step.kernel.name in chain.kernels]
        for number, step in enumerate(steps):
            inner = chain.inner.loops[number]
            assert max(step.mapping.steps.get(loop, 1) for loop in inner) > 1
            assert is_sum(chain, number, step.kernel) == (set(inner) <= step.kernel.reductions)
    check_in_double(recorded("plain"), program)


def test_without_rescaling_the_result_would_be_another(monkeypatch):
    """The check above can fail: it rests on the factors."""
    monkeypatch.setattr(
        "fsdtrain_dojo.spatial.chain.ChainWork._factor", lambda self, kernel: torch.ones(())
    )
    monkeypatch.setattr(
        "fsdtrain_dojo.spatial.chain.ChainWork._along",
        lambda self, factor, *rest: factor,
    )
    with pytest.raises(AssertionError):
        check_in_double(recorded("plain"), tight_program())


def test_others_go_out_beside_a_chain_and_blocks_never_do():
    program = tight_program()
    assert len(program.spills) > 10
    passed = {name for chain in program.graph.chains for name in chain.passed}
    assert passed.isdisjoint(spill.value for spill in program.spills)


def test_traffic_is_what_the_timing_counts():
    """Of a chain, only what comes from outside of it is copied."""
    program, costs = tight_program(), Costs(read_machine(TIGHT))
    step = recorded("plain")
    copies = {
        (each.step, each.value, each.is_store): each.moved_bytes
        for each in run(program, step.tensors, run_directly(step)).copies
    }
    passed = {name for chain in program.graph.chains for name in chain.passed}
    values = program.graph.values
    num_loaded = 0
    for number, step in enumerate(program.steps):
        if not step.is_chained:
            continue
        for index, load in enumerate(step.loads):
            if index in step.inside:
                assert (number, load.value, False) not in copies
            else:
                counted = costs.load(load.source, load.boxes, values[load.value], 1.0).moved_bytes
                assert copies[number, load.value, False] == counted
                num_loaded += counted > 0
        for store in step.stores:
            assert ((number, store.value, True) in copies) == (store.value not in passed)
    assert num_loaded > 5
