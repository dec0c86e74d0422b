"""Kernels around a matrix product that run over all of its result's axes: what chains are made of.

    scores[b, m, n] += q[b, m, d] k[b, n, d]      =>    axes b, m, n; blocks: scores, p;
    softmax(scores) -> top, total, p                    members: the product, the softmax's
    y[b, m, d] += p[b, m, n] v[b, n, d]                 kernels, the product after it

Values are followed from kernel to kernel, through merged and divided dimensions, until none of
theirs is read by others. Knows no machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from fsdtrain_dojo.lowering.kernel import Access, Kernel, KernelGraph, Phase, Span, Unit

_PHASES = (Phase.FORWARD, Phase.BACKWARD)


@dataclass(frozen=True)
class Digit:
    """A loop, or a dimension, as a digit of an axis's index: it counts in steps of `stride`."""

    axis: int
    stride: int
    size: int


Dims = tuple[Digit | None, ...]  # of a value; None: the dimension belongs to no axis


@dataclass(kw_only=True)
class Space:
    """See the top of this file.

    Args:
        sizes: of the axes: those of a batch, if there is one, the rows, the columns.
        loops: by member: of every axis the loops that make it up, the outermost first.
        blocks: values that run over all axes, with their dimensions.
        lacking: members whose results lack an axis: which one.
    """

    sizes: tuple[int, ...]
    loops: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    blocks: dict[str, Dims] = field(default_factory=dict)
    lacking: dict[str, int] = field(default_factory=dict)


def find_spaces(graph: KernelGraph) -> Iterator[Space]:
    """The spaces of a graph, in the order of their first kernels; no kernel is in two."""
    finder = _Finder(graph)
    taken: set[str] = set()
    for kernel in graph.kernels:
        if kernel.name in taken or kernel.unit is not Unit.MATRIX:
            continue
        space = finder.find(kernel)
        if space is not None and taken.isdisjoint(space.loops):
            taken |= space.loops.keys()
            yield space


class _Finder:
    def __init__(self, graph: KernelGraph) -> None:
        self.graph = graph
        self.readers: dict[str, list[Kernel]] = {}
        self.makers: dict[str, Kernel] = {}
        self.kernels = {kernel.name: kernel for kernel in graph.kernels}
        for kernel in graph.kernels:
            for access in kernel.loaded:
                self.readers.setdefault(access.value, []).append(kernel)
            self.makers |= dict.fromkeys((each.value for each in kernel.stored), kernel)

    def find(self, seed: Kernel) -> Space | None:
        """The space of a product; None: there is none, or it is not closed."""
        if seed.phase is not Phase.FORWARD:
            return None
        _, of_rows, of_columns, depth = seed.matrix_loops()
        others = set(range(len(seed.loops))) - of_rows - of_columns - depth
        batch, rows, columns = (
            [loop for loop in loops if seed.loops[loop].size > 1]
            for loops in (sorted(others), of_rows, of_columns)
        )
        # A product of weights, which many rows share, has no batch, not even one of one.
        if not others or len(batch) > 1 or len(rows) != 1 or len(columns) != 1:
            return None
        digits = {
            loop: Digit(axis, 1, seed.loops[loop].size)
            for axis, loop in enumerate((*batch, *rows, *columns))
        }
        space = Space(sizes=tuple(each.size for each in digits.values()))
        waiting = [(seed, digits)]
        while waiting:
            kernel, digits = waiting.pop()
            added = self._add(space, kernel, digits)
            if added is None:
                return None
            waiting += added
        return space if self._has_statistics(space) else None

    def _has_statistics(self, space: Space) -> bool:
        """Whether members need sums of blocks for others: then these are passed through twice."""
        return any(
            access.value not in space.blocks and self.makers[access.value].name in space.lacking
            for name in space.loops
            for access in self.kernels[name].loaded
            if access.value in self.makers
        )

    def _add(
        self, space: Space, kernel: Kernel, digits: Mapping[int, Digit]
    ) -> list[tuple[Kernel, dict[int, Digit]]] | None:
        """Make a kernel a member; who else has to be one. None: it cannot."""
        loops = _loops_of_axes(kernel, digits, space.sizes)
        if loops is None or kernel.is_random or kernel.phase not in _PHASES:
            return None
        if kernel.name in space.loops:
            return [] if space.loops[kernel.name] == loops else None
        space.loops[kernel.name] = loops
        found: list[tuple[Kernel, dict[int, Digit]]] = []
        for access in kernel.stored:
            dims = _written_dims(access, digits)
            wanted = self.graph.values[access.value].is_output or access.value in self.graph.renews
            if dims is None or wanted:
                return None
            lacking = set(range(len(space.sizes))) - {each.axis for each in dims if each}
            if lacking:
                # Only what is summed over rows or columns ends with the blocks of the others.
                (axis,) = lacking if len(lacking) == 1 else (0,)
                if axis < len(space.sizes) - 2 or space.lacking.get(kernel.name, axis) != axis:
                    return None
                space.lacking[kernel.name] = axis
                continue
            space.blocks[access.value] = dims
            for reader in self.readers.get(access.value, ()):
                read = _read_digits(reader, access.value, dims)
                if read is None:
                    return None
                found.append((reader, read))
        for access in kernel.loaded:
            maker = self.makers.get(access.value)
            if maker is None or maker.unit is not Unit.MATRIX or maker.name in space.loops:
                continue
            made = _made_digits(maker, access, digits, space.sizes)
            if made is not None:
                found.append((maker, made))
        return found


