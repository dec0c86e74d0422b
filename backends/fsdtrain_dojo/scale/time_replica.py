"""What a lowered and scheduled step tells the scale model: its gradients, when they are ready, ...

Reads a tile program and its schedule; does not know the machine beyond those. All MODELLED.
"""

from collections import defaultdict
from collections.abc import Iterator

from fsdtrain_dojo.lowering.kernel import Kernel, Phase, ValueKind
from fsdtrain_dojo.lowering.mapping import Storage
from fsdtrain_dojo.lowering.program import TileProgram
from fsdtrain_dojo.scale.replica import Gradient, ReplicaTime
from fsdtrain_dojo.timing.cost import Resource
from fsdtrain_dojo.timing.schedule_steps import ProgramTime

NUM_CUTS = 32  # at which a pipeline could be cut


def time_replica(
    program: TileProgram, time: ProgramTime, *, batch_size: int, op_start_s: float
) -> ReplicaTime:
    """The step of one replica.

    Args:
        program: of a step; the optimiser's kernels come last.
        time: its schedule.
        batch_size: samples of the step.
        op_start_s: of the machine; with what fills and drains the units of a kernel, it is the
            part of its time that does not shrink with the batch.
    """
    first_update = next(
        (number for number, step in enumerate(program.steps)
         if step.kernel.phase is Phase.OPTIMIZER),
        len(program.steps),
    )  # fmt: skip
    before = time.steps[:first_update]
    optimizer_start = min(
        time.steps[first_update].start_s if first_update < len(time.steps) else time.seconds,
        time.seconds,
    )
    fixed = sum(min(each.exposed_s, op_start_s + each.alone.fill_s) for each in before)
    by_bound: dict[str, float] = defaultdict(float)
    for each in time.steps:
        by_bound[each.alone.bound.value] += each.exposed_s
    busy = sum(
        min(each.end_s, optimizer_start) - each.start_s
        for each in time.intervals
        if each.resource is Resource.LINK and each.start_s < optimizer_start
    )
    names = _gradient_names(program, first_update)
    values = program.graph.values
    outside = sum(values[name].num_bytes for name in names if _lies_outside(program, name))
    gradients = tuple(_gradients(program, time, names, optimizer_start))
    return ReplicaTime(
        seconds=time.seconds,
        optimizer_start_s=optimizer_start,
        fixed_s=min(fixed, optimizer_start),
        batch_size=batch_size,
        gradients=gradients,
        matmul_flops=float(
            sum(
                part.counted_flops
                for step in program.steps
                for part in (step.kernel, *step.kernel.epilogue)
            )
        ),
        joules=sum(each.alone.joules for each in time.steps),
        bound=max(by_bound, key=lambda name: by_bound[name], default="latency"),
        link_share=min(1.0, busy / optimizer_start) if optimizer_start else 0.0,
        gradients_outside=2 * outside > sum(each.num_bytes for each in gradients),
        spilled_bytes=float(sum(spill.num_bytes for spill in program.spills)),
        input_bytes=float(
            sum(each.num_bytes for each in values.values() if each.kind is ValueKind.INPUT)
        ),
        cut_bytes=tuple(_cut_bytes(program, time)),
    )


def _gradient_names(program: TileProgram, first_update: int) -> list[str]:
    """What the backward pass makes and the optimiser reads; without one, the last results."""
    made = {
        store.value
        for step in program.steps[:first_update]
        if step.kernel.phase is Phase.BACKWARD
        for store in step.stores
    }
    if first_update == len(program.steps):
        values = program.graph.values
        return sorted(name for name in made if values[name].is_output)
    read = {load.value for step in program.steps[first_update:] for load in step.loads}
    return sorted(made & read)


def _gradients(
    program: TileProgram, time: ProgramTime, names: list[str], optimizer_start_s: float
) -> Iterator[Gradient]:
    wanted = set(names)
    arrived: dict[int, float] = {}  # sums within a replica still travel when a kernel has ended
    for each in time.intervals:
        arrived[each.step] = max(arrived.get(each.step, 0.0), each.end_s)
    for number, (step, timed) in enumerate(zip(program.steps, time.steps, strict=True)):
        for store in step.stores:
            if store.value in wanted:
                there = max(timed.end_s, arrived.get(number, 0.0))
                yield Gradient(
                    num_bytes=float(program.graph.values[store.value].num_bytes),
                    ready_s=min(there, optimizer_start_s),
                )


def _lies_outside(program: TileProgram, name: str) -> bool:
    targets = [
        store.target for step in program.steps for store in step.stores if store.value == name
    ]
    return any(target is not None and target.storage is Storage.HBM for target in targets)


def _cut_bytes(program: TileProgram, time: ProgramTime) -> Iterator[float]:
    """Activations that forward kernels before a time make and forward kernels after it read."""
    forward = [
        (step.kernel, timed)
        for step, timed in zip(program.steps, time.steps, strict=True)
        if step.kernel.phase is Phase.FORWARD
    ]
    if not forward:
        return
    made: dict[str, float] = {}
    last_read: dict[str, float] = {}
    for kernel, timed in forward:
        for name in _reads(kernel):
            if name in made:
                last_read[name] = timed.end_s
        for access in kernel.stored:
            made[access.value] = timed.end_s
    end = forward[-1][1].end_s
    for cut in range(NUM_CUTS):
        at = end * cut / NUM_CUTS
        yield float(
            sum(
                program.graph.values[name].num_bytes
                for name, last in last_read.items()
                if made[name] <= at < last
            )
        )


def _reads(kernel: Kernel) -> set[str]:
    return {access.value for access in kernel.loaded}
