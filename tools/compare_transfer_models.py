"""What a transfer costs by three models, on two small dies side by side: formula, flows, packets.

    python tools/compare_transfer_models.py [--bytes 1280]

The formula is what mappings are searched with (`timing.transfer_cost`), the flows share links
fairly (`network.flow_model`), the packets wait in buffers (`network.packet_model`). Clocks of
2 GHz until the last byte is there. All MODELLED.
"""

import argparse
from collections.abc import Iterator
from itertools import product

import numpy as np
from fsdtrain_dojo.lowering.mapping import Boxes, Layout, Storage
from fsdtrain_dojo.lowering.program import Pattern, Transfer
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.layout import mesh_layout
from fsdtrain_dojo.network import collectives
from fsdtrain_dojo.network.flow_model import bound_phase, simulate_flows
from fsdtrain_dojo.network.packet_model import simulate_packets
from fsdtrain_dojo.network.program import FlowProgram
from fsdtrain_dojo.timing.fabric import Fabric, build_fabric
from fsdtrain_dojo.timing.hops import build_network
from fsdtrain_dojo.timing.transfer_cost import cost_transfer

SIDE = 8
MACHINE = {
    "name": "d1_tile", "die_rows": SIDE, "die_columns": SIDE // 2, "missing_nodes": 0,
    "tile_rows": 1, "tile_columns": 2, "die_edge_tb_per_s": 0.8,
    # so that adding takes no time, which programs of flows do not know by the byte
    "num_load_ports": 10**6, "num_store_ports": 10**6, "num_address_units": 10**6,
}  # fmt: skip


