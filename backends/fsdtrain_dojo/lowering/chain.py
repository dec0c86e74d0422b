"""Kernels that take turns over blocks, so that what they pass on never lies whole anywhere.

    scores = q k;  top, total, p = softmax(scores);  y = p v          loops: head, query | key
    for a block of queries of a head:  for a block of keys:  all five, one after the other

All kernels of a chain run over the same axes. Their results lack one of these, the inner one, over
which they sum; the outer ones are divided over nodes, and all of them over time. What only they
read exists for one block at a time (Dao et al., FlashAttention, arXiv 2205.14135). A sum over the
inner axis that others of the chain read before it is complete, such as a softmax's row maximum, is
followed by `Kernel.rescale`. Knows no machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class ChainAxis:
    """A dimension that all kernels of a chain run over.

    Args:
        size: points.
        loops: of each kernel, in their order: the loops that make it up, the outermost first. One
            kernel may have heads and samples as one loop, another as two.
    """

    size: int
    loops: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """See the top of this file.

    Args:
        kernels: names, one after another in the graph.
        outer: axes of all results, in the order in which blocks go through them.
        inner: that all results are sums over: the innermost in time, whole at every node.
        passed: values that exist for a block at a time: only the chain reads them.
    """

    kernels: tuple[str, ...]
    outer: tuple[ChainAxis, ...]
    inner: ChainAxis
    passed: frozenset[str]

    @property
    def axes(self) -> tuple[ChainAxis, ...]:
        """From the outermost in time to the innermost."""
        return (*self.outer, self.inner)


def split_count(sizes: Sequence[int], count: int) -> tuple[int, ...] | None:
    """Into how many parts each of several loops has to be divided for `count` equal ones in all.

    The loops are nested, the outermost first. None: there are no such parts, each a range of every
    loop. A loop by itself may be divided into any number of parts, equal or not.
    """
    if len(sizes) == 1:
        return (count,) if count <= sizes[0] else None
    found = []
    for size in sizes:
        own = min(count, size)
        if size % own or count % own:
            return None
        found.append(own)
        count //= own
    return tuple(found) if count == 1 else None


def fits_all(axis_sizes: Sequence[Sequence[int]], count: int) -> bool:
    """Whether all kernels, of these sizes of loops, can divide an axis into `count` parts alike."""
    if all(len(sizes) == 1 for sizes in axis_sizes):
        return count <= axis_sizes[0][0]
    whole = prod(axis_sizes[0])
    return whole % count == 0 and all(split_count(sizes, count) for sizes in axis_sizes)
