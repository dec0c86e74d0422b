"""What the kernels of a chain are to each other. Knows no machine."""

from collections.abc import Mapping, Sequence
from math import prod

from fsdtrain_dojo.lowering.chain import Chain
from fsdtrain_dojo.lowering.kernel import Access, Kernel, KernelGraph


def chains_by_start(graph: KernelGraph) -> dict[int, Chain]:
    """Number of the first kernel -> chain."""
    places = {kernel.name: number for number, kernel in enumerate(graph.kernels)}
    return {places[chain.kernels[0]]: chain for chain in graph.chains}


def is_sum(chain: Chain, number: int, kernel: Kernel) -> bool:
    """Whether the chain's kernel of this number sums over the inner axis."""
    return set(chain.inner.loops[number]) <= kernel.reductions


def made_inside(kernels: Sequence[Kernel]) -> dict[str, int]:
    """Value -> number of the kernel of a chain that makes it."""
    return {
        access.value: number for number, kernel in enumerate(kernels) for access in kernel.stored
    }


def find_shared(chain: Chain, kernels: Sequence[Kernel]) -> dict[tuple[int, int], tuple[int, int]]:
    """Operands that an earlier kernel of the chain has loaded for the same block.

    As (number of the kernel, number of `Kernel.loaded`), of who reads it and of who has loaded it.
    """
    made = made_inside(kernels)
    first: dict[object, tuple[int, int]] = {}
    found = {}
    for number, kernel in enumerate(kernels):
        strides = _axis_strides(chain, number, kernel)
        for index, access in enumerate(kernel.loaded):
            if access.value in made or access.is_gathered:
                continue
            key = (access.value, _block_key(kernel, access, strides))
            if key in first:
                found[number, index] = first[key]
            else:
                first[key] = (number, index)
    return found


def _axis_strides(chain: Chain, number: int, kernel: Kernel) -> dict[int, tuple[int, int]]:
    """Loop -> its axis, and by how much the axis's index grows with it."""
    found = {}
    for axis, each in enumerate(chain.axes):
        loops = each.loops[number]
        for place, loop in enumerate(loops):
            found[loop] = axis, prod(kernel.sizes[inner] for inner in loops[place + 1 :])
    return found


def _block_key(kernel: Kernel, access: Access, strides: Mapping[int, tuple[int, int]]) -> object:
    """Equal for accesses that touch the same box in every block; other loops are always whole."""
    key = []
    for span in access.spans:
        terms = sorted((*strides[loop], scale) for loop, scale in span.terms if loop in strides)
        more = sum(
            scale * (kernel.sizes[loop] - 1) for loop, scale in span.terms if loop not in strides
        )
        key.append((tuple(terms), span.divide, span.low, span.high + more, span.modulo))
    return tuple(key)


def find_followers(chain: Chain, kernels: Sequence[Kernel]) -> dict[int, tuple[int, ...]]:
    """Sums that are made with sums in the making -> kernels whose `rescale` puts them right."""
    running: set[str] = set()
    passing: dict[str, int] = {}
    found = {}
    for number, kernel in enumerate(kernels):
        reads = [access.value for access in kernel.loaded]
        own = (number,) if running & set(reads) else ()
        made = [access.value for access in kernel.stored]
        if is_sum(chain, number, kernel):
            running |= set(made)
            others = dict.fromkeys(passing[name] for name in reads if name in passing)
            if own or others:
                found[number] = (*own, *others)
        elif own:
            passing |= dict.fromkeys(made, number)
    return found


def most_alive(chain: Chain, kernels: Sequence[Kernel], num_bytes: Mapping[str, float]) -> float:
    """The most that blocks of passed values take at a time; `num_bytes` of each.

    A block lives from who makes it to the last who reads it; sums live all the time.
    """
    made = made_inside(kernels)
    last = dict(made)
    for number, kernel in enumerate(kernels):
        last |= {each.value: number for each in kernel.loaded if each.value in made}
    sums = {name for name in num_bytes if is_sum(chain, made[name], kernels[made[name]])}
    return max(
        sum(
            size
            for name, size in num_bytes.items()
            if name in sums or made[name] <= number <= last[name]
        )
        for number in range(len(kernels))
    )
