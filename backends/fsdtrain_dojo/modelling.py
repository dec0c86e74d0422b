"""How a captured step would run on a machine: lowered, scheduled and put into words. MODELLED.

recorded = record_step(module, batch, optimizer, recipe=recipe)
modelled = model_step(expand_macros(recorded), read_machine("d1_tile"))
modelled.time.seconds
"""

from dataclasses import dataclass

from fsdtrain_dojo.lowering.kernel import KernelGraph
from fsdtrain_dojo.lowering.lower import lower
from fsdtrain_dojo.lowering.program import TileProgram
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.timing.costs import Costs
from fsdtrain_dojo.timing.schedule_steps import ProgramTime, schedule_steps


@dataclass(frozen=True, kw_only=True)
class ModelledStep:
    """A step on a machine.

    Args:
        machine: that it was lowered for; of a machine of several meshes (an ExaPOD), one of these.
        program: every kernel in its place.
        time: its schedule.
        costs: of the machine.
    """

    machine: Machine
    program: TileProgram
    time: ProgramTime
    costs: Costs


def model_step(graph: KernelGraph, machine: Machine) -> ModelledStep:
    """Lower a step for a machine and schedule it.

    Raises:
        BackendError: it cannot run there; see `lower`.
    """
    costs = Costs(machine)
    program = lower(graph, costs)
    return ModelledStep(
        machine=machine, program=program, time=schedule_steps(program, costs), costs=costs
    )
