"""Routes over the mesh: dimension order, with detours around missing nodes; multicast as trees.

A route goes along its source's row and then along its target's column. Where a missing node is
in the way it is made of two such legs over a waypoint, the one of least latency (ties: least
column, then row, of the waypoint), and of three where no waypoint serves. All is a function of
the mesh and the two ends, so the packets of a flow stay in order.

Deadlock cannot happen, which `Routes.edge_layer` is for. A route is in layer 0 until it turns
from a column into a row or turns back, which raises its layer by one. Within a layer, routes
therefore follow rows (east or west, no way back) and then columns (south or north, no way back),
so that "waits for a buffer of" orders a layer's links without a cycle, by Dally and Seitz (IEEE
Trans. Comp. 1987); a layer waits only for itself and higher ones. A router that gives every
layer its own buffers (virtual channels) is free of deadlock; `Routes.num_layers` says how many
it needs, one on a mesh without missing nodes. Ports only begin and end routes and add no cycle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fsdtrain.backend import BackendError
from fsdtrain_dojo.network.routing_kernel import Grid, build_trees
from fsdtrain_dojo.network.topology import Direction, Level, Topology


@dataclass(frozen=True, kw_only=True, eq=False)
class Routes:
    """The trees of many flows: flow f owns the edges offsets[f] to offsets[f + 1], a link each.

    An edge's parent (an edge, -1 at the source) lies before it; `edge_latency` is the clocks
    from the source to the edge's end, `latency` a flow's longest such to a target.
    """

    topology: Topology
    source: NDArray[np.int64]
    offsets: NDArray[np.int64]
    edge_link: NDArray[np.int64]
    edge_parent: NDArray[np.int64]
    edge_layer: NDArray[np.int64]
    edge_latency: NDArray[np.int64]
    edge_delivers: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def num_layers(self) -> int:
        return int(self.edge_layer.max(initial=0)) + 1

    @cached_property
    def edge_flow(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @cached_property
    def latency(self) -> NDArray[np.int64]:
        return np.maximum.reduceat(self.edge_latency * self.edge_delivers, self.offsets[:-1])

    @cached_property
    def num_targets(self) -> NDArray[np.int64]:
        return np.add.reduceat(self.edge_delivers.astype(np.int64), self.offsets[:-1])

    @cached_property
    def bytes_per_clock(self) -> NDArray[np.float64]:
        """What a flow alone on the network moves: its slowest link, sender or receiver."""
        topology = self.topology
        rate = topology.link_bytes_per_clock[self.edge_link]
        into = topology.receive_bytes_per_clock[topology.link_target[self.edge_link]]
        rate = np.where(self.edge_delivers, np.minimum(rate, into), rate)
        slowest = np.minimum.reduceat(rate, self.offsets[:-1])
        return np.minimum(slowest, topology.send_bytes_per_clock[self.source])


def find_routes(topology: Topology, sources: Sequence[int], targets: Sequence[int]) -> Routes:
    """The route of every flow sources[f] -> targets[f].

    Raises:
        BackendError: an end is missing or not on the mesh, both ends are one node, or missing
            nodes cut them apart.
    """
    if len(sources) != len(targets):
        raise BackendError(f"{len(sources)} sources do not pair with {len(targets)} targets")
    offsets = np.arange(len(sources) + 1, dtype=np.int64)
    return _find(topology, np.asarray(sources, np.int64), offsets, np.asarray(targets, np.int64))


def find_trees(
    topology: Topology, sources: Sequence[int], targets: Sequence[Sequence[int]]
) -> Routes:
    """The multicast tree of every flow from sources[f] to all of targets[f].

    A tree is the union of its routes; where detours meet again, the first route to a node stays.

    Raises:
        BackendError: as `find_routes`; or a flow without targets.
    """
    if len(sources) != len(targets) or not all(targets):
        raise BackendError(f"{len(sources)} sources need as many lists of one or more targets")
    offsets = np.cumsum([0, *map(len, targets)], dtype=np.int64)
    flat = np.array([target for group in targets for target in group], np.int64)
    return _find(topology, np.asarray(sources, np.int64), offsets, flat)


def _find(
    topology: Topology,
    sources: NDArray[np.int64],
    target_offsets: NDArray[np.int64],
    targets: NDArray[np.int64],
) -> Routes:
    source_of = np.repeat(sources, np.diff(target_offsets))
    ends = np.concatenate([sources, targets])
    inside = (ends >= 0) & (ends < topology.num_nodes)
    lacking = ~(inside & topology.present[np.where(inside, ends, 0)])
    if lacking.any():
        raise BackendError(f"flows from or to node {ends[lacking][0]}, which the mesh lacks")
    if (source_of == targets).any():
        node = targets[source_of == targets][0]
        raise BackendError(f"a flow from node {node} to itself needs no network; leave it out")
    offsets, link, parent, layer, latency, delivers, cut = build_trees(
        grid_of(topology), sources, target_offsets, targets
    )
    if cut >= 0:
        raise BackendError(
            f"missing nodes cut node {targets[cut]} off from node {source_of[cut]} (no route of "
            "three dimension-ordered legs); leave one of them out"
        )
    return Routes(
        topology=topology,
        source=sources,
        offsets=offsets,
        edge_link=link,
        edge_parent=parent,
        edge_layer=layer,
        edge_latency=latency,
        edge_delivers=delivers,
    )


def grid_of(topology: Topology) -> Grid:
    """What the kernel reads of a topology."""
    columns, rows = topology.shape.columns, topology.shape.rows
    absent = ~topology.present[: topology.num_grid_nodes].reshape(rows, columns)
    rim = topology.link_level == Level.PORT
    into = np.flatnonzero(rim & (topology.link_direction == Direction.INTO_GRID))
    out = np.flatnonzero(rim & (topology.link_direction == Direction.OUT_OF_GRID))
    port_of = topology.link_source[into] - topology.num_grid_nodes  # ascending, `out` in step
    num_ports = topology.num_nodes - topology.num_grid_nodes
    return Grid(
        columns=columns,
        rows=rows,
        num_nodes=topology.num_nodes,
        link_from=topology.link_from,
        link_target=topology.link_target,
        link_direction=topology.link_direction,
        link_latency=topology.link_latency,
        missing_in_row=_running_count(absent),
        missing_in_column=_running_count(absent.T),
        east=_latency_from_start(topology, Direction.EAST),
        south=_latency_from_start(topology, Direction.SOUTH),
        port_offsets=np.searchsorted(port_of, np.arange(num_ports + 1)).astype(np.int64),
        port_node=topology.link_target[into],
        port_into=into,
        port_out=out,
    )


def _running_count(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    counts = np.zeros((flags.shape[0], flags.shape[1] + 1), np.int64)
    counts[:, 1:] = np.cumsum(flags, axis=1)
    return counts


def _latency_from_start(topology: Topology, direction: Direction) -> NDArray[np.int64]:
    """Clocks from the first column (row) to each; all rows (columns) of the mesh are alike."""
    links = np.flatnonzero(topology.link_direction == direction)
    columns = topology.shape.columns
    eastward = direction == Direction.EAST
    extent = columns if eastward else topology.shape.rows
    source = topology.link_source[links]
    step = np.ones(extent, np.int64)
    step[source % columns if eastward else source // columns] = topology.link_latency[links]
    return np.concatenate([[0], np.cumsum(step[:-1])])
