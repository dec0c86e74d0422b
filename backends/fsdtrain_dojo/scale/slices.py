"""One slice of a larger machine (a node, a die, a tile, a tray) as a machine of its own.

It knows no program and no collective: how slices are joined is `join.py`'s.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from math import prod

from fsdtrain_dojo.machine.node import Link
from fsdtrain_dojo.machine.schema import Interface, Level, Machine, Side, Topology
from fsdtrain_dojo.machine.totals import num_groups, num_interfaces, num_nodes
from fsdtrain_dojo.scale.grid import NODE, SliceGrid, lay_slices, level_depth, way_to_sides


def num_slices(machine: Machine, level_name: str) -> int:
    """How many slices of a level ("node": nodes) the machine has.

    Raises:
        BackendError: no such level, or its groups cannot stand alone.
    """
    depth = level_depth(machine, level_name)
    return num_nodes(machine) if depth < 0 else num_groups(machine, depth)


def slice_machine(machine: Machine, level_name: str, *, group: int = 0) -> Machine:
    """Group number `group` of a level, or a node, as a machine of its own.

    Missing members are those of the group. Power is shared out by nodes. Interfaces inside the
    group stay as they are. Those further out serve all slices: each slice gets its fair share of
    their memory, bandwidth, host and network links, as interfaces along the same sides that are
    slower and smaller by as much; a sixth of a tray with 20 interfaces gets 4, each 5/6 as large.
    The way from the slice that lies furthest inside to the nearest side with interfaces is added to
    their latency, the mean way of all slices to their energy. That traffic of others on this way
    slows a slice's own is not modelled: the interfaces' links are narrower than those they cross.

    Args:
        machine: the whole.
        level_name: of the slice; "node" for a single node.
        group: its number within a mesh, row by row within the group around it.

    Raises:
        BackendError: no such level, or its groups cannot stand alone.
    """
    depth = level_depth(machine, level_name)
    levels = tuple(_levels(machine, depth, group))
    share = 1 / num_slices(machine, level_name)
    grid = lay_slices(machine, level_name)
    names = [each.name for each in machine.levels]
    return replace(
        machine,
        levels=levels,
        interfaces=tuple(
            each
            if names.index(each.level) <= depth
            else _shared_interface(machine, each, share, grid, levels[-1])
            for each in machine.interfaces
        ),
        power=replace(
            machine.power,
            limit_watts=machine.power.limit_watts * share,
            idle_watts=machine.power.idle_watts * share,
        ),
        name=f"{machine.name}/{level_name}",
        summary=f"one {level_name} of {machine.name}, with its share of what all slices use",
    )


def _levels(machine: Machine, depth: int, group: int) -> Iterator[Level]:
    if depth < 0:
        yield Level(name=NODE, rows=1, columns=1, topology=Topology.MESH)
    for number, level in enumerate(machine.levels[: depth + 1]):
        inside = prod(each.num_places for each in machine.levels[number + 1 : depth + 1])
        first, count = group * inside, len(level.missing)
        turned = (level.missing[(first + each) % count] for each in range(min(inside, count)))
        yield replace(level, missing=tuple(turned))


def _shared_interface(
    machine: Machine, interface: Interface, share: float, grid: SliceGrid, level: Level
) -> Interface:
    """What one slice has of interfaces that hang further out; see `slice_machine`."""
    wanted = num_interfaces(machine, interface) * share
    num_sides = max(len(interface.sides), 1)
    count = math.ceil(wanted / num_sides - 1e-9)
    scale = wanted / (count * num_sides)
    latency, joules = _way_out(grid, interface.sides)

    def scaled(link: Link) -> Link:
        return replace(link, bytes_per_s=link.bytes_per_s * scale)

    memory = interface.memory
    link = scaled(interface.link)
    return replace(
        interface,
        level=level.name,
        count=count,
        link=replace(
            link,
            latency_s=link.latency_s + latency,
            joules_per_byte=link.joules_per_byte + joules,
        ),
        memory=memory
        and replace(
            memory,
            capacity_bytes=int(memory.capacity_bytes * scale),
            bytes_per_s=memory.bytes_per_s * scale,
            num_channels=max(1, round(memory.num_channels * scale)),
        ),
        host=interface.host and scaled(interface.host),
        network=interface.network and scaled(interface.network),
    )


def _way_out(grid: SliceGrid, sides: tuple[Side, ...]) -> tuple[float, float]:
    """From a slice to the interfaces' sides: the longest latency, the mean joules a byte."""
    if not sides:
        return 0.0, 0.0
    ways = [
        way_to_sides(grid, sides, row, column)
        for row in range(grid.rows)
        for column in range(grid.columns)
    ]
    return (
        max(sum(hop.latency_s for hop in way) for way in ways),
        sum(hop.joules_per_byte for way in ways for hop in way) / len(ways),
    )
