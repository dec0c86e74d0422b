"""Let kernels read through views: a reshape, permutation, slice or broadcast moves nothing.

    v = view(x)         x: 4 x 6, v: 24
    y = relu(v)     =>  y = relu(x through the view)      reads x[i // 6, ...] at point i

A kernel that reads a view reads the view's source instead, with the composition of both accesses,
and makes the view of its own local box before it computes. Where data has to move after all,
because the view's divisions do not fit the source's layout, the load of that kernel pays for it.
A view that cannot be composed (its own result is not affine), joins several values, or is wanted
when the step has ended, stays. So does one whose reader comes after the source has been renewed,
and one whose reader runs over a loop only through it: a sum over what the view repeats.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fsdtrain_dojo.lowering.kernel import (
    Access,
    Block,
    Compute,
    Kernel,
    KernelGraph,
    Range,
    Span,
    Unit,
    Value,
)


def fold_views(graph: KernelGraph) -> KernelGraph:
    """The graph without views that their readers can do themselves.

    Kernels stay in order; views that nobody reads any more are gone, with their values.
    """
    views: dict[str, Kernel] = {}
    kernels: list[Kernel] = []
    gone: set[str] = set()  # old values whose memory a new one has
    for kernel in graph.kernels:
        folded = _fold(kernel, views, gone, graph)
        if _is_view(folded, graph):
            views[folded.writes[0].value] = folded
        gone |= {graph.renews.get(access.value, "") for access in kernel.writes}
        kernels.append(folded)
    read = {access.value for kernel in kernels for access in kernel.reads}
    kept = []
    for kernel in reversed(kernels):
        name = kernel.writes[0].value
        if name in views and not _is_wanted(name, graph) and name not in read:
            continue
        kept.append(kernel)
    kept.reverse()
    # A view of a view has been folded into the first one, so one pass over the readers is enough.
    known = {access.value for kernel in kept for access in (*kernel.reads, *kernel.writes)}
    made = {access.value for kernel in graph.kernels for access in kernel.writes}
    values = {
        name: value for name, value in graph.values.items() if name in known or name not in made
    }
    return replace(graph, values=values, kernels=tuple(kept))


def _is_view(kernel: Kernel, graph: KernelGraph) -> bool:
    """Whether readers can read its one source in its place."""
    if kernel.unit is not Unit.MOVE or len(kernel.reads) != 1 or len(kernel.writes) != 1:
        return False
    read, write = kernel.reads[0], kernel.writes[0]
    source, result = graph.values[read.value], graph.values[write.value]
    if read.is_gathered or source.format != result.format or kernel.is_random:
        return False
    return _loops_of_dims(kernel, result) is not None


def _is_wanted(name: str, graph: KernelGraph) -> bool:
    return graph.values[name].is_output or name in graph.renews


def _loops_of_dims(kernel: Kernel, result: Value) -> tuple[tuple[int, ...], ...] | None:
    """For every dimension of the result the loop that runs along it, or () where its size is 1."""
    found: list[tuple[int, ...]] = []
    for span, size in zip(kernel.writes[0].spans, result.shape, strict=True):
        if span.terms:
            ((loop, scale),) = span.terms if len(span.terms) == 1 else ((-1, 0),)
            if (scale, span.divide, span.low, span.high, span.modulo) != (1, 1, 0, 0, None):
                return None
            if kernel.loops[loop].size != size:
                return None
            found.append((loop,))
        elif size == 1:
            found.append(())
        else:
            return None
    used = {loop for each in found for loop in each}
    if any(loop.size > 1 for number, loop in enumerate(kernel.loops) if number not in used):
        return None
    return tuple(found)


def _fold(kernel: Kernel, views: dict[str, Kernel], gone: set[str], graph: KernelGraph) -> Kernel:
    """The kernel with every read of a view replaced by one of the view's source."""
    reads = list(kernel.reads)
    folded: dict[int, tuple[Kernel, Value]] = {}
    for number, read in enumerate(reads):
        view = views.get(read.value)
        if view is None or kernel.is_random or view.reads[0].value in gone:
            continue
        spans = _compose(read, view, graph)
        if spans is None:
            continue
        through = replace(read, value=view.reads[0].value, spans=spans)
        if not _keeps_loops(kernel, reads, number, through):
            continue
        reads[number] = through
        folded[number] = (view, graph.values[read.value])
    if not folded:
        return kernel
    compute = _compute_through(kernel, folded, graph)
    return replace(kernel, reads=tuple(reads), compute=compute)


