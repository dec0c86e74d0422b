"""A modelled step as a `StepProfile`: what the table, the page and profile.json show. MODELLED."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fsdtrain.step_profile import (
    Assumption,
    HeatMap,
    MemoryUse,
    OpProfile,
    Rooflines,
    ScaleProfile,
    StepProfile,
    TimelineEvent,
)
from fsdtrain_dojo.lowering.kernel import Kernel, Unit
from fsdtrain_dojo.lowering.mapping import Axis, axis_ranges
from fsdtrain_dojo.lowering.program import Step, TileProgram
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.machine.totals import totals
from fsdtrain_dojo.modelling import ModelledStep
from fsdtrain_dojo.timing.costs import Costs
from fsdtrain_dojo.timing.schedule_steps import ProgramTime

Floats = NDArray[np.float64]


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
    matrix_format = _matrix_format(program)
    moving = sum(each.alone.joules for each in time.steps)
    num_copies = Costs(machine).fabric.num_copies
    peak = of_all.matmul_flops_per_s[matrix_format] / num_copies
    return StepProfile(
        backend=backend,
        device=f"{machine.summary} ({machine.name})",
        origin="MODELLED",
        step_time_s=time.seconds,
        ops=tuple(sorted(_ops(program, time, matrix_format), key=lambda op: -op.time_s)),
        flops=float(sum(kernel.counted_flops for kernel in _all_kernels(program))),
        peak_flops_per_s=peak,
        roofline_s=_roofline(program, machine, num_copies),
        energy_j=moving + machine.power.idle_watts / num_copies * time.seconds,
        power_limit_watts=machine.power.limit_watts / num_copies,
        memory=tuple(_memory(program, machine)),
        busy_s={resource.value: busy for resource, busy in time.busy_s.items()},
        timeline=tuple(_timeline(program, time)),
        sram_over_time=tuple(
            (each.start_s, float(used))
            for each, used in zip(time.steps, program.sram_bytes, strict=True)
        ),
        sram_capacity_bytes=machine.node.memory.capacity_bytes,
        heat_maps=tuple(_heat_maps(modelled)),
        rooflines=Rooflines(
            flops_per_s={
                name: rate / num_copies for name, rate in of_all.matmul_flops_per_s.items()
            },
            bytes_per_s={"HBM": of_all.memory_bytes_per_s / num_copies},
        ),
        assumptions=tuple(assumptions),
        scale=scale,
        notes=(*notes, *_spill_notes(program)),
    )


def _all_kernels(program: TileProgram) -> Iterator[Kernel]:
    for step in program.steps:
        yield step.kernel
        yield from step.kernel.epilogue


def _matrix_format(program: TileProgram) -> str:
    """The format that most multiply-adds take."""
    macs: dict[str, int] = defaultdict(int)
    for kernel in _all_kernels(program):
        if kernel.unit is Unit.MATRIX:
            macs[operand_format(kernel, program)] += kernel.macs
    return max(macs, key=lambda name: macs[name]) if macs else "fp32"


def operand_format(kernel: Kernel, program: TileProgram) -> str:
    """What a matrix kernel multiplies: the wider of its operands' formats."""
    values = [program.graph.values[read.value] for read in kernel.reads[:2]]
    return max(values, key=lambda value: value.element_bytes).format


def _ops(program: TileProgram, time: ProgramTime, matrix_format: str) -> Iterator[OpProfile]:
    for number, (step, timed) in enumerate(zip(program.steps, time.steps, strict=True)):
        kernel, alone = step.kernel, timed.alone
        parts = (kernel, *kernel.epilogue)
        flops = sum(2 * each.macs + each.flops + each.specials for each in parts)
        yield OpProfile(
            name=" + ".join(dict.fromkeys(each.op.removeprefix("aten.") for each in parts)),
            shapes=_shapes(step, program),
            dtype=operand_format(kernel, program)
            if kernel.unit is Unit.MATRIX
            else _widest(step, program),
            num_calls=1,
            time_s=timed.exposed_s,
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
        2 * kernel.macs / of_all.matmul_flops_per_s[operand_format(kernel, program)]
        for kernel in _all_kernels(program)
        if kernel.unit is Unit.MATRIX
    )
    lanes = of_all.vector_flops_per_s["fp32"]
    vector = sum(kernel.flops for kernel in _all_kernels(program)) / lanes
    return max(matrix, vector) * num_copies


def _memory(program: TileProgram, machine: Machine) -> Iterator[MemoryUse]:
    yield MemoryUse(
        name="SRAM of the fullest node",
        peak_bytes=max(program.sram_bytes, default=0),
        capacity_bytes=machine.node.memory.capacity_bytes,
    )
    memory = Costs(machine).fabric.memory
    if memory is not None:
        yield MemoryUse(
            name="HBM",
            peak_bytes=sum(spill.num_bytes for spill in program.spills),
            capacity_bytes=round(memory.capacity_bytes),
        )


def _timeline(program: TileProgram, time: ProgramTime) -> Iterator[TimelineEvent]:
    for each in time.intervals:
        yield TimelineEvent(
            resource=each.resource.value,
            name=program.steps[each.step].kernel.name,
            start_s=each.start_s,
            end_s=each.end_s,
        )


def _heat_maps(modelled: ModelledStep) -> Iterator[HeatMap]:
    fabric = Costs(modelled.machine).fabric
    load = np.zeros(fabric.grid)
    for step, timed in zip(modelled.program.steps, modelled.time.steps, strict=True):
        busy = max((timed.alone.busy_s.get(each, 0.0) for each in timed.alone.busy_s), default=0.0)
        load += busy * _work_share(step, fabric.grid)
    yield HeatMap(
        title="compute",
        unit="busy share of the step",
        rows=_on_mesh(load / modelled.time.seconds, fabric.node_row, fabric.node_column),
    )


def _work_share(step: Step, grid: tuple[int, int]) -> Floats:
    """Of every node, relative to the one with the most."""
    if step.mapping.is_everywhere:
        return np.ones(grid)
    sides = []
    for axis in Axis:
        share = np.zeros(grid[axis.value])
        share[: step.mapping.num_used(axis)] = 1.0
        for ranges in axis_ranges(step.kernel, step.mapping, axis, grid[axis.value]).values():
            points = (ranges[1] - ranges[0]).astype(np.float64)
            share *= points / points.max()
        sides.append(share)
    return np.outer(sides[0], sides[1])


def _on_mesh(
    values: Floats, node_row: NDArray[np.int64], node_column: NDArray[np.int64]
) -> tuple[tuple[float | None, ...], ...]:
    placed = np.full((int(node_row.max()) + 1, int(node_column.max()) + 1), np.nan)
    placed[node_row, node_column] = values
    return tuple(tuple(None if np.isnan(each) else float(each) for each in row) for row in placed)


def _spill_notes(program: TileProgram) -> Iterator[str]:
    if not program.spills:
        return
    total = sum(spill.num_bytes for spill in program.spills)
    largest = max(program.spills, key=lambda spill: spill.num_bytes)
    yield (
        f"{len(program.spills)} values of {total / 1e9:.3g} GB do not fit into the nodes' memory "
        f"and lie in HBM for some time; the largest is {largest.value} "
        f"({largest.num_bytes / 1e6:.3g} MB). A smaller batch, a narrower recipe, activation "
        "checkpointing or a larger machine would keep them in"
    )
