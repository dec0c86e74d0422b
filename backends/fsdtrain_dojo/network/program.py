"""A flow program under construction: flows are added one by one, in an order that they can wait in.

Knows no collective; `build` finds the routes of all flows at once and gives the `Traffic`.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from fsdtrain_dojo.network.routing import find_trees
from fsdtrain_dojo.network.topology import Topology
from fsdtrain_dojo.network.traffic import Traffic, make_traffic


class FlowProgram:
    """Flows with what each waits for; `add` gives a flow's number, to be waited for by later ones.

    `after`, `behind` and `delay` are those of `Traffic`.
    """

    def __init__(self) -> None:
        self._sources: list[int] = []
        self._targets: list[Sequence[int]] = []
        self._num_bytes: list[float] = []
        self._delay: list[float] = []
        self._after: list[tuple[int, int]] = []
        self._behind: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._sources)

    def add(
        self,
        source: int,
        targets: Sequence[int],
        num_bytes: float,
        *,
        after: Iterable[int] = (),
        behind: Iterable[int] = (),
        delay: float = 0.0,
    ) -> int:
        """Add a flow of `num_bytes` from a node to one or more; its number."""
        flow = len(self)
        self._sources.append(source)
        self._targets.append(targets)
        self._num_bytes.append(num_bytes)
        self._delay.append(delay)
        self._after.extend((earlier, flow) for earlier in after)
        self._behind.extend((earlier, flow) for earlier in behind)
        return flow

    def build(self, topology: Topology) -> Traffic:
        """The flows over their routes.

        Raises:
            BackendError: nodes that the mesh lacks or that cannot reach one another.
        """
        return make_traffic(
            find_trees(topology, self._sources, self._targets),
            np.array(self._num_bytes),
            delay=np.array(self._delay),
            after=self._after,
            behind=self._behind,
        )
