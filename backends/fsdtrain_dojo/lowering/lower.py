"""The passes of lowering, in their order: a captured step becomes a tile program."""

from collections.abc import Callable

from fsdtrain_dojo.lowering.kernel import KernelGraph
from fsdtrain_dojo.lowering.passes.allocate_sram import allocate_sram
from fsdtrain_dojo.lowering.passes.choose_layouts import choose_layouts
from fsdtrain_dojo.lowering.passes.fold_views import fold_views
from fsdtrain_dojo.lowering.passes.fuse_elementwise import fuse_elementwise
from fsdtrain_dojo.lowering.program import TileProgram
from fsdtrain_dojo.timing.costs import Costs

# `expand_macros` comes before: it makes the graph that these start with.
GRAPH_PASSES: tuple[Callable[[KernelGraph], KernelGraph], ...] = (
    fold_views,  # first: fusing sees who really reads what
    fuse_elementwise,  # before layouts: a fused result needs none
)


def lower(graph: KernelGraph, costs: Costs) -> TileProgram:
    """The program of a step for the machine of `costs`.

    Raises:
        BackendError: it cannot run there: a format that the machine lacks, a kernel that does not
            fit into a node, values that fit nowhere.
    """
    for transform in GRAPH_PASSES:
        graph = transform(graph)
    program = choose_layouts(graph, costs)  # with `tile_kernels` for every mapping it weighs
    return allocate_sram(program, costs)  # last: it moves out what does not fit together
