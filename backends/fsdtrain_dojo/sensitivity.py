"""How much a modelled step time rests on figures that nobody who knows has stated. MODELLED.

Every constant of the machine that is in doubt is set to either end of the range within which the
truth is thought to lie, one at a time, and the same program is scheduled again. Where things are
placed stays as it is: a compiler that knew the other figure might do better, never worse.
"""

from collections.abc import Iterator
from dataclasses import replace

from fsdtrain.backend import BackendError
from fsdtrain.step_profile import Assumption
from fsdtrain_dojo.machine.catalog import with_constants
from fsdtrain_dojo.machine.quantity import Quantity
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.modelling import ModelledStep
from fsdtrain_dojo.scale.slices import slice_machine
from fsdtrain_dojo.timing.cost import Resource
from fsdtrain_dojo.timing.costs import Costs
from fsdtrain_dojo.timing.schedule_steps import schedule_steps

# Energy does not change a schedule.
_OF_ENERGY = ("pJ", "pJ/B", "W")


def find_sensitivities(modelled: ModelledStep, whole: Machine) -> tuple[Assumption, ...]:
    """All constants that are assumed or have a range; those that matter most first.

    Args:
        modelled: the step, on the whole machine or on a slice of it.
        whole: the machine that has the constants.
    """
    found = [
        _vary(modelled, whole, name, constant)
        for name, constant in whole.constants.items()
        if constant.is_assumed or constant.low is not None
    ]
    return tuple(sorted(found, key=_swing, reverse=True))


def _swing(each: Assumption) -> float:
    if each.step_time_at_low_s is None or each.step_time_at_high_s is None:
        return -1.0
    return abs(each.step_time_at_high_s - each.step_time_at_low_s)


def _vary(modelled: ModelledStep, whole: Machine, name: str, constant: Quantity) -> Assumption:
    times = list(_times(modelled, whole, name, constant))
    low, high = times if len(times) == 2 else (None, None)
    return Assumption(
        name=name,
        value=constant.value,
        unit=constant.unit,
        source=constant.source,
        confidence=constant.confidence.value,
        low=constant.low,
        high=constant.high,
        step_time_at_low_s=low,
        step_time_at_high_s=high,
    )


def _times(
    modelled: ModelledStep, whole: Machine, name: str, constant: Quantity
) -> Iterator[float]:
    """At the low and at the high end; nothing where the program does not fit such a machine."""
    if constant.low is None or constant.high is None or constant.unit in _OF_ENERGY:
        return
    for value in (constant.low, constant.high):
        try:
            machine = with_constants(whole, {name: value})
        except BackendError:
            continue  # contradicts the other constants: rates that ports cannot feed, for one
        if modelled.machine is not whole:
            machine = slice_machine(machine, modelled.machine.levels[-1].name)
        if _is_untouched(modelled, machine):
            yield modelled.time.seconds
            continue
        costs = _costs_like(modelled, machine)
        if costs.fabric.grid == modelled.program.grid:
            yield schedule_steps(modelled.program, costs).seconds


def _is_untouched(modelled: ModelledStep, machine: Machine) -> bool:
    """Whether the other machine differs only in what a schedule of this program never asks.

    Power is no matter of time, nor are interfaces to a step that leaves nothing in their memory.
    """
    old = modelled.costs.machine
    is_same_inside = (machine.node, machine.levels, machine.op_start_s) == (
        old.node, old.levels, old.op_start_s
    )  # fmt: skip
    goes_outside = bool(modelled.time.busy_s.get(Resource.HBM))
    return is_same_inside and (machine.interfaces == old.interfaces or not goes_outside)


def _costs_like(modelled: ModelledStep, machine: Machine) -> Costs:
    """Costs on the other machine; what the change does not touch is not asked again."""
    old = modelled.costs
    if (machine.levels, machine.interfaces) != (old.machine.levels, old.machine.interfaces):
        return Costs(machine)
    same_links = replace(machine.node, matrix=None, vector=old.machine.node.vector) == replace(
        old.machine.node, matrix=None
    )
    return old.with_units_of(machine) if same_links else Costs(machine)
