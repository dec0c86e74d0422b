from dataclasses import replace

import pytest
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Kernel,
    Loop,
    Phase,
    Span,
    Unit,
    Value,
    ValueKind,
    along,
)
from fsdtrain_dojo.lowering.mapping import Layout, Mapping, Part, Storage, access_boxes
from fsdtrain_dojo.lowering.passes.tile_kernels import choose_steps
from fsdtrain_dojo.lowering.program import Pattern, Step, Transfer
from fsdtrain_dojo.machine.catalog import read_machine, with_constants
from fsdtrain_dojo.timing.cost import Bound, Resource
from fsdtrain_dojo.timing.fabric import build_fabric
from fsdtrain_dojo.timing.kernel_time import time_kernel
from fsdtrain_dojo.timing.kernel_work import describe_work, nodes_time
from fsdtrain_dojo.timing.transfer_cost import cost_transfer
from hypothesis import given, settings
from hypothesis import strategies as st

MEMORY = Layout(storage=Storage.HBM)
MACHINES = {
    "tpu_v3": "bf16",
    "a100": "bf16",
    "d1_die": "bf16",
}


def make_value(name, shape, format_name="bf16"):
    return Value(
        name=name,
        shape=shape,
        format=format_name,
        element_bytes=4 if format_name == "fp32" else 2,
        kind=ValueKind.ACTIVATION,
    )


def make_product(m, n, k, **changes):
    kernel = Kernel(
        name="product",
        op="aten.mm",
        phase=Phase.FORWARD,
        unit=Unit.MATRIX,
        loops=(Loop("m", m), Loop("n", n), Loop("k", k)),
        reads=(Access("a", (along(0), along(2))), Access("b", (along(2), along(1)))),
        writes=(Access("c", (along(0), along(1))),),
        macs=m * n * k,
        compute=lambda tensors, block: [tensors[0] @ tensors[1]],
    )
    values = {
        name: make_value(name, shape)
        for name, shape in zip("abc", ((m, k), (k, n), (m, n)), strict=True)
    }
    return replace(kernel, **changes), values


def make_sum_of_squares(rows, columns, format_name="bf16"):
    kernel = Kernel(
        name="squares",
        op="aten.sum",
        phase=Phase.FORWARD,
        unit=Unit.VECTOR,
        loops=(Loop("row", rows), Loop("column", columns)),
        reads=(Access("x", (along(0), along(1))),),
        writes=(Access("y", (along(0),)),),
        flops=2 * rows * columns,
        specials=rows,
        compute=lambda tensors, block: [tensors[0].square().sum(1)],
    )
    values = {
        "x": make_value("x", (rows, columns), format_name),
        "y": make_value("y", (rows,), format_name),
    }
    return kernel, values


def place(fabric, kernel, values, mapping):
    """A step whose operands come from memory outside and whose results go there; its costs."""

    def transfer(access, pattern, **ends):
        shape = values[access.value].shape
        boxes = access_boxes(kernel, access, mapping, shape, fabric.grid)
        return Transfer(value=access.value, pattern=pattern, boxes=boxes, **ends)

    loads = [transfer(each, Pattern.HBM_LOAD, source=MEMORY) for each in kernel.loaded]
    stores = [transfer(each, Pattern.HBM_STORE, target=MEMORY) for each in kernel.stored]
    load_costs, store_costs = (
        [cost_transfer(fabric, each, values[each.value].element_bytes) for each in transfers]
        for transfers in (loads, stores)
    )
    tiling = choose_steps(
        fabric,
        kernel,
        mapping,
        values,
        free_bytes=fabric.machine.node.memory.capacity_bytes,
        load_costs=load_costs,
        store_costs=store_costs,
        local_loads=[False] * len(loads),
        local_stores=[False] * len(stores),
    )
    assert not isinstance(tiling, str), tiling
    step = Step(
        kernel=kernel,
        mapping=tiling.mapping,
        loads=tuple(loads),
        stores=tuple(stores),
        working_bytes=tiling.working_bytes,
        buffers=tiling.buffers,
    )
    return step, load_costs, store_costs


