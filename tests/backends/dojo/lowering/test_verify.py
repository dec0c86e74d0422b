"""What is right passes; each way to break a graph or a program is noticed."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from fsdtrain_dojo.lowering import mapping
from fsdtrain_dojo.lowering.cover import corners, covers, covers_once, is_within
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Kernel,
    KernelGraph,
    Loop,
    Phase,
    Span,
    Unit,
    ValueKind,
    along,
    whole,
)
from fsdtrain_dojo.lowering.mapping import Boxes, Layout, Part, Storage, divided_boxes
from fsdtrain_dojo.lowering.passes.fuse_elementwise import fuse_elementwise
from fsdtrain_dojo.lowering.program import Pattern, Spill, TileProgram
from fsdtrain_dojo.lowering.verify import LoweringError, verify_graph, verify_program

from tests.backends.dojo.spatial.programs import (
    OUTSIDE,
    convolution,
    divided,
    graph_of,
    in_sram,
    make_kernel,
    operand,
    place_program,
    product,
    softmax,
    value,
    with_sram,
)

GRID = (3, 5)
CAPACITY = 10_000


def step_graph() -> KernelGraph:
    """h = relu(x w + b), fused; total = sum of h; new = w - total x': a small training step."""
    values = [
        operand("x", 7, 13), value("w", 13, 11, kind=ValueKind.WEIGHT), operand("b", 11),
        value("y", 7, 11), value("z", 7, 11), value("h", 7, 11), value("total"),
        value("g", 13, 11), value("new", 13, 11, kind=ValueKind.WEIGHT, is_output=True),
    ]  # fmt: skip
    both = {"i": 7, "j": 11}
    kernels = [
        product("y", "x", "w", 7, 13, 11),
        make_kernel(both, {"y": "ij", "b": "j"}, {"z": "ij"}, lambda y, b: y + b),
        make_kernel(both, {"z": "ij"}, {"h": "ij"}, lambda z: z.relu()),
        make_kernel(both, {"h": "ij"}, {"total": ""}, lambda h: h.sum()),
        make_kernel({"k": 13, "j": 11, "i": 7}, {"x": "ik", "h": "ij"}, {"g": "kj"},
                    lambda x, h: x.T @ h, unit=Unit.MATRIX, phase=Phase.BACKWARD),
        make_kernel({"k": 13, "j": 11}, {"w": "kj", "g": "kj", "total": ""}, {"new": "kj"},
                    lambda w, g, total: w - g / total, phase=Phase.OPTIMIZER),
    ]  # fmt: skip
    return fuse_elementwise(graph_of(values, kernels, renews={"new": "w"}))


def step_program() -> TileProgram:
    home = divided({0: 3}, {1: 5})
    return place_program(
        step_graph(),
        GRID,
        [
            divided({0: 3}, {1: 5}, steps={2: 4}),
            divided({0: 3}, {1: 5}),
            divided({0: 3}, {2: 5}, steps={1: 2}),
            divided({0: 3}, {1: 4}),
        ],
        {"x": divided({0: 3}), "w": home, "new": home},
    )


def convolution_program(stride: int = 1) -> TileProgram:
    out = (11 - 1) // stride + 1
    graph = graph_of(
        [operand("x", 2, 3, 11, 11), operand("w", 5, 3, 3, 3),
         value("y", 2, 5, out, out, is_output=True)],
        [convolution("y", "x", "w", 2, 3, 5, 11, 3, stride)],
    )  # fmt: skip
    rows = divided({2: 3}, {3: 5})
    mapping = divided({2: 3}, {3: 5}, steps={1: 2, 2: 2})
    return place_program(graph, GRID, [mapping], {"x": rows, "w": divided(is_everywhere=True)})


def softmax_program() -> TileProgram:
    values, kernels = softmax(7, 17)
    mapping = divided({0: 3}, {1: 5})
    graph = graph_of([operand("x", 7, 17), *values], kernels)
    return place_program(graph, GRID, [mapping] * 3, {"x": mapping})


