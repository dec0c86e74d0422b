"""Sums stay whole; all else is divided as before."""

from fsdtrain_dojo.lowering.lower import lower
from fsdtrain_dojo.lowering.passes.keep_sums_whole import keep_sums_whole
from fsdtrain_dojo.lowering.program import TileProgram
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.timing.costs import Costs

from tests.backends.dojo.lowering.steps import training_graph

DIE = {
    "name": "d1_die", "die_rows": 5, "die_columns": 6,
    "missing_nodes": 1, "sram_kb": 24,
}  # fmt: skip


def divided_sums(program: TileProgram) -> list[str]:
    """Kernels with a reduction loop that is divided over nodes or over time."""
    return [
        step.kernel.name
        for step in program.steps
        if step.kernel.reductions
        & {
            *(part.loop for part in (*step.mapping.rows, *step.mapping.columns) if part.count > 1),
            *(loop for loop, count in step.mapping.steps.items() if count > 1),
        }
    ]


def test_no_sum_is_divided():
    costs = Costs(read_machine(DIE))
    assert divided_sums(lower(training_graph(), costs)), "or the pass would have nothing to do"
    program = lower(keep_sums_whole(training_graph()), costs)
    assert not divided_sums(program)
    assert any(step.mapping.rows or step.mapping.columns for step in program.steps)


def test_nothing_else_is_changed():
    before = training_graph()
    after = keep_sums_whole(before)
    assert after.values == before.values
    for kernel, whole in zip(before.kernels, after.kernels, strict=True):
        assert (whole.reads, whole.writes, whole.macs) == (kernel.reads, kernel.writes, kernel.macs)
        for number, (loop, kept) in enumerate(zip(kernel.loops, whole.loops, strict=True)):
            is_sum = number in kernel.reductions
            assert (kept.name, kept.size) == (loop.name, loop.size)
            assert kept.is_splittable == (loop.is_splittable and not is_sum)
