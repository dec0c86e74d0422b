"""How transfers and computing overlap over the steps of one kernel. MODELLED; seconds.

With two buffers the loads of a step go on while the step before is computed. What stays exposed:
the loads of the first step and the stores of the last one, with their latencies; loads that a later
step waits for (an operand loaded during the first sweep over it, then held); and the wait of each
step for its turn of a buffer, where steps are short beside latency.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.step_loads import DOUBLE, StepPlan


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Of one kernel on its busiest node.

    Args:
        seconds: from the first load to the last store.
        fill_s: of it before computing begins and after it ends.
        busy_s: of transfers, by resource.
        times: how often each load's bytes move in all, by level of memory: outside the cache, then
            elsewhere.
    """

    seconds: float
    fill_s: float
    busy_s: dict[Resource, float] = field(default_factory=dict)
    times: tuple[tuple[float, float], ...] = ()


def overlap(
    plan: StepPlan,
    compute_s: float,
    load_costs: Sequence[TransferCost],
    store_costs: Sequence[TransferCost],
    cache_bytes: float,
) -> Overlap:
    """How long a kernel takes.

    Args:
        plan: its steps.
        compute_s: of all steps together.
        load_costs: each for loading an operand's whole box once, by `StepPlan.reads`.
        store_costs: each for all of a result, by `StepPlan.write_pieces`.
        cache_bytes: of caches between the memory outside and the nodes; 0: there are none.
    """
    missed = _missed_share(load_costs, cache_bytes)
    levels = range(len(plan.counts) + 1)  # the last one: the first step of all
    parts = [_loaded(plan, load_costs, level, missed) for level in levels]
    all_loads, first = parts[0], parts[-1]
    all_stores = [(cost, 1.0, 1.0) for cost in store_costs]
    last = [
        (cost, 1 / pieces, 1 / pieces)
        for cost, pieces in zip(store_costs, plan.write_pieces, strict=True)
    ]
    steps = plan.num_steps
    step_s = compute_s / steps
    load_s, first_s, last_s = _duration(all_loads), _duration(first), _duration(last)
    into = max((cost.latency_s for cost in load_costs), default=0.0)
    out = max((cost.latency_s for cost in store_costs), default=0.0)
    # What can be computed only after the loads of a whole sweep.
    computed = max(
        _duration(parts[level]) + (steps - prod(plan.counts[level:]) + 1) * step_s
        for level in levels
    )
    rounds = max((visits.loads[0] for visits in plan.reads), default=0)
    seconds = 0.0
    if plan.buffers == 1 and steps > 1:
        # One thing after another, and each piece waited for.
        stores_s, sent = _duration(all_stores), max(plan.write_pieces, default=0)
        seconds = rounds * into + load_s + compute_s + stores_s + sent * out
    elif rounds > 1:
        # Each buffer is filled, waited for, used; the two take turns, one load apart.
        computed = max(computed, (compute_s + load_s + rounds * into) / 2 + first_s - into)
    stored = max(computed + last_s, first_s + step_s + _duration(all_stores))
    # Both directions share what they share. It rests while the last step is on its way and is
    # computed, but for stores of the steps before, which have waited for the loads.
    rest_s = max(into + step_s - min(steps - 1, DOUBLE) * last_s, 0.0)
    moved = _duration([*all_loads, *all_stores]) + rest_s
    return Overlap(
        seconds=max(seconds, max(into + stored, moved) + out),
        fill_s=into + first_s + last_s + out,
        busy_s=_busy([*all_loads, *all_stores]),
        times=tuple((outside, inside) for _, outside, inside in all_loads),
    )


_Amount = tuple[TransferCost, float, float]  # how often: outside of caches, elsewhere


def _loaded(
    plan: StepPlan, costs: Sequence[TransferCost], level: int, missed: float
) -> list[_Amount]:
    found = []
    for visits, cost in zip(plan.reads, costs, strict=True):
        if level and not cost.seconds:
            continue  # `times` counts all of them, at level 0
        loads = visits.loads[level]
        again = max(loads - visits.pieces, 0)
        once = loads - again
        found.append((cost, (once + again * missed) / visits.pieces, loads / visits.pieces))
    return found


def _missed_share(costs: Sequence[TransferCost], cache_bytes: float) -> float:
    """Of what is loaded again, the share that caches have lost by then."""
    if cache_bytes <= 0:
        return 1.0
    outside = sum(cost.num_bytes.get(Resource.HBM.value, 0.0) for cost in costs)
    return max(1 - cache_bytes / outside, 0.0) if outside else 0.0


def _busy(amounts: Sequence[_Amount]) -> dict[Resource, float]:
    found: dict[Resource, float] = {}
    for cost, outside, inside in amounts:
        for resource, seconds in cost.busy_s.items():
            times = outside if resource is Resource.HBM else inside
            found[resource] = found.get(resource, 0.0) + seconds * times
    return found


def _duration(amounts: Sequence[_Amount]) -> float:
    """Of transfers that go on at once: the longest by itself, or the busiest resource."""
    longest = hbm = link = 0.0
    for cost, outside, inside in amounts:
        moving_s, hbm_s, others_s = cost.shares
        hbm += hbm_s * outside
        link += others_s * inside
        # What no resource explains (the rounds of a reduction) counts each time.
        alone = moving_s * (outside if hbm_s >= others_s and hbm_s > 0 else inside)
        longest = max(longest, alone)
    return max(longest, hbm, link)
