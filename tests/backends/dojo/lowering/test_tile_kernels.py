import time
from dataclasses import replace
from itertools import product as combinations

from fsdtrain_dojo.lowering.kernel import (
    Access,
    Kernel,
    Loop,
    Phase,
    Unit,
    Value,
    ValueKind,
    along,
)
from fsdtrain_dojo.lowering.mapping import Mapping, Part
from fsdtrain_dojo.lowering.passes.tile_kernels import Tiling, choose_steps
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.fabric import build_fabric
from fsdtrain_dojo.timing.kernel_work import describe_work, keeps_sums, nodes_time
from fsdtrain_dojo.timing.overlap import overlap
from fsdtrain_dojo.timing.step_loads import plan_steps
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

DIE = build_fabric(read_machine("d1_die"))
CORE = build_fabric(read_machine("tpu_v3"))
SM = build_fabric(read_machine("a100"))
NOTHING = TransferCost(seconds=0.0, latency_s=0.0)


def stream(seconds, latency=0.0):
    return TransferCost(
        seconds=seconds + latency, latency_s=latency, busy_s={Resource.HBM: seconds}
    )


def make_product(m, n, k):
    shapes = {"a": (m, k), "b": (k, n), "c": (m, n)}
    kernel = Kernel(
        name="mm_1",
        op="aten.mm",
        phase=Phase.FORWARD,
        unit=Unit.MATRIX,
        loops=(Loop("m", m), Loop("n", n), Loop("k", k)),
        reads=(Access("a", (along(0), along(2))), Access("b", (along(2), along(1)))),
        writes=(Access("c", (along(0), along(1))),),
        macs=m * n * k,
        compute=lambda tensors, block: [tensors[0] @ tensors[1]],
    )
    return kernel, make_values(shapes)


def make_values(shapes):
    return {
        name: Value(
            name=name, shape=shape, format="bf16", element_bytes=2, kind=ValueKind.ACTIVATION
        )
        for name, shape in shapes.items()
    }


def make_sort(rows, columns):
    """A row is needed at once."""
    access = (along(0), along(1))
    kernel = Kernel(
        name="sort_1",
        op="aten.sort",
        phase=Phase.FORWARD,
        unit=Unit.VECTOR,
        loops=(Loop("row", rows), Loop("column", columns, is_splittable=False)),
        reads=(Access("x", access),),
        writes=(Access("y", access),),
        flops=10 * rows * columns,
        compute=lambda tensors, block: [tensors[0].sort(1)[0]],
    )
    return kernel, make_values({"x": (rows, columns), "y": (rows, columns)})


def tile(fabric, made, free_bytes, *, mapping=None, load_costs=None, store_costs=None, local=False):
    kernel, values = made
    return choose_steps(
        fabric,
        kernel,
        mapping or Mapping(),
        values,
        free_bytes=free_bytes,
        load_costs=load_costs or [NOTHING] * len(kernel.loaded),
        store_costs=store_costs or [NOTHING] * len(kernel.stored),
        local_loads=[local] * len(kernel.loaded),
        local_stores=[local] * len(kernel.stored),
    )


def seconds_of(fabric, made, tiling, load_costs, store_costs):
    """Of a tiling, as kernel_time finds them."""
    kernel, values = made
    return best_of(fabric, kernel, values, [tiling.mapping.steps], tiling.working_bytes,
                   load_costs, store_costs)  # fmt: skip


def best_of(fabric, kernel, values, choices, free_bytes, load_costs, store_costs):
    """The least seconds of all choices that fit."""
    work, node, found = describe_work(kernel, values), fabric.machine.node, []
    for steps in choices:
        plan = plan_steps(
            work,
            work.sizes,
            steps,
            room_bytes=free_bytes,
            local_reads=[False] * len(work.reads),
            local_writes=[False] * len(work.writes),
            is_partial=False,
            keeps_sums=keeps_sums(node, work, work.sizes, steps),
        )
        if plan.num_bytes <= free_bytes:
            units = nodes_time(node, work, work.sizes, steps)
            found.append(overlap(plan, units.seconds, load_costs, store_costs, 0.0).seconds)
    return min(found)


