"""What moves: flows over their routes, with sizes, start clocks and waits; and what became of it.

Both network models take a `Traffic` and give a `Delivery`. Knows no model. Clocks count from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsdtrain.backend import BackendError
from fsdtrain_dojo.network.routing import Routes
from fsdtrain_dojo.network.topology import Level, Topology

Pairs = Sequence[tuple[int, int]] | NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Traffic:
    """Flows and their order; arrays are indexed by flow.

    A flow starts at `start`, or once everything that it waits for has happened if that is later.
    `after` holds pairs (earlier, later): the later flow starts `delay[later]` clocks after the
    earlier one has been delivered to all its targets, as data that is computed with or passed on
    does. `behind` holds such pairs where the later one starts as soon as the earlier one has
    left its sender, as transfers in a queue do.
    """

    routes: Routes
    num_packets: NDArray[np.int64]
    start: NDArray[np.float64]
    delay: NDArray[np.float64]
    after: NDArray[np.int64]
    behind: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.routes)

    @cached_property
    def num_waits(self) -> NDArray[np.int64]:
        """For how many others a flow waits."""
        later = np.concatenate([self.after[:, 1], self.behind[:, 1]])
        return np.bincount(later, minlength=len(self)).astype(np.int64)


def make_traffic(
    routes: Routes,
    num_bytes: ArrayLike,
    *,
    start: ArrayLike = 0.0,
    delay: ArrayLike = 0.0,
    after: Pairs = (),
    behind: Pairs = (),
) -> Traffic:
    """Flows over `routes`, each argument per flow or one for all; bytes fill whole packets.

    Raises:
        BackendError: a flow without bytes, a negative clock, or a pair that names no flow or
            lets one wait for a later one in its list (waits must not go in circles).
    """
    count = len(routes)
    size = np.broadcast_to(np.asarray(num_bytes, np.float64), (count,))
    start_at, delays = (
        np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.float64), (count,)))
        for value in (start, delay)
    )
    if (size <= 0).any() or (start_at < 0).any() or (delays < 0).any():
        raise BackendError("flows need at least one byte, and clocks that are not negative")
    pairs = []
    for name, given in (("after", after), ("behind", behind)):
        pair = np.asarray(given, np.int64).reshape(-1, 2)
        if ((pair < 0) | (pair >= count)).any() or (pair[:, 0] >= pair[:, 1]).any():
            raise BackendError(f"{name} pairs flows of 0 to {count - 1}, the earlier one first")
        pairs.append(pair)
    return Traffic(
        routes=routes,
        num_packets=np.ceil(size / routes.topology.packet_bytes).astype(np.int64),
        start=start_at,
        delay=delays,
        after=pairs[0],
        behind=pairs[1],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Delivery:
    """When each flow started and was delivered, in clocks, and what moved.

    A flow is delivered when its last packet is at its last target: alone on the network, that is
    its start + latency + (packets - 1) at the rate of its slowest link. `link_packets` counts
    packets over each link, `sent` and `received` those that memories read and wrote per node.
    """

    topology: Topology
    start: NDArray[np.float64]
    finish: NDArray[np.float64]
    link_packets: NDArray[np.float64]
    sent: NDArray[np.float64]
    received: NDArray[np.float64]

    @property
    def makespan(self) -> float:
        """The clock at which the last flow is delivered; 0 without flows."""
        return float(self.finish.max(initial=0.0))

    @property
    def bytes_by_level(self) -> dict[Level, float]:
        """Bytes over the links of each level."""
        packets = np.bincount(self.topology.link_level, self.link_packets, len(Level))
        return {level: float(packets[level] * self.topology.packet_bytes) for level in Level}

    @property
    def link_utilisation(self) -> NDArray[np.float64]:
        """The share of the makespan that each link is busy for."""
        num_bytes = self.link_packets * self.topology.packet_bytes
        return num_bytes / (self.topology.link_bytes_per_clock * max(self.makespan, 1.0))
