"""A placement in words, for the report. All figures in them are MODELLED."""

from collections.abc import Iterator
from math import prod

from fsdtrain_dojo.machine.schema import Machine, Topology
from fsdtrain_dojo.scale.pipeline import bubble_share
from fsdtrain_dojo.scale.placement import PlacedTime, Placement


def name_home(level: str, num_stages: int) -> str:
    """The home of a replica: "one tile", "a pipeline of 4 dies"."""
    return f"one {level}" if num_stages == 1 else f"a pipeline of {num_stages} {level}s"


def describe(placed: PlacedTime, machine: Machine) -> Iterator[str]:
    """Sentences: the placement, the step, the all-reduce, what limits, and power."""
    yield f"Placement: {_count(placed.placement, machine)}."
    place, pipeline, summing = placed.placement, placed.pipeline, placed.summing
    if place.num_stages > 1:
        bubble = bubble_share(place.num_stages, place.num_microbatches)
        yield (
            f"Pipeline: {place.num_stages} stages, 1F1B with {place.num_microbatches} "
            f"micro-batches, bubble {bubble:.0%}, waits between stages "
            f"{in_units(pipeline.transfer_s)}."
        )
    yield (
        f"Step: {in_units(placed.step_s)} MODELLED, of which {in_units(summing.exposed_s)} wait "
        f"for gradients; {placed.samples_per_s:,.0f} samples/s, scaling efficiency "
        f"{placed.efficiency:.1%}, {placed.matmul_share:.1%} of the machine's matrix peak."
    )
    if place.num_replicas > 1:
        buckets = "1 bucket" if summing.num_buckets == 1 else f"{summing.num_buckets} buckets"
        yield (
            f"All-reduce of {placed.replica.gradient_bytes / 1e6:,.3g} MB: "
            f"{in_units(summing.mesh_s)} on the mesh, {in_units(summing.network_s)} over the "
            f"network, in {buckets} ({summing.how}); "
            f"{summing.hidden_share:.0%} hidden behind the backward pass."
        )
    if placed.input_s:
        yield f"The host's links are {in_units(placed.input_s)} a step too slow for the batches."
    yield f"Limited by {placed.limited_by}."
    over = ", which is above its limit" if placed.watts > placed.limit_watts else ""
    yield (
        f"Energy: {placed.joules:,.3g} J a step, {placed.watts / 1e3:,.3g} kW on average of "
        f"{placed.limit_watts / 1e3:,.3g} kW{over}."
    )


def _count(place: Placement, machine: Machine) -> str:
    home = name_home(place.level, place.num_stages)
    mesh = [each for each in machine.levels if each.topology is not Topology.NETWORK][-1].name
    num_slices = place.num_replicas * place.num_stages
    text = f"{place.num_replicas} replicas of {home}, {place.nodes_per_stage} nodes each"
    if mesh != place.level and place.num_meshes > 1:
        text = (
            f"{place.num_meshes} {mesh}s x {num_slices // place.num_meshes} {place.level}s = {text}"
        )
    idle = _num_places(machine, place.level) - num_slices
    return f"{text}; {idle} {place.level}s without work" if idle > 0 else text


def _num_places(machine: Machine, level: str) -> int:
    depth = [each.name for each in machine.levels].index(level)
    return prod(each.num_places for each in machine.levels[depth + 1 :])


def in_units(seconds: float) -> str:
    """Seconds in the unit that suits: "41 us"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
