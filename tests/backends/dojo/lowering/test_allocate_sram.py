"""Programs that do not fit: what goes out, when it comes back, and that nothing else changes."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from fsdtrain_dojo.lowering.kernel import KernelGraph, Loop, Phase, ValueKind
from fsdtrain_dojo.lowering.lower import lower
from fsdtrain_dojo.lowering.outside import Away, check_outside
from fsdtrain_dojo.lowering.passes.allocate_sram import allocate_sram
from fsdtrain_dojo.lowering.passes.choose_layouts import choose_layouts
from fsdtrain_dojo.lowering.program import Pattern, TileProgram
from fsdtrain_dojo.lowering.verify import verify_program
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.spatial.execute import execute
from fsdtrain_dojo.timing.costs import Costs
from fsdtrain_dojo.timing.kernel_work import describe_work, keeps_sums
from fsdtrain_dojo.timing.step_loads import plan_steps

from fsdtrain.backend import BackendError
from tests.backends.dojo.spatial.programs import (
    graph_of,
    make_kernel,
    operand,
    product,
    random_tensors,
    value,
    with_sram,
)

DIE = {"name": "d1_die", "die_rows": 2, "die_columns": 3, "missing_nodes": 0}


def die(sram_kb: float, **more: float) -> Machine:
    return read_machine({**DIE, "sram_kb": sram_kb, **more})


def chain(size: int, length: int) -> KernelGraph:
    """h1 = relu(x) + 1, h2 = ..., and then back: every h is needed again, the last one first."""
    loops = {"m": size, "n": size}
    values, kernels = [operand("x", size, size)], []
    last = "x"
    for number in range(1, length + 1):
        name = f"h{number}"
        values.append(value(name, size, size))
        kernels.append(make_kernel(loops, {last: "mn"}, {name: "mn"}, lambda x: x.relu() + 0.5,
                                   flops=2 * size**2))  # fmt: skip
        last = name
    for number in range(length - 1, 0, -1):
        name = f"g{number}"
        values.append(value(name, size, size, is_output=number == 1))
        kernels.append(make_kernel(loops, {last: "mn", f"h{number}": "mn"}, {name: "mn"},
                                   lambda g, h: 0.5 * g + h, flops=2 * size**2))  # fmt: skip
        last = name
    return graph_of(values, kernels)


def training(size: int) -> KernelGraph:
    """Two products, their gradients and a momentum each, renewed."""
    weight = {"kind": ValueKind.WEIGHT}
    values = [
        operand("x", size, size), operand("dy", size, size),
        value("w1", size, size, **weight), value("w2", size, size, **weight),
        *(value(name, size, size, kind=ValueKind.STATE) for name in ("m1", "m2")),
        *(value(name, size, size) for name in ("h", "y", "dh", "g1", "g2")),
        *(value(name, size, size, is_output=True) for name in ("n1", "n2", "v1", "v2")),
    ]  # fmt: skip
    loops = {"i": size, "j": size}

    def turned(made: str, left: str, right: str, phase: Phase):
        return make_kernel(
            {"m": size, "n": size, "k": size}, {left: "km", right: "kn"}, {made: "mn"},
            lambda a, b: a.T @ b, macs=size**3, phase=phase,
        )  # fmt: skip

    backward, last = Phase.BACKWARD, Phase.OPTIMIZER
    kernels = [
        product("h", "x", "w1", size, size, size),
        product("y", "h", "w2", size, size, size),
        replace(turned("g2", "y", "dy", backward), name="g2"),
        replace(product("dh", "dy", "y", size, size, size), phase=backward),
        turned("g1", "x", "dh", backward),
    ]
    for n in "12":
        kernels += [
            make_kernel(loops, {f"m{n}": "ij", f"g{n}": "ij"}, {f"v{n}": "ij"},
                        lambda m, g: 0.9 * m + g, flops=2 * size**2, phase=last),
            make_kernel(loops, {f"w{n}": "ij", f"v{n}": "ij"}, {f"n{n}": "ij"},
                        lambda w, v: w - 0.1 * v, flops=2 * size**2, phase=last),
        ]  # fmt: skip
    renews = {"n1": "w1", "n2": "w2", "v1": "m1", "v2": "m2"}
    return graph_of(values, kernels, renews=renews)


GRAPHS = {"chain": lambda: chain(48, 6), "training": lambda: training(48)}
SIZES_KB = [200, 24, 14, 10, 7, 5]


@lru_cache
def graph_by_name(name: str) -> KernelGraph:
    return GRAPHS[name]()


@lru_cache
def lowered(name: str, sram_kb: float) -> TileProgram:
    return place(graph_by_name(name), die(sram_kb))


def place(graph: KernelGraph, machine: Machine) -> TileProgram:
    """Without fusing, which would leave too few values."""
    costs = Costs(machine)
    return allocate_sram(choose_layouts(graph, costs), costs)


def check(program: TileProgram, machine: Machine) -> None:
    capacity = machine.node.memory.capacity_bytes
    verify_program(program, sram_bytes=capacity)
    assert max(program.sram_bytes) <= capacity
    check_buffers(program, machine)


def check_buffers(program: TileProgram, machine: Machine) -> None:
    """Assert that the buffers of every step are counted, for where its operands are in the end."""
    costs = Costs(machine)
    for step in program.steps:
        work = describe_work(step.kernel, program.graph.values)
        shares = [loop.size for loop in step.kernel.loops]
        for part in (*step.mapping.rows, *step.mapping.columns):
            shares[part.loop] = -(-shares[part.loop] // part.count)
        local = {e.value for e in (*step.loads, *step.stores) if e.pattern is Pattern.LOCAL}
        steps = step.mapping.steps
        plan = plan_steps(
            work, tuple(shares), steps, room_bytes=0,
            local_reads=[each.value in local for each in work.reads],
            local_writes=[each.value in local for each in work.writes],
            is_partial=False, buffers=step.buffers,
            keeps_sums=keeps_sums(costs.machine.node, work, tuple(shares), steps),
        )  # fmt: skip
        assert plan.num_bytes <= step.working_bytes, (step.kernel.name, plan.num_bytes)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("sram_kb", SIZES_KB)
def test_no_node_is_ever_over_its_capacity(name, sram_kb):
    program = lowered(name, sram_kb)
    check(program, die(sram_kb))
    assert bool(program.spills) is (sram_kb <= {"chain": 10, "training": 14}[name])


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("sram_kb", SIZES_KB)
def test_what_is_computed_does_not_depend_on_where_values_wait(name, sram_kb):
    tensors = {n: each.double() for n, each in random_tensors(graph_by_name(name)).items()}
    one_node = read_machine({**DIE, "die_rows": 1, "die_columns": 1})
    alone = lower(graph_by_name(name), Costs(one_node))
    wanted, found = execute(alone, tensors), execute(lowered(name, sram_kb), tensors)
    for value_name, tensor in wanted.items():
        torch.testing.assert_close(found[value_name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GRAPHS)
def test_less_memory_never_means_less_traffic_outside(name):
    moved = []
    for sram_kb in SIZES_KB:
        program, costs = lowered(name, sram_kb), Costs(die(sram_kb))
        values = program.graph.values
        moved.append(sum(
            costs.load(load.source, load.boxes, values[load.value], 1.0).num_bytes.get("HBM", 0.0)
            for step in program.steps for load in step.loads
        ))  # fmt: skip
    assert moved[0] == 0
    assert moved[-1] > 0


def test_what_lies_outside_is_loaded_from_there():
    program = lowered("chain", 7)
    outside = {spill.value for spill in program.spills}
    patterns = {
        (load.value, load.pattern)
        for step in program.steps
        for load in step.loads
        if load.pattern is Pattern.HBM_LOAD
    }
    assert {name for name, _ in patterns} <= outside
    assert patterns


def test_what_is_needed_last_goes_out_first():
    program = lowered("chain", 10)
    first = program.spills[0]
    order = [step.kernel.name for step in program.steps]
    needed_again = {
        f"h{number}": order.index(f"g{number}")
        for number in range(1, 6)
        if order.index(f"h{number}") < first.out_before - 1
    }
    assert first.value == max(needed_again, key=needed_again.get)


def test_values_come_back_when_there_is_room():
    """x and y are needed all along, a large step in between has no room for both."""
    size, large = 48, 96
    loops = {"m": size, "n": size}
    values = [
        operand("x", size, size), operand("z", large, large),
        *(value(f"a{n}", size, size, is_output=n > 3) for n in range(7)),
        value("b", large, large),
    ]  # fmt: skip
    kernels = [
        make_kernel(loops, {"x": "mn"}, {"a0": "mn"}, lambda x: x + 1),
        make_kernel({"m": large, "n": large}, {"z": "mn"}, {"b": "mn"}, lambda z: z + 1),
        make_kernel({"m": size, "n": size}, {"b": [large, large]}, {"a1": "mn"},
                    lambda b, block: b[tuple(slice(*each) for each in block.boxes[1])]),
    ]  # fmt: skip
    before = "a1"
    for n in range(2, 7):
        kernels.append(make_kernel(loops, {before: "mn", "x": "mn", "a0": "mn"}, {f"a{n}": "mn"},
                                   lambda a, x, z: a + x * z))  # fmt: skip
        before = f"a{n}"
    graph = graph_of(values, kernels)
    machine = die(44)
    program = place(graph, machine)
    check(program, machine)
    back = [spill for spill in program.spills if spill.back_before is not None]
    assert back
    for spill in back:
        assert spill.out_before < spill.back_before
        later = program.steps[spill.back_before :]
        loads = [load for step in later for load in step.loads if load.value == spill.value]
        assert loads
        assert loads[0].pattern is not Pattern.HBM_LOAD
    tensors = random_tensors(graph)
    x = tensors["x"]
    a = (tensors["z"] + 1)[:size, :size]
    for _ in range(2, 7):
        a = a + x * (x + 1)
    torch.testing.assert_close(execute(program, tensors)["a6"], a)


def test_lasting_values_that_go_out_lie_out_there_all_the_time():
    program = lowered("training", 7)
    lasting = [spill for spill in program.spills if spill.value[0] in "wmnv"]
    assert lasting
    for spill in lasting:
        assert (spill.out_before, spill.back_before) == (-1, None)
    assert len({spill.value[1] + spill.value[0].translate(str.maketrans("nv", "wm"))
                for spill in lasting}) == len(lasting)  # fmt: skip


def test_with_room_for_everything_nothing_changes():
    machine = die(200)
    program = choose_layouts(graph_by_name("training"), Costs(machine))
    allocated = allocate_sram(program, Costs(machine))
    assert allocated.steps == program.steps
    assert allocated.initial == program.initial


def test_a_memory_outside_that_is_too_small_is_an_error_with_numbers():
    graph = training(256)  # about 4 MB
    with pytest.raises(BackendError, match=r"d1_die.* GB do not fit .*batch") as caught:
        lower(graph, Costs(die(40, hbm_gb=1e-5)))
    assert "holds 1e-05 GB" in str(caught.value)


def test_a_kernel_that_can_be_made_no_smaller_is_an_error_with_numbers():
    """One row of 4 MB has to be in one node."""
    kernel = make_kernel({"r": 1, "c": 1_000_000}, {"x": "rc"}, {"y": "rc"}, lambda x: x.sort(1)[0])
    loops = tuple(Loop(each.name, each.size, is_splittable=False) for each in kernel.loops)
    values = [operand("x", 1, 1_000_000), value("y", 1, 1_000_000, is_output=True)]
    graph = graph_of(values, [replace(kernel, loops=loops)])
    with pytest.raises(BackendError, match=r"made_by_hand does not fit .*B too few"):
        lower(graph, Costs(die(1250)))


def test_nodes_at_a_switch_keep_nothing():
    machine = read_machine("a100")
    program = lower(graph_by_name("training"), Costs(machine))
    assert not program.spills
    assert program.sram_bytes == tuple(step.working_bytes for step in program.steps)
    verify_program(program, sram_bytes=machine.node.memory.capacity_bytes)


def test_sums_that_an_epilogue_takes_up_take_no_memory_later():
    """Hidden, though all nodes put them together."""
    size = 8
    values = [
        operand("a", size, 600), operand("b", 600, size),
        *(value(name, size, size) for name in ("c", "d")),
        value("e", size, size, is_output=True),
    ]  # fmt: skip
    relu = make_kernel({"m": size, "n": size, "k": 600}, {"c": "mn"}, {"d": "mn"}, lambda c: c)
    main = replace(
        product("c", "a", "b", size, 600, size), epilogue=(relu,), hidden=frozenset({"c"})
    )
    last = make_kernel({"m": size, "n": size}, {"d": "mn"}, {"e": "mn"}, lambda d: d + 1)
    program = place(graph_of(values, [main, last]), die(100))
    assert [store.value for store in program.steps[0].stores] == ["c", "d"]
    assert program.sram_bytes == with_sram(program).sram_bytes


@pytest.mark.parametrize("name", GRAPHS)
def test_memory_is_noted_as_it_is_counted_node_by_node(name):
    program = lowered(name, 200)
    assert program.sram_bytes == with_sram(program).sram_bytes


@pytest.mark.parametrize(("last_use", "fits"), [({"a": 3, "b": 9}, True), ({"b": 9}, False)])
def test_what_waits_outside_at_one_time_has_to_fit_there(last_use, fits):
    values = {name: value(name, 1000) for name in "abc"}  # of 4000 bytes
    costs = Costs(die(100, hbm_gb=8e-6))
    away = {"a": [Away(first=1, end=3), Away(first=3)], "b": [Away(first=4)]}

    def check_now() -> None:
        check_outside(costs, values, ["c"], away, last_use, 10)

    if fits:
        check_now()
    else:
        with pytest.raises(BackendError, match="1.2e-05 GB do not fit"):
            check_now()