def time_placed(machine, placed, values):
    """The time of a step that was placed before, with costs of this machine."""
    fabric = build_fabric(machine)
    step = placed[0]
    loads, stores = (
        [cost_transfer(fabric, each, values[each.value].element_bytes) for each in transfers]
        for transfers in (step.loads, step.stores)
    )
    return time_kernel(fabric, step, loads, stores, values)


def time_of(name, kernel, values, mapping):
    machine = read_machine(name)
    return time_placed(machine, place(build_fabric(machine), kernel, values, mapping), values)


def spread(fabric, m, n):
    """Over the grid, m over rows and n over columns; over one row of nodes, both."""
    rows, columns = fabric.grid
    if rows > 1:
        return Mapping(rows=(Part(0, min(rows, m)),), columns=(Part(1, min(columns, n)),))
    first = min(int(columns**0.5), m)
    return Mapping(columns=(Part(0, first), Part(1, min(columns // first, n))))


sides = st.integers(1, 600)


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=25, deadline=None)
@given(m=sides, n=sides, k=sides)
def test_a_product_never_beats_its_roofline(name, m, n, k):
    machine = read_machine(name)
    fabric = build_fabric(machine)
    kernel, values = make_product(m, n, k)
    placed = place(fabric, kernel, values, spread(fabric, m, n))
    found = time_placed(machine, placed, values)
    assert found.seconds >= found.roofline_s > 0
    assert found.seconds >= machine.op_start_s + max(found.busy_s.values())
    assert 0 < found.matrix_share <= 1
    assert found.fill_s <= found.seconds


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=25, deadline=None)
@given(rows=sides, columns=sides)
def test_vector_work_never_beats_its_roofline(name, rows, columns):
    machine = read_machine(name)
    fabric = build_fabric(machine)
    kernel, values = make_sum_of_squares(rows, columns)
    mapping = Mapping(columns=(Part(0, min(rows, fabric.grid[1])),))
    found = time_placed(machine, place(fabric, kernel, values, mapping), values)
    assert found.seconds >= found.roofline_s > 0


BETTER = {
    "tpu_v3": [
        {"hbm_gb_per_s": 900},
        {"hbm_latency_ns": 100},
        {"dma_bytes_per_cycle": 4096},
        {"op_start_ns": 0},
        {"vector_lanes": 4096},
        {"matrix_latency_cycles": 10},
        {"port_bytes_per_cycle": 8192},
    ],
    "a100": [
        {"hbm_tb_per_s": 4},
        {"l2_tb_per_s": 10},
        {"l2_mib": 80},
        {"sm_link_bytes_per_cycle": 128},
        {"num_accumulators": 16},
        {"special_per_cycle": 64},
    ],
    "d1_die": [
        {"hbm_gb_per_s": 1600, "interface_gb_per_s": 1800},
        {"link_bytes_per_cycle": 128},
        {"num_address_units": 3},
        {"num_accumulators": 8},
        {"hbm_latency_ns": 10},
    ],
}


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name, changes in BETTER.items() for change in changes]
)
@settings(max_examples=6, deadline=None)
@given(m=sides, n=sides, k=sides)
def test_a_better_machine_is_never_slower(name, change, m, n, k):
    machine = read_machine(name)
    better = with_constants(machine, change)
    fabric = build_fabric(machine)
    for kernel, values in (make_product(m, n, k), make_sum_of_squares(m, n)):
        mapping = spread(fabric, m, n) if kernel.unit is Unit.MATRIX else Mapping()
        placed = place(fabric, kernel, values, mapping)
        before = time_placed(machine, placed, values).seconds
        assert time_placed(better, placed, values).seconds <= before * (1 + 1e-12)


