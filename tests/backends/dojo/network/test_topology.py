import numpy as np
import pytest
from fsdtrain_dojo.network.topology import Level, LinkKind, MeshShape, PortKind, build_mesh

from fsdtrain.backend import BackendError

HOP = LinkKind(bytes_per_clock=64, latency_clocks=1)
CROSSING = LinkKind(bytes_per_clock=50, latency_clocks=201)


def test_a_mesh_has_a_link_each_way_between_neighbours():
    mesh = build_mesh(MeshShape(columns=3, rows=2), link=HOP)
    links = set(zip(mesh.link_source.tolist(), mesh.link_target.tolist(), strict=True))
    pairs = [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]
    assert links == {*pairs, *((b, a) for a, b in pairs)}
    assert mesh.num_links == len(links)


def test_levels_follow_die_and_tile_edges():
    mesh = build_mesh(
        MeshShape(columns=8, rows=4, die_columns=2, die_rows=2, tile_columns=4, tile_rows=4),
        link=HOP,
        die_edge=CROSSING,
        tile_edge=LinkKind(bytes_per_clock=25, latency_clocks=301),
    )
    # eastward: 4 rows x (4 within dies, 2 die edges, 1 tile edge); downward: 8 columns x (2, 1)
    counts = np.bincount(mesh.link_level, minlength=4)
    assert counts.tolist() == [2 * (16 + 16), 2 * (8 + 8), 2 * 4, 0]
    edge = np.flatnonzero(mesh.link_level == Level.TILE_EDGE)
    assert {*(mesh.link_source[edge] % 8)} == {3, 4}
    assert {*mesh.link_bytes_per_clock[edge]} == {25.0}
    assert {*mesh.link_latency[mesh.link_level == Level.DIE_EDGE]} == {201}


def test_missing_nodes_have_no_links_and_ports_follow_the_grid():
    port = PortKind(nodes=[0, 2], link=CROSSING, bytes_per_clock=400)
    mesh = build_mesh(MeshShape(columns=2, rows=2), link=HOP, missing=[2], ports=[port])
    assert mesh.present.tolist() == [True, True, False, True, True]
    ends = {*zip(mesh.link_source.tolist(), mesh.link_target.tolist(), strict=True)}
    assert ends == {(0, 1), (1, 0), (1, 3), (3, 1), (0, 4), (4, 0)}
    assert mesh.send_bytes_per_clock.tolist() == [64, 64, 64, 64, 400]


@pytest.mark.parametrize(
    ("shape", "wrong", "says"),
    [
        (MeshShape(columns=4, rows=4, die_columns=3), {"die_edge": CROSSING}, "do not divide"),
        (MeshShape(columns=4, rows=4, die_columns=2), {}, "die_edge: .* no link for it"),
        (MeshShape(columns=4, rows=4), {"die_edge": CROSSING}, "no size in nodes"),
        (MeshShape(columns=0, rows=4), {}, "has none"),
        (MeshShape(columns=2, rows=2), {"missing": [4]}, "not one of the 4"),
        (MeshShape(columns=2, rows=2), {"send_bytes_per_clock": -1}, "positive number of bytes"),
        (
            MeshShape(columns=2, rows=2, die_columns=1, die_rows=1),
            {"die_edge": LinkKind(bytes_per_clock=50, latency_clocks=0)},
            "takes 1 or more",
        ),
        (
            MeshShape(columns=2, rows=2),
            {"ports": [PortKind(nodes=[9], link=HOP, bytes_per_clock=1)]},
            "no node to be linked to",
        ),
    ],
)
def test_machines_that_contradict_themselves_are_refused(shape, wrong, says):
    with pytest.raises(BackendError, match=says):
        build_mesh(shape, link=HOP, **wrong)
