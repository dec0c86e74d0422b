"""The passes of lowering, in their order: a captured step becomes a tile program."""

from fsdtrain.backend import BackendError
from fsdtrain_dojo.lowering.chain_space import Space, find_spaces
from fsdtrain_dojo.lowering.kernel import KernelGraph
from fsdtrain_dojo.lowering.passes.allocate_sram import allocate_sram
from fsdtrain_dojo.lowering.passes.choose_layouts import choose_layouts
from fsdtrain_dojo.lowering.passes.fold_views import fold_views
from fsdtrain_dojo.lowering.passes.fuse_elementwise import fuse_elementwise
from fsdtrain_dojo.lowering.passes.tile_chains import tile_chains
from fsdtrain_dojo.lowering.program import TileProgram
from fsdtrain_dojo.timing.costs import Costs
from fsdtrain_dojo.timing.schedule_steps import schedule_steps


def transform_graph(graph: KernelGraph, costs: Costs) -> KernelGraph:
    """The graph that layouts are chosen for.

    Args:
        graph: as `expand_macros` makes it.
        costs: of the machine.
    """
    graph = fold_views(graph)  # first: fusing sees who really reads what
    # before layouts: a fused result needs none
    return fuse_elementwise(graph, room_bytes=costs.machine.node.memory.capacity_bytes)


def lower(graph: KernelGraph, costs: Costs) -> TileProgram:
    """The program of a step for the machine of `costs`.

    Where a value around a large product does not fit whole (the scores of an attention), the
    program with chains (`tile_chains`) is weighed against the one without, and the quicker taken.

    Raises:
        BackendError: it cannot run there: a format that the machine lacks, a kernel that does not
            fit into a node, values that fit nowhere.
    """
    graph = transform_graph(graph, costs)
    spaces = list(find_spaces(graph))
    try:
        program = place(graph, costs)
    except BackendError:
        chained = tile_chains(graph, spaces)
        if chained is graph:
            raise
        return place(chained, costs)
    large = [each for each in spaces if does_not_fit_whole(each, program, costs)]
    chained = tile_chains(graph, large)
    return program if chained is graph else _quicker(program, chained, costs)


def place(graph: KernelGraph, costs: Costs) -> TileProgram:
    """The program of a graph whose kernels stay as they are.

    Raises:
        BackendError: see `lower`.
    """
    program = choose_layouts(graph, costs)  # with `tile_kernels` for every mapping it weighs
    return allocate_sram(program, costs)  # last: it moves out what does not fit together


def does_not_fit_whole(space: Space, program: TileProgram, costs: Costs) -> bool:
    """Whether some value over all axes of a space has to leave the nodes.

    Nodes at a switch keep nothing from kernel to kernel; there a value is large that all of their
    memories together would not hold, and others are left to caches.
    """
    if costs.fabric.keeps_values:
        return not space.blocks.keys().isdisjoint(each.value for each in program.spills)
    room = costs.fabric.num_nodes * costs.machine.node.memory.capacity_bytes
    return any(program.graph.values[name].num_bytes > room for name in space.blocks)


def _quicker(program: TileProgram, chained: KernelGraph, costs: Costs) -> TileProgram:
    """The program, or that of a graph with chains: what is computed again has to pay."""
    try:
        other = place(chained, costs)
    except BackendError:  # not even the smallest blocks fit
        return program
    seconds = [schedule_steps(each, costs).seconds for each in (program, other)]
    return other if seconds[1] < seconds[0] else program
