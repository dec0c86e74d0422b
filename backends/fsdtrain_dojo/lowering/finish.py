"""How results end up: where a kernel's writes lie when partial sums have been put together.

Knows shapes and divisions only, no cost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from fsdtrain_dojo.lowering.kernel import Access, Kernel, Value
from fsdtrain_dojo.lowering.mapping import (
    Axis,
    Boxes,
    Grid,
    Mapping,
    Part,
    divided_boxes,
)
from fsdtrain_dojo.lowering.program import Pattern


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Where one write lies in the end.

    Args:
        pattern: LOCAL where nothing has to be put together.
        boxes: of every node.
        division: of the value's dimensions, if the boxes are one.
    """

    pattern: Pattern
    boxes: Boxes
    division: Mapping | None


def home_division(shape: Sequence[int], grid: Grid) -> Mapping:
    """A value spread as widely as its two largest dimensions allow: for weights and their like.

    The gradient, the moments and the master copy of a weight have its shape, so they lie where it
    does, and the optimiser moves nothing (as ZeRO does over GPUs; Rajbhandari et al., SC 2020).
    """
    order = sorted(range(len(shape)), key=lambda dim: (-shape[dim], dim))[:2]
    order = [dim for dim in order if shape[dim] > 1]
    axes = sorted(range(2), key=lambda axis: -grid[axis])
    parts: list[tuple[Part, ...]] = [(), ()]
    for axis, dim in zip(axes, order, strict=False):
        parts[axis] = (Part(dim, min(shape[dim], grid[axis])),)
    return Mapping(rows=parts[0], columns=parts[1])


def written_division(kernel: Kernel, access: Access, mapping: Mapping) -> Mapping | None:
    """How the mapping divides the dimensions of a value that is written; None: not plainly.

    Parts of reductions are left out, so this is the division of the value only where none is
    divided.
    """
    dims = {}
    for dim, span in enumerate(access.spans):
        if len(span.terms) == 1 and (span.divide, span.low, span.modulo) == (1, 0, None):
            ((loop, scale),) = span.terms
            if span.high == scale - 1:
                dims[loop] = (dim, scale)
    axes = []
    for axis in Axis:
        parts = []
        for part in mapping.parts(axis):
            if part.loop in kernel.reductions:
                continue
            if part.loop not in dims:
                return None
            dim, scale = dims[part.loop]
            parts.append(Part(dim, part.count, part.grain * scale))
        axes.append(tuple(parts))
    return Mapping(rows=axes[0], columns=axes[1], is_everywhere=mapping.is_everywhere)


def divided_reductions(kernel: Kernel, mapping: Mapping) -> frozenset[int]:
    """Reduction loops of which nodes hold different parts."""
    parts = (*mapping.rows, *mapping.columns)
    return kernel.reductions & {part.loop for part in parts if part.count > 1}


def settled(kernel: Kernel, mapping: Mapping) -> tuple[Access, ...]:
    """The writes that a step has stores for.

    Where a reduction is divided, first all writes of the kernel itself, for these have to be put
    together, hidden or not, before an epilogue can go on; then what the epilogue stores.
    """
    if not divided_reductions(kernel, mapping):
        return kernel.stored
    own = {each.value for each in kernel.writes}
    return (*kernel.writes, *(each for each in kernel.stored if each.value not in own))


def finishes(
    kernel: Kernel, access: Access, value: Value, mapping: Mapping, boxes: Boxes
) -> Iterator[Finish]:
    """Ways in which a write of a kernel can end up in the nodes; the first one is always there.

    Args:
        kernel: that writes.
        access: the write.
        value: that is written.
        mapping: of the kernel.
        boxes: what every node computes of the value, perhaps in part.
    """
    grid = boxes.grid
    division = written_division(kernel, access, mapping)
    if not divided_reductions(kernel, mapping):
        yield Finish(pattern=Pattern.LOCAL, boxes=boxes, division=division)
        return
    yield Finish(pattern=Pattern.ALL_REDUCE, boxes=boxes, division=None)
    if kernel.epilogue or division is None:
        return
    scattered = _scattered(kernel, value, mapping, division, grid)
    if scattered is not None:
        yield Finish(
            pattern=Pattern.REDUCE_SCATTER,
            boxes=divided_boxes(value.shape, scattered, grid),
            division=scattered,
        )
        return
    root = _root(kernel, mapping, grid)
    yield Finish(
        pattern=Pattern.REDUCE,
        boxes=Boxes(
            shape=boxes.shape, grid=grid, first=boxes.first, end=boxes.end, busy=boxes.busy & root
        ),
        division=division if _reductions_are_inner(kernel, mapping) is False else None,
    )


def _scattered(
    kernel: Kernel, value: Value, mapping: Mapping, division: Mapping, grid: Grid
) -> Mapping | None:
    """The division in which each of the nodes that hold parts of a sum gets a piece of it."""
    home = home_division(value.shape, grid)
    taken = {part.loop for part in (*division.rows, *division.columns)}
    axes: list[tuple[Part, ...]] = []
    for axis in Axis:
        parts, own = mapping.parts(axis), division.parts(axis)
        reduced = [part for part in parts if part.loop in kernel.reductions]
        if not reduced:
            axes.append(own)
            continue
        if own:  # digits of both kinds: pieces would not lie within the groups
            return None
        at_home = [part for part in home.parts(axis) if part.loop not in taken]
        free = [dim for dim, size in enumerate(value.shape) if dim not in taken and size > 1]
        if not at_home and not free:
            return None
        num_places = prod(part.count for part in reduced)
        dim = at_home[0].loop if at_home else max(free, key=lambda each: value.shape[each])
        taken.add(dim)
        axes.append((Part(dim, min(num_places, value.shape[dim])),))
    return Mapping(rows=axes[0], columns=axes[1])


def _reductions_are_inner(kernel: Kernel, mapping: Mapping) -> bool:
    """Whether the first nodes of all groups lie apart, so that the division skips places."""
    for axis in Axis:
        parts = mapping.parts(axis)
        if any(part.loop in kernel.reductions for part in parts) and any(
            part.loop not in kernel.reductions for part in parts
        ):
            return True
    return False


def _root(
    kernel: Kernel, mapping: Mapping, grid: Grid
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Nodes that are the first of those that hold parts of the same sum."""
    found = []
    for axis in Axis:
        inner = mapping.num_used(axis)
        places = np.arange(grid[axis.value])
        first = places < inner
        for part in mapping.parts(axis):
            inner //= part.count
            if part.loop in kernel.reductions:
                first &= places // inner % part.count == 0
        found.append(first)
    return found[0][:, None] & found[1][None, :]
