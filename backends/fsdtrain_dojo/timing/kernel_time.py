"""Time, traffic and energy of one step of a tile program, started when nothing else runs.

    seconds = op start + first loads | steps: loads, units and stores overlap | last stores

The busiest node decides. Transfers come as costs; this module knows nothing of routes, and the
schedule of a whole program nothing of nodes. All figures are MODELLED.
"""

from collections.abc import Mapping, Sequence

from fsdtrain_dojo.lowering.candidates import largest_share
from fsdtrain_dojo.lowering.kernel import Value
from fsdtrain_dojo.lowering.mapping import Mapping as NodeMapping
from fsdtrain_dojo.lowering.program import Pattern, Step
from fsdtrain_dojo.timing.cost import Bound, KernelTime, Resource, TransferCost
from fsdtrain_dojo.timing.energy import compute_joules, transfer_joules
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.kernel_work import Work, describe_work, keeps_sums, nodes_time
from fsdtrain_dojo.timing.node_rates import NodeTime
from fsdtrain_dojo.timing.overlap import Overlap, overlap
from fsdtrain_dojo.timing.roofline import least_seconds, matrix_share
from fsdtrain_dojo.timing.step_loads import DOUBLE, plan_steps

BUSY_SHARE = 0.5  # of the time: what is busy for less does not bind
IMBALANCED = 2.0  # work of the busiest node over that of the mean node
_NODE_RESOURCES = (Resource.MATRIX, Resource.VECTOR, Resource.SRAM_PORT)


def time_kernel(
    fabric: Fabric,
    step: Step,
    load_costs: Sequence[TransferCost],
    store_costs: Sequence[TransferCost],
    values: Mapping[str, Value],
) -> KernelTime:
    """Of one step by itself.

    Args:
        fabric: what it runs on.
        step: the kernel in its place.
        load_costs: of `step.loads`, each box of a node loaded once; what small steps load again
            is counted here.
        store_costs: of `step.stores`.
        values: by name.
    """
    kernel, mapping, node = step.kernel, step.mapping, fabric.machine.node
    work = describe_work(kernel, values)
    sizes = largest_share(kernel, mapping)
    local = {each.value for each in (*step.loads, *step.stores) if each.pattern is Pattern.LOCAL}
    plan = plan_steps(
        work,
        sizes,
        mapping.steps,
        room_bytes=0 if step.is_chained else step.working_bytes,
        local_reads=[each.value in local for each in work.reads],
        local_writes=[each.value in local for each in work.writes],
        is_partial=is_partial(work, mapping),
        keeps_sums=keeps_sums(node, work, sizes, mapping.steps),
        buffers=step.buffers if step.mapping.num_steps > 1 else DOUBLE,
    )
    units = nodes_time(node, work, sizes, mapping.steps)
    found = overlap(plan, units.seconds, load_costs, store_costs, cache_bytes(fabric))
    start = fabric.machine.op_start_s
    seconds = start + found.seconds
    busy = _all_busy(units, found)
    # Work of all nodes, from that of the busiest one: SRAM traffic goes with the points.
    share = _mean_share(fabric, work, mapping.is_everywhere, sizes)
    sram_bytes = units.sram_bytes * share * fabric.num_nodes
    copies = fabric.num_nodes if mapping.is_everywhere else 1
    return KernelTime(
        seconds=seconds,
        busy_s=busy,
        bound=_find_bound(busy, seconds, share),
        roofline_s=least_seconds(fabric, work, load_costs, store_costs, values),
        matrix_share=matrix_share(fabric, work, seconds),
        num_bytes=_all_bytes(found, load_costs, store_costs) | {"SRAM": sram_bytes},
        joules=compute_joules(node, work) * copies
        + sram_bytes * node.memory.joules_per_byte
        + transfer_joules(load_costs, [inside for _, inside in found.times])
        + transfer_joules(store_costs, [1.0] * len(store_costs)),
        fill_s=start + found.fill_s,
    )


def cache_bytes(fabric: Fabric) -> float:
    """Of the caches of one level between the memory outside and the nodes; the largest level."""
    return max((each.capacity_bytes * each.num_groups for each in fabric.stages), default=0.0)


def is_partial(work: Work, mapping: NodeMapping) -> bool:
    """Whether a node's results are sums of a part of a reduction, which others finish."""
    return any(part.loop in work.reductions for part in (*mapping.rows, *mapping.columns))


def _mean_share(fabric: Fabric, work: Work, is_everywhere: bool, sizes: Sequence[int]) -> float:
    """Points of the mean node over those of the busiest one."""
    if is_everywhere:
        return 1.0
    share = 1.0 / fabric.num_nodes
    for whole, own in zip(work.sizes, sizes, strict=True):
        share *= whole / max(own, 1)
    return min(share, 1.0)


def _all_busy(units: NodeTime, found: Overlap) -> dict[Resource, float]:
    busy = dict(found.busy_s)
    busy[Resource.MATRIX] = units.matrix_s
    busy[Resource.VECTOR] = busy.get(Resource.VECTOR, 0.0) + units.vector_s
    # The network has ports of its own.
    busy[Resource.SRAM_PORT] = max(busy.get(Resource.SRAM_PORT, 0.0), units.port_s)
    return {resource: seconds for resource, seconds in busy.items() if seconds > 0}


def _find_bound(busy: Mapping[Resource, float], seconds: float, mean_share: float) -> Bound:
    if not busy:
        return Bound.LATENCY
    most = max(busy, key=lambda each: busy[each])
    if busy[most] < BUSY_SHARE * seconds:
        return Bound.LATENCY
    if most in _NODE_RESOURCES and mean_share * IMBALANCED <= 1:
        return Bound.IMBALANCE
    return Bound(most.value)


def _all_bytes(
    found: Overlap, load_costs: Sequence[TransferCost], store_costs: Sequence[TransferCost]
) -> dict[str, float]:
    total: dict[str, float] = {}
    stores = ((cost, (1.0, 1.0)) for cost in store_costs)
    for cost, (outside, inside) in (*zip(load_costs, found.times, strict=True), *stores):
        for level, count in cost.num_bytes.items():
            times = outside if level == Resource.HBM.value else inside
            total[level] = total.get(level, 0.0) + count * times
    return total
