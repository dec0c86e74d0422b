"""A modelled step as a `StepProfile`: what the table, the page and profile.json show. MODELLED."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from fsdtrain.step_profile import (
    Assumption,
    MemoryUse,
    OpProfile,
    Rooflines,
    ScaleProfile,
    StepProfile,
    TimelineEvent,
)
from fsdtrain_dojo.lowering.kernel import Kernel, KernelGraph, Unit
from fsdtrain_dojo.lowering.mapping import Storage
from fsdtrain_dojo.lowering.program import Spill, Step, TileProgram
from fsdtrain_dojo.machine.node import PortKind
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.machine.totals import totals
from fsdtrain_dojo.modelled_heat_maps import heat_maps
from fsdtrain_dojo.modelling import ModelledStep
from fsdtrain_dojo.timing.schedule_steps import ProgramTime

# tools/compare_silicon.py prints it; no constant was fitted to those products.
VALIDATION = (
    "no kernel time of a D1 is public; on TPU v3's published matrix products the same model is off "
    "by 4.8 % in the mean"
)


def make_profile(
    modelled: ModelledStep,
    *,
    backend: str,
    assumptions: Sequence[Assumption] = (),
    scale: ScaleProfile | None = None,
    notes: Sequence[str] = (),
) -> StepProfile:
    """The profile of a step on a machine."""
    machine, program, time = modelled.machine, modelled.program, modelled.time
    of_all = totals(machine)
    matrix_format = main_format(program.graph)
    moving = sum(each.alone.joules for each in time.steps)
    num_copies = modelled.costs.fabric.num_copies
    peak = of_all.matmul_flops_per_s[matrix_format] / num_copies
    return StepProfile(
        backend=backend,
        device=f"{machine.summary} ({machine.name})",
        origin="MODELLED",
        step_time_s=time.seconds,
        ops=tuple(sorted(_ops(program, time), key=lambda op: -op.time_s)),
        flops=float(sum(kernel.counted_flops for kernel in _all_kernels(program.graph))),
        peak_flops_per_s=peak,
        roofline_s=_roofline(program, machine, num_copies),
        energy_j=moving + machine.power.idle_watts / num_copies * time.seconds,
        power_limit_watts=machine.power.limit_watts / num_copies,
        memory=tuple(_memory(modelled)),
        busy_s={resource.value: busy for resource, busy in time.busy_s.items()},
        timeline=tuple(_timeline(program, time)),
        sram_over_time=tuple(
            (each.start_s, float(used))
            for each, used in zip(time.steps, program.sram_bytes, strict=True)
        ),
        sram_capacity_bytes=machine.node.memory.capacity_bytes,
        heat_maps=tuple(heat_maps(modelled)),
        rooflines=Rooflines(
            flops_per_s={
                name: rate / num_copies for name, rate in of_all.matmul_flops_per_s.items()
            },
            bytes_per_s=_bandwidths(modelled),
        ),
        assumptions=tuple(assumptions),
        scale=scale,
        notes=(*notes, *_spill_notes(program)),
        validation=VALIDATION,
    )


def _bandwidths(modelled: ModelledStep) -> dict[str, float]:
    """Of all nodes' memories, of all links into the nodes and of the memory outside."""
    fabric, node = modelled.costs.fabric, modelled.machine.node
    ports = node.memory.bytes_per_cycle(PortKind.LOAD, PortKind.STORE) * node.clock_hz
    found = {
        "SRAM": fabric.num_nodes * ports,
        "node link": fabric.num_nodes * fabric.receive_bytes_per_s,
    }
    if fabric.memory is not None:
        found["HBM"] = fabric.memory.peak_bytes_per_s
    return found


def _all_kernels(graph: KernelGraph) -> Iterator[Kernel]:
    for kernel in graph.kernels:
        yield kernel
        yield from kernel.epilogue


def main_format(graph: KernelGraph) -> str:
    """The format that most multiply-adds of a step take."""
    macs: dict[str, int] = defaultdict(int)
    for kernel in _all_kernels(graph):
        if kernel.unit is Unit.MATRIX:
            macs[operand_format(kernel, graph)] += kernel.macs
    return max(macs, key=lambda name: macs[name]) if macs else "fp32"


def operand_format(kernel: Kernel, graph: KernelGraph) -> str:
    """What a matrix kernel multiplies: the wider of its operands' formats."""
    values = [graph.values[read.value] for read in kernel.reads[:2]]
    return max(values, key=lambda value: value.element_bytes).format


