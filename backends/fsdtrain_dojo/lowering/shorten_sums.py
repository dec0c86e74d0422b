"""Sums over the columns of a product of matrices that can go over its depth instead.

    dp[m, n] += dy[m, d] v[n, d];  sum[m] += dp[m, n] p[m, n]        and, before:
    y[m, d] += p[m, n] v[n, d]     =>   sum[m] += dy[m, d] y[m, d]

The row sums of a softmax's gradient then need no pass over all blocks of their own (Dao et al.,
FlashAttention, arXiv 2205.14135, appendix B.4). Knows no machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.chain_space import Space
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Block,
    Combine,
    Kernel,
    KernelGraph,
    Loop,
    Unit,
)


def shorten_sums(graph: KernelGraph, space: Space) -> tuple[KernelGraph, Space]:
    """The graph with sums that are shorter, which are no members of the space any more."""
    kernels = list(graph.kernels)
    makers = {each.value: kernel for kernel in kernels for each in kernel.stored}
    for number, kernel in enumerate(kernels):
        if kernel.name in space.lacking and kernel.is_sum_of_products and not kernel.epilogue:
            found = _shortened(kernel, space, kernels, makers)
            if found is not None:
                kernels[number] = found
                space = replace(
                    space,
                    loops={n: loops for n, loops in space.loops.items() if n != kernel.name},
                    lacking={n: axis for n, axis in space.lacking.items() if n != kernel.name},
                )
    return replace(graph, kernels=tuple(kernels)), space


def _shortened(
    kernel: Kernel, space: Space, kernels: Sequence[Kernel], makers: dict[str, Kernel]
) -> Kernel | None:
    lacking = space.lacking[kernel.name]
    names = [read.value for read in kernel.reads]
    for product_name, weights in (names, names[::-1]):
        product = makers.get(product_name)
        if product is None or not _is_plain_product(product, space):
            continue
        for other in kernels:
            if (
                _is_plain_product(other, space)
                and space.lacking.get(other.name) == lacking
                and weights in [read.value for read in other.reads]
                and other.writes[0].value not in other.hidden
            ):
                found = _over_depth(kernel, product, other, weights, space)
                if found is not None:
                    return found
    return None


def _is_plain_product(kernel: Kernel, space: Space) -> bool:
    return (
        kernel.name in space.loops
        and kernel.unit is Unit.MATRIX
        and kernel.combine is Combine.SUM
        and len(kernel.reads) == 2
    )


def _over_depth(
    kernel: Kernel, product: Kernel, other: Kernel, weights: str, space: Space
) -> Kernel | None:
    """The sum over the depth of `product`, if its second factor is that of `other`."""
    if product.writes[0].value not in [read.value for read in kernel.reads]:
        return None  # an epilogue has changed it
    lacking = space.lacking[kernel.name]
    others = [each for each in other.reads if each.value != weights]
    depths = [_depth_of(each, space) for each in (product, other)]
    if len(others) != 1 or None in depths:
        return None
    read = others[0]
    mine, theirs = (
        _axes_of(each, space) | {depth: -1 for depth in (own,) if depth is not None}
        for each, own in ((product, depths[0]), (other, depths[1]))
    )
    seconds = [
        each
        for each in product.reads
        if each.value == read.value and _form(each, mine) == _form(read, theirs)
    ]
    firsts = [each for each in product.reads if each not in seconds]
    if len(seconds) != 1 or len(firsts) != 1:
        return None
    depth = next(product.loops[loop] for loop, axis in mine.items() if axis == -1)
    (inner,) = space.loops[kernel.name][lacking]
    factors = [
        _over_loops_of(kernel, access, axes, space, inner)
        for access, axes in ((firsts[0], mine), (other.writes[0], theirs))
    ]
    if any(span.low != span.high for factor in factors for span in factor.spans):
        return None
    loops = tuple(depth if number == inner else each for number, each in enumerate(kernel.loops))
    num_points = prod(each.size for each in loops)
    return replace(
        kernel,
        loops=loops,
        reads=tuple(factors),
        flops=2 * num_points,
        compute=_make_compute(loops, factors, inner),
    )


def _depth_of(kernel: Kernel, space: Space) -> int | None:
    """The only loop of a product that is of no axis."""
    axes = _axes_of(kernel, space)
    free = [
        number for number, loop in enumerate(kernel.loops) if number not in axes and loop.size > 1
    ]
    return free[0] if len(free) == 1 else None


def _axes_of(kernel: Kernel, space: Space) -> dict[int, int]:
    return {loop: axis for axis, loops in enumerate(space.loops[kernel.name]) for loop in loops}


def _form(access: Access, axes: dict[int, int]) -> object:
    """Equal for accesses that touch the same elements at equal places of the axes."""
    return tuple(
        (
            tuple(sorted((axes[loop], scale) for loop, scale in span.terms if loop in axes)),
            span.divide,
            span.low,
            span.high,
            span.modulo,
        )
        for span in access.spans
    )


def _over_loops_of(
    kernel: Kernel, access: Access, axes: dict[int, int], space: Space, inner: int
) -> Access:
    """An access over the loops of the sum, whose `inner` one has become the depth."""
    spans = []
    for span in access.spans:
        terms: list[tuple[int, int]] = []
        for loop, scale in span.terms:
            if loop not in axes:
                continue  # of one point
            if axes[loop] == -1:
                terms.append((inner, scale))
                continue
            stride = scale
            for own in reversed(space.loops[kernel.name][axes[loop]]):
                terms.append((own, stride))
                stride *= kernel.sizes[own]
        spans.append(replace(span, terms=tuple(terms)))
    return replace(access, spans=tuple(spans))


def _make_compute(
    loops: Sequence[Loop], reads: Sequence[Access], inner: int
) -> Callable[[Sequence[Tensor], Block], list[Tensor]]:
    def at_points(tensor: Tensor, access: Access, number: int, block: Block) -> Tensor:
        """A dimension for every loop: boxes may be larger than what the block is about."""
        found = []
        for span, (first, _) in zip(access.spans, block.boxes[number], strict=True):
            index = torch.full([1] * len(loops), span.low)
            for loop, scale in span.terms:
                shape = [-1 if each == loop else 1 for each in range(len(loops))]
                index = index + scale * torch.arange(*block.ranges[loop]).reshape(shape)
            index = index // span.divide
            found.append((index if span.modulo is None else index % span.modulo) - first)
        return tensor[tuple(found)]

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        one, other = (
            at_points(tensor, access, number, block)
            for number, (tensor, access) in enumerate(zip(tensors, reads, strict=True))
        )
        shape = [end - first for first, end in block.boxes[-1]]
        return [(one * other).sum(inner).reshape(shape)]

    return compute
