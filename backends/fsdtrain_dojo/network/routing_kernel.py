"""The search for routes and trees, compiled; `routing` says what they are.

Knows nothing of flows, bytes or time. A path is a row of links in a buffer; a function that makes
one gives its length, or -1 where missing nodes are in the way.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.arithmetic.compiled import compiled

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
_NOWHERE = np.iinfo(np.int64).max

_EAST, _WEST, _SOUTH, _NORTH, _INTO_GRID = 0, 1, 2, 3, 5  # topology.Direction, compiled in
_OUT_OF_GRID = 4


class Grid(NamedTuple):
    """A topology as the search reads it.

    `missing_in_row[r, c]` counts missing nodes of row r before column c, `missing_in_column[c, r]`
    those of column c before row r; `east[c]` and `south[r]` are clocks from the first column or
    row. Port p owns the entries port_offsets[p] to port_offsets[p + 1] of the last three arrays.
    """

    columns: int
    rows: int
    num_nodes: int
    link_from: Ints
    link_target: Ints
    link_direction: Ints
    link_latency: Ints
    missing_in_row: Ints
    missing_in_column: Ints
    east: Ints
    south: Ints
    port_offsets: Ints
    port_node: Ints
    port_into: Ints
    port_out: Ints


@compiled
def _row_clear(grid: Grid, row: int, a: int, b: int) -> bool:
    counts = grid.missing_in_row
    return bool(counts[row, max(a, b) + 1] == counts[row, min(a, b)])


@compiled
def _column_clear(grid: Grid, column: int, a: int, b: int) -> bool:
    counts = grid.missing_in_column
    return bool(counts[column, max(a, b) + 1] == counts[column, min(a, b)])


@compiled
def _distance(grid: Grid, source: int, target: int) -> int:
    """Clocks between two grid nodes along a row and a column."""
    columns = grid.columns
    across = abs(grid.east[source % columns] - grid.east[target % columns])
    return int(across + abs(grid.south[source // columns] - grid.south[target // columns]))


@compiled
def _leg_clear(grid: Grid, source: int, target: int) -> bool:
    columns = grid.columns
    row, column = source // columns, target % columns
    in_row = _row_clear(grid, row, source % columns, column)
    return in_row and _column_clear(grid, column, row, target // columns)


@compiled
def _append_leg(grid: Grid, source: int, target: int, path: Ints, length: int) -> int:
    """Add a dimension-ordered leg, known to be clear, to a path; its new length."""
    columns = grid.columns
    node = source
    while node != target:
        gap = target % columns - node % columns
        if gap != 0:
            direction = _EAST if gap > 0 else _WEST
        else:
            direction = _SOUTH if target > node else _NORTH
        link = grid.link_from[node, direction]
        path[length] = link
        length += 1
        node = grid.link_target[link]
    return length


@compiled
def _find_waypoint(grid: Grid, source: int, target: int) -> int:
    """The waypoint that joins two clear legs with least latency; -1 where none does."""
    columns = grid.columns
    source_row, target_column = source // columns, target % columns
    source_column, target_row = source % columns, target // columns
    best, best_clocks = -1, _NOWHERE
    for column in range(columns):
        if not _row_clear(grid, source_row, source_column, column):
            continue
        for row in range(grid.rows):
            waypoint = row * columns + column
            clocks = _distance(grid, source, waypoint) + _distance(grid, waypoint, target)
            if clocks >= best_clocks or not _column_clear(grid, target_column, row, target_row):
                continue
            if _column_clear(grid, column, source_row, row) and _row_clear(
                grid, row, column, target_column
            ):
                best, best_clocks = waypoint, clocks
    return best


@compiled
def _append_route(grid: Grid, source: int, target: int, path: Ints, length: int) -> int:
    """Add the route between two grid nodes to a path: one leg, two, or three."""
    if _leg_clear(grid, source, target):
        return _append_leg(grid, source, target, path, length)
    waypoint = _find_waypoint(grid, source, target)
    if waypoint >= 0:
        length = _append_leg(grid, source, waypoint, path, length)
        return _append_leg(grid, waypoint, target, path, length)
    first, second, best_clocks = -1, -1, _NOWHERE
    for candidate in range(grid.columns * grid.rows):
        if _leg_clear(grid, source, candidate):
            waypoint = _find_waypoint(grid, candidate, target)
            if waypoint < 0:
                continue
            clocks = _distance(grid, source, candidate) + _distance(grid, candidate, waypoint)
            clocks += _distance(grid, waypoint, target)
            if clocks < best_clocks:
                first, second, best_clocks = candidate, waypoint, clocks
    if first < 0:
        return -1
    length = _append_leg(grid, source, first, path, length)
    length = _append_leg(grid, first, second, path, length)
    return _append_leg(grid, second, target, path, length)


@compiled
def _nearest_entry(grid: Grid, port: int, node: int) -> int:
    """Which of a port's links is nearest to a grid node (ties: the first)."""
    best, best_clocks = -1, _NOWHERE
    for entry in range(grid.port_offsets[port], grid.port_offsets[port + 1]):
        clocks = _distance(grid, grid.port_node[entry], node)
        if clocks < best_clocks:
            best, best_clocks = entry, clocks
    return best