def _ops(program: TileProgram, time: ProgramTime) -> Iterator[OpProfile]:
    for number, (step, timed) in enumerate(zip(program.steps, time.steps, strict=True)):
        kernel, alone = step.kernel, timed.alone
        parts = (kernel, *kernel.epilogue)
        flops = sum(2 * each.macs + each.flops + each.specials for each in parts)
        yield OpProfile(
            name=" + ".join(dict.fromkeys(each.op.removeprefix("aten.") for each in parts)),
            shapes=_shapes(step, program),
            dtype=operand_format(kernel, program.graph)
            if kernel.unit is Unit.MATRIX
            else _widest(step, program),
            num_calls=1,
            time_s=timed.exposed_s,
            alone_s=alone.seconds,
            flops=flops,
            num_bytes=round(alone.num_bytes.get("SRAM", 0.0)),
            bound_by=alone.bound.value,
            phase=kernel.phase.value,
            layer=kernel.layer,
            line=kernel.line,
            start_s=timed.start_s,
            utilisation=alone.matrix_share,
            roofline_s=alone.roofline_s,
            bytes_by_level=dict(alone.num_bytes),
            sram_peak_bytes=program.sram_bytes[number],
            energy_j=alone.joules,
            explanation=(*step.why, *_movements(step)),
        )


def _movements(step: Step) -> Iterator[str]:
    for each in step.loads:
        yield f"reads {each.value}: {each.pattern.value}"
    for each in step.stores:
        yield f"writes {each.value}: {each.pattern.value}"


def _shapes(step: Step, program: TileProgram) -> str:
    names = [access.value for access in step.kernel.reads[:3]]
    shapes = [program.graph.values[name].shape for name in names]
    return ", ".join("x".join(map(str, shape)) for shape in shapes if shape)


def _widest(step: Step, program: TileProgram) -> str:
    values = [program.graph.values[access.value] for access in step.kernel.stored]
    return max(values, key=lambda value: value.num_bytes).format


def _roofline(program: TileProgram, machine: Machine, num_copies: int) -> float:
    """The least time of the whole step: all multiply-adds at the peak, all vector work at its."""
    of_all = totals(machine)
    matrix = sum(
        2 * kernel.macs / of_all.matmul_flops_per_s[operand_format(kernel, program.graph)]
        for kernel in _all_kernels(program.graph)
        if kernel.unit is Unit.MATRIX
    )
    lanes = of_all.vector_flops_per_s["fp32"]
    vector = sum(kernel.flops for kernel in _all_kernels(program.graph)) / lanes
    return max(matrix, vector) * num_copies


def _memory(modelled: ModelledStep) -> Iterator[MemoryUse]:
    program = modelled.program
    yield MemoryUse(
        name="SRAM of the fullest node",
        peak_bytes=max(program.sram_bytes, default=0),
        capacity_bytes=modelled.machine.node.memory.capacity_bytes,
    )
    memory = modelled.costs.fabric.memory
    if memory is not None:
        yield MemoryUse(
            name="HBM",
            peak_bytes=_outside_bytes(program),
            capacity_bytes=round(memory.capacity_bytes),
        )


def _outside_bytes(program: TileProgram) -> int:
    """The most that lies in the memory outside at a time.

    At a switch these are all values; on a mesh, those that were spilled.
    """
    values, last_use = program.graph.values, program.last_use
    outside = {name for name, at in program.initial.items() if at.storage is Storage.HBM}
    moves: dict[int, list[Spill]] = defaultdict(list)
    for spill in program.spills:
        moves[spill.out_before].append(spill)
        if spill.back_before is not None:
            moves[spill.back_before].append(spill)
    most = num_bytes = sum(values[name].num_bytes for name in outside)
    ends: dict[int, list[str]] = defaultdict(list)
    for name, number in last_use.items():
        ends[number].append(name)

    def put(name: str, *, is_out: bool) -> None:
        nonlocal num_bytes
        if is_out != (name in outside):
            num_bytes += values[name].num_bytes * (1 if is_out else -1)
            (outside.add if is_out else outside.discard)(name)

    for number, step in enumerate(program.steps):
        for spill in moves[number]:
            put(spill.value, is_out=spill.out_before == number)
        for store in step.stores:
            if store.target is not None and store.value not in step.kernel.hidden:
                put(store.value, is_out=store.target.storage is Storage.HBM)
        most = max(most, num_bytes)
        for store in step.stores:
            old = program.graph.renews.get(store.value)
            if old is not None:
                put(old, is_out=False)
        for name in ends[number]:
            put(name, is_out=False)
    return most


def _timeline(program: TileProgram, time: ProgramTime) -> Iterator[TimelineEvent]:
    for each in time.intervals:
        yield TimelineEvent(
            resource=each.resource.value,
            name=program.steps[each.step].kernel.name,
            start_s=each.start_s,
            end_s=each.end_s,
        )


def _spill_notes(program: TileProgram) -> Iterator[str]:
    if not program.spills:
        return
    total = sum(spill.num_bytes for spill in program.spills)
    largest = max(program.spills, key=lambda spill: spill.num_bytes)
    yield (
        f"{len(program.spills)} values of {total / 1e6:,.2f} MB do not fit into the nodes' memory "
        f"and lie in HBM for some time; the largest is {largest.value} "
        f"({largest.num_bytes / 1e6:,.2f} MB). A smaller batch, a narrower recipe, activation "
        "checkpointing or a larger machine would keep them in"
    )
