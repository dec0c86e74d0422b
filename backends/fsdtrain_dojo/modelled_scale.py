"""How a captured step would train on all of a large machine, as profiles show it. MODELLED."""

from fsdtrain.step_profile import ScaleProfile, ScaleRow
from fsdtrain_dojo.lowering.kernel import KernelGraph
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.modelling import ModelledStep, model_step
from fsdtrain_dojo.scale.placement import PlacedTime
from fsdtrain_dojo.scale.plan import plan_scale
from fsdtrain_dojo.scale.replica import ReplicaTime
from fsdtrain_dojo.scale.time_replica import time_replica
from fsdtrain_dojo.scale.words import name_home

# Of homes that are weighed, from the outermost: each is another lowering, and those further in are
# weighed only while smaller homes train more.
LEAST_LEVELS = 2


def model_scale(
    graph: KernelGraph, machine: Machine, *, batch_size: int, matrix_format: str
) -> tuple[ModelledStep, ScaleProfile]:
    """The step of one replica, and how all replicas train together.

    The replica is that which has the machine to itself; on a machine of several meshes, the one
    in the best home.

    Args:
        graph: of a training step.
        machine: of any size.
        batch_size: samples of the captured step; every replica trains as many.
        matrix_format: of most matrix products.

    Raises:
        BackendError: the step runs on no part of the machine.
    """
    modelled: dict[int, ModelledStep] = {}

    def time_on(part: Machine) -> ReplicaTime:
        if part.levels == machine.levels:
            part = machine  # a slice of one is the whole, with its own name
        found = model_step(graph, part)
        replica = time_replica(
            found.program, found.time, batch_size=batch_size, op_start_s=part.op_start_s
        )
        modelled[id(replica)] = found
        return replica

    plan = plan_scale(machine, time_on, peak_format=matrix_format, least_levels=LEAST_LEVELS)
    rows = [*reversed(plan.placed)]
    if plan.strong is not None and plan.strong.placement.num_replicas > 1:
        rows.append(plan.strong)
    profile = ScaleProfile(
        rows=tuple(_row(each, machine) for each in rows),
        note=" ".join(
            (*plan.sentences, *(f"Not on {each.home}: {each.why}." for each in plan.refused))
        ),
    )
    whole = machine.levels[-1]
    shown = next(
        (
            each
            for each in plan.placed
            if (each.placement.level, each.placement.num_stages) == (whole.name, 1)
        ),
        plan.best,
    )
    return modelled[id(shown.replica)], profile


def _row(placed: PlacedTime, machine: Machine) -> ScaleRow:
    place, summing = placed.placement, placed.summing
    home = name_home(place.level, place.num_stages)
    return ScaleRow(
        machine=machine.name,
        num_replicas=place.num_replicas,
        placement=f"{place.num_replicas} x {home}, batch {placed.replica.batch_size} each",
        num_samples=place.num_replicas * placed.replica.batch_size,
        step_time_s=placed.step_s,
        all_reduce_s=summing.alone_s,
        exposed_s=summing.exposed_s,
        efficiency=placed.efficiency,
        energy_j=placed.joules,
    )
