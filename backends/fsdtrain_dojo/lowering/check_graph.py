"""What is wrong with a kernel graph, in words; nothing, if its passes are right."""

from collections.abc import Iterator

import numpy as np

from fsdtrain_dojo.lowering.kernel import (
    Access,
    Kernel,
    KernelGraph,
    Loop,
    Span,
    Unit,
    Value,
    ValueKind,
)


def find_graph_problems(graph: KernelGraph) -> Iterator[str]:
    """Problems of every kernel by itself, then of who makes and reads which value when."""
    spoilt = [each for kernel in graph.kernels for each in _access_problems(kernel, graph)]
    yield from spoilt
    if spoilt:  # the rest goes by the accesses
        return
    for kernel in graph.kernels:
        yield from _loop_problems(kernel)
        yield from _write_problems(kernel, graph)
        yield from _epilogue_problems(kernel, graph)
    yield from _order_problems(graph)
    yield from _renewal_problems(graph)


def _access_problems(main: Kernel, graph: KernelGraph) -> Iterator[str]:
    for loop in main.loops:
        if loop.size < 1:
            yield f"{main.name}: loop {loop.name} has {loop.size} points"
    for kernel in (main, *main.epilogue):
        for access in (*kernel.reads, *kernel.writes):
            for problem in _span_problems(kernel, access, graph.values.get(access.value)):
                yield f"{kernel.name} and {access.value}: {problem}"


def _span_problems(kernel: Kernel, access: Access, value: Value | None) -> Iterator[str]:
    if value is None:
        yield "no such value"
        return
    if len(access.spans) != len(value.shape):
        yield f"{len(access.spans)} spans for the shape {value.shape}"
        return
    ranges = [(0, loop.size) for loop in kernel.loops]
    for dim, (span, size) in enumerate(zip(access.spans, value.shape, strict=True)):
        if any(not 0 <= loop < len(kernel.loops) for loop, _ in span.terms):
            yield f"dimension {dim} runs over loops that there are not: {span}"
        elif (
            any(scale < 1 for _, scale in span.terms)
            or span.divide < 1
            or span.low >= span.high + span.divide  # less far apart, it is empty at some points
        ):
            yield f"dimension {dim} has a span that runs backwards: {span}"
        else:
            first, end = span.touched(ranges, size)
            if first >= end and size > 0:
                yield f"dimension {dim} of {size} is never touched by {span}"


def _loop_problems(main: Kernel) -> Iterator[str]:
    kernels = (main, *main.epilogue)
    used = {
        loop
        for kernel in kernels
        for access in (*kernel.reads, *kernel.writes)
        for span in access.spans
        for loop, _ in span.terms
    }
    for number, loop in enumerate(main.loops):
        if loop.size == 1 or not loop.is_splittable:
            continue  # a window of a pool, say, is in the boxes anyway
        if number not in used:
            yield f"{main.name}: loop {loop.name} is used by nothing"
        elif number not in main.reductions:
            for access in (access for kernel in kernels for access in kernel.writes):
                if not any(number == each for span in access.spans for each, _ in span.terms):
                    yield f"{main.name}: result loop {loop.name} is not in {access.value}"


def _write_problems(main: Kernel, graph: KernelGraph) -> Iterator[str]:
    """Elements that no point writes, or several."""
    for kernel in (main, *main.epilogue):
        for access in kernel.writes:
            terms = [loop for span in access.spans for loop, _ in span.terms]
            if len(terms) != len(set(terms)):
                yield f"{kernel.name}: two dimensions of {access.value} run over one loop"
            shape = graph.value_shape(access.value)
            for dim, (span, size) in enumerate(zip(access.spans, shape, strict=True)):
                if not _is_written_once(span, size, kernel.loops):
                    yield (
                        f"{kernel.name}: not every index of dimension {dim} of {access.value} "
                        f"is written exactly once by {span}"
                    )


