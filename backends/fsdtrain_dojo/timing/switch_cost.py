"""Loads and stores of nodes at switches: out of the memory behind them, through their caches.

Every node's bytes cross its link and every switch on the way out. A cache gives again what other
nodes of its switch have just asked for. Bytes, seconds, joules; MODELLED.
"""

import numpy as np

from fsdtrain_dojo.lowering.mapping import Boxes
from fsdtrain_dojo.timing.box_axes import SplitBoxes
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.memory_cost import access_waste
from fsdtrain_dojo.timing.switch_stages import SwitchStage


def cost_switch(
    fabric: Fabric,
    split: SplitBoxes,
    element_bytes: float,
    *,
    is_load: bool,
    is_reduction: bool = False,
    share: float = 1.0,
    resident_share: float = 0.0,
) -> TransferCost:
    """From the memory to the nodes, or from them; arguments as in `cost_transfer`.

    Of nodes that hold the same, one stores it. Partial results are all sent, and added in the
    innermost cache.
    """
    memory = fabric.memory
    assert memory is not None, "nodes at a switch work on values in memory"
    boxes = split.boxes
    by_node = boxes.num_elements.ravel() * (element_bytes * share)
    waste = access_waste(boxes, element_bytes, memory.access_bytes, is_gather=share != 1.0)
    total = float(by_node.sum())
    unique = min(total, _union(boxes) * element_bytes)
    if not is_load and not is_reduction and total:
        by_node = by_node * (unique / total)
    return _cost(
        fabric, by_node, unique, resident_share if is_load else 0.0, waste, is_load=is_load
    )


def _union(boxes: Boxes) -> float:
    """Elements that any node needs: of all boxes that differ, at most of the box around all."""
    count = len(boxes.busy.ravel())
    sides = []
    around = 1
    for first, end in zip(boxes.first, boxes.end, strict=True):
        begin = np.broadcast_to(first, boxes.grid).ravel()
        stop = np.broadcast_to(end, boxes.grid).ravel()
        around *= max(int(stop.max()) - int(begin.min()), 0)
        sides += [begin, stop]
    if not sides:
        return 1.0
    distinct = np.unique(np.stack(sides), axis=1) if count else np.zeros((len(sides), 0))
    extents = np.maximum(distinct[1::2] - distinct[::2], 0)
    return float(min(around, extents.prod(axis=0).sum()))


def _cost(
    fabric: Fabric,
    by_node: np.ndarray,
    unique: float,
    resident_share: float,
    waste: float,
    *,
    is_load: bool,
) -> TransferCost:
    memory = fabric.memory
    assert memory is not None
    total = float(by_node.sum())
    if total == 0:
        return TransferCost(seconds=0.0, latency_s=0.0)
    latency_s = memory.latency_s * (resident_share < 1)
    link_s, joules, asked = 0.0, fabric.sram_joules_per_byte * total, total
    num_bytes: dict[str, float] = {"node link": total, "shared memory": 0.0}
    busiest = float(by_node.max())
    for number, stage in enumerate(fabric.stages):
        latency_s += stage.link_latency_s + stage.latency_s
        link_s = max(link_s, busiest / stage.link_bytes_per_s)
        joules += asked * stage.link_joules_per_byte
        if number:
            num_bytes["switch link"] = num_bytes.get("switch link", 0.0) + asked
        if stage.capacity_bytes:
            # One read may reach several nodes; each thing is read once at least.
            read = max(asked / stage.num_served, min(asked, unique)) if is_load else asked
            in_group = read / _groups_used(fabric, number, by_node)
            link_s = max(link_s, in_group / stage.bytes_per_s)
            joules += read * stage.joules_per_byte
            num_bytes["shared memory"] += read
            asked = _missed(stage, asked, unique)
            busiest = asked / _groups_used(fabric, number, by_node)
    outside = asked * (1 - resident_share) * waste
    num_bytes["HBM"] = outside
    joules += outside * (memory.joules_per_byte + memory.link_joules_per_byte)
    memory_s = outside / memory.bytes_per_s
    ports_s = float(by_node.max()) / min(fabric.receive_bytes_per_s, fabric.send_bytes_per_s)
    link_s = max(link_s, ports_s)
    return TransferCost(
        seconds=latency_s + max(link_s, memory_s),
        latency_s=latency_s,
        busy_s={Resource.LINK: link_s, Resource.HBM: memory_s},
        num_bytes={level: size for level, size in num_bytes.items() if size},
        joules=joules,
        moved_bytes=total,
    )


def _groups_used(fabric: Fabric, number: int, by_node: np.ndarray) -> int:
    """Switches of this stage that have a node with something to move."""
    stage = fabric.stages[number]
    return int((by_node.reshape(stage.num_groups, -1).sum(1) > 0).sum())


def _missed(stage: SwitchStage, asked: float, unique: float) -> float:
    """Bytes that a stage's caches ask for further out: each of them everything once.

    Nodes that need the same work on it at about the same time, so it does not have to stay. What
    one node needs again later is counted by `overlap`, which knows how much lies in between.
    """
    return min(asked, unique * stage.num_groups)
