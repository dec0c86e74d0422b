"""Where on the machine a modelled step computes and moves data, as profiles show it. MODELLED."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from fsdtrain.step_profile import HeatMap, MapLevel
from fsdtrain_dojo.lowering.kernel import Value
from fsdtrain_dojo.lowering.mapping import Axis, axis_ranges
from fsdtrain_dojo.lowering.program import Pattern, Step, Transfer
from fsdtrain_dojo.modelled_map_slices import TimeSlices, pack_slices
from fsdtrain_dojo.modelling import ModelledStep
from fsdtrain_dojo.timing.cost import KernelTime, Resource
from fsdtrain_dojo.timing.costs import Costs, picked_share
from fsdtrain_dojo.timing.fabric import Fabric
from fsdtrain_dojo.timing.node_rates import SUM_BYTES
from fsdtrain_dojo.timing.traffic import LinkLoads, link_loads
from fsdtrain_dojo.timing.transfer_cost import REDUCTIONS

Floats = NDArray[np.float64]
_UNITS = (Resource.MATRIX, Resource.VECTOR, Resource.SRAM_PORT)


def heat_maps(modelled: ModelledStep) -> Iterator[HeatMap]:
    """Of the computing, the links and the memory outside, each as a share of the step."""
    fabric, seconds = modelled.costs.fabric, modelled.time.seconds
    slices = TimeSlices(seconds=seconds)
    slice_s = seconds / slices.count
    computing = np.zeros((slices.count, *fabric.grid))
    for step, timed in zip(modelled.program.steps, modelled.time.steps, strict=True):
        busy = max((timed.alone.busy_s.get(each, 0.0) for each in _UNITS), default=0.0)
        work = busy * _work_share(step, fabric.grid)
        for number, share in slices.shares(timed.start_s, timed.end_s):
            computing[number] += share * work
    yield _mesh_map(
        "compute: busy share of the step",
        modelled,
        computing.sum(axis=0) / seconds,
        [each / slice_s for each in computing],
        slices,
    )
    if fabric.along_rows is None or fabric.along_columns is None:
        return
    loads = _link_loads(modelled, slices)
    whole = sum(loads[1:], start=loads[0])
    yield _mesh_map(
        "links: busy share of the step, busiest link of each node",
        modelled,
        _busiest_links(whole, fabric, seconds),
        [_busiest_links(each, fabric, slice_s) for each in loads],
        slices,
    )
    if fabric.memory is not None and len(whole.by_interface):
        rate = fabric.memory.bytes_per_s / fabric.memory.num_interfaces
        yield HeatMap(
            title="HBM: busy share of the step, by interface",
            unit="share",
            rows=(tuple(float(each) for each in whole.by_interface / rate / seconds),),
            slices=pack_slices(
                [each.by_interface[None] / rate / slice_s for each in loads], slices
            ),
        )


def _mesh_map(
    title: str,
    modelled: ModelledStep,
    whole: Floats,
    by_slice: Sequence[Floats],
    slices: TimeSlices,
) -> HeatMap:
    """Shares [rows, columns] of the nodes, laid out as the machine is, with its dies and tiles."""
    fabric = modelled.costs.fabric
    placed = _on_mesh(whole, fabric.node_row, fabric.node_column)
    levels = _map_levels(modelled, placed.shape)
    return HeatMap(
        title=title,
        unit="share",
        rows=tuple(
            tuple(None if np.isnan(each) else float(each) for each in row) for row in placed
        ),
        # Borders of the groups that nodes form: dies.
        group=(levels[1].rows, levels[1].columns) if len(levels) > 1 else None,
        levels=levels,
        slices=pack_slices(
            [_on_mesh(each, fabric.node_row, fabric.node_column) for each in by_slice], slices
        ),
    )


def _map_levels(modelled: ModelledStep, shape: tuple[int, ...]) -> tuple[MapLevel, ...]:
    """A node, and each group of the machine that lies on the mesh: a die, a tile."""
    found = [MapLevel(name="node", rows=1, columns=1)]
    fabric, levels = modelled.costs.fabric, modelled.machine.levels
    if fabric.along_rows is None or len(levels) == 1:
        return tuple(found)
    for level in levels:
        rows, columns = found[-1].rows * level.rows, found[-1].columns * level.columns
        if rows > shape[0] or columns > shape[1]:
            break
        found.append(MapLevel(name=level.name, rows=rows, columns=columns))
    return tuple(found)


def _busiest_links(loads: LinkLoads, fabric: Fabric, seconds: float) -> Floats:
    """The busy share of the busiest link of each node; a link is shown at both of its nodes."""
    assert fabric.along_rows is not None
    assert fabric.along_columns is not None
    used = np.zeros(fabric.grid)
    for hops, ways, axis in (
        (fabric.along_rows, (loads.east, loads.west), 1),
        (fabric.along_columns, (loads.south, loads.north), 0),
    ):
        for way in ways:
            share = way * hops.seconds_per_byte / seconds
            for end in (0, 1):
                places = [slice(None), slice(None)]
                places[axis] = slice(end, end + share.shape[axis])
                used[tuple(places)] = np.maximum(used[tuple(places)], share)
    return used


def _link_loads(modelled: ModelledStep, slices: TimeSlices) -> list[LinkLoads]:
    """Of all transfers of each slice of the step; equal ones are looked at once.

    What small steps load again is shared out over a kernel's operands by the bytes of each.
    """
    fabric, values = modelled.costs.fabric, modelled.program.graph.values
    counts: dict[object, tuple[Floats, tuple[Transfer, int, float]]] = {}
    for step, timed in zip(modelled.program.steps, modelled.time.steps, strict=True):
        on_links, outside = _times_loaded(modelled.costs, step, timed.alone, values)
        shares = [picked_share(step.kernel, each, step.mapping) for each in step.kernel.loaded]
        loads = zip(step.loads, shares, strict=True)
        transfers = [
            *((each, share, (on_links, outside)) for each, share in loads),
            *((each, 1.0, (1.0, 1.0)) for each in step.stores),
        ]
        parts = slices.shares(timed.start_s, timed.end_s)
        for transfer, share, times in transfers:
            if transfer.pattern is Pattern.LOCAL:
                continue
            is_partial = transfer.pattern in REDUCTIONS
            width = SUM_BYTES if is_partial else values[transfer.value].element_bytes
            layout = transfer.source or transfer.target
            place = None if layout is None else id(layout.boxes)
            key = (transfer.pattern, transfer.source is None, place, id(transfer.boxes), width,
                   share)  # fmt: skip
            # Times on the links and from the memory outside, by slice.
            found, _ = counts.setdefault(
                key, (np.zeros((2, slices.count)), (transfer, width, share))
            )
            for number, part in parts:
                found[:, number] += part * np.array(times)
    total = [_no_loads(fabric) for _ in range(slices.count)]
    for (on_links_S, outside_S), (transfer, width, share) in counts.values():
        loads_once = link_loads(fabric, transfer, width, share=share)
        for number in np.flatnonzero(on_links_S + outside_S).tolist():
            scaled = {
                each.name: on_links_S[number] * getattr(loads_once, each.name)
                for each in fields(LinkLoads)
            }
            scaled["by_interface"] = outside_S[number] * loads_once.by_interface
            total[number] += LinkLoads(**scaled)
    return total


def _no_loads(fabric: Fabric) -> LinkLoads:
    rows, columns = fabric.grid
    in_row, in_column = np.zeros((rows, columns - 1)), np.zeros((rows - 1, columns))
    interfaces = np.zeros(fabric.memory.num_interfaces if fabric.memory else 0)
    return LinkLoads(
        east=in_row, west=in_row, south=in_column, north=in_column, by_interface=interfaces
    )


def _times_loaded(
    costs: Costs, step: Step, alone: KernelTime, values: Mapping[str, Value]
) -> tuple[float, float]:
    """How often a kernel's operands cross the links, and come from the memory outside, at mean."""
    once: dict[str, float] = {}
    for access, load in zip(step.kernel.loaded, step.loads, strict=True):
        assert load.source is not None
        share = picked_share(step.kernel, access, step.mapping)
        cost = costs.load(load.source, load.boxes, values[load.value], share)
        for level, count in cost.num_bytes.items():
            once[level] = once.get(level, 0.0) + count
    stored: dict[str, float] = {}
    for store in step.stores:
        for level, count in costs.store(store, values[store.value]).num_bytes.items():
            stored[level] = stored.get(level, 0.0) + count

    def times(level: str) -> float:
        if not once.get(level):
            return 1.0
        return (alone.num_bytes[level] - stored.get(level, 0.0)) / once[level]

    return times("node link"), times("HBM")


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


def _on_mesh(values: Floats, node_row: NDArray[np.int64], node_column: NDArray[np.int64]) -> Floats:
    """Laid out in the rows and columns of the machine, NaN where no node is."""
    placed = np.full((int(node_row.max()) + 1, int(node_column.max()) + 1), np.nan)
    placed[node_row, node_column] = values
    return placed
