"""From loads of hops to the time of the busiest link, bytes by level, and joules."""

import math

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.hops import Hops

Floats = NDArray[np.float64]


def physical_loads(hops: Hops, forward: Floats, backward: Floats) -> Floats:
    """Load of every link of the mesh that hops loaded like this make."""
    load = np.concatenate([forward.ravel(), backward.ravel()])
    num_links = len(hops.link_seconds_per_byte)
    return np.bincount(hops.links, load[hops.hop_of_link], num_links).astype(np.float64)


def busiest_link_s(
    fabric: Fabric, east: Floats, west: Floats, south: Floats, north: Floats
) -> float:
    """Seconds that the busiest link needs for these bytes over hops."""
    assert fabric.along_rows is not None
    assert fabric.along_columns is not None
    load = physical_loads(fabric.along_rows, east, west)
    load += physical_loads(fabric.along_columns, south, north)
    return float((load * fabric.along_rows.link_seconds_per_byte).max(initial=0.0))


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


def first_packet_s(fabric: Fabric) -> float:
    """What a link takes for one packet, which latencies have in them already."""
    return fabric.packet_bytes / fabric.machine.node.edge.bytes_per_s