def test_what_lies_in_place_needs_no_steps():
    found = tile(DIE, make_product(480, 480, 8192), 0, local=True)
    assert found == Tiling(mapping=Mapping(), buffers=1, working_bytes=0)


def test_nothing_to_wait_for_is_done_in_one_step():
    found = tile(DIE, make_product(64, 64, 64), 1e6)
    assert found.mapping.steps == {}
    assert found.working_bytes == 2 * 3 * 64 * 64


def test_operands_that_do_not_fit_come_in_steps():
    """7.9 MB each of a and b into the 1.25 MB of a D1 node."""
    loads = [stream(1e-3), stream(1e-3)]
    found = tile(DIE, make_product(480, 480, 8192), 1.2e6, load_costs=loads)
    assert found.buffers == 2
    assert 3e5 < found.working_bytes <= 1.2e6
    assert found.mapping.num_steps > 1


def test_steps_let_loads_go_on_while_computing():
    """All of it would fit in one step, with nothing overlapped."""
    loads, stores = [stream(3e-5), stream(1e-5)], [stream(1e-5)]
    made = make_product(1024, 1024, 1024)
    found = tile(CORE, made, 16e6, load_costs=loads, store_costs=stores)
    kernel, values = made
    one_step = best_of(CORE, kernel, values, [{}], 16e6, loads, stores)
    assert found.mapping.num_steps > 1
    assert seconds_of(CORE, made, found, loads, stores) < 0.85 * one_step


@settings(max_examples=10, deadline=None)
@given(
    m=st.sampled_from([200, 512, 1000]),
    n=st.sampled_from([128, 700]),
    k=st.sampled_from([300, 2048]),
    share=st.floats(0.1, 1.5),
)
def test_steps_are_near_the_best_of_all(m, n, k, share):
    """Against every combination of steps of an operand's sides."""
    made = make_product(m, n, k)
    kernel, values = made
    free = share * 2 * (m * k + k * n + m * n)
    loads = [stream(m * k * 4e-12, 3e-7), stream(k * n * 4e-12, 3e-7)]
    stores = [stream(m * n * 4e-12, 3e-7)]
    found = tile(CORE, made, free, load_costs=loads, store_costs=stores)
    assume(isinstance(found, Tiling))  # not smaller than a tile of the array
    assume(found.buffers == 2 or found.mapping.num_steps == 1)
    counts = (1, 2, 3, 4, 6, 8)
    choices = [
        {loop: count for loop, count in nest if count > 1}
        for a, b, c in combinations(counts, counts, counts)
        for nest in (((0, a), (1, b), (2, c)), ((1, b), (0, a), (2, c)))
    ]
    best = best_of(CORE, kernel, values, choices, free, loads, stores)
    assert seconds_of(CORE, made, found, loads, stores) <= 1.25 * best


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 400),
    n=st.integers(1, 400),
    k=st.integers(1, 4000),
    free=st.floats(1e3, 2e6),
)
def test_what_is_found_fits(m, n, k, free):
    loads = [stream(1e-5), stream(2e-5)]
    found = tile(DIE, make_product(m, n, k), free, load_costs=loads)
    if isinstance(found, str):
        # No more than a block of the unit in each direction, twice, is needed in any case.
        assert free < 2 * 2 * (16 * 128 + 16 * 16) * 2
    else:
        assert found.working_bytes <= free
        assert all(count > 1 for count in found.mapping.steps.values())
        sizes = (m, n, k)
        assert all(count <= sizes[loop] for loop, count in found.mapping.steps.items())


