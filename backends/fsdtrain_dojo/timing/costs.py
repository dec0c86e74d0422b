"""What the search for mappings and the schedule ask of the machine, each question answered once.

One `Costs` goes with one machine; it remembers answers, which repeat from layer to layer. MODELLED.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from fsdtrain.backend import BackendError
from fsdtrain_dojo.lowering.finish import divided_reductions, settled
from fsdtrain_dojo.lowering.kernel import Access, Kernel, Unit, Value
from fsdtrain_dojo.lowering.mapping import Boxes, Layout, access_boxes, divided_boxes
from fsdtrain_dojo.lowering.mapping import Mapping as NodeMapping
from fsdtrain_dojo.lowering.passes.tile_kernels import Tiling, choose_steps
from fsdtrain_dojo.lowering.program import Pattern, Step, Transfer
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.timing.box_axes import num_common
from fsdtrain_dojo.timing.cost import KernelTime, Resource, TransferCost
from fsdtrain_dojo.timing.fabric import build_fabric
from fsdtrain_dojo.timing.kernel_time import time_kernel
from fsdtrain_dojo.timing.kernel_work import describe_work, nodes_time
from fsdtrain_dojo.timing.node_rates import SUM_BYTES
from fsdtrain_dojo.timing.transfer_cost import REDUCTIONS, cost_transfer, has_own, load_latency_s

_Key = TypeVar("_Key")

NOTHING = TransferCost(seconds=0.0, latency_s=0.0)


class Costs:
    """See the top of this file.

    Args:
        machine: that everything is asked of.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.fabric = build_fabric(machine)
        # Between the nodes that lie farthest apart; of nodes at a switch 0.
        self.farthest_s = float(self.fabric.row_way_s.max() + self.fabric.column_way_s.max())
        self._boxes: dict[object, Boxes] = {}
        self._loads: dict[object, TransferCost] = {}
        self._least: dict[object, TransferCost] = {}
        self._arriving: dict[object, float] = {}
        self._stores: dict[object, TransferCost] = {}
        self._kept: list[object] = []  # whose ids are keys

    def with_units_of(self, machine: Machine) -> "Costs":
        """For a machine whose links and memories are the same; transfers cost what they did."""
        other = Costs.__new__(Costs)
        other.__dict__.update(self.__dict__)
        other.machine = machine
        other.fabric = replace(self.fabric, machine=machine)
        return other

    def boxes(self, kernel: Kernel, access: Access, mapping: NodeMapping, value: Value) -> Boxes:
        """`access_boxes`; the same object for the same question."""
        key = (
            kernel.sizes,
            access.spans_number,
            mapping.rows,
            mapping.columns,
            mapping.is_everywhere,
            value.shape,
        )
        if key not in self._boxes:
            self._boxes[key] = access_boxes(kernel, access, mapping, value.shape, self.fabric.grid)
        return self._boxes[key]

    def divided(self, shape: tuple[int, ...], division: NodeMapping) -> Boxes:
        """`divided_boxes`; the same object for the same question."""
        key = (shape, division.rows, division.columns, division.is_everywhere)
        if key not in self._boxes:
            self._boxes[key] = divided_boxes(shape, division, self.fabric.grid)
        return self._boxes[key]

    def load(self, source: Layout, boxes: Boxes, value: Value, share: float) -> TransferCost:
        """What it costs to bring boxes of a value from where it is kept; NOTHING: there already."""
        key = (source.storage, id(source.boxes), id(boxes), value.element_bytes, share)
        if key not in self._loads:
            self._kept += [source.boxes, boxes]
            if source.boxes is not None and has_own(source.boxes, boxes):
                self._loads[key] = NOTHING
            else:
                transfer = Transfer(
                    value=value.name, pattern=Pattern.SCATTER, boxes=boxes, source=source
                )
                self._loads[key] = cost_transfer(
                    self.fabric, transfer, value.element_bytes, share=share
                )
        return self._loads[key]

    def least_arriving_s(self, source: Layout, boxes: Boxes, value: Value, share: float) -> float:
        """For what a node lacks to come in through its port: quicker to tell than `load`."""
        key = (source.storage, id(source.boxes), id(boxes), value.element_bytes, share)
        if key in self._loads:
            return self._loads[key].busy_s.get(Resource.LINK, 0.0)
        if key not in self._arriving:
            self._kept += [source.boxes, boxes]
            lacking = boxes.num_elements
            if source.boxes is not None:
                lacking = lacking - num_common(source.boxes, boxes)
            rate = self.fabric.receive_bytes_per_s
            self._arriving[key] = int(lacking.max()) * value.element_bytes * share / rate
        return self._arriving[key]

    def least_load(self, source: Layout, boxes: Boxes, value: Value, share: float) -> TransferCost:
        """Of `load` between nodes of a mesh, what is quicker to tell: a bound, and the latency.

        NOTHING: there already.
        """
        key = (source.storage, id(source.boxes), id(boxes), value.element_bytes, share)
        if key in self._loads:
            return self._loads[key]
        if key not in self._least:
            found = NOTHING
            arriving_s = self.least_arriving_s(source, boxes, value, share)
            if arriving_s:
                latency_s = load_latency_s(self.fabric, source, boxes, share=share)
                busy_s = {Resource.LINK: arriving_s}
                found = TransferCost(seconds=latency_s, latency_s=latency_s, busy_s=busy_s)
            self._least[key] = found
        return self._least[key]

    def store(self, transfer: Transfer, value: Value) -> TransferCost:
        """What it costs to bring results where they shall be; partial sums travel as fp32."""
        if transfer.pattern is Pattern.LOCAL:
            return NOTHING
        is_partial = transfer.pattern in REDUCTIONS
        width = SUM_BYTES if is_partial else value.element_bytes
        target = transfer.target.boxes if transfer.target is not None else None
        key = (transfer.pattern, id(transfer.boxes), id(target), width)
        if key not in self._stores:
            self._kept += [transfer.boxes, target]
            self._stores[key] = cost_transfer(self.fabric, transfer, width)
        return self._stores[key]

    def least_seconds(
        self, kernel: Kernel, values: Mapping[str, Value], sizes: Sequence[int]
    ) -> float:
        """Of a node's share of this size, whatever its operands cost.

        Where values do not stay in the nodes, all operands of the share come over the node's link.
        """
        work = describe_work(kernel, values)
        found = nodes_time(self.machine.node, work, tuple(sizes), {}).seconds
        if self.fabric.keeps_values:
            return found
        arriving = sum(each.num_bytes(sizes) for each in work.reads)
        return max(found, arriving / self.fabric.receive_bytes_per_s)

    def grains(self, kernel: Kernel) -> tuple[int, ...]:
        """Of every loop: what a node's share should be a multiple of, for its matrix unit."""
        grains = [1] * len(kernel.loops)
        matrix = self.machine.node.matrix
        if kernel.unit is not Unit.MATRIX or matrix is None:
            return tuple(grains)
        _, m, n, k = kernel.matrix_loops()
        side = max(matrix.rows, matrix.columns)
        for loops, grain in ((m, side), (n, side), (k, matrix.depth)):
            long = [loop for loop in loops if kernel.loops[loop].size > 1]
            if len(long) == 1:
                grains[long[0]] = grain
        return tuple(grains)

    def least_with_transfers(
        self,
        compute_s: float,
        load_costs: Sequence[TransferCost],
        store_costs: Sequence[TransferCost],
    ) -> float:
        """The least time with these transfers, if all of them went on while units compute.

        Nothing is computed, and no load is complete, before the first latency is over; stores of
        some steps may fill that time for others.
        """
        loading, busy = dict[Resource, float](), dict[Resource, float]()
        for cost in load_costs:
            for resource, seconds in cost.busy_s.items():
                loading[resource] = loading.get(resource, 0.0) + seconds
        busy |= loading
        for cost in store_costs:
            for resource, seconds in cost.busy_s.items():
                busy[resource] = busy.get(resource, 0.0) + seconds
        into = max((cost.latency_s for cost in load_costs), default=0.0)
        out = max((cost.latency_s for cost in store_costs), default=0.0)
        inside = max(
            [into + compute_s, *(into + each for each in loading.values()), *busy.values()]
        )
        return self.machine.op_start_s + inside + out

    def tile(
        self,
        kernel: Kernel,
        mapping: NodeMapping,
        values: Mapping[str, Value],
        free_bytes: float,
        stores: Sequence[Transfer],
        load_costs: Sequence[TransferCost],
        store_costs: Sequence[TransferCost],
    ) -> Tiling | str:
        """The best steps over time within `free_bytes` of a node, or why there are none.

        `stores` and their costs are those of `finish.settled`.
        """
        return choose_steps(
            self.fabric,
            kernel,
            mapping,
            values,
            free_bytes=free_bytes,
            load_costs=load_costs,
            store_costs=_by_result(kernel, mapping, store_costs),
            local_loads=[cost is NOTHING for cost in load_costs],
            local_stores=_local_results(kernel, mapping, stores),
        )

    def time(
        self,
        step: Step,
        load_costs: Sequence[TransferCost],
        store_costs: Sequence[TransferCost],
        values: Mapping[str, Value],
    ) -> KernelTime:
        """Of a step by itself; costs of what does not hold it up may be `NOTHING`."""
        found = time_kernel(
            self.fabric,
            step,
            load_costs,
            _by_result(step.kernel, step.mapping, store_costs),
            values,
        )
        if not step.is_continued:
            return found
        start = self.machine.op_start_s
        return replace(found, seconds=found.seconds - start, fill_s=found.fill_s - start)

    def does_not_fit(self, kernel: Kernel, reasons: Sequence[str]) -> BackendError:
        """The error for a kernel that no mapping makes small enough."""
        where = f" ({kernel.layer})" if kernel.layer else ""
        return BackendError(
            f"{kernel.op}{where} does not fit into the nodes of machine {self.machine.name}: "
            f"{reasons[-1] if reasons else 'no mapping is left'}; take a smaller batch "
            "(data.batch_size), a narrower recipe (backend/recipe=cfp8) or a larger machine"
        )


