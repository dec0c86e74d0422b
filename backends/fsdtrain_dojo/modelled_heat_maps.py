"""Where on the machine a modelled step computes and moves data, as profiles show it. MODELLED."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsdtrain.step_profile import HeatMap
from fsdtrain_dojo.lowering.kernel import Value
from fsdtrain_dojo.lowering.mapping import Axis, axis_ranges
from fsdtrain_dojo.lowering.program import Pattern, Step
from fsdtrain_dojo.modelling import ModelledStep
from fsdtrain_dojo.timing.cost import KernelTime, Resource
from fsdtrain_dojo.timing.costs import Costs, picked_share
from fsdtrain_dojo.timing.node_rates import SUM_BYTES
from fsdtrain_dojo.timing.traffic import LinkLoads, link_loads
from fsdtrain_dojo.timing.transfer_cost import REDUCTIONS

Floats = NDArray[np.float64]
_UNITS = (Resource.MATRIX, Resource.VECTOR, Resource.SRAM_PORT)


def heat_maps(modelled: ModelledStep) -> Iterator[HeatMap]:
    """Of the computing, the links and the memory outside, each as a share of the step."""
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
    """Of all transfers of the step; equal ones are looked at once.

    What small steps load again is shared out over a kernel's operands by the bytes of each.
    """
    fabric, values = modelled.costs.fabric, modelled.program.graph.values
    counts: dict[object, list[Any]] = {}
    for step, timed in zip(modelled.program.steps, modelled.time.steps, strict=True):
        on_links, outside = _times_loaded(modelled.costs, step, timed.alone, values)
        shares = [picked_share(step.kernel, each, step.mapping) for each in step.kernel.loaded]
        loads = zip(step.loads, shares, strict=True)
        transfers = [
            *((each, share, (on_links, outside)) for each, share in loads),
            *((each, 1.0, (1.0, 1.0)) for each in step.stores),
        ]
        for transfer, share, times in transfers:
            if transfer.pattern is Pattern.LOCAL:
                continue
            is_partial = transfer.pattern in REDUCTIONS
            width = SUM_BYTES if is_partial else values[transfer.value].element_bytes
            layout = transfer.source or transfer.target
            place = None if layout is None else id(layout.boxes)
            key = (transfer.pattern, transfer.source is None, place, id(transfer.boxes), width,
                   share)  # fmt: skip
            found = counts.setdefault(key, [0.0, 0.0, transfer, width, share])
            found[0] += times[0]
            found[1] += times[1]
    total = LinkLoads(**{each.name: np.zeros(1) for each in fields(LinkLoads)})
    for on_links, outside, transfer, width, share in counts.values():
        loads_once = link_loads(fabric, transfer, width, share=share)
        scaled = {
            each.name: on_links * getattr(loads_once, each.name) for each in fields(LinkLoads)
        }
        scaled["by_interface"] = outside * loads_once.by_interface
        total += LinkLoads(**scaled)
    return total


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


def _on_mesh(
    values: Floats, node_row: NDArray[np.int64], node_column: NDArray[np.int64]
) -> tuple[tuple[float | None, ...], ...]:
    placed = np.full((int(node_row.max()) + 1, int(node_column.max()) + 1), np.nan)
    placed[node_row, node_column] = values
    return tuple(tuple(None if np.isnan(each) else float(each) for each in row) for row in placed)