def _loops_of_axes(
    kernel: Kernel, digits: Mapping[int, Digit], sizes: Sequence[int]
) -> tuple[tuple[int, ...], ...] | None:
    """Of every axis the loops whose digits make up its index; None where they do not."""
    found = []
    for axis, size in enumerate(sizes):
        own = [loop for loop in digits if digits[loop].axis == axis]
        own.sort(key=lambda loop: -digits[loop].stride)
        stride = size
        for loop in own:
            digit = digits[loop]
            if digit.stride * digit.size != stride or not kernel.loops[loop].is_splittable:
                return None
            stride = digit.stride
        if stride != 1 or (axis >= len(sizes) - 2 and len(own) != 1):
            return None
        found.append(tuple(own))
    return tuple(found)


def _written_dims(access: Access, digits: Mapping[int, Digit]) -> Dims | None:
    """What the dimensions of a value that is written are; None where it is not written plainly."""
    found: list[Digit | None] = []
    for span in access.spans:
        if not span.terms:
            found.append(None)
        elif len(span.terms) == 1 and _is_plain(span):
            found.append(digits.get(span.terms[0][0]))
        else:
            return None
    return tuple(found)


def _is_plain(span: Span) -> bool:
    return (span.divide, span.low, span.high, span.modulo) == (1, 0, 0, None) and all(
        scale == 1 for _, scale in span.terms
    )


def _read_digits(kernel: Kernel, name: str, dims: Dims) -> dict[int, Digit] | None:
    """The digits of a kernel's loops, by how it reads a value; None where it reads otherwise."""
    found: dict[int, Digit] = {}
    for access in kernel.loaded:
        if access.value != name:
            continue
        if access.is_gathered:
            return None
        for span, digit in zip(access.spans, dims, strict=True):
            if digit is None:
                continue
            for loop, read in _loops_of_span(kernel, span, digit):
                if read is None or found.setdefault(loop, read) != read:
                    return None
    return found


def _loops_of_span(kernel: Kernel, span: Span, digit: Digit) -> Iterator[tuple[int, Digit | None]]:
    """The loops that run along a dimension, as digits; None where they do not run evenly."""
    if not span.terms or span.low or span.high:
        yield -1, None
    elif span.divide == 1 and span.modulo is None:
        for loop, scale in span.terms:
            yield loop, Digit(digit.axis, digit.stride * scale, kernel.loops[loop].size)
    else:
        ((loop, scale),) = span.terms if len(span.terms) == 1 else ((-1, 0),)
        size = kernel.loops[loop].size
        is_inner = span.modulo == digit.size and span.divide == 1
        is_outer = span.modulo is None and digit.stride % span.divide == 0
        if scale == 1 and (is_inner or is_outer) and -(-size // span.divide) >= digit.size:
            yield loop, Digit(digit.axis, digit.stride // span.divide, size)
        else:
            yield -1, None


def _made_digits(
    maker: Kernel, access: Access, digits: Mapping[int, Digit], sizes: Sequence[int]
) -> dict[int, Digit] | None:
    """Digits of the loops of who makes a value that is read over all axes; None: it is not."""
    dims: list[Digit | None] = []
    for span in access.spans:
        own = [digits[loop] for loop, _ in span.terms if loop in digits]
        if len(own) < len(span.terms) or len({each.axis for each in own}) > 1:
            return None
        if not own:
            dims.append(None)
            continue
        if span.low or span.high:
            return None
        axis, low = own[0].axis, min(own, key=lambda each: each.stride)
        size = prod(each.size for each in own)
        if span.divide > 1 and size % span.divide == 0:
            dims.append(Digit(axis, low.stride * span.divide, size // span.divide))
        else:
            dims.append(Digit(axis, low.stride, span.modulo or size))
    if {each.axis for each in dims if each} != set(range(len(sizes))):
        return None
    for written in maker.stored:
        if written.value == access.value:
            made = {}
            for span, digit in zip(written.spans, dims, strict=True):
                if digit is None:
                    continue
                if len(span.terms) != 1 or not _is_plain(span):
                    return None
                made[span.terms[0][0]] = digit
            return made
    return None
