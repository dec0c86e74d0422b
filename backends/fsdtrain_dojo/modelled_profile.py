"""A modelled step as a `StepProfile`: what the table, the page and profile.json show. MODELLED."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

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
from fsdtrain_dojo.lowering.kernel import Kernel, KernelGraph, Unit
from fsdtrain_dojo.lowering.mapping import Axis, Storage, axis_ranges
from fsdtrain_dojo.lowering.program import Pattern, Step, TileProgram
from fsdtrain_dojo.machine.node import PortKind
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.machine.totals import totals
from fsdtrain_dojo.modelling import ModelledStep
from fsdtrain_dojo.timing.cost import Resource
from fsdtrain_dojo.timing.costs import picked_share
from fsdtrain_dojo.timing.schedule_steps import ProgramTime
from fsdtrain_dojo.timing.traffic import LinkLoads, link_loads

Floats = NDArray[np.float64]
_UNITS = (Resource.MATRIX, Resource.VECTOR, Resource.SRAM_PORT)


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
        heat_maps=tuple(_heat_maps(modelled)),
        rooflines=Rooflines(
            flops_per_s={
                name: rate / num_copies for name, rate in of_all.matmul_flops_per_s.items()
            },
            bytes_per_s=_bandwidths(modelled),
        ),
        assumptions=tuple(assumptions),
        scale=scale,
        notes=(*notes, *_spill_notes(program)),
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
        # At a switch all values lie outside; on a mesh, those that were spilled.
        outside = [
            program.graph.values[name].num_bytes
            for name, layout in program.initial.items()
            if layout.storage is Storage.HBM
        ] + [spill.num_bytes for spill in program.spills if spill.out_before >= 0]
        yield MemoryUse(
            name="HBM", peak_bytes=sum(outside), capacity_bytes=round(memory.capacity_bytes)
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
    fabric, seconds = modelled.costs.fabric, modelled.time.seconds
    computing = np.zeros(fabric.grid)
    for step, timed in zip(modelled.program.steps, modelled.time.steps, strict=True):
        busy = max((timed.alone.busy_s.get(each, 0.0) for each in _UNITS), default=0.0)
        computing += busy * _work_share(step, fabric.grid)
    # Borders of the groups that nodes form: dies.
    group = None
    if len(modelled.machine.levels) > 1 and fabric.along_rows is not None:
        group = (modelled.machine.levels[0].rows, modelled.machine.levels[0].columns)
    yield HeatMap(
        title="compute: busy share of the step",
        unit="share",
        rows=_on_mesh(computing / seconds, fabric.node_row, fabric.node_column),
        group=group,
    )
    if fabric.along_rows is None or fabric.along_columns is None:
        return
    loads = _link_loads(modelled)
    used = np.zeros(fabric.grid)
    for hops, ways, axis in (
        (fabric.along_rows, (loads.east, loads.west), 1),
        (fabric.along_columns, (loads.south, loads.north), 0),
    ):
        for way in ways:
            share = way * hops.seconds_per_byte / seconds
            for end in (0, 1):  # a link is shown at both of its nodes
                places = [slice(None), slice(None)]
                places[axis] = slice(end, end + share.shape[axis])
                used[tuple(places)] = np.maximum(used[tuple(places)], share)
    yield HeatMap(
        title="links: busy share of the step, busiest link of each node",
        unit="share",
        rows=_on_mesh(used, fabric.node_row, fabric.node_column),
        group=group,
    )
    if fabric.memory is not None and len(loads.by_interface):
        rate = fabric.memory.bytes_per_s / fabric.memory.num_interfaces
        yield HeatMap(
            title="HBM: busy share of the step, by interface",
            unit="share",
            rows=(tuple(float(each) for each in loads.by_interface / rate / seconds),),
        )


def _link_loads(modelled: ModelledStep) -> LinkLoads:
    """Of all transfers of the step; equal ones are looked at once."""
    fabric, values = modelled.costs.fabric, modelled.program.graph.values
    counts: dict[object, list[Any]] = {}
    for step in modelled.program.steps:
        shares = [picked_share(step.kernel, each, step.mapping) for each in step.kernel.loaded]
        transfers = [*zip(step.loads, shares, strict=True), *((each, 1.0) for each in step.stores)]
        for transfer, share in transfers:
            if transfer.pattern is Pattern.LOCAL:
                continue
            width = values[transfer.value].element_bytes
            layout = transfer.source or transfer.target
            place = None if layout is None else id(layout.boxes)
            key = (transfer.pattern, transfer.source is None, place, id(transfer.boxes), width,
                   share)  # fmt: skip
            counts.setdefault(key, [0, transfer, width, share])[0] += 1
    found = LinkLoads(**{each.name: np.zeros(1) for each in fields(LinkLoads)})
    for count, transfer, width, share in counts.values():
        loads = link_loads(fabric, transfer, width, share=share)
        found = LinkLoads(
            **{
                each.name: getattr(found, each.name) + count * getattr(loads, each.name)
                for each in fields(LinkLoads)
            }
        )
    return found


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
