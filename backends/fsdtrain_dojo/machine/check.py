"""Whether a machine's description contradicts itself.

`check_machine` raises for what cannot be; `remarks` tells what can be but wastes hardware. Both
know only the schema.
"""

from collections.abc import Iterator

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.node import Link, MatrixUnit, Node, PortKind, Stationary
from fsdtrain_dojo.machine.number_formats import FORMAT_BYTES
from fsdtrain_dojo.machine.schema import Interface, Level, Machine, Side, Topology

SUM_BYTES = 4  # sums leave a matrix unit as fp32
ROUNDING = 1e-9  # shares below this are rounding of the numbers, not a contradiction


def check_machine(machine: Machine) -> None:
    """Every contradiction of a machine, in one error.

    Raises:
        BackendError: with the numbers and what to change, one line each.
    """
    problems = list(_problems(machine))
    if problems:
        lines = "\n".join(f"- {each}" for each in problems)
        raise BackendError(f"machine {machine.name} contradicts itself:\n{lines}")


def _problems(machine: Machine) -> Iterator[str]:
    yield from _check_formats(machine.node)
    yield from _check_counts(machine)
    if machine.node.matrix is not None:
        for name in machine.node.matrix.macs_per_cycle:
            yield from _check_feed(machine.node, machine.node.matrix, name)
    for depth in range(len(machine.levels)):
        yield from _check_level(machine, depth)
    for interface in machine.interfaces:
        yield from _check_interface(machine, interface)
    if machine.power.idle_watts >= machine.power.limit_watts:
        yield (
            f"idle it takes {machine.power.idle_watts:g} W, its limit is "
            f"{machine.power.limit_watts:g} W: raise the limit or lower the idle share"
        )


def _check_formats(node: Node) -> Iterator[str]:
    rates = {name: ("vector lanes", rate) for name, rate in node.vector.lanes.items()}
    if not rates:
        yield "its vector unit has no format at all: give vector.lanes at least fp32"
    if node.matrix is not None:
        for name, rate in node.matrix.macs_per_cycle.items():
            if name not in node.vector.lanes:
                yield (
                    f"its matrix unit multiplies {name}, but its vector unit has no rate for it "
                    f"(it has {', '.join(node.formats)}): results could not be stored; give both"
                )
            if name not in node.matrix.joules_per_mac:
                yield f"its matrix unit has no energy for {name}: give matrix.joules_per_mac"
            rates[f"{name} "] = ("matrix multiply-adds a cycle", rate)
    for name, (what, rate) in rates.items():
        if name.strip() not in FORMAT_BYTES:
            yield f"format {name.strip()!r} is not known; known are {', '.join(FORMAT_BYTES)}"
        if not rate > 0:
            yield f"its rate for {name.strip()} is {rate:g} {what}: give a positive one"


def _check_counts(machine: Machine) -> Iterator[str]:
    node = machine.node
    numbers = {
        "clock of the node": node.clock_hz,
        "clock of the vector unit": node.vector.clock_hz,
        "special functions a cycle": node.vector.special_per_cycle,
        "local memory in bytes": node.memory.capacity_bytes,
        "accesses a cycle": node.memory.accesses_per_cycle,
    }
    if node.matrix is not None:
        matrix = node.matrix
        numbers |= {
            "clock of the matrix unit": matrix.clock_hz,
            "rows of the matrix unit": matrix.rows,
            "columns of the matrix unit": matrix.columns,
            "depth of the matrix unit": matrix.depth,
            "matrix units of a node": matrix.num_units,
        }
    for what, number in numbers.items():
        if not number > 0:
            yield f"{what}: {number:g}; give a positive number"
    for kind in (PortKind.LOAD, PortKind.STORE, PortKind.NETWORK_READ, PortKind.NETWORK_WRITE):
        if not node.memory.bytes_per_cycle(kind) > 0:
            yield f"the local memory moves 0 bytes a cycle for {kind.value}: give it such a port"


def _check_feed(node: Node, matrix: MatrixUnit, name: str) -> Iterator[str]:
    rates = (matrix.macs_per_cycle[name], matrix.clock_hz, node.clock_hz)
    sizes = (matrix.rows, matrix.columns, matrix.depth, matrix.num_units)
    if name not in FORMAT_BYTES or not all(each > 0 for each in (*rates, *sizes)):
        return  # told already
    seconds = matrix.step_cycles(name) / matrix.clock_hz
    streamed = matrix.rows * matrix.depth
    if matrix.stationary is Stationary.OUTPUT:
        streamed += matrix.depth * matrix.columns
    flows = [(PortKind.LOAD, streamed * FORMAT_BYTES[name])]
    if matrix.num_accumulators == 0:
        flows.append((PortKind.STORE, matrix.rows * matrix.columns * SUM_BYTES))
    for kind, step_bytes in flows:
        needed = step_bytes * matrix.num_units / seconds / node.clock_hz
        offered = node.memory.bytes_per_cycle(kind)
        if needed > offered * (1 + ROUNDING):
            yield (
                f"at its {name} rate of {matrix.macs_per_cycle[name]:g} multiply-adds a cycle the "
                f"matrix unit needs {needed:g} B a cycle of {kind.value} ports, which give "
                f"{offered:g}: lower the rate to {offered / needed:.0%} or widen the ports"
            )


