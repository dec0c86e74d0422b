"""What the hops between neighbours of the logical grid take of the links of the mesh.

Routes are those of `network.routing`; rates and energies are those of the machine's links. Bytes,
seconds, joules.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.layout import Crossing, MeshLayout
from fsdtrain_dojo.machine.node import Link
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.network.routing import find_routes
from fsdtrain_dojo.network.topology import (
    Direction,
    Level,
    LinkKind,
    MeshShape,
    build_mesh,
)
from fsdtrain_dojo.network.topology import Topology as Network

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL_NAMES = {Level.NODE: "node link", Level.DIE_EDGE: "die edge", Level.TILE_EDGE: "tile edge"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Hops:
    """Of one axis. Arrays are (R, C - 1) along rows, (R - 1, C) along columns, worse way taken.

    Args:
        seconds_per_byte: over the hop when all hops of its axis carry the same, both ways.
        latency_s: of a packet.
        joules_per_byte: of all links of the hop.
        num_links: of the hop, by level; means over the two ways.
        shared_by: hops, either way, over the fullest link of the hop.
        links: physical links of every hop, forward (east, south) first, then backward, hop by hop.
        offsets: hop h has links[offsets[h]] to links[offsets[h + 1]].
        link_seconds_per_byte: of every physical link.
    """

    seconds_per_byte: Floats
    latency_s: Floats
    joules_per_byte: Floats
    num_links: dict[str, Floats]
    shared_by: Floats
    links: Ints
    offsets: Ints
    link_seconds_per_byte: Floats


def measure_hops(
    machine: Machine, layout: MeshLayout, node_row: Ints, node_column: Ints
) -> tuple[Hops, Hops]:
    """Hops along rows and along columns of the grid whose nodes lie at these places.

    Raises:
        BackendError: more kinds of edges than the network knows.
    """
    network = build_network(machine, layout)
    kinds = _link_kinds(machine, layout, network)
    nodes = node_row * layout.columns + node_column
    return (
        _hops(network, kinds, nodes[:, :-1], nodes[:, 1:]),
        _hops(network, kinds, nodes[:-1], nodes[1:]),
    )


def build_network(machine: Machine, layout: MeshLayout) -> Network:
    """The mesh for routing: its links' rates are those of `machine` along rows.

    Raises:
        BackendError: more kinds of edges than the network knows.
    """
    if len(layout.crossings) > 2:
        raise BackendError(
            f"machine {machine.name} has mesh levels {[each.level for each in layout.crossings]} "
            "within its outermost mesh; transfers are costed over two at most"
        )
    clock = machine.node.clock_hz

    def kind(link: Link) -> LinkKind:
        return LinkKind(
            bytes_per_clock=link.bytes_per_s / clock,
            latency_clocks=max(1, round(link.latency_s * clock)),
        )

    crossings: list[Crossing | None] = [*layout.crossings, None, None]
    die, tile = crossings[:2]
    routed = machine.levels[0].do_missing_route
    return build_mesh(
        MeshShape(
            columns=layout.columns,
            rows=layout.rows,
            die_columns=die.columns if die else None,
            die_rows=die.rows if die else None,
            tile_columns=tile.columns if tile else None,
            tile_rows=tile.rows if tile else None,
        ),
        link=kind(machine.node.edge),
        die_edge=kind(die.row_link) if die else None,
        tile_edge=kind(tile.row_link) if tile else None,
        missing=[] if routed else [row * layout.columns + col for row, col in layout.missing],
        packet_bytes=machine.node.edge.packet_bytes,
    )


def _link_kinds(
    machine: Machine, layout: MeshLayout, network: Network
) -> tuple[Floats, Floats, Floats]:
    """Seconds a byte, latency in seconds and joules a byte of every link."""
    figures = np.zeros((3, network.num_links))
    in_row = network.link_direction <= Direction.WEST
    edge = machine.node.edge
    for level, links in (
        (Level.NODE, (edge, edge)),
        *(
            (level, (each.row_link, each.column_link))
            for level, each in zip(
                (Level.DIE_EDGE, Level.TILE_EDGE), layout.crossings, strict=False
            )
        ),
    ):
        for link, along in zip(links, (in_row, ~in_row), strict=True):
            these = (network.link_level == level) & along
            figures[:, these] = np.array(
                [[1 / link.bytes_per_s], [link.latency_s], [link.joules_per_byte]]
            )
    return figures[0], figures[1], figures[2]


def _hops(network: Network, kinds: tuple[Floats, Floats, Floats], here: Ints, there: Ints) -> Hops:
    shape, count = here.shape, here.size
    byte_s, latency_s, joules = kinds
    if count == 0:
        none = np.zeros(shape)
        return Hops(
            seconds_per_byte=none, latency_s=none, joules_per_byte=none,
            num_links=dict.fromkeys(LEVEL_NAMES.values(), none), shared_by=none,
            links=np.zeros(0, np.int64), offsets=np.zeros(1, np.int64),
            link_seconds_per_byte=byte_s,
        )  # fmt: skip
    ends = np.concatenate([here.ravel(), there.ravel()]), np.concatenate([there, here], None)
    routes = find_routes(network, ends[0].tolist(), ends[1].tolist())
    link, begin = routes.edge_link, routes.offsets[:-1]
    users = np.bincount(link, minlength=network.num_links).astype(np.float64)

    def either_way(per_hop: NDArray[np.generic]) -> Floats:
        return np.asarray(per_hop, np.float64).reshape(2, *shape)

    return Hops(
        seconds_per_byte=either_way(np.maximum.reduceat((byte_s * users)[link], begin)).max(0),
        latency_s=either_way(np.add.reduceat(latency_s[link], begin)).max(0),
        joules_per_byte=either_way(np.add.reduceat(joules[link], begin)).mean(0),
        num_links={
            name: either_way(
                np.add.reduceat(network.link_level[link] == level, begin, dtype=float)
            ).mean(0)
            for level, name in LEVEL_NAMES.items()
        },
        shared_by=either_way(np.maximum.reduceat(users[link], begin)).max(0),
        links=link,
        offsets=routes.offsets,
        link_seconds_per_byte=byte_s,
    )
