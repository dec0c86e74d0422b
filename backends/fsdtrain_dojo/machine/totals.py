"""What a machine amounts to: counts, peaks, capacities, bandwidths. All figures are MODELLED.

Pure functions of the description. They do not know whether it makes sense; see `check.py`.
"""

from dataclasses import dataclass

from fsdtrain_dojo.machine.schema import Interface, Level, Machine, Side, Topology


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Of the whole machine; bandwidths in bytes a second.

    Args:
        num_nodes: present ones.
        matmul_flops_per_s: peak of matrix products by format.
        vector_flops_per_s: peak of the vector units by format.
        sram_bytes: of all nodes' local memories.
        shared_bytes: of all shared memories.
        memory_bytes: outside the nodes.
        memory_bytes_per_s: peak.
        interface_bytes_per_s: of the interfaces' links into the machine, one direction.
        host_bytes_per_s: one direction.
        network_bytes_per_s: one direction.
        bisection_bytes_per_s: one direction; see `bisection_bytes_per_s`.
        edge_bytes_per_s: over all four sides, both directions; 0 where nothing leaves.
        limit_watts: of power.
    """

    num_nodes: int
    matmul_flops_per_s: dict[str, float]
    vector_flops_per_s: dict[str, float]
    sram_bytes: int
    shared_bytes: int
    memory_bytes: int
    memory_bytes_per_s: float
    interface_bytes_per_s: float
    host_bytes_per_s: float
    network_bytes_per_s: float
    bisection_bytes_per_s: float
    edge_bytes_per_s: float
    limit_watts: float


def totals(machine: Machine) -> Totals:
    """All of them."""
    node, nodes = machine.node, num_nodes(machine)
    counted = [(each, num_interfaces(machine, each)) for each in machine.interfaces]
    formats = {*node.formats, *(node.matrix.macs_per_cycle if node.matrix else ())}
    return Totals(
        num_nodes=nodes,
        matmul_flops_per_s={
            name: nodes * node.matmul_flops_per_s(name) for name in sorted(formats)
        },
        vector_flops_per_s={name: nodes * node.vector_flops_per_s(name) for name in node.formats},
        sram_bytes=nodes * node.memory.capacity_bytes,
        shared_bytes=sum(
            num_groups(machine, depth) * level.shared_memory.capacity_bytes
            for depth, level in enumerate(machine.levels)
            if level.shared_memory
        ),
        memory_bytes=sum(
            count * each.memory.capacity_bytes for each, count in counted if each.memory
        ),
        memory_bytes_per_s=sum(
            count * each.memory.bytes_per_s for each, count in counted if each.memory
        ),
        interface_bytes_per_s=sum(count * each.link.bytes_per_s for each, count in counted),
        host_bytes_per_s=sum(count * each.host.bytes_per_s for each, count in counted if each.host),
        network_bytes_per_s=sum(
            count * each.network.bytes_per_s for each, count in counted if each.network
        ),
        bisection_bytes_per_s=bisection_bytes_per_s(machine),
        edge_bytes_per_s=2 * sum(machine.levels[-1].side_bytes_per_s(side) for side in Side),
        limit_watts=machine.power.limit_watts,
    )


def num_groups(machine: Machine, depth: int) -> int:
    """Groups of level `depth` in the whole machine, absent members of outer levels left out."""
    count = 1
    for outer in range(len(machine.levels) - 1, depth, -1):
        count = count * machine.levels[outer].num_places - _num_missing(
            machine.levels[outer], count
        )
    return count


def num_nodes(machine: Machine) -> int:
    """Nodes that are present."""
    return num_groups(machine, -1)


def _num_missing(level: Level, num_of_groups: int) -> int:
    rounds, rest = divmod(num_of_groups, len(level.missing))
    sizes = [len(each) for each in level.missing]
    return rounds * sum(sizes) + sum(sizes[:rest])


def num_interfaces(machine: Machine, interface: Interface) -> int:
    """How many of a kind the whole machine has."""
    depth = [level.name for level in machine.levels].index(interface.level)
    return num_groups(machine, depth) * max(len(interface.sides), 1) * interface.count


def bisection_bytes_per_s(machine: Machine, level_name: str | None = None) -> float:
    """What a group of a level (default: the outermost) can move between its halves, one direction.

    In a mesh, over the straight cut that divides its members most evenly, the narrower one if
    two do; through a switch or a network, half of the members' links.
    """
    level = machine.level(level_name) if level_name else machine.levels[-1]
    depth = machine.levels.index(level)
    if level.num_places == 1:
        return 0.0
    if level.topology is Topology.MESH:
        cuts = []
        for length, side in ((level.rows, Side.SOUTH), (level.columns, Side.EAST)):
            if length > 1:
                width = level.num_along(side) * _member_bytes_per_s(machine, depth, side)
                cuts.append((length % 2 * level.num_along(side), width))
        return min(cuts)[1]
    return level.num_places // 2 * _member_bytes_per_s(machine, depth, Side.EAST)


def _member_bytes_per_s(machine: Machine, depth: int, side: Side) -> float:
    """What leaves one member of a level, one direction: over a side, or to the switch."""
    if machine.levels[depth].topology is Topology.NETWORK:
        num_members = num_groups(machine, depth - 1)
        of_all = sum(
            num_interfaces(machine, each) * each.network.bytes_per_s
            for each in machine.interfaces
            if each.network
        )
        return of_all / num_members
    if depth == 0:
        return machine.node.edge.bytes_per_s
    member = machine.levels[depth - 1]
    if machine.levels[depth].topology is Topology.SWITCH:
        return member.edge.bytes_per_s if member.edge else 0.0
    return member.side_bytes_per_s(side)


def corner_to_corner(machine: Machine) -> dict[str, int]:
    """Links on a shortest way between opposite corners of the mesh, by what they leave.

    "node" counts links between nodes of one group, the other keys those between groups of that
    name. Missing nodes are taken to lie elsewhere.
    """
    mesh = [level for level in machine.levels if level.topology is Topology.MESH]
    names = ["node", *(level.name for level in mesh)][: len(mesh)]
    counts: dict[str, int] = {}
    rows = columns = 1
    num_outer = 0  # borders between larger groups, which are borders between smaller ones too
    for name, level in zip(reversed(names), reversed(mesh), strict=True):
        rows, columns = rows * level.rows, columns * level.columns
        counts[name] = rows + columns - 2 - num_outer
        num_outer += counts[name]
    return counts


def corner_latency_s(machine: Machine) -> float:
    """Latency of the links of `corner_to_corner`."""
    links = {"node": machine.node.edge, **{each.name: each.edge for each in machine.levels}}
    return sum(
        count * link.latency_s
        for name, count in corner_to_corner(machine).items()
        if (link := links[name]) is not None
    )
