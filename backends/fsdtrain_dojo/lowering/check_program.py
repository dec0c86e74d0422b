"""What is wrong with the steps of a tile program, in words; nothing, if its passes are right.

Each step by itself: its mapping and its transfers. Where values are when is `check_memory`'s.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.cover import corners, covers, covers_once, is_same, is_within
from fsdtrain_dojo.lowering.kernel import Access, Kernel, along
from fsdtrain_dojo.lowering.mapping import (
    Axis,
    Boxes,
    Ints,
    Layout,
    Mapping,
    Storage,
    access_boxes,
    axis_ranges,
    node_ranges,
    part_bounds,
    span_boxes,
)
from fsdtrain_dojo.lowering.program import Pattern, Step, TileProgram, Transfer

_REDUCING = (Pattern.REDUCE, Pattern.REDUCE_SCATTER, Pattern.ALL_REDUCE)
_Found = TypeVar("_Found")


class BoxFacts:
    """Answers about boxes, each looked for once: programs repeat themselves."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[object, object]] = {}

    def is_within(self, inner: Boxes, outer: Boxes) -> bool:
        return self._once(is_within, inner, outer)

    def is_same(self, one: Boxes, other: Boxes) -> bool:
        return self._once(is_same, one, other)

    def covers(self, boxes: Boxes) -> bool:
        return self._once(_covers_all, boxes)

    def num_elements(self, boxes: Boxes) -> Ints:
        return self._once(_num_elements, boxes)

    def is_same_layout(self, one: Layout, other: Layout) -> bool:
        if one.boxes is None or other.boxes is None:
            return one.storage is other.storage
        return one.storage is other.storage and self.is_same(one.boxes, other.boxes)

    def _once(self, ask: Callable[..., _Found], *boxes: Boxes) -> _Found:
        key = (ask, *map(id, boxes))
        if key not in self._known:
            self._known[key] = (boxes, ask(*boxes))  # holding them keeps their ids their own
        return self._known[key][1]  # type: ignore[return-value]  # by the key


def _covers_all(boxes: Boxes) -> bool:
    return covers(corners(boxes), boxes.shape)


def _num_elements(boxes: Boxes) -> Ints:
    return boxes.num_elements


def find_step_problems(program: TileProgram, step: Step, facts: BoxFacts) -> Iterator[str]:
    """Problems of one step."""
    problems = list(_part_problems(program, step))
    yield from problems
    if not problems:  # the rest goes by the mapping
        yield from _point_problems(program, step)
        yield from _load_problems(program, step, facts)
        yield from _store_problems(program, step, facts)


def _part_problems(program: TileProgram, step: Step) -> Iterator[str]:
    kernel, mapping = step.kernel, step.mapping
    divided = [part.loop for part in (*mapping.rows, *mapping.columns)]
    if mapping.is_everywhere and divided:
        yield "is done everywhere, and divided"
    if len(set(divided)) < len(divided):
        yield "divides a loop twice"
    counts = [(part.loop, part.count) for part in (*mapping.rows, *mapping.columns)]
    for loop, count in (*counts, *mapping.steps.items()):
        if not 0 <= loop < len(kernel.loops):
            yield f"divides loop {loop}, of {len(kernel.loops)}"
        elif not 1 <= count <= max(kernel.loops[loop].size, 1):
            yield f"divides the {kernel.loops[loop].size} points of a loop into {count}"
        elif count > 1 and not kernel.loops[loop].is_splittable:
            yield f"divides loop {kernel.loops[loop].name}, which has to stay whole"
    if any(part.grain < 1 for part in (*mapping.rows, *mapping.columns)):
        yield "has a grain below 1"
    for axis in Axis:
        if mapping.num_used(axis) > program.grid[axis.value]:
            yield f"needs {mapping.num_used(axis)} {axis.name.lower()}s"


def _point_problems(program: TileProgram, step: Step) -> Iterator[str]:
    """Points, and elements of results, that nobody visits, or several."""
    kernel, mapping = step.kernel, step.mapping
    sizes = [loop.size for loop in kernel.loops]
    divided = [part.loop for part in (*mapping.rows, *mapping.columns)]
    shape = tuple(sizes[loop] for loop in divided)
    points = span_boxes(sizes, [along(loop) for loop in divided], mapping, shape, program.grid)
    if not mapping.is_everywhere and not covers_once(corners(points), shape):
        yield "not every point is visited by exactly one node"
    firsts = _first_of_groups(kernel, mapping, program.grid)
    for access in _all_writes(kernel):
        written = {loop for span in access.spans for loop, _ in span.terms}
        lacking = set(divided) - kernel.reductions - written
        if any(sizes[loop] > 1 for loop in lacking):
            yield f"divides loops that {access.value} does not run over"
            continue
        shape = program.graph.value_shape(access.value)
        boxes = access_boxes(kernel, access, mapping, shape, program.grid)
        if not covers_once(corners(boxes, firsts), shape):
            yield f"not every element of {access.value} is made exactly once over the nodes"
        yield from _time_problems(step, access, shape)


def _all_writes(kernel: Kernel) -> Iterator[Access]:
    for each in (kernel, *kernel.epilogue):
        yield from each.writes


