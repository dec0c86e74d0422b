"""Random boxes on small grids, and traffic between them counted element by element."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from fsdtrain_dojo.lowering.kernel import Access, Kernel, Loop, Phase, Span, Unit
from fsdtrain_dojo.lowering.mapping import Boxes, Mapping, Part, access_boxes


def boxes_of(shape, grid, rows=(), columns=(), halo=0, copies=()):
    """Boxes of a value divided by parts (dimension, count); dimension -1, -2, .. are copies."""
    loops = [Loop(f"d{i}", size) for i, size in enumerate(shape)]
    spans = tuple(Span(((i, 1),), low=-halo, high=halo) for i in range(len(shape)))
    numbered = []
    for parts in (rows, columns):
        mine = []
        for dimension, count in parts:
            if dimension < 0:
                loops.append(Loop("copy", count))
                mine.append(Part(len(loops) - 1, count))
            else:
                mine.append(Part(dimension, count))
        numbered.append(tuple(mine))
    access = Access("x", spans)
    kernel = Kernel(
        name="k", op="test", phase=Phase.FORWARD, unit=Unit.VECTOR, loops=tuple(loops),
        reads=(access,), writes=(), compute=lambda tensors, block: [],
    )  # fmt: skip
    mapping = Mapping(rows=numbered[0], columns=numbered[1])
    return access_boxes(kernel, access, mapping, shape, grid)


def draw_parts(rng, shape, grid, *, most_per_axis=2, can_copy=True, taken=()):
    """Random parts for rows and columns: dimensions go to one axis at most."""
    free = [d for d in range(len(shape)) if d not in taken]
    rng.shuffle(free)
    parts = []
    for length in grid:
        mine, left = [], length
        for _ in range(rng.integers(0, most_per_axis + 1)):
            if can_copy and rng.random() < 0.4:
                dimension, most = -1, left
            elif free:
                dimension = free.pop()
                most = min(left, shape[dimension])
            else:
                continue
            count = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
            left //= count
            mine.append((int(dimension), count))
        parts.append(tuple(mine))
    return parts


@dataclass
class Counted:
    """As `MeshTraffic`, by counting."""

    east: np.ndarray
    west: np.ndarray
    south: np.ndarray
    north: np.ndarray
    sent: np.ndarray
    received: np.ndarray


def holders(boxes: Boxes, element, axis):
    """Places along an axis whose ranges have the element."""
    rows, columns = boxes.grid
    found = []
    for place in range(boxes.grid[axis]):
        nodes = (
            [(place, c) for c in range(columns)] if axis == 0 else [(r, place) for r in range(rows)]
        )
        ok = any(boxes.busy[node] for node in nodes)
        for dim, (first, end) in enumerate(zip(boxes.first, boxes.end, strict=True)):
            if first.shape[axis] > 1:
                at = (place, 0) if axis == 0 else (0, place)
                ok = ok and first[at] <= element[dim] < end[at]
        if ok:
            found.append(place)
    return found


def has(boxes, node, element):
    box = boxes.at(*node)
    return boxes.busy[node] and all(
        first <= index < end for (first, end), index in zip(box, element, strict=True)
    )


def count_traffic(kept: Boxes, needed: Boxes, *, is_multicast=True) -> Counted:
    rows, columns = kept.grid
    load = {
        "east": np.zeros((rows, columns - 1)), "west": np.zeros((rows, columns - 1)),
        "south": np.zeros((rows - 1, columns)), "north": np.zeros((rows - 1, columns)),
    }  # fmt: skip
    sent, received = np.zeros((rows, columns)), np.zeros((rows, columns))
    for element in product(*(range(size) for size in kept.shape)):
        keeps = [holders(kept, element, axis) for axis in (0, 1)]
        trees: dict[tuple, set] = {}
        for node in product(range(rows), range(columns)):
            if not has(needed, node, element) or has(kept, node, element):
                continue
            received[node] += 1
            r1, c1 = (
                min(places, key=lambda p, at=at: (abs(p - at), p))
                for places, at in zip(keeps, node, strict=True)
            )
            assert has(kept, (r1, c1), element)
            r2, c2 = node
            links = [("east", r1, c) for c in range(c1, c2)]
            links += [("west", r1, c) for c in range(c2, c1)]
            links += [("south", r, c2) for r in range(r1, r2)]
            links += [("north", r, c2) for r in range(r2, r1)]
            if is_multicast:
                trees.setdefault((r1, c1), set()).update(links)
            else:
                for way, r, c in links:
                    load[way][r, c] += 1
                sent[r1, c1] += 1
        for source, links in trees.items():
            sent[source] += 1
            for way, r, c in links:
                load[way][r, c] += 1
    return Counted(**load, sent=sent, received=received)


def trees_of(kept: Boxes, needed: Boxes):
    """{(source node, target nodes): elements} of all that has to move; nodes are (row, column)."""
    rows, columns = kept.grid
    flows: dict[tuple, int] = {}
    for element in product(*(range(size) for size in kept.shape)):
        keeps = [holders(kept, element, axis) for axis in (0, 1)]
        targets: dict[tuple, list] = {}
        for node in product(range(rows), range(columns)):
            if has(needed, node, element) and not has(kept, node, element):
                source = tuple(
                    min(places, key=lambda p, at=at: (abs(p - at), p))
                    for places, at in zip(keeps, node, strict=True)
                )
                targets.setdefault(source, []).append(node)
        for source, nodes in targets.items():
            key = (source, tuple(nodes))
            flows[key] = flows.get(key, 0) + 1
    return flows