def test_bytes_and_energy_are_those_of_the_parts():
    """A product that fits into the memory of a TPU core: each operand comes once."""
    machine = read_machine("tpu_v3")
    kernel, values = make_product(256, 384, 512)
    placed = place(build_fabric(machine), kernel, values, Mapping())
    found = time_placed(machine, placed, values)
    moved = 2 * (256 * 512 + 512 * 384 + 256 * 384)
    assert found.num_bytes["HBM"] == pytest.approx(moved)
    node = machine.node
    parts = sum(cost.joules for cost in (*placed[1], *placed[2]))
    parts += kernel.macs * node.matrix.joules_per_mac["bf16"]
    parts += found.num_bytes["SRAM"] * node.memory.joules_per_byte
    assert found.joules == pytest.approx(parts)


def test_traffic_is_that_of_all_nodes():
    """24 and 96 rows on 3 and 12 nodes of a die, 8 each."""
    machine = read_machine("d1_die")
    for num_nodes in (3, 12):
        kernel, values = make_product(8 * num_nodes, 64, 64)
        mapping = Mapping(rows=(Part(0, num_nodes),))
        placed = place(build_fabric(machine), kernel, values, mapping)
        one = nodes_time(
            machine.node, describe_work(kernel, values), (8, 64, 64), placed[0].mapping.steps
        )
        found = time_placed(machine, placed, values)
        assert found.num_bytes["SRAM"] == pytest.approx(num_nodes * one.sram_bytes)


def test_all_of_the_work_on_one_node_is_out_of_balance():
    kernel, values = make_product(512, 512, 2048)
    alone = time_of("a100", kernel, values, Mapping())
    together = time_of("a100", kernel, values, Mapping(columns=(Part(0, 8, 32), Part(1, 13))))
    assert alone.bound is Bound.IMBALANCE
    assert together.bound is not Bound.IMBALANCE
    assert together.seconds < alone.seconds / 4


def test_little_work_is_bound_by_latency():
    found = time_of("a100", *make_sum_of_squares(10, 10), Mapping(columns=(Part(0, 10),)))
    assert found.bound is Bound.LATENCY
    assert found.seconds == pytest.approx(read_machine("a100").op_start_s, rel=0.5)


def test_long_streams_are_bound_by_memory():
    found = time_of("a100", *make_sum_of_squares(10**5, 1000), Mapping(columns=(Part(0, 108),)))
    assert found.bound is Bound.HBM
    rate = 2e8 / found.seconds
    machine = read_machine("a100")
    peak = machine.constants["hbm_tb_per_s"].si * machine.constants["hbm_efficiency_share"].value
    assert 0.9 * peak < rate < peak


def test_an_epilogue_goes_on_beside_the_product():
    """Element-wise work behind a product on a D1 node, as long as the lanes keep up."""
    node = read_machine("d1_die").node
    kernel, values = make_product(64, 64, 1024)
    relu = Kernel(
        name="relu",
        op="aten.relu",
        phase=Phase.FORWARD,
        unit=Unit.VECTOR,
        loops=kernel.loops,
        reads=kernel.writes,
        writes=(Access("d", (along(0), along(1))),),
        flops=64 * 64,
        compute=lambda tensors, block: [tensors[0].relu()],
    )
    values["d"] = make_value("d", (64, 64))
    fused = replace(kernel, epilogue=(relu,), hidden=frozenset({"c"}))
    plain = nodes_time(node, describe_work(kernel, values), (64, 64, 1024), {})
    both = nodes_time(node, describe_work(fused, values), (64, 64, 1024), {})
    assert both.seconds == plain.seconds
    assert both.vector_s > plain.vector_s
    heavy = replace(fused, epilogue=(replace(relu, flops=10**7),))
    slow = nodes_time(node, describe_work(heavy, values), (64, 64, 1024), {})
    assert slow.seconds == pytest.approx(10**7 / 16 / node.vector.clock_hz, rel=0.01)


