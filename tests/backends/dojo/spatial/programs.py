"""Small kernels written out as loop nests, and programs of them placed by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Block,
    Combine,
    Kernel,
    KernelGraph,
    Loop,
    Phase,
    Span,
    Unit,
    Value,
    ValueKind,
    along,
    whole,
)
from fsdtrain_dojo.lowering.mapping import (
    Boxes,
    Grid,
    Layout,
    Part,
    Storage,
    access_boxes,
    divided_boxes,
)
from fsdtrain_dojo.lowering.mapping import Mapping as Placing
from fsdtrain_dojo.lowering.program import Pattern, Step, TileProgram, Transfer
from torch import Tensor

OUTSIDE = Layout(storage=Storage.HBM)
AWAY = Placing()  # not divided: all on the first node


def value(
    name: str, *shape: int, kind=ValueKind.ACTIVATION, is_output=False, element_bytes=4
) -> Value:
    return Value(
        name=name, shape=shape, format="fp32", element_bytes=element_bytes, kind=kind,
        is_output=is_output,
    )  # fmt: skip


def operand(name: str, *shape: int) -> Value:
    return value(name, *shape, kind=ValueKind.INPUT)


def make_kernel(
    loops: Mapping[str, int],
    reads: Mapping[str, Sequence[str | int | Span]],
    writes: Mapping[str, Sequence[str | int | Span]],
    compute: Callable[..., Tensor | list[Tensor]],
    **fields,
) -> Kernel:
    """A kernel whose spans are names of loops, sizes of dimensions that are always whole, or spans.

    `compute` gets the local tensors, and the block if it asks for it by name.
    """
    numbers = {name: number for number, name in enumerate(loops)}

    def access(name: str, spans: Sequence[str | int | Span]) -> Access:
        made = []
        for each in spans:
            if isinstance(each, Span):
                made.append(each)
            else:
                made.append(along(numbers[each]) if isinstance(each, str) else whole(each))
        return Access(name, tuple(made))

    asks = "block" in compute.__code__.co_varnames

    def computed(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        made = compute(*tensors, block=block) if asks else compute(*tensors)
        return [made] if isinstance(made, Tensor) else list(made)

    known = {
        "name": "_".join(writes), "op": "aten.made_by_hand", "phase": Phase.FORWARD,
        "unit": Unit.VECTOR, **fields,
    }  # fmt: skip
    return Kernel(
        loops=tuple(Loop(name, size) for name, size in loops.items()),
        reads=tuple(access(*each) for each in reads.items()),
        writes=tuple(access(*each) for each in writes.items()),
        compute=computed,
        **known,
    )


def product(made: str, left: str, right: str, m: int, k: int, n: int) -> Kernel:
    """made[m, n] += left[m, k] right[k, n]"""
    return make_kernel(
        {"m": m, "n": n, "k": k}, {left: "mk", right: "kn"}, {made: "mn"},
        lambda a, b: a @ b, unit=Unit.MATRIX, macs=m * n * k,
    )  # fmt: skip


def convolution(
    made: str, image: str, weight: str, n: int, c: int, k: int, size: int, window: int, stride: int
) -> Kernel:
    """Square, padded by half its odd window."""
    pad = window // 2
    out = (size + 2 * pad - window) // stride + 1

    def compute(x: Tensor, w: Tensor, block: Block) -> Tensor:
        padding = []
        for dim in (3, 2):
            first, end = block.ranges[dim]
            begin, stop = block.boxes[0][dim]
            padding += [begin - (first * stride - pad), (end - 1) * stride + pad + 1 - stop]
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, padding), w, stride=stride)

    def window_of(loop: int) -> Span:
        return Span(((loop, stride),), low=-pad, high=pad)

    return make_kernel(
        {"n": n, "k": k, "h": out, "w": out, "c": c},
        {image: ["n", "c", window_of(2), window_of(3)], weight: ["k", "c", window, window]},
        {made: "nkhw"}, compute, unit=Unit.MATRIX,
    )  # fmt: skip


def softmax(rows: int, columns: int) -> tuple[list[Value], list[Kernel]]:
    """y = softmax of x's rows: their maxima, the sums of exponentials, and what they divide."""
    loops = {"row": rows, "column": columns}
    values = [value("top", rows), value("sum", rows), value("y", rows, columns, is_output=True)]
    kernels = [
        make_kernel(loops, {"x": ["row", "column"]}, {"top": ["row"]}, lambda x: x.amax(1),
                    combine=Combine.MAX),
        make_kernel(loops, {"x": ["row", "column"], "top": ["row"]}, {"sum": ["row"]},
                    lambda x, top: (x - top[:, None]).exp().sum(1)),
        make_kernel(loops, {"x": ["row", "column"], "top": ["row"], "sum": ["row"]},
                    {"y": ["row", "column"]},
                    lambda x, top, total: (x - top[:, None]).exp() / total[:, None]),
    ]  # fmt: skip
    return values, kernels


def graph_of(values: Sequence[Value], kernels: Sequence[Kernel], **fields) -> KernelGraph:
    return KernelGraph(
        values={each.name: each for each in values}, kernels=tuple(kernels), **fields
    )


def divided(rows: Mapping[int, int] | None = None, columns=None, **fields) -> Placing:
    """Loops (or dimensions) by number -> parts, over the axes of the grid."""
    return Placing(
        rows=tuple(Part(loop, count) for loop, count in (rows or {}).items()),
        columns=tuple(Part(loop, count) for loop, count in (columns or {}).items()),
        **fields,
    )