@compiled
def _find_path(grid: Grid, source: int, target: int, path: Ints) -> int:
    """The links from one node or port to another, in order; how many, or -1."""
    num_grid = grid.columns * grid.rows
    length, entry = 0, -1
    if source >= num_grid:
        goal = target
        if target >= num_grid:
            goal = grid.port_node[grid.port_offsets[target - num_grid]]
        entry = _nearest_entry(grid, source - num_grid, goal)
        path[0] = grid.port_into[entry]
        length, source = 1, grid.port_node[entry]
    if target < num_grid:
        return _append_route(grid, source, target, path, length)
    entry = _nearest_entry(grid, target - num_grid, source)
    length = _append_route(grid, source, grid.port_node[entry], path, length)
    if length < 0:
        return -1
    path[length] = grid.port_out[entry]
    return length + 1


@compiled
def _raises_layer(before: int, after: int) -> bool:
    """Whether this turn leaves the order "rows, then columns, and never back"."""
    if after in (before, _OUT_OF_GRID) or before == _INTO_GRID:
        return False
    return before >= _SOUTH or after < _SOUTH


@compiled
def _grown(values: Ints, size: int) -> Ints:
    if size < len(values):
        return values
    larger = np.empty(2 * len(values), np.int64)
    larger[: len(values)] = values
    return larger


@compiled
def build_trees(
    grid: Grid, sources: Ints, target_offsets: Ints, targets: Ints
) -> tuple[Ints, Ints, Ints, Ints, Ints, Flags, int]:
    """Offsets, links, parents, layers, latencies and deliveries of `Routes`.

    The last value is the position in `targets` of one that cannot be reached, or -1.
    """
    capacity = 16 * len(targets) + 16
    edge_link, edge_parent = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    edge_layer, edge_latency = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    delivering = np.empty(len(targets), np.int64)
    offsets = np.zeros(len(sources) + 1, np.int64)
    path = np.empty(3 * (grid.columns + grid.rows) + 2, np.int64)
    tree_of = np.full(grid.num_nodes, -1, np.int64)  # the last flow whose tree reached a node
    reached_by = np.empty(grid.num_nodes, np.int64)  # and the edge that it did so with
    num_edges = 0
    for flow in range(len(sources)):
        tree_of[sources[flow]] = flow
        reached_by[sources[flow]] = -1
        for position in range(target_offsets[flow], target_offsets[flow + 1]):
            length = _find_path(grid, sources[flow], targets[position], path)
            if length < 0:
                no_flags = np.zeros(0, np.bool_)
                return offsets, edge_link, edge_parent, edge_layer, edge_latency, no_flags, position
            first = length
            while first > 0 and tree_of[grid.link_target[path[first - 1]]] != flow:
                first -= 1
            parent = -1 if first == 0 else reached_by[grid.link_target[path[first - 1]]]
            for step in range(first, length):
                edge_link = _grown(edge_link, num_edges)
                edge_parent = _grown(edge_parent, num_edges)
                edge_layer = _grown(edge_layer, num_edges)
                edge_latency = _grown(edge_latency, num_edges)
                link = path[step]
                layer, latency = 0, grid.link_latency[link]
                if parent >= 0:
                    before = grid.link_direction[edge_link[parent]]
                    turned = _raises_layer(before, grid.link_direction[link])
                    layer = edge_layer[parent] + (1 if turned else 0)
                    latency += edge_latency[parent]
                edge_link[num_edges], edge_parent[num_edges] = link, parent
                edge_layer[num_edges], edge_latency[num_edges] = layer, latency
                parent = num_edges
                num_edges += 1
                tree_of[grid.link_target[link]] = flow
                reached_by[grid.link_target[link]] = parent
            delivering[position] = reached_by[targets[position]]
        offsets[flow + 1] = num_edges
    delivers = np.zeros(num_edges, np.bool_)
    delivers[delivering] = True
    return (
        offsets,
        edge_link[:num_edges],
        edge_parent[:num_edges],
        edge_layer[:num_edges],
        edge_latency[:num_edges],
        delivers,
        -1,
    )
