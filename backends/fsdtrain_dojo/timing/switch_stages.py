"""The switches between a node and the memory outside, and the caches behind them."""

from dataclasses import dataclass

from fsdtrain_dojo.machine.node import Link
from fsdtrain_dojo.machine.schema import Machine, Topology


@dataclass(frozen=True, kw_only=True)
class SwitchStage:
    """One switch on the way from a node to the memory, innermost first, and the cache behind it.

    Args:
        num_groups: such switches in the machine.
        link_bytes_per_s: of each member's link to the switch, each way.
        link_latency_s: of that link.
        link_joules_per_byte: of that link.
        num_members: links of one switch.
        capacity_bytes: of the cache of one switch; 0: it has none.
        bytes_per_s: of that cache.
        latency_s: of that cache.
        joules_per_byte: of that cache.
        num_served: nodes that one read of it reaches where they ask for the same together.
    """

    num_groups: int
    link_bytes_per_s: float
    link_latency_s: float
    link_joules_per_byte: float
    num_members: int
    capacity_bytes: float = 0.0
    bytes_per_s: float = float("inf")
    latency_s: float = 0.0
    joules_per_byte: float = 0.0
    num_served: int = 1


def find_stages(machine: Machine) -> tuple[SwitchStage, ...]:
    """From the nodes outwards."""
    stages: list[SwitchStage] = []
    link: Link | None = machine.node.edge
    num_groups = 1
    for level in machine.levels[1:]:
        num_groups *= level.num_places if level.topology is Topology.SWITCH else 1
    for depth, level in enumerate(machine.levels):
        if level.topology is not Topology.SWITCH or link is None:
            break
        cache = level.shared_memory
        stages.append(
            SwitchStage(
                num_groups=num_groups,
                link_bytes_per_s=link.bytes_per_s,
                link_latency_s=link.latency_s,
                link_joules_per_byte=link.joules_per_byte,
                num_members=level.num_places - len(level.missing[0]),
                capacity_bytes=cache.capacity_bytes if cache else 0.0,
                bytes_per_s=cache.bytes_per_s if cache else float("inf"),
                latency_s=cache.latency_s if cache else 0.0,
                joules_per_byte=cache.joules_per_byte if cache else 0.0,
                num_served=cache.num_served if cache else 1,
            )
        )
        link = level.edge
        if depth + 1 < len(machine.levels):
            num_groups //= machine.levels[depth + 1].num_places
    return tuple(stages)