def in_sram(shape: Sequence[int], division: Placing, grid: Grid) -> Layout:
    return Layout(storage=Storage.SRAM, boxes=divided_boxes(tuple(shape), division, grid))


def place_program(
    graph: KernelGraph,
    grid: Grid,
    mappings: Sequence[Placing],
    layouts: Mapping[str, Placing | Layout] | None = None,
    **fields,
) -> TileProgram:
    """A program with these mappings, one a kernel.

    What no layout is given for lies outside if it is there from the beginning, and with the nodes
    that make it otherwise: parts of sums go to all that hold some.
    """
    layouts = dict(layouts or {})
    found: dict[str, Layout] = {}

    def layout_of(name: str, boxes: Boxes | None) -> Layout:
        given = layouts.get(name)
        if isinstance(given, Placing):
            return in_sram(graph.values[name].shape, given, grid)
        if given is None:
            return OUTSIDE if boxes is None else Layout(storage=Storage.SRAM, boxes=boxes)
        return given

    made = {access.value for kernel in graph.kernels for access in kernel.stored}
    hidden = {name for kernel in graph.kernels for name in kernel.hidden}
    initial = {name: layout_of(name, None) for name in graph.values if name not in made | hidden}
    found.update(initial)
    steps = []
    for kernel, mapping in zip(graph.kernels, mappings, strict=True):
        loads = tuple(
            _load(name, found[name], access_boxes(kernel, access, mapping, shape, grid))
            for access in kernel.loaded
            for name, shape in [(access.value, graph.value_shape(access.value))]
        )
        is_partial = bool(
            kernel.reductions & {each.loop for each in (*mapping.rows, *mapping.columns)}
        )
        stores = []
        own = [access.value for access in kernel.writes]
        for access in [access for each in (kernel, *kernel.epilogue) for access in each.writes]:
            name = access.value
            if name in kernel.hidden and not (is_partial and name in own):
                continue
            boxes = access_boxes(kernel, access, mapping, graph.value_shape(name), grid)
            found[name] = layout_of(name, boxes)
            stores.append(_store(name, found[name], boxes, is_partial and name in own))
        steps.append(
            Step(kernel=kernel, mapping=mapping, loads=loads, stores=tuple(stores),
                 working_bytes=100)
        )  # fmt: skip
    return with_sram(
        TileProgram(
            graph=graph, grid=grid, initial=initial, steps=tuple(steps),
            last_use=last_uses(graph), **fields,
        )
    )  # fmt: skip


def _load(name: str, source: Layout, boxes: Boxes) -> Transfer:
    pattern = Pattern.HBM_LOAD
    if source.storage is Storage.SRAM:
        pattern = Pattern.LOCAL if all_within(boxes, source.boxes) else Pattern.SCATTER
    return Transfer(value=name, pattern=pattern, boxes=boxes, source=source)


def _store(name: str, target: Layout, boxes: Boxes, is_partial: bool) -> Transfer:
    if is_partial:
        pattern = Pattern.ALL_REDUCE
    elif target.storage is Storage.HBM:
        pattern = Pattern.HBM_STORE
    else:
        pattern = Pattern.LOCAL if all_within(target.boxes, boxes) else Pattern.SCATTER
    return Transfer(value=name, pattern=pattern, boxes=boxes, target=target)


def all_within(inner: Boxes, outer: Boxes) -> bool:
    """Node by node, spelt out."""
    for row, column in np.ndindex(inner.grid):
        if inner.num_elements[row, column] == 0:
            continue
        if not outer.busy[row, column]:
            return False
        for (first, end), (begin, stop) in zip(
            inner.at(row, column), outer.at(row, column), strict=True
        ):
            if first < begin or stop < end:
                return False
    return True


def last_uses(graph: KernelGraph) -> dict[str, int]:
    found = {}
    for number, kernel in enumerate(graph.kernels):
        for access in (*kernel.loaded, *kernel.stored):
            given = graph.values[access.value]
            lasts = given.is_output or given.kind in (ValueKind.WEIGHT, ValueKind.STATE)
            if not lasts and access.value not in graph.renews:
                found[access.value] = number
    return found


def with_sram(program: TileProgram) -> TileProgram:
    """The bytes at the fullest node, node by node and step by step."""
    held = dict(program.initial)
    totals = []
    for number, step in enumerate(program.steps):
        for store in step.stores:
            if store.value not in step.kernel.hidden:
                held[store.value] = store.target
            held.pop(program.graph.renews.get(store.value), None)
        totals.append(step.working_bytes + max(
            sum(
                int(layout.boxes.num_elements[place]) * program.graph.values[name].element_bytes
                for name, layout in held.items()
                if layout.boxes is not None
            )
            for place in np.ndindex(program.grid)
        ))  # fmt: skip
        for name, last in program.last_use.items():
            if last == number:
                held.pop(name, None)
    return replace(program, sram_bytes=tuple(totals))


def random_tensors(graph: KernelGraph, seed: int = 0) -> dict[str, Tensor]:
    """Of everything that no kernel makes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(each.shape, generator=generator)
        for name, each in graph.values.items()
        if each.kind is not ValueKind.ACTIVATION
    }
