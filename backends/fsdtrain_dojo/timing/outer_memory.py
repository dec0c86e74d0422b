"""All memory outside the nodes of a mesh or a switch, taken as one: values are striped over it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.machine.layout import MeshLayout
from fsdtrain_dojo.machine.schema import Machine, Side

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OuterMemory:
    """All memory of one mesh (of one switch) outside its nodes, taken as one; values are striped.

    Args:
        capacity_bytes: of all of it.
        bytes_per_s: that long streams reach, links to the interfaces included.
        peak_bytes_per_s: of the memory itself.
        latency_s: of the memory and the link to it.
        access_bytes: the least that one access moves.
        joules_per_byte: of the memory.
        link_joules_per_byte: from the memory to the first node or the switch.
        num_interfaces: of equal rate.
        shares: of the rate, by the side of the mesh; empty at a switch.
        fed: logical row (interfaces west or east) or column (north or south) -> number of the
            interface in front of it, by side.
    """

    capacity_bytes: float
    bytes_per_s: float
    peak_bytes_per_s: float
    latency_s: float
    access_bytes: int
    joules_per_byte: float
    link_joules_per_byte: float
    num_interfaces: int
    shares: dict[Side, float] = field(default_factory=dict)
    fed: dict[Side, Ints] = field(default_factory=dict)


def mesh_memory(layout: MeshLayout, node_row: Ints, node_column: Ints) -> OuterMemory | None:
    """That of one mesh whose logical grid lies at these places; None where there is none."""
    sites = [site for site in layout.sites if site.interface.memory is not None]
    if not sites:
        return None
    memories = [site.interface.memory for site in sites if site.interface.memory is not None]
    rates = [
        min(memory.bytes_per_s * memory.efficiency, site.interface.link.bytes_per_s)
        for memory, site in zip(memories, sites, strict=True)
    ]
    total = sum(rates)
    shares: dict[Side, float] = {}
    fed: dict[Side, Ints] = {}
    for number, (site, rate) in enumerate(zip(sites, rates, strict=True)):
        is_row = site.side in (Side.WEST, Side.EAST)
        shares[site.side] = shares.get(site.side, 0.0) + rate / total
        line = {
            Side.WEST: node_row[:, 0],
            Side.EAST: node_row[:, -1],
            Side.NORTH: node_column[0],
            Side.SOUTH: node_column[-1],
        }[site.side]
        mine = [place[0] if is_row else place[1] for place in site.nodes]
        fed.setdefault(site.side, np.full(len(line), number))[np.isin(line, mine)] = number
    return OuterMemory(
        capacity_bytes=sum(memory.capacity_bytes for memory in memories),
        bytes_per_s=total,
        peak_bytes_per_s=sum(memory.bytes_per_s for memory in memories),
        latency_s=max(
            memory.latency_s + site.interface.link.latency_s
            for memory, site in zip(memories, sites, strict=True)
        ),
        access_bytes=max(memory.access_bytes for memory in memories),
        joules_per_byte=_mean([memory.joules_per_byte for memory in memories], rates),
        link_joules_per_byte=_mean([site.interface.link.joules_per_byte for site in sites], rates),
        num_interfaces=len(sites),
        shares=shares,
        fed=fed,
    )


def switch_memory(machine: Machine) -> OuterMemory | None:
    """That behind the switch; None where there is none."""
    kinds = [each for each in machine.interfaces if each.memory is not None]
    if not kinds:
        return None
    memories = [(each, each.memory, each.count) for each in kinds if each.memory is not None]
    rates = [
        count * min(memory.bytes_per_s * memory.efficiency, each.link.bytes_per_s)
        for each, memory, count in memories
    ]
    return OuterMemory(
        capacity_bytes=sum(count * memory.capacity_bytes for _, memory, count in memories),
        bytes_per_s=sum(rates),
        peak_bytes_per_s=sum(count * memory.bytes_per_s for _, memory, count in memories),
        latency_s=max(memory.latency_s + each.link.latency_s for each, memory, _ in memories),
        access_bytes=max(memory.access_bytes for _, memory, _ in memories),
        joules_per_byte=_mean([memory.joules_per_byte for _, memory, _ in memories], rates),
        link_joules_per_byte=_mean([each.link.joules_per_byte for each, _, _ in memories], rates),
        num_interfaces=sum(count for _, _, count in memories),
    )


def _mean(values: list[float], weights: list[float]) -> float:
    return float(np.average(values, weights=weights))