def _check_level(machine: Machine, depth: int) -> Iterator[str]:
    level = machine.levels[depth]
    if level.rows < 1 or level.columns < 1:
        yield f"level {level.name} is {level.rows} x {level.columns}: give at least 1 x 1"
        return
    for absent in level.missing or ((),):
        outside = [
            each
            for each in absent
            if not (0 <= each[0] < level.rows and 0 <= each[1] < level.columns)
        ]
        if outside:
            yield (
                f"level {level.name} of {level.rows} x {level.columns} members misses {outside}, "
                "which lie outside of it"
            )
        if len(set(absent)) >= level.num_places:
            yield f"level {level.name} misses all of its {level.num_places} members: leave one"
    if not level.missing:
        yield f"level {level.name} has no pattern of missing members: an empty one is ((),)"
    if level.num_places > 1:
        yield from _check_joined(machine, depth)


def _check_joined(machine: Machine, depth: int) -> Iterator[str]:
    level = machine.levels[depth]
    if level.topology is Topology.NETWORK:
        if not any(each.network and each.network.bytes_per_s > 0 for each in machine.interfaces):
            yield (
                f"the {level.num_places} members of level {level.name} meet over the network, "
                "but no interface has a network link: give one bandwidth, or join them otherwise"
            )
        return
    name, edge = _member_edge(machine, depth)
    if edge is None or not edge.bytes_per_s > 0:
        given = "has none" if edge is None else f"has {edge.bytes_per_s:g} B/s"
        yield (
            f"the {level.num_places} members of level {level.name} meet over the edge of the "
            f"{name}, which {given}: bandwidth without a link; give the edge a bandwidth or make "
            f"the level 1 x 1"
        )
    elif edge.packet_bytes < 1:
        yield f"the edge of the {name} moves packets of {edge.packet_bytes} B: give at least 1"


def _member_edge(machine: Machine, depth: int) -> tuple[str, Link | None]:
    if depth == 0:
        return "node", machine.node.edge
    member: Level = machine.levels[depth - 1]
    return member.name, member.edge


def _check_interface(machine: Machine, interface: Interface) -> Iterator[str]:
    where = f"interface {interface.name}"
    level = next((each for each in machine.levels if each.name == interface.level), None)
    if level is None:
        names = ", ".join(each.name for each in machine.levels)
        yield f"{where} is attached to level {interface.level!r}, which is none of {names}"
        return
    if interface.sides and level.topology is not Topology.MESH:
        yield f"{where} hangs at sides of level {level.name}, which is no mesh: leave sides empty"
    if not interface.sides and level.topology is not Topology.SWITCH:
        yield f"{where} hangs at the switch of level {level.name}, which has none: give sides"
    if interface.count < 1:
        yield f"{where} has {interface.count} pieces: give at least 1, or leave it out"
    memory = interface.memory
    behind = {
        "memory": memory.bytes_per_s if memory else 0.0,
        "host": interface.host.bytes_per_s if interface.host else 0.0,
        "network": interface.network.bytes_per_s if interface.network else 0.0,
    }
    if not any(behind.values()):
        yield f"{where} has neither memory nor host nor network behind it: leave it out"
    if not interface.link.bytes_per_s > 0:
        rates = ", ".join(f"{what} {rate:g} B/s" for what, rate in behind.items() if rate)
        yield f"{where} has bandwidth without a link: {rates}, link 0 B/s; give its link bandwidth"
    if memory is not None and not memory.bytes_per_s > 0:
        yield f"{where} has {memory.capacity_bytes:g} B of memory at 0 B/s: give it bandwidth"
    if memory is not None and not (0 < memory.efficiency <= 1 and memory.num_channels > 0):
        yield (
            f"{where}: memory efficiency {memory.efficiency:g} must lie above 0 and up to 1, and "
            f"its {memory.num_channels} channels must be at least 1"
        )


def remarks(machine: Machine) -> tuple[str, ...]:
    """What is slower than a part of it promises, with numbers; empty if nothing is."""
    return tuple(_remarks(machine))


def _remarks(machine: Machine) -> Iterator[str]:
    for each in machine.interfaces:
        rate = each.memory.bytes_per_s if each.memory else 0.0
        if rate > each.link.bytes_per_s:
            yield (
                f"memory of {each.name} gives {rate:g} B/s, its link carries "
                f"{each.link.bytes_per_s:g}"
            )
    memory = machine.node.memory
    num_ports = sum(
        each.count for each in memory.ports if each.kind in (PortKind.LOAD, PortKind.STORE)
    )
    if memory.accesses_per_cycle < num_ports:
        yield (
            f"a node issues {memory.accesses_per_cycle} accesses a cycle for {num_ports} load and "
            "store ports: they cannot all work in every cycle"
        )
    for outer, inner in zip(machine.levels[1:], machine.levels[:-1], strict=True):
        if outer.topology is not Topology.MESH or machine.levels.index(inner) > 0:
            continue
        for side in (Side.SOUTH, Side.EAST):
            inside = inner.num_along(side) * machine.node.edge.bytes_per_s
            if inner.side_bytes_per_s(side) < inside:
                yield (
                    f"the {side.value} edge of a {inner.name} carries "
                    f"{inner.side_bytes_per_s(side):g} B/s, the links that end there {inside:g}"
                )