def _first_of_groups(kernel: Kernel, mapping: Mapping, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """One node of each group of nodes that hold parts of the same results, (rows, columns)."""
    found = np.ones(grid, bool)
    if mapping.is_everywhere:
        found[:] = False
        found[0, 0] = True
        return found
    for axis in Axis:
        for loop, (first, end) in axis_ranges(kernel, mapping, axis, grid[axis.value]).items():
            if loop in kernel.reductions:
                begins = (first == 0) & (end > 0)
                found &= begins[:, None] if axis is Axis.ROW else begins[None, :]
    return found


def _time_problems(step: Step, access: Access, shape: tuple[int, ...]) -> Iterator[str]:
    """Elements that the first node makes in no step of time, or in several."""
    kernel, mapping = step.kernel, step.mapping
    ranges = node_ranges(kernel, mapping, 0, 0)
    box = kernel.touched(access, ranges, shape)
    for loop, count in mapping.steps.items():
        spans = [span for span in access.spans if loop in [each for each, _ in span.terms]]
        if not spans or all(
            span.terms == ((loop, scale),) and span == along(loop, scale)
            for span in spans
            for _, scale in span.terms[:1]
        ):
            continue
        first, end = ranges[loop]
        cuts = first + part_bounds(end - first, count, 1)
        parts = []
        for begin, stop in zip(cuts[:-1], cuts[1:], strict=True):
            if begin < stop:
                part = (*ranges[:loop], (int(begin), int(stop)), *ranges[loop + 1 :])
                parts.append(kernel.touched(access, part, shape))
        found = np.array(parts, np.int64).reshape(len(parts), len(shape), 2)
        found -= np.array(box, np.int64)[:, :1]
        if not covers_once(found, [stop - begin for begin, stop in box]):
            yield f"not every element of {access.value} is made exactly once over time"


def _load_problems(program: TileProgram, step: Step, facts: BoxFacts) -> Iterator[str]:
    names = [access.value for access in step.kernel.loaded]
    if [each.value for each in step.loads] != names:
        yield f"loads {[each.value for each in step.loads]}, and reads {names}"
        return
    for access, load in zip(step.kernel.loaded, step.loads, strict=True):
        name, source = load.value, load.source
        shape = program.graph.value_shape(name)
        if load.boxes.shape != shape or load.boxes.grid != program.grid:
            yield f"loads {name} in another shape or onto another grid"
            continue
        needed = access_boxes(step.kernel, access, step.mapping, shape, program.grid)
        if not is_within(needed, load.boxes):
            yield f"nodes touch more of {name} than is loaded"
        if source is None or load.target is not None:
            yield f"the load of {name} needs a source, and no target"
            continue
        if (load.pattern is Pattern.HBM_LOAD) != (source.storage is Storage.HBM):
            yield f"{name} comes from {source.storage.value} by {load.pattern.value}"
        if load.pattern in (*_REDUCING, Pattern.HBM_STORE):
            yield f"{name} is loaded by {load.pattern.value}"
        if load.pattern is Pattern.LOCAL and source.boxes is not None:
            yield from _local_problems(load, source.boxes, facts)


def _local_problems(load: Transfer, source: Boxes, facts: BoxFacts) -> Iterator[str]:
    if not facts.is_within(load.boxes, source):
        yield f"not every node has what it needs of {load.value}, and nothing is moved"


def _store_problems(program: TileProgram, step: Step, facts: BoxFacts) -> Iterator[str]:
    kernel, mapping = step.kernel, step.mapping
    divided = {part.loop for part in (*mapping.rows, *mapping.columns) if part.count > 1}
    has_parts = bool(divided & kernel.reductions)
    own = {access.value for access in kernel.writes}
    # Sums have to be put together before an epilogue goes on, even those that nobody else reads.
    accesses = [
        access
        for access in _all_writes(kernel)
        if access.value not in kernel.hidden or (has_parts and access.value in own)
    ]
    names = [access.value for access in accesses]
    if [each.value for each in step.stores] != names:
        yield f"stores {[each.value for each in step.stores]}, and makes {names}"
        return
    for access, store in zip(accesses, step.stores, strict=True):
        is_partial = has_parts and access.value in own
        name, target = store.value, store.target
        shape = program.graph.value_shape(name)
        made = access_boxes(kernel, access, mapping, shape, program.grid)
        if not is_same(made, store.boxes):
            yield f"nodes make other boxes of {name} than are stored"
        if target is None or store.source is not None:
            yield f"the store of {name} needs a target, and no source"
            continue
        if is_partial != (store.pattern in _REDUCING):
            partly = "parts of sums" if is_partial else "complete results"
            yield f"{name} is stored by {store.pattern.value}, and nodes hold {partly}"
        if store.pattern is Pattern.HBM_LOAD:
            yield f"{name} is stored by {store.pattern.value}"
        is_outside = target.storage is Storage.HBM
        if not is_partial and is_outside != (store.pattern is Pattern.HBM_STORE):
            yield f"{name} goes to {target.storage.value} by {store.pattern.value}"
        if target.boxes is None:
            continue
        if not facts.covers(target.boxes):
            yield f"{name} is not all kept"
        stays = store.pattern is Pattern.LOCAL or is_partial
        if stays and not facts.is_within(target.boxes, store.boxes):
            yield f"{name} is kept where it is not made, by {store.pattern.value}"
