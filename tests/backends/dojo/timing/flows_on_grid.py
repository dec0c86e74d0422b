"""The flows of a transfer, along the hops of the logical grid, for the models of the network."""

import numpy as np
from fsdtrain_dojo.machine.layout import mesh_layout
from fsdtrain_dojo.network.routing import Routes, find_routes
from fsdtrain_dojo.network.traffic import Traffic, make_traffic
from fsdtrain_dojo.timing.hops import build_network


class GridRoutes:
    """Routes along rows and then columns of a fabric's grid, over the links of its mesh."""

    def __init__(self, fabric):
        self.network = build_network(fabric.machine, mesh_layout(fabric.machine))
        self.nodes = fabric.node_row * self.network.shape.columns + fabric.node_column
        self._hops = {}

    def hop(self, here, there):
        if (here, there) not in self._hops:
            ends = [int(self.nodes[here])], [int(self.nodes[there])]
            self._hops[here, there] = find_routes(self.network, *ends).edge_link.tolist()
        return self._hops[here, there]

    def traffic(self, flows: dict, element_bytes: float) -> Traffic:
        """Of {(source, targets): elements}."""
        edges, offsets = [], [0]
        for source, targets in flows:
            edges += self._tree(source, set(targets), len(edges))
            offsets.append(len(edges))
        link, parent, latency, delivers = (np.array(column) for column in zip(*edges, strict=True))
        routes = Routes(
            topology=self.network,
            source=np.array([int(self.nodes[source]) for source, _ in flows]),
            offsets=np.array(offsets),
            edge_link=link,
            edge_parent=parent,
            edge_layer=np.zeros(len(link), np.int64),
            edge_latency=latency,
            edge_delivers=delivers.astype(bool),
        )
        return make_traffic(routes, [size * element_bytes for size in flows.values()])

    def _tree(self, source, targets, first_edge):
        """Edges (link, parent, latency, delivers)."""
        edges, reached = [], {source: (-1, 0)}
        for target in sorted(targets, key=lambda node: (abs(node[1] - source[1]), node)):
            here = source
            for there in self._way(source, target):
                if there not in reached:
                    edge, latency = reached[here]
                    for link in self.hop(here, there):
                        latency += int(self.network.link_latency[link])
                        edges.append([link, edge, latency, False])
                        edge = first_edge + len(edges) - 1
                    edges[-1][3] = there in targets
                    reached[there] = (edge, latency)
                here = there
        return edges

    @staticmethod
    def _way(source, target):
        (r1, c1), (r2, c2) = source, target
        across, down = np.sign(c2 - c1), np.sign(r2 - r1)
        way = [(r1, c) for c in range(c1 + across, c2 + across, across or 1)] if across else []
        return way + ([(r, c2) for r in range(r1 + down, r2 + down, down)] if down else [])
