"""From loads of hops to the time of the busiest link, bytes by level, and joules."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.link_kernel import add_loads, busiest

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Busy:
    """The busiest of several resources: for how long, and for how long after its first packet.

    Latencies have a packet's own time in them, so it is the latter that comes on top of them.
    """

    seconds: float
    after_first_s: float

    def __or__(self, other: "Busy") -> "Busy":
        return Busy(
            seconds=max(self.seconds, other.seconds),
            after_first_s=max(self.after_first_s, other.after_first_s),
        )


def busiest_link(
    fabric: Fabric, east: Floats, west: Floats, south: Floats, north: Floats, scale: float
) -> Busy:
    """The link that needs longest for loads of hops, of `scale` bytes each."""
    assert fabric.along_rows is not None
    assert fabric.along_columns is not None
    byte_s = fabric.along_rows.link_seconds_per_byte
    load = np.zeros(len(byte_s))
    for hops, forward, backward in (
        (fabric.along_rows, east, west),
        (fabric.along_columns, south, north),
    ):
        add_loads(load, hops.links, hops.offsets, forward.ravel(), backward.ravel())
    seconds, after_first = busiest(load, byte_s, scale, float(fabric.packet_bytes))
    return Busy(seconds=seconds, after_first_s=after_first)


def busiest_port(fabric: Fabric, most_bytes: float, bytes_per_s: float) -> Busy:
    """A node's port to the network, given what it moves at most."""
    return Busy(
        seconds=most_bytes / bytes_per_s,
        after_first_s=max(most_bytes - fabric.packet_bytes, 0.0) / bytes_per_s,
    )


def over_hops(
    fabric: Fabric, east: Floats, west: Floats, south: Floats, north: Floats
) -> tuple[dict[str, float], float]:
    """Bytes by level, each counted on every link that it crosses, and their joules."""
    num_bytes: dict[str, float] = {}
    joules = 0.0
    for hops, load in ((fabric.along_rows, east + west), (fabric.along_columns, south + north)):
        assert hops is not None
        for level, num_links in hops.num_links.items():
            num_bytes[level] = num_bytes.get(level, 0.0) + float(np.vdot(load, num_links))
        joules += float(np.vdot(load, hops.joules_per_byte))
    return {level: size for level, size in num_bytes.items() if size}, joules


def packet_waste(fabric: Fabric, message_bytes: float) -> float:
    """By how much whole packets are larger than messages of this size; 1 or more."""
    if message_bytes <= 0:
        return 1.0
    packets = math.ceil(message_bytes / fabric.packet_bytes)
    return packets * fabric.packet_bytes / message_bytes