@settings(max_examples=20, deadline=None)
@given(first=st.floats(1e5, 3e6), more=st.floats(1, 3))
@example(first=322560.0, more=1.25)  # one side fewer makes room for twice as many steps of depth
def test_more_memory_is_hardly_ever_worse(first, more):
    """The search climbs, so a little may be lost to another hill."""
    made = make_product(480, 480, 4096)
    loads, stores = [stream(2e-3, 1e-6), stream(1e-3, 1e-6)], [stream(1e-4, 1e-6)]
    before, after = (
        seconds_of(DIE, made, tile(DIE, made, free, load_costs=loads, store_costs=stores),
                   loads, stores)
        for free in (first, first * more)
    )  # fmt: skip
    assert after <= 1.05 * before


def test_a_share_of_a_node_is_what_is_divided():
    mapping = Mapping(rows=(Part(0, 16),), columns=(Part(1, 16),))
    found = tile(DIE, make_product(1600, 1600, 512), 1.2e6, mapping=mapping)
    assert found.working_bytes == 2 * (100 * 512 + 512 * 100 + 100 * 100)
    assert found.mapping == mapping


def test_sums_of_parts_of_the_depth_need_room_for_fp32():
    mapping = Mapping(rows=(Part(2, 16),))
    found = tile(DIE, make_product(64, 64, 1024), 1.2e6, mapping=mapping)
    assert found.working_bytes == 2 * (64 * 64 * 2) + 4 * 64 * 64


def test_loops_that_are_needed_whole_stay_whole():
    found = tile(DIE, make_sort(64, 4096), 1e5)
    assert set(found.mapping.steps) == {0}


def test_what_does_not_fit_in_the_smallest_steps_says_by_how_much():
    """A row of 400,000 B, read and written."""
    found = tile(DIE, make_sort(4, 200_000), 700_000)
    assert found == (
        "a node needs 800,000 B for sort_1 even in 4 steps and has 700,000 B free: "
        "100,000 B too few"
    )


def test_what_has_no_room_for_two_buffers_does_with_one():
    found = tile(DIE, make_sort(4, 200_000), 1_000_000)
    assert isinstance(found, Tiling)
    assert (found.buffers, found.working_bytes, found.mapping.steps) == (1, 800_000, {0: 4})


def test_sums_stay_in_the_registers_of_an_sm():
    """Tiles that fill the accumulators, as libraries choose them; the depth in short steps."""
    loads = [stream(5e-4, 5e-7), stream(5e-4, 5e-7)]
    made = make_product(512, 320, 4096)
    found = tile(SM, made, 164 * 1024, load_costs=loads)
    kernel, values = made
    work = describe_work(kernel, values)
    assert keeps_sums(SM.machine.node, work, work.sizes, found.mapping.steps)
    assert found.mapping.steps[2] >= 8


def test_steps_of_an_epilogue_are_those_of_its_product():
    kernel, values = make_product(480, 480, 2048)
    relu = Kernel(
        name="relu_1",
        op="aten.relu",
        phase=Phase.FORWARD,
        unit=Unit.VECTOR,
        loops=kernel.loops,
        reads=(*kernel.writes, Access("e", (along(1),))),
        writes=(Access("d", (along(0), along(1))),),
        flops=480 * 480,
        compute=lambda tensors, block: [tensors[0].relu()],
    )
    values |= make_values({"d": (480, 480), "e": (480,)})
    fused = replace(kernel, epilogue=(relu,), hidden=frozenset({"c"}))
    found = tile(DIE, (fused, values), 2e6, load_costs=[stream(1e-3)] * 3)
    assert found.working_bytes <= 2e6


def test_a_search_takes_about_a_millisecond():
    loads, stores = [stream(1e-3, 1e-6)] * 2, [stream(1e-3, 1e-6)]
    began = time.process_time()
    for size in range(480, 500):
        tile(DIE, make_product(size, size, 8192), 1.2e6, load_costs=loads, store_costs=stores)
    assert (time.process_time() - began) / 20 < 0.02