def test_a_convolution_counts_windows_as_depth():
    """3 x 3 windows of 64 channels: three rows of 192 elements, each rounded up to the array."""
    node = read_machine("tpu_v3").node
    values = {
        "x": make_value("x", (1, 64, 32, 32)),
        "w": make_value("w", (128, 64, 3, 3)),
        "y": make_value("y", (1, 128, 32, 32)),
    }
    loops = (
        *(Loop(name, size) for name, size in zip("nkpqc", (1, 128, 32, 32, 64), strict=True)),
        Loop("r", 3, is_splittable=False),
        Loop("s", 3, is_splittable=False),
    )
    kernel = Kernel(
        name="conv",
        op="aten.convolution",
        phase=Phase.FORWARD,
        unit=Unit.MATRIX,
        loops=loops,
        reads=(
            Access(
                "x",
                (
                    along(0),
                    along(4),
                    Span(((2, 1), (5, 1)), low=-1, high=-1),
                    Span(((3, 1), (6, 1)), low=-1, high=-1),
                ),
            ),
            Access("w", (along(1), along(4), along(5), along(6))),
        ),
        writes=(Access("y", tuple(along(loop) for loop in range(4))),),
        macs=1024 * 128 * 64 * 9,
        compute=lambda tensors, block: [],
    )
    found = nodes_time(node, describe_work(kernel, values), tuple(x.size for x in loops), {})
    passes = 3 * 2 / node.matrix.num_units
    assert found.matrix_s == pytest.approx(passes * 1024 / node.matrix.clock_hz)


def test_sums_that_no_accumulator_keeps_are_read_and_written_in_every_step():
    node = read_machine("d1_die").node
    kernel, values = make_product(64, 64, 1024)
    work = describe_work(kernel, values)
    whole, stepped = (nodes_time(node, work, work.sizes, steps) for steps in ({}, {2: 4}))
    assert stepped.sram_bytes - whole.sram_bytes == pytest.approx(64 * 64 * (4 * 8 - 2))
    assert stepped.seconds > whole.seconds


def test_sums_that_accumulators_keep_leave_once():
    node = read_machine("a100").node
    kernel, values = make_product(128, 128, 1024)
    work = describe_work(kernel, values)
    whole, stepped = (nodes_time(node, work, work.sizes, steps) for steps in ({}, {2: 4}))
    assert stepped.sram_bytes == pytest.approx(whole.sram_bytes)


def test_ragged_steps_add_up():
    node = read_machine("d1_die").node
    kernel, values = make_sum_of_squares(10, 70)
    work = describe_work(kernel, values)
    whole, stepped = (nodes_time(node, work, work.sizes, steps) for steps in ({}, {0: 3}))
    assert stepped.vector_s == pytest.approx(whole.vector_s)
    assert stepped.sram_bytes == pytest.approx(whole.sram_bytes)


def test_time_is_busy_time_of_something():
    found = time_of("tpu_v3", *make_product(1024, 1024, 1024), Mapping())
    assert set(found.busy_s) == {
        Resource.MATRIX,
        Resource.VECTOR,
        Resource.SRAM_PORT,
        Resource.LINK,
        Resource.HBM,
    }


def test_a_share_of_the_points_picks_a_share_of_a_gathered_plane():
    """Every one of 100 samples reads 4 of a plane's 50 points: each 8 times in all."""
    kernel = Kernel(
        name="sample",
        op="aten.grid_sampler_2d",
        phase=Phase.FORWARD,
        unit=Unit.VECTOR,
        loops=(Loop("c", 6), Loop("o", 100)),
        reads=(
            Access("x", (along(0), Span(low=0, high=49)), is_gathered=True, gathered_share=8.0),
        ),
        writes=(Access("y", (along(0), along(1))),),
        flops=6 * 100 * 8,
        compute=lambda tensors, block: [tensors[0][:, :1].expand(-1, 100)],
    )
    values = {"x": make_value("x", (6, 50)), "y": make_value("y", (6, 100))}
    node = read_machine("d1_die").node
    work = describe_work(kernel, values)

    def sram_bytes(*sizes):
        return nodes_time(node, work, sizes, {}).sram_bytes

    assert sram_bytes(6, 100) == 2 * (6 * 50 * 8 + 6 * 100)
    assert sram_bytes(6, 25) == sram_bytes(6, 100) / 4
    assert sram_bytes(3, 100) == sram_bytes(6, 100) / 2