def picked_share(kernel: Kernel, access: Access, mapping: NodeMapping) -> float:
    """Of a gathered box, the share that one node fetches; 1: it fetches the box, whole.

    Points of loops that the value does not run over do the picking, so nodes that have a part of
    these pick a part. Whoever would pick as much as there is, takes all of it.
    """
    if not access.is_gathered:
        return 1.0
    own = {loop for span in access.spans for loop, _ in span.terms}
    share = access.gathered_share
    for part in (*mapping.rows, *mapping.columns):
        if part.loop not in own:
            share /= part.count
    return min(share, 1.0)


def _by_result(
    kernel: Kernel, mapping: NodeMapping, costs: Sequence[TransferCost]
) -> list[TransferCost]:
    """Costs of `Kernel.stored`: those of hidden results are paid by the first one."""
    if not divided_reductions(kernel, mapping):
        return list(costs)
    found: list[TransferCost] = []
    hidden = NOTHING
    for access, cost in zip(settled(kernel, mapping), costs, strict=True):
        if access.value in kernel.hidden:
            hidden = one_after_another(hidden, cost)
        else:
            found.append(cost)
    if found:
        found[0] = one_after_another(hidden, found[0])
    return found


def _local_results(kernel: Kernel, mapping: NodeMapping, stores: Sequence[Transfer]) -> list[bool]:
    accesses = settled(kernel, mapping)
    return [
        each.pattern is Pattern.LOCAL
        for access, each in zip(accesses, stores, strict=True)
        if access.value not in kernel.hidden
    ]


def one_after_another(first: TransferCost, second: TransferCost) -> TransferCost:
    """Two transfers as one."""
    if first is NOTHING or second is NOTHING:
        return second if first is NOTHING else first
    return TransferCost(
        seconds=first.seconds + second.seconds,
        latency_s=first.latency_s + second.latency_s,
        busy_s=_sums(first.busy_s, second.busy_s),
        num_bytes=_sums(first.num_bytes, second.num_bytes),
        joules=first.joules + second.joules,
        moved_bytes=first.moved_bytes + second.moved_bytes,
    )


def _sums(first: Mapping[_Key, float], second: Mapping[_Key, float]) -> dict[_Key, float]:
    return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in {**first, **second}}
