"""Let kernels read through views: a reshape, permutation, slice or broadcast moves nothing.

    v = view(x)         x: 4 x 6, v: 24
    y = relu(v)     =>  y = relu(x through the view)      reads x[i // 6, ...] at point i

A kernel that reads a view reads the view's source instead, with the composition of both accesses,
and makes the view of its own local box before it computes. Where data has to move after all,
because the view's divisions do not fit the source's layout, the load of that kernel pays for it.
A view that cannot be composed (its own result is not affine), joins several values, or is wanted
when the step has ended, stays.
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
    for kernel in graph.kernels:
        folded = _fold(kernel, views, graph)
        if _is_view(folded, graph):
            views[folded.writes[0].value] = folded
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
            if (scale, span.divide, span.low, span.high) != (1, 1, 0, 0):
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


def _fold(kernel: Kernel, views: dict[str, Kernel], graph: KernelGraph) -> Kernel:
    """The kernel with every read of a view replaced by one of the view's source."""
    reads = list(kernel.reads)
    folded: dict[int, tuple[Kernel, Value]] = {}
    for number, read in enumerate(reads):
        view = views.get(read.value)
        if view is None or kernel.is_random:
            continue
        spans = _compose(read, view, graph)
        if spans is None:
            continue
        source = view.reads[0]
        reads[number] = replace(read, value=source.value, spans=spans)
        folded[number] = (view, graph.values[read.value])
    if not folded:
        return kernel
    compute = _compute_through(kernel, tuple(reads), folded)
    return replace(kernel, reads=tuple(reads), compute=compute)


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
    if all(span.divide == 1 for span, _ in inner):
        terms: dict[int, int] = {}
        low, high = outer.low, outer.high
        for span, scale in inner:
            for loop, factor in span.terms:
                terms[loop] = terms.get(loop, 0) + scale * factor
            low += scale * span.low
            high += scale * span.high
        return Span(tuple(sorted(terms.items())), outer.divide, low, high)
    if len(inner) == 1 and inner[0][1] == 1:
        # floor((floor(a / d) + low) / e) = floor((a + low d) / (d e)), for positive d and e.
        span = inner[0][0]
        return Span(
            span.terms,
            span.divide * outer.divide,
            span.low + outer.low * span.divide,
            span.high + outer.high * span.divide,
        )
    return None


def _compute_through(
    kernel: Kernel, reads: tuple[Access, ...], folded: dict[int, tuple[Kernel, Value]]
) -> Compute:
    """`kernel.compute` on local boxes of the views' sources."""
    original, inner = kernel.reads, kernel.compute

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        local, boxes = list(tensors), list(block.boxes)
        for number, (view, value) in folded.items():
            box = kernel.touched(original[number], block.ranges, value.shape)
            ranges = _view_ranges(view, value, box)
            made = Block(ranges=ranges, boxes=(block.boxes[number], box))
            # The local box may be larger than what the view needs of its source, never smaller.
            local[number] = view.compute([local[number]], made)[0]
            boxes[number] = box
        return inner(local, Block(ranges=block.ranges, boxes=tuple(boxes)))

    return compute


def _view_ranges(
    view: Kernel, value: Value, box: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    ranges = [(0, loop.size) for loop in view.loops]
    for span, bounds in zip(view.writes[0].spans, box, strict=True):
        for loop, _ in span.terms:
            ranges[loop] = bounds
    return tuple(ranges)