def _keeps_loops(kernel: Kernel, reads: Sequence[Access], number: int, through: Access) -> bool:
    """Whether every loop is still used: of a matrix product, one that A alone has by A."""
    others = [*reads[:number], *reads[number + 1 :]]
    if kernel.unit is not Unit.MATRIX:
        others += kernel.writes
    lost = _loops_of(reads[number]) - _loops_of(through)
    kept = {loop for access in others for loop in _loops_of(access)}
    return all(loop in kept or kernel.loops[loop].size == 1 for loop in lost)


def _loops_of(access: Access) -> set[int]:
    return {loop for span in access.spans for loop, _ in span.terms}


def _compose(read: Access, view: Kernel, graph: KernelGraph) -> tuple[Span, ...] | None:
    """What the reader touches of the view's source; None where that is not affine."""
    dims = _loops_of_dims(view, graph.values[read.value])
    assert dims is not None
    of_loop = {loop: dim for dim, loops in enumerate(dims) for loop in loops}
    spans = []
    for outer in view.reads[0].spans:
        if any(loop not in of_loop for loop, _ in outer.terms):
            if any(view.loops[loop].size > 1 for loop, _ in outer.terms if loop not in of_loop):
                return None
            outer = replace(outer, terms=tuple(term for term in outer.terms if term[0] in of_loop))
        inner = [(read.spans[of_loop[loop]], scale) for loop, scale in outer.terms]
        span = _substitute(outer, inner)
        if span is None:
            return None
        spans.append(span)
    return tuple(spans)


def _substitute(outer: Span, inner: Sequence[tuple[Span, int]]) -> Span | None:
    """`outer` with its terms' loops given as spans: floor((sum scale x span + low) / divide)."""
    if all(span.divide == 1 and span.modulo is None for span, _ in inner):
        terms: dict[int, int] = {}
        low, high = outer.low, outer.high
        for span, scale in inner:
            for loop, factor in span.terms:
                terms[loop] = terms.get(loop, 0) + scale * factor
            low += scale * span.low
            high += scale * span.high
        return replace(outer, terms=tuple(sorted(terms.items())), low=low, high=high)
    if len(inner) != 1 or inner[0][1] != 1:
        return None
    span = inner[0][0]
    if (outer.divide, outer.low, outer.high, outer.modulo) == (1, 0, 0, None):
        return span
    if span.modulo is not None:
        return None
    # floor((floor(a / d) + low) / e) = floor((a + low d) / (d e)), for positive d and e.
    return Span(
        span.terms,
        span.divide * outer.divide,
        span.low + outer.low * span.divide,
        span.high + outer.high * span.divide,
        outer.modulo,
    )


def _compute_through(
    kernel: Kernel, folded: dict[int, tuple[Kernel, Value]], graph: KernelGraph
) -> Compute:
    """`kernel.compute` on local boxes of the views' sources."""
    original, inner = kernel.reads, kernel.compute

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        local, boxes = list(tensors), list(block.boxes)
        for number, (view, value) in folded.items():
            box = kernel.touched(original[number], block.ranges, value.shape)
            ranges = _view_ranges(view, value, box)
            source = view.reads[0]
            needed = view.touched(source, ranges, graph.value_shape(source.value))
            tensor = _cut(local[number], block.boxes[number], needed)
            local[number] = view.compute([tensor], Block(ranges=ranges, boxes=(needed, box)))[0]
            boxes[number] = box
        return inner(local, Block(ranges=block.ranges, boxes=tuple(boxes)))

    return compute


def _cut(tensor: Tensor, box: Sequence[Range], needed: Sequence[Range]) -> Tensor:
    """What is needed of a local box: the spans of both together touch that, or more."""
    if any(first >= end for first, end in needed):
        return tensor.new_empty([end - first for first, end in needed])
    pairs = list(zip(box, needed, strict=True))
    assert all(have <= want and stop <= end for (have, end), (want, stop) in pairs), (box, needed)
    return tensor[tuple(slice(want - have, stop - have) for (have, _), (want, stop) in pairs)]


def _view_ranges(
    view: Kernel, value: Value, box: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    ranges = [(0, loop.size) for loop in view.loops]
    for span, bounds in zip(view.writes[0].spans, box, strict=True):
        for loop, _ in span.terms:
            ranges[loop] = bounds
    return tuple(ranges)