def _is_written_once(span: Span, size: int, loops: tuple[Loop, ...]) -> bool:
    """Whether the boxes of all points of a span's loops lie side by side, from 0 to the end."""
    starts = np.zeros(1, np.int64)
    for loop, scale in span.terms:
        starts = (starts[:, None] + scale * np.arange(loops[loop].size)).ravel()
    first = (starts + span.low) // span.divide
    last = (starts + span.high) // span.divide
    if span.modulo is not None:
        is_split = first // span.modulo != last // span.modulo
        first = np.where(is_split, 0, first % span.modulo)
        last = np.where(is_split, span.modulo - 1, last % span.modulo)
    first = np.maximum(first, 0)
    end = np.minimum(last + 1, size)
    order = np.argsort(first, kind="stable")
    first, end = first[order], end[order]
    return bool(
        size == 0
        or (first[0] == 0 and end[-1] == size and (first < end).all()
            and (first[1:] == end[:-1]).all())
    )  # fmt: skip


def _epilogue_problems(main: Kernel, graph: KernelGraph) -> Iterator[str]:
    made = {access.value: access for access in main.writes}
    for kernel in main.epilogue:
        if kernel.unit is not Unit.VECTOR or kernel.epilogue or kernel.hidden:
            yield f"{kernel.name}: only plain kernels of the vector unit can be an epilogue"
        if kernel.phase is not main.phase:
            yield f"{kernel.name}: {main.name} belongs to another phase"
        if kernel.loops != main.loops:
            yield f"{kernel.name}: its loops are not those of {main.name}"
        for read in kernel.reads:
            written = made.get(read.value)
            shape = graph.value_shape(read.value)
            if written is not None and any(
                size > 1 and mine != other
                for mine, other, size in zip(read.spans, written.spans, shape, strict=True)
            ):
                yield f"{kernel.name}: needs more of {read.value} than is in registers"
        made |= {access.value: access for access in kernel.writes}
    for name in sorted(main.hidden):
        if name not in made:
            yield f"{main.name}: hides {name}, which it does not make"
        elif graph.values[name].is_output or name in graph.renews:
            yield f"{main.name}: hides {name}, which is wanted when the step has ended"


def _order_problems(graph: KernelGraph) -> Iterator[str]:
    """Values read before they are made, made twice, or hidden from their readers."""
    makers: dict[str, str] = {}
    ever_made = {
        access.value
        for main in graph.kernels
        for kernel in (main, *main.epilogue)
        for access in kernel.writes
    }
    hidden: dict[str, str] = {}
    for main in graph.kernels:
        for kernel in (main, *main.epilogue):
            for access in kernel.reads:
                name = access.value
                is_made = name in ever_made or graph.values[name].kind is ValueKind.ACTIVATION
                if is_made and name not in makers:
                    yield f"{kernel.name}: reads {name} before it is made"
                if hidden.get(name, main.name) != main.name:
                    yield f"{kernel.name}: reads {name}, which {hidden[name]} hides"
            for access in kernel.writes:
                if access.value in makers:
                    yield f"{access.value} is made twice, by {makers[access.value]}, {kernel.name}"
                makers[access.value] = kernel.name
        hidden |= dict.fromkeys(main.hidden, main.name)
    for name, value in graph.values.items():
        if value.is_output and value.kind is ValueKind.ACTIVATION and name not in makers:
            yield f"{name} is wanted when the step has ended, and nothing makes it"


def _renewal_problems(graph: KernelGraph) -> Iterator[str]:
    """Old values that are read when the new ones have taken their memory."""
    gone: dict[str, str] = {}
    made = {access.value for kernel in graph.kernels for access in kernel.stored}
    for new, old in graph.renews.items():
        if new not in made or old in made:
            yield f"{new} renews {old}: the new one must be made by the step, the old one before"
        elif graph.value_shape(new) != graph.value_shape(old):
            yield f"{new} renews {old}, which has another shape"
        elif graph.values[new].format != graph.values[old].format:
            yield f"{new} renews {old}, which has another format"
    for kernel in graph.kernels:
        for name in (access.value for access in kernel.loaded):
            if name in gone:
                yield f"{kernel.name}: reads {name} when {gone[name]} has replaced it"
        for access in kernel.stored:
            if access.value in graph.renews:
                gone[graph.renews[access.value]] = access.value
