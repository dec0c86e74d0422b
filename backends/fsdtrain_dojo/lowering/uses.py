"""Who reads which value of a step, and until when it is needed."""

from fsdtrain_dojo.lowering.chain_roles import chains_by_start
from fsdtrain_dojo.lowering.kernel import Kernel, KernelGraph, ValueKind


def find_last_uses(graph: KernelGraph) -> dict[str, int]:
    """Number of the last kernel that needs a value; those that outlive the step are left out."""
    lasting = {
        name
        for name, value in graph.values.items()
        if value.is_output or value.kind in (ValueKind.WEIGHT, ValueKind.STATE)
    } | set(graph.renews)
    found = {}
    for number, kernel in enumerate(graph.kernels):
        for access in (*kernel.loaded, *kernel.stored):
            if access.value not in lasting:
                found[access.value] = number
    for first, chain in chains_by_start(graph).items():  # all of it takes turns until its end
        numbers = range(first, first + len(chain.kernels))
        found |= {name: numbers[-1] for name, last in found.items() if last in numbers}
    return found


def find_readers(graph: KernelGraph) -> dict[str, list[Kernel]]:
    """Kernels that read a value, in order."""
    found: dict[str, list[Kernel]] = {}
    for kernel in graph.kernels:
        for access in kernel.loaded:
            found.setdefault(access.value, []).append(kernel)
    return found
