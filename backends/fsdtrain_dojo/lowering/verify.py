"""Is a kernel graph, or a tile program, right? What every pass must leave behind.

    verify_graph(fuse_elementwise(graph))            raises LoweringError, or returns nothing
    verify_program(choose_layouts(graph, machine), sram_bytes=1_250_000)

It goes by boxes alone and recomputes what passes have noted down; it knows no pass and no clock.
"""

from collections.abc import Iterable
from itertools import islice

from fsdtrain_dojo.lowering.check_chain import find_chain_problems
from fsdtrain_dojo.lowering.check_graph import find_graph_problems
from fsdtrain_dojo.lowering.check_memory import find_memory_problems
from fsdtrain_dojo.lowering.check_program import BoxFacts, find_step_problems
from fsdtrain_dojo.lowering.kernel import KernelGraph
from fsdtrain_dojo.lowering.program import TileProgram

_NUM_SHOWN = 5


class LoweringError(AssertionError):
    """A pass has made something that cannot be right: a mistake in the pass, not of its user."""


def verify_graph(graph: KernelGraph) -> None:
    """Check a graph.

    Every access lies within its value, every loop is used and every result loop is in every write,
    every element of a value is written once and before it is read, epilogues need what is in
    registers only, and nobody reads a weight that has been renewed.

    Raises:
        LoweringError: with the first things that are not so.
    """
    _raise_any(find_graph_problems(graph))


def verify_program(program: TileProgram, *, sram_bytes: int) -> None:
    """Check a program; its graph is taken as verified.

    Every point of every kernel is visited exactly once over nodes and time, and so is every element
    of its results; loads bring what nodes touch, from where it is at that time; sums whose parts
    lie at several nodes are put together; kernels of a chain have the same blocks, and can go on
    with what there is of each; nothing is read after its last use; patterns say no less than what
    has to move; no node's memory is ever over its capacity.

    Args:
        program: to check.
        sram_bytes: capacity of a node.

    Raises:
        LoweringError: with the first things that are not so.
    """
    names = [step.kernel.name for step in program.steps]
    if names != [kernel.name for kernel in program.graph.kernels]:
        raise LoweringError("the steps are not the kernels of the graph, in their order")
    facts = BoxFacts()
    _raise_any(
        f"{step.kernel.name}: {problem}"
        for step in program.steps
        for problem in find_step_problems(program, step, facts)
    )
    _raise_any(find_chain_problems(program))
    _raise_any(find_memory_problems(program, sram_bytes, facts))


def _raise_any(problems: Iterable[str]) -> None:
    found = list(islice(problems, _NUM_SHOWN))
    if found:
        raise LoweringError("; ".join(found))
