import numpy as np
import pytest
from fsdtrain_dojo.network.routing import Routes, find_routes, find_trees
from fsdtrain_dojo.network.topology import LinkKind, MeshShape, PortKind, Topology, build_mesh
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, shortest_path

from fsdtrain.backend import BackendError
from tests.backends.dojo.network.meshes import HOP, square


def nodes_of(routes: Routes, flow: int = 0) -> list[int]:
    links = routes.edge_link[routes.offsets[flow] : routes.offsets[flow + 1]]
    return [int(routes.source[flow]), *routes.topology.link_target[links].tolist()]


def distances(mesh: Topology) -> np.ndarray:
    """Fewest clocks between all nodes over the links that there are."""
    size = (mesh.num_nodes, mesh.num_nodes)
    weights = coo_array((mesh.link_latency, (mesh.link_source, mesh.link_target)), shape=size)
    return shortest_path(weights.tocsr())


def test_routes_go_along_the_row_and_then_along_the_column():
    mesh = square(4)
    routes = find_routes(mesh, [1, 14], [15, 4])
    assert nodes_of(routes, 0) == [1, 2, 3, 7, 11, 15]
    assert nodes_of(routes, 1) == [14, 13, 12, 8, 4]
    assert routes.num_layers == 1


def test_corner_to_corner_of_a_tile_is_188_hops_and_8_die_crossings():
    tile = build_mesh(
        MeshShape(columns=5 * 18, rows=5 * 20, die_columns=18, die_rows=20),
        link=HOP,
        die_edge=LinkKind(bytes_per_clock=1000 / 18, latency_clocks=1 + 200),  # 100 ns at 2 GHz
    )
    routes = find_routes(tile, [0, tile.num_nodes - 1], [tile.num_nodes - 1, 0])
    assert np.diff(routes.offsets).tolist() == [188, 188]
    assert routes.latency.tolist() == [188 + 8 * 200] * 2


def test_a_missing_node_is_walked_around():
    mesh = square(4, missing=[5, 6])
    assert nodes_of(find_routes(mesh, [4], [7])) in ([4, 0, 1, 2, 3, 7], [4, 8, 9, 10, 11, 7])
    # 6 is in the way of rows first; of the ways of 4 hops, none is longer
    assert len(nodes_of(find_routes(mesh, [4], [10]))) == 4


@st.composite
def meshes_with_gaps(draw):
    columns, rows = draw(st.integers(2, 7)), draw(st.integers(2, 7))
    places = st.integers(0, columns * rows - 1)
    missing = draw(st.lists(places, max_size=columns * rows // 9, unique=True))
    return build_mesh(MeshShape(columns=columns, rows=rows), link=HOP, missing=missing)


@settings(max_examples=40, deadline=None)
@given(meshes_with_gaps(), st.data())
def test_routes_around_gaps_arrive_and_cannot_deadlock(mesh, data):
    present = np.flatnonzero(mesh.present)
    pairs = [(a, b) for a in present for b in present if a != b]
    connected = distances(mesh)[np.ix_(present, present)]
    assume(np.isfinite(connected).all())
    routes = find_routes(mesh, *zip(*pairs, strict=True))
    fewest = distances(mesh)
    for flow in data.draw(st.lists(st.integers(0, len(pairs) - 1), max_size=8)):
        nodes = nodes_of(routes, flow)
        assert (nodes[0], nodes[-1]) == pairs[flow]
        assert mesh.present[nodes].all()
        assert len(set(nodes)) == len(nodes)
        assert routes.latency[flow] >= fewest[pairs[flow]]
    # A buffer that waits for another of the same strongly connected component could for ever.
    channel = routes.edge_link * routes.num_layers + routes.edge_layer
    waits = routes.edge_parent >= 0
    size = mesh.num_links * routes.num_layers
    graph = coo_array(
        (np.ones(waits.sum()), (channel[routes.edge_parent[waits]], channel[waits])),
        shape=(size, size),
    )
    assert connected_components(graph, connection="strong")[0] == size


@settings(max_examples=30, deadline=None)
@given(meshes_with_gaps(), st.data())
def test_multicasts_are_trees_that_reach_all_targets(mesh, data):
    present = np.flatnonzero(mesh.present).tolist()
    source, *targets = data.draw(st.permutations(present))[:6]
    if not targets:
        return
    try:
        tree = find_trees(mesh, [source], [targets])
        alone = find_routes(mesh, [source] * len(targets), targets)
    except BackendError:
        return
    reached = mesh.link_target[tree.edge_link]
    assert len({source, *reached.tolist()}) == len(reached) + 1  # no node twice
    assert {*reached[tree.edge_delivers].tolist()} == {*targets}
    parents = tree.edge_parent
    begins = np.where(parents < 0, source, reached[parents])
    assert (begins == mesh.link_source[tree.edge_link]).all()
    assert len(tree.edge_link) <= len(alone.edge_link)
    if tree.num_layers == 1:  # detours that meet may take a longer way with them
        assert tree.latency[0] == alone.latency.max()


def test_ports_are_entered_where_they_are_nearest():
    port = PortKind(
        nodes=[0, 4, 8, 12],
        link=LinkKind(bytes_per_clock=32, latency_clocks=10),
        bytes_per_clock=99,
    )
    mesh = build_mesh(MeshShape(columns=4, rows=4), link=HOP, ports=[port])
    assert nodes_of(find_routes(mesh, [16], [10])) == [16, 8, 9, 10]
    assert nodes_of(find_routes(mesh, [6], [16])) == [6, 5, 4, 16]
    both = find_trees(mesh, [16], [[2, 14]])
    assert both.latency[0] == 12
    assert both.num_targets[0] == 2


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        (0, 0, "to itself"),
        (0, 5, "which the mesh lacks"),
        (0, 99, "which the mesh lacks"),
        (15, 0, "cut node 0 off from node 15"),
    ],
)
def test_flows_that_cannot_be_are_refused(source, target, says):
    mesh = square(4, missing=[1, 4, 5])
    with pytest.raises(BackendError, match=says):
        find_routes(mesh, [source], [target])