def divide(size: int, over: int | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A dimension in `count` parts over the rows (0) or the columns (1); None: whole."""
    if over is None:
        return np.zeros((1, 1), int), np.full((1, 1), size)
    place = np.arange(SIDE) * count // SIDE
    bounds = np.arange(count + 1) * size // count
    ranges = bounds[place], bounds[place + 1]
    low, high = (each[:, None] if over == 0 else each[None, :] for each in ranges)
    return low, high


def make_boxes(shape: tuple[int, ...], *dims: tuple[int | None, int]) -> Boxes:
    """Boxes of a value whose dimensions are divided over (axis, count)."""
    ranges = [divide(size, *dim) for size, dim in zip(shape, dims, strict=True)]
    first, end = zip(*ranges, strict=True)
    busy = np.ones((SIDE, SIDE), bool)
    return Boxes(shape=shape, grid=(SIDE, SIDE), first=first, end=end, busy=busy)


def only_at(boxes: Boxes, row: int, column: int) -> Boxes:
    """What one node has of boxes."""
    busy = np.zeros((SIDE, SIDE), bool)
    busy[row, column] = True
    return Boxes(shape=boxes.shape, grid=boxes.grid, first=boxes.first, end=boxes.end, busy=busy)


def draw_boxes(rng: np.random.Generator, shape: tuple[int, ...]) -> Boxes:
    """A random layout: some dimensions over rows, some over columns, with copies elsewhere."""
    axes: list[int | None] = [0, 1, None]
    rng.shuffle(axes)
    return make_boxes(shape, *((axis, int(rng.choice([2, 4, 8]))) for axis in axes))


def flows_of(kept: Boxes, needed: Boxes) -> Iterator[tuple[int, list[int], int]]:
    """From node, to nodes, elements: of copies, the nearest column's nearest row serves."""
    moved: dict[tuple[int, tuple[int, ...]], int] = {}
    nodes = list(product(range(SIDE), range(SIDE)))

    def holds(boxes: Boxes, node: tuple[int, int], element: tuple[int, ...]) -> bool:
        return bool(boxes.busy[node]) and all(
            first <= index < end
            for (first, end), index in zip(boxes.at(*node), element, strict=True)
        )

    for element in product(*map(range, kept.shape)):
        sources = [node for node in nodes if holds(kept, node, element)]
        targets: dict[int, list[int]] = {}
        for row, column in nodes:
            if holds(needed, (row, column), element) and (row, column) not in sources:
                distances = [(abs(r - row), r, abs(c - column), c) for r, c in sources]
                _, r, _, c = min(distances)
                targets.setdefault(r * SIDE + c, []).append(row * SIDE + column)
        for source, those in targets.items():
            moved[source, tuple(those)] = moved.get((source, tuple(those)), 0) + 1
    for (source, to), size in moved.items():
        yield source, list(to), size


def compare(fabric: Fabric, name: str, kept: Boxes, needed: Boxes, element_bytes: int) -> None:
    """A line of the table."""
    network = build_network(fabric.machine, mesh_layout(fabric.machine))
    program = FlowProgram()
    for source, targets, size in flows_of(kept, needed):
        program.add(source, targets, size * element_bytes)
    if not len(program):
        return  # every node has what it needs
    traffic = program.build(network)
    source_layout = Layout(storage=Storage.SRAM, boxes=kept)
    transfer = Transfer(value="x", pattern=Pattern.SCATTER, boxes=needed, source=source_layout)
    cost = cost_transfer(fabric, transfer, element_bytes)
    print_line(
        name,
        cost.seconds * fabric.clock_hz,
        bound_phase(traffic).makespan,
        simulate_flows(traffic).makespan,
        simulate_packets(traffic).makespan,
    )


def compare_all_reduce(fabric: Fabric, num_bytes: int) -> None:
    """The line of the table for a sum that all nodes want."""
    network = build_network(fabric.machine, mesh_layout(fabric.machine))
    boxes = make_boxes((num_bytes // 4,), (None, 1))
    transfer = Transfer(
        value="y", pattern=Pattern.ALL_REDUCE, boxes=boxes,
        target=Layout(storage=Storage.SRAM, boxes=boxes),
    )  # fmt: skip
    cost = cost_transfer(fabric, transfer, 4)
    program = FlowProgram()
    rows = np.arange(SIDE * SIDE).reshape(SIDE, SIDE).tolist()
    collectives.bucket_all_reduce(program, rows, num_bytes)
    traffic = program.build(network)
    clocks = cost.seconds * fabric.clock_hz
    flows, packets = simulate_flows(traffic).makespan, simulate_packets(traffic).makespan
    print_line("all-reduce", clocks, float("nan"), flows, packets)


def print_line(name: str, ours: float, bound: float, flows: float, packets: float) -> None:
    """Clocks by every model, and the formula's share of the packets'."""
    print(
        f"{name:<28}{ours:>10.0f}{bound:>10.0f}{flows:>10.0f}{packets:>10.0f}"
        f"{ours / flows:>10.3f}{ours / packets:>10.3f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--bytes", type=int, default=1280, help="of an element; default %(default)s"
    )
    element_bytes = parser.parse_args().bytes
    fabric = build_fabric(read_machine(MACHINE))
    print("origin: MODELLED; clocks at 2 GHz; two dies of 8 x 4 nodes, a crossing of 100 ns\n")
    titles = ("formula", "bound", "flows", "packets", "/flows", "/packets")
    print(f"{'traffic':<28}" + "".join(f"{title:>10}" for title in titles))
    shape = (16, 16)
    tiles = make_boxes(shape, (0, SIDE), (1, SIDE))
    turned = make_boxes(shape, (1, SIDE), (0, SIDE))
    whole = make_boxes(shape, (None, 1), (None, 1))
    compare(fabric, "transpose", tiles, turned, element_bytes)
    hot = only_at(whole, 3, 5)
    compare(fabric, "hot-spot: one to all", hot, whole, element_bytes)
    compare(fabric, "hot-spot: all to one", tiles, hot, element_bytes)
    compare(fabric, "hot-spot: one to each", hot, tiles, element_bytes)
    compare(fabric, "rows all-gather", tiles, make_boxes(shape, (0, 8), (None, 1)), element_bytes)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        kept, needed = draw_boxes(rng, (8, 8, 8)), draw_boxes(rng, (8, 8, 8))
        compare(fabric, f"random layouts {seed}", kept, needed, element_bytes)
    compare_all_reduce(fabric, SIDE * SIDE * 64 * 60)


if __name__ == "__main__":
    main()
