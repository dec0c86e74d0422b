"""What a transfer or a kernel costs: how long each resource is busy, and what that adds up to.

All figures are MODELLED. Seconds, bytes, joules.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property


class Resource(Enum):
    """What can be busy, and so what a kernel can be bound by."""

    MATRIX = "matrix"
    VECTOR = "vector"
    SRAM_PORT = "SRAM port"
    LINK = "link"  # of the mesh or switch, or a node's port to it
    HBM = "HBM"
    NETWORK = "network"  # between machines: TTPoE, NVLink

    # Members are compared by identity; Enum's own hash takes a call of Python for each look-up.
    __hash__ = object.__hash__


class Bound(Enum):
    """Why a kernel does not end sooner."""

    MATRIX = "matrix"
    VECTOR = "vector"
    SRAM_PORT = "SRAM port"
    LINK = "link"
    HBM = "HBM"
    NETWORK = "network"
    LATENCY = "latency"  # none of these is busy for half of the time
    IMBALANCE = "imbalance"  # the busiest node has twice the work of the mean node, or more


@dataclass(frozen=True, kw_only=True)
class TransferCost:
    """Of one transfer by itself.

    Args:
        seconds: from the start to the last byte's arrival, with latency.
        latency_s: of the longest way, which is in `seconds`.
        busy_s: for how long the busiest instance of each resource is busy.
        num_bytes: by level: "node link", "die edge", "tile edge", "shared memory", "HBM", ...; a
            byte counts for every link that it crosses.
        joules: of moving these.
        moved_bytes: that arrive at a node which had not got them.
    """

    seconds: float
    latency_s: float
    busy_s: Mapping[Resource, float] = field(default_factory=dict)
    num_bytes: Mapping[str, float] = field(default_factory=dict)
    joules: float = 0.0
    moved_bytes: float = 0.0

    @cached_property
    def shares(self) -> tuple[float, float, float]:
        """Seconds: without latency; that HBM is busy; that the busiest other resource is."""
        hbm = self.busy_s.get(Resource.HBM, 0.0)
        others = [s for resource, s in self.busy_s.items() if resource is not Resource.HBM]
        return max(self.seconds - self.latency_s, 0.0), hbm, max(others, default=0.0)


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """Of one step of the program by itself, started when nothing else runs.

    Args:
        seconds: from its start to its results in place.
        busy_s: for how long the busiest instance of each resource is busy.
        bound: see `Bound`.
        roofline_s: the least that work and unavoidable traffic allow with all nodes of the
            machine busy: max over peak rates and HBM bandwidth; never above `seconds`.
        matrix_share: share of the machine's peak multiply-adds that `seconds` uses.
        num_bytes: see `TransferCost`; and "SRAM", read and written by the units.
        joules: of all that moves and computes; idle power is the machine's, not a kernel's.
        fill_s: part of `seconds` before the units begin and after they end.
    """

    seconds: float
    busy_s: Mapping[Resource, float]
    bound: Bound
    roofline_s: float
    matrix_share: float
    num_bytes: Mapping[str, float]
    joules: float
    fill_s: float
