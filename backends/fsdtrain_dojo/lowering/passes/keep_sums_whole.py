"""keep_sums_whole: no sum is divided, over nodes or over time, for `accumulate=exact`.

    before   mm: i, j | k     k may be divided: parts are added up in an order of the mapping's
    after    mm: i, j | [k]   each sum is made by one node in one go, in the emulation's order

A tile program of such a graph gives the very bits of the direct execution. It pays for that in
time, and where a whole sum does not fit into a node there is no program.
"""

from dataclasses import replace

from fsdtrain_dojo.lowering.kernel import Kernel, KernelGraph


def keep_sums_whole(graph: KernelGraph) -> KernelGraph:
    """The graph with the reduction loops of all kernels undivided."""
    return replace(graph, kernels=tuple(_with_whole_sums(each) for each in graph.kernels))


def _with_whole_sums(kernel: Kernel) -> Kernel:
    loops = tuple(
        replace(loop, is_splittable=loop.is_splittable and number not in kernel.reductions)
        for number, loop in enumerate(kernel.loops)
    )
    return replace(kernel, loops=loops)
