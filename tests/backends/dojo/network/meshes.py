"""Small networks and traffic patterns for the tests of this folder."""

from collections.abc import Sequence

import numpy as np
from fsdtrain_dojo.network.routing import find_routes
from fsdtrain_dojo.network.topology import LinkKind, MeshShape, Topology, build_mesh
from fsdtrain_dojo.network.traffic import Traffic, make_traffic
from numpy.typing import NDArray

HOP = LinkKind(bytes_per_clock=64, latency_clocks=1)


def square(side: int, *, link: LinkKind = HOP, missing: Sequence[int] = ()) -> Topology:
    return build_mesh(MeshShape(columns=side, rows=side), link=link, missing=missing)


def two_dies(columns: int, rows: int, *, crossing: int = 200, rate: float = 50.0) -> Topology:
    """Two dies of columns x rows nodes side by side."""
    return build_mesh(
        MeshShape(columns=2 * columns, rows=rows, die_columns=columns, die_rows=rows),
        link=HOP,
        die_edge=LinkKind(bytes_per_clock=rate, latency_clocks=1 + crossing),
    )


def draw_ends(
    pattern: str, side: int, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sources and targets of messages on a square mesh."""
    nodes = side * side
    sources = rng.integers(0, nodes, count)
    targets = (sources + rng.integers(1, nodes, count)) % nodes
    if pattern == "transpose":
        off_diagonal = np.array([n for n in range(nodes) if n // side != n % side])
        sources = rng.choice(off_diagonal, count)
        targets = sources % side * side + sources // side
    elif pattern == "hot-spot":  # three messages in twenty go to one node
        hot = nodes // 2 + side // 2
        to_hot = (rng.random(count) < 0.15) & (sources != hot)
        targets = np.where(to_hot, hot, targets)
    return sources, targets


def busiest_share(topology: Topology, pattern: str, side: int) -> float:
    """Clocks that the busiest link or memory works for one packet of a pattern, on average."""
    sources, targets = draw_ends(pattern, side, 20_000, np.random.default_rng(1))
    routes = find_routes(topology, sources, targets)
    visits = [np.bincount(ends).max() for ends in (routes.edge_link, sources, targets)]
    return float(max(visits)) / len(sources)


def random_arrivals(
    topology: Topology, pattern: str, side: int, *, load: float, packets: int, clocks: int
) -> Traffic:
    """Messages at random clocks that keep the busiest link busy for `load` of the time."""
    rate = load / (busiest_share(topology, pattern, side) * packets)
    rng = np.random.default_rng(2)
    count = int(rate * clocks)
    sources, targets = draw_ends(pattern, side, count, rng)
    start = np.sort(rng.integers(0, clocks, count)).astype(np.float64)
    return make_traffic(find_routes(topology, sources, targets), packets * 64, start=start)