RIGHT = {
    "step": step_program,
    "convolution": convolution_program,
    "strided convolution": lambda: convolution_program(2),
    "softmax": softmax_program,
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_pass(name):
    program = RIGHT[name]()
    verify_graph(program.graph)
    verify_program(program, sram_bytes=CAPACITY)


def kernel_of(graph: KernelGraph, name: str) -> Kernel:
    return next(each for each in graph.kernels if each.name == name)


def swap(graph: KernelGraph, name: str, **fields) -> KernelGraph:
    """The graph with some fields of one kernel changed."""
    kernels = (replace(each, **fields) if each.name == name else each for each in graph.kernels)
    return replace(graph, kernels=tuple(kernels))


def access(graph: KernelGraph, kernel: str, number: int, *spans: Span, side="reads"):
    accesses = list(getattr(kernel_of(graph, kernel), side))
    accesses[number] = replace(accesses[number], spans=tuple(spans))
    return swap(graph, kernel, **{side: tuple(accesses)})


def epilogue(graph: KernelGraph, number: int, **fields) -> KernelGraph:
    """The graph with some fields of the first kernel's epilogue changed."""
    parts = list(graph.kernels[0].epilogue)
    parts[number] = replace(parts[number], **fields)
    return swap(graph, "y", epilogue=tuple(parts))


def reordered(graph: KernelGraph, *order: int) -> KernelGraph:
    return replace(graph, kernels=tuple(graph.kernels[each] for each in order))


def revalued(graph: KernelGraph, name: str, **fields) -> KernelGraph:
    changed = replace(graph.values[name], **fields)
    return replace(graph, values={**graph.values, name: changed})


BROKEN_GRAPHS: dict[str, tuple[Callable[[KernelGraph], KernelGraph], str]] = {
    "unknown value": (
        lambda g: swap(g, "g", reads=(Access("q", (along(0),)),)), "no such value"),
    "too few spans": (lambda g: access(g, "g", 0, along(0)), "1 spans for the shape"),
    "unknown loop": (lambda g: access(g, "g", 0, along(2), along(7)), "that there are not"),
    "backwards": (lambda g: access(g, "g", 0, along(2), Span(((0, -1),))), "runs backwards"),
    "beside the value": (
        lambda g: access(g, "g", 0, along(2), Span(low=20, high=20)), "never touched"),
    "loop without points": (
        lambda g: swap(g, "total", loops=(Loop("i", 7), Loop("j", 0))), "has 0 points"),
    "unused loop": (
        lambda g: swap(g, "g", loops=(*kernel_of(g, "g").loops, Loop("q", 3))), "used by nothing"),
    "result loop left out": (
        lambda g: swap(g, "g", writes=(
            *kernel_of(g, "g").writes, Access("extra", (along(0),)))), "is not in extra"),
    "write too short": (
        lambda g: swap(g, "g", loops=(Loop("k", 13), Loop("j", 10), Loop("i", 7))),
        "dimension 1 of g is written"),
    "write that overlaps": (
        lambda g: access(g, "g", 0, along(0), Span(((1, 1),), high=1), side="writes"),
        "dimension 1 of g is written"),
    "write with holes": (
        lambda g: access(g, "g", 0, along(0), Span(((1, 2),)), side="writes"),
        "dimension 1 of g is written"),
    "one loop for two dimensions": (
        lambda g: access(g, "g", 0, along(0), along(0), side="writes"), "run over one loop"),
    "read too early": (lambda g: reordered(g, 0, 1, 3, 2), "reads g before it is made"),
    "made twice": (
        lambda g: replace(g, kernels=(*g.kernels[:2], g.kernels[1], *g.kernels[2:])), "made twice"),
    "never made": (lambda g: reordered(g, 0, 1, 2), "renews w"),
    "output never made": (
        lambda g: revalued(g, "extra", is_output=True), "extra is wanted"),
    "hidden and read": (
        lambda g: swap(g, "y", hidden=frozenset("yzh")), "reads h, which y hides"),
    "hidden output": (
        lambda g: swap(revalued(g, "z", is_output=True), "y"), "hides z, which is wanted"),
    "hidden and not made": (
        lambda g: swap(g, "total", hidden=frozenset({"x"})), "which it does not make"),
    "epilogue of neighbours": (
        lambda g: epilogue(g, 1, reads=(
            Access("z", (along(0), Span(((1, 1),), low=-1, high=1))),)),
        "needs more of z than is in registers"),
    "epilogue of a matrix": (lambda g: epilogue(g, 0, unit=Unit.MATRIX), "plain kernels"),
    "epilogue of another phase": (
        lambda g: epilogue(g, 0, phase=Phase.BACKWARD), "another phase"),
    "epilogue of other loops": (
        lambda g: epilogue(g, 0, loops=(Loop("m", 7), Loop("n", 11), Loop("k", 12))),
        "are not those of"),
    "old weight read late": (
        lambda g: replace(swap(g, "total", reads=(
            *kernel_of(g, "total").reads, Access("w", (whole(13), whole(11))))),
            kernels=tuple(
                swap(g, "total", reads=(*kernel_of(g, "total").reads,
                                        Access("w", (whole(13), whole(11))))).kernels[each]
                for each in (0, 2, 3, 1))),
        "reads w when new has replaced it"),
    "new weight of another shape": (
        lambda g: revalued(g, "w", format="bf16"), "another format"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_GRAPHS)
def test_broken_graphs_are_noticed(name):
    graph = step_graph()
    graph = replace(graph, values={**graph.values, "extra": value("extra", 13)})
    verify_graph(graph)
    break_graph, message = BROKEN_GRAPHS[name]
    with pytest.raises(LoweringError, match=message):
        verify_graph(break_graph(graph))


def restep(program: TileProgram, number: int, **fields) -> TileProgram:
    """The program with some fields of a step changed, its memory added up anew."""
    steps = list(program.steps)
    steps[number] = replace(steps[number], **fields)
    return with_sram(replace(program, steps=tuple(steps)))


def remap(program: TileProgram, number: int, **fields) -> TileProgram:
    return restep(program, number, mapping=replace(program.steps[number].mapping, **fields))


def reload(program: TileProgram, number: int, which: int, **fields) -> TileProgram:
    loads = list(program.steps[number].loads)
    loads[which] = replace(loads[which], **fields)
    return restep(program, number, loads=tuple(loads))


def restore(program: TileProgram, number: int, **fields) -> TileProgram:
    (store,) = program.steps[number].stores
    return restep(program, number, stores=(replace(store, **fields),))


def without_a_node(boxes: Boxes) -> Boxes:
    busy = boxes.busy.copy()
    busy[1, 2] = False
    return replace(boxes, busy=busy)


def moved_by_one(boxes: Boxes) -> Boxes:
    """Everything one index further along the first dimension, at the last row of nodes."""
    first = np.broadcast_to(boxes.first[0], boxes.grid).copy()
    first[-1] += 1
    return replace(boxes, first=(first, *boxes.first[1:]))


def in_boxes(boxes: Boxes) -> Layout:
    return Layout(storage=Storage.SRAM, boxes=boxes)


def unsplittable(program: TileProgram) -> TileProgram:
    kernel = program.steps[1].kernel
    loops = (Loop("i", 7, is_splittable=False), kernel.loops[1])
    return restep(program, 1, kernel=replace(kernel, loops=loops))


X_BOXES = divided_boxes((7, 13), divided({0: 3}, {1: 5}), GRID)
BROKEN_STEPS: dict[str, tuple[Callable[[TileProgram], TileProgram], str]] = {
    "a kernel left out": (
        lambda p: replace(p, steps=p.steps[1:], sram_bytes=p.sram_bytes[1:]), "in their order"),
    "kernels in another order": (
        lambda p: replace(p, steps=p.steps[::-1]), "in their order"),
    "a loop divided twice": (lambda p: remap(p, 1, columns=(Part(0, 5),)), "divides a loop twice"),
    "divided everywhere": (lambda p: remap(p, 1, is_everywhere=True), "everywhere, and divided"),
    "an unknown loop": (lambda p: remap(p, 1, columns=(Part(7, 5),)), "divides loop 7"),
    "more parts than points": (
        lambda p: remap(p, 1, steps={0: 8}), "divides the 7 points of a loop into 8"),
    "a loop that has to stay whole": (unsplittable, "which has to stay whole"),
    "no grain": (lambda p: remap(p, 1, rows=(Part(0, 3, 0),)), "grain below 1"),
    "more parts than nodes": (lambda p: remap(p, 1, columns=(Part(1, 6),)), "needs 6 columns"),
    "loads in another order": (
        lambda p: restep(p, 2, loads=p.steps[2].loads[::-1]), "and reads"),
    "a load left out": (lambda p: restep(p, 2, loads=p.steps[2].loads[:1]), "and reads"),
    "a load of another shape": (
        lambda p: reload(p, 2, 0, boxes=p.steps[2].loads[1].boxes), "in another shape"),
    "a load that is too small": (lambda p: reload(p, 0, 0, boxes=X_BOXES), "touch more of x"),
    "a load at too few nodes": (
        lambda p: reload(p, 0, 0, boxes=without_a_node(p.steps[0].loads[0].boxes)),
        "touch more of x"),
    "a load from nowhere": (lambda p: reload(p, 0, 0, source=None), "needs a source"),
    "a load with a target": (
        lambda p: reload(p, 0, 0, target=p.initial["x"]), "needs a source, and no target"),
    "a load from outside by nodes": (
        lambda p: reload(p, 0, 2, pattern=Pattern.MULTICAST), "comes from hbm by multicast"),
    "a load from nodes by HBM": (
        lambda p: reload(p, 0, 0, pattern=Pattern.HBM_LOAD), "comes from sram by HBM load"),
    "a load that reduces": (
        lambda p: reload(p, 0, 0, pattern=Pattern.REDUCE), "is loaded by reduce"),
    "a load that moves nothing": (
        lambda p: reload(p, 0, 1, pattern=Pattern.LOCAL), "and nothing is moved"),
    "a load from elsewhere": (
        lambda p: reload(p, 0, 1, source=in_sram((13, 11), divided({1: 3}), GRID)),
        "w lies elsewhere by then"),
    "a load from a former place": (
        lambda p: restore(p, 0, target=in_sram((7, 11), divided({1: 3}), GRID),
                          pattern=Pattern.SCATTER),
        "h lies elsewhere by then"),
    "a store left out": (lambda p: restep(p, 0, stores=()), "and makes"),
    "a store of other boxes": (
        lambda p: restore(p, 0, boxes=moved_by_one(p.steps[0].stores[0].boxes)),
        "nodes make other boxes of h"),
    "a store without target": (
        lambda p: replace(p, steps=(replace(p.steps[0], stores=(replace(
            p.steps[0].stores[0], target=None),)), *p.steps[1:])), "needs a target"),
    "a store with holes": (
        lambda p: restore(p, 0, target=in_boxes(without_a_node(p.steps[0].stores[0].boxes))),
        "h is not all kept"),
    "parts that nobody adds": (
        lambda p: restore(p, 1, pattern=Pattern.LOCAL), "nodes hold parts of sums"),
    "complete results added": (
        lambda p: restore(p, 0, pattern=Pattern.REDUCE), "nodes hold complete results"),
    "a store outside by nodes": (lambda p: restore(p, 0, target=OUTSIDE), "goes to hbm by local"),
    "a store in nodes by HBM": (
        lambda p: restore(p, 0, pattern=Pattern.HBM_STORE), "goes to sram by HBM store"),
    "a store by a load": (
        lambda p: restore(p, 0, pattern=Pattern.HBM_LOAD), "is stored by HBM load"),
    "a store that stays elsewhere": (
        lambda p: restore(p, 0, target=in_sram((7, 11), divided({0: 3}), GRID)),
        "kept where it is not made"),
    "freed too early": (
        lambda p: with_sram(replace(p, last_use={**p.last_use, "h": 1})), "h is nowhere by then"),
    "freed before the end": (
        lambda p: with_sram(replace(p, last_use={**p.last_use, "new": 3})), "and is gone"),
    "not there": (
        lambda p: with_sram(replace(
            p, initial={name: each for name, each in p.initial.items() if name != "x"})),
        "x is nowhere by then"),
    "not all there": (
        lambda p: with_sram(replace(p, initial={
            **p.initial, "x": in_boxes(without_a_node(X_BOXES))})),
        "x is not all there"),
    "there before it is made": (
        lambda p: replace(p, initial={**p.initial, "h": OUTSIDE}), "h is there from the beginning"),
    "too little noted": (
        lambda p: replace(p, sram_bytes=(1, *p.sram_bytes[1:])), "1 were noted"),
    "too little noted once": (
        lambda p: replace(p, sram_bytes=p.sram_bytes[:-1]), "3 memory sizes for 4 steps"),
    "too large buffers": (lambda p: restep(p, 2, working_bytes=CAPACITY), "which has 10000"),
    "read in its old place when spilled": (
        lambda p: replace(p, spills=(Spill(
            value="h", num_bytes=308, out_before=2, back_before=None),)),
        "h lies elsewhere by then"),
    "spilled from the beginning, and not": (
        lambda p: replace(p, spills=(Spill(
            value="x", num_bytes=308, out_before=-1, back_before=None),)),
        "x was moved out before the step"),
    "new weight elsewhere": (
        lambda p: restore(p, 3, target=in_boxes(p.steps[3].stores[0].boxes),
                          pattern=Pattern.LOCAL),
        "new does not lie where w did"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_STEPS)
def test_broken_programs_are_noticed(name):
    break_program, message = BROKEN_STEPS[name]
    with pytest.raises(LoweringError, match=message):
        verify_program(break_program(step_program()), sram_bytes=CAPACITY)


@pytest.mark.parametrize("change", [-1, 1])
def test_parts_that_overlap_or_leave_points_out_are_noticed(monkeypatch, change):
    """Were the arithmetic of mappings itself wrong."""
    program = step_program()
    divide = mapping.divide_axis

    def slipped(sizes, parts, length):
        found = divide(sizes, parts, length)
        found = {loop: ranges.copy() for loop, ranges in found.items()}
        for ranges in found.values():
            ranges[1, 0] += change
        return found

    monkeypatch.setattr(mapping, "divide_axis", slipped)
    with pytest.raises(LoweringError, match="visited by exactly one node"):
        verify_program(program, sram_bytes=CAPACITY)


def flattened() -> KernelGraph:
    """y[5 i + j] = x[i, j]"""
    return graph_of(
        [operand("x", 6, 5), value("y", 30, is_output=True)],
        [
            make_kernel(
                {"i": 6, "j": 5}, {"x": "ij"}, {"y": [Span(((0, 5), (1, 1)))]},
                lambda x: x.flatten(), unit=Unit.MOVE,
            )
        ],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("placing", "message"),
    [
        (divided({0: 3}, {}, steps={0: 2}), None),
        (divided({0: 3}, {1: 5}), "y is made exactly once over the nodes"),
        (divided({0: 2}, {}, steps={1: 2}), "y is made exactly once over time"),
    ],
)
def test_boxes_of_results_may_not_overlap(placing, message):
    graph = flattened()
    verify_graph(graph)
    program = place_program(graph, GRID, [placing], {"y": OUTSIDE})
    if message is None:
        verify_program(program, sram_bytes=CAPACITY)
    else:
        with pytest.raises(LoweringError, match=message):
            verify_program(program, sram_bytes=CAPACITY)


def test_a_result_that_a_divided_loop_is_not_in_is_noticed():
    values, kernels = softmax(7, 17)
    statistics = replace(
        kernels[0], writes=(*kernels[2].writes, *kernels[0].writes), loops=(
            kernels[0].loops[0], replace(kernels[0].loops[1], is_splittable=False))
    )  # fmt: skip
    graph = graph_of([operand("x", 7, 17), values[0], values[2]], [statistics])
    verify_graph(graph)
    verify_program(place_program(graph, GRID, [divided({0: 3})]), sram_bytes=CAPACITY)
    whole_again = replace(statistics, loops=kernels[0].loops)
    with pytest.raises(LoweringError, match="result loop column is not in top"):
        verify_graph(replace(graph, kernels=(whole_again,)))
    broken = place_program(replace(graph, kernels=(whole_again,)), GRID, [divided({1: 3})])
    with pytest.raises(LoweringError, match="divides loops that top does not run over"):
        verify_program(broken, sram_bytes=CAPACITY)


def test_spilled_values_are_right_where_they_are_read_from_outside():
    program = step_program()
    spill = Spill(value="h", num_bytes=308, out_before=2, back_before=None)
    outside = reload(program, 2, 1, source=OUTSIDE, pattern=Pattern.HBM_LOAD)
    verify_program(replace(outside, spills=(spill,)), sram_bytes=CAPACITY)
    back = replace(spill, out_before=1, back_before=2)
    there = reload(program, 1, 0, source=OUTSIDE, pattern=Pattern.HBM_LOAD)
    verify_program(replace(there, spills=(back,)), sram_bytes=CAPACITY)


def test_memory_is_that_of_the_fullest_node():
    """In the first column, the last row: of x 3 x 13, of w 5 x 2, of h 3 x 2, 4 bytes each."""
    program = step_program()
    most = max(program.sram_bytes)
    verify_program(program, sram_bytes=most)
    with pytest.raises(LoweringError, match=f"takes {most} bytes of a node, which has {most - 1}"):
        verify_program(program, sram_bytes=most - 1)
    assert program.sram_bytes[0] == 100 + 4 * (3 * 13 + 5 * 2 + 3 * 2)


def test_covers_counts_every_element():
    """Against painting the boxes, for random ones."""
    draw = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        shape = tuple(draw.integers(1, 4, size=draw.integers(0, 4)))
        painted = np.zeros(shape, int)
        found = []
        for _ in range(draw.integers(0, 6)):
            first = [draw.integers(0, size) for size in shape]
            end = [draw.integers(first[dim] + 1, size + 1) for dim, size in enumerate(shape)]
            found.append(np.stack([first, end], axis=-1))
            painted[tuple(slice(*each) for each in found[-1])] += 1
        boxes = np.array(found, np.int64).reshape(len(found), len(shape), 2)
        assert covers(boxes, shape) == (painted >= 1).all()
        assert covers_once(boxes, shape) == (painted == 1).all()
        seen.add((covers(boxes, shape), covers_once(boxes, shape)))
    assert len(seen) == 3


def test_idle_nodes_hold_nothing():
    boxes = divided_boxes((7, 13), divided({0: 2}, {1: 3}), GRID)
    assert corners(boxes).shape == (6, 2, 2)
    assert is_within(boxes, divided_boxes((7, 13), divided({0: 2}), GRID)) is False
    assert is_within(boxes, divided_boxes((7, 13), divided(is_everywhere=True), GRID))


def test_a_die_with_a_thousand_steps_is_verified_in_seconds():
    grid, size = (18, 19), 720
    names = [f"v{each}" for each in range(1001)]
    values = [operand("v0", size, size), *(value(name, size, size) for name in names[1:])]
    kernels = [
        make_kernel({"i": size, "j": size, "k": size}, {old: "ik", "v0": "kj"}, {new: "ij"},
                    lambda a, b: a @ b, unit=Unit.MATRIX)
        if number % 2
        else make_kernel({"i": size, "j": size}, {old: "ij"}, {new: "ij"}, lambda a: -a)
        for number, (old, new) in enumerate(zip(names, names[1:], strict=False))
    ]  # fmt: skip
    graph = graph_of(values, kernels)
    layouts = {"v0": divided({0: 18}, {1: 19})}
    two = graph_of(values[:3], kernels[:2])
    small = place_program(two, grid, [divided({0: 18}, {1: 19})] * 2, layouts)
    steps = []
    for number, kernel in enumerate(graph.kernels):
        like = small.steps[number % 2]
        loads = tuple(
            replace(each, value=access.value)
            for each, access in zip(like.loads, kernel.loaded, strict=True)
        )
        stores = tuple(
            replace(each, value=access.value)
            for each, access in zip(like.stores, kernel.stored, strict=True)
        )
        steps.append(replace(like, kernel=kernel, loads=loads, stores=stores))
    last_use = {name: number for number, name in enumerate(names[:-1])} | {"v0": 999}
    program = replace(
        small, graph=graph, steps=tuple(steps), last_use=last_use, sram_bytes=(10**6,) * 1000
    )
    begin = time.perf_counter()
    verify_program(program, sram_bytes=10**6)
    assert time.perf_counter() - begin < 5
