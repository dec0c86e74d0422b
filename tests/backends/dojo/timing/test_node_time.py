from dataclasses import replace

import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.timing.node_rates import Product
from fsdtrain_dojo.timing.node_time import matrix_time, together, vector_time
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdtrain.backend import BackendError

MACHINES = ("d1_die", "tpu_v3", "a100", "h100", "mi300x")
NODES = {name: read_machine(name).node for name in MACHINES}
D1 = NODES["d1_die"]
CYCLE = 1 / D1.clock_hz

sizes = st.integers(1, 300)
products = st.builds(
    Product,
    batch=st.integers(1, 5),
    m=sizes,
    n=sizes,
    k=sizes,
    folds=st.integers(1, 4),
    result_bytes=st.sampled_from([1, 2, 4]),
)


def product(m, n, k, **others):
    return Product(**{"batch": 1, "result_bytes": 2, **others}, m=m, n=n, k=k)


def with_matrix(node, **changes):
    return replace(node, matrix=replace(node.matrix, **changes))


def with_memory(node, **changes):
    return replace(node, memory=replace(node.memory, **changes))


def test_a_large_product_reaches_the_peak_of_a_d1_node():
    large = product(480, 480, 8192)
    seconds = matrix_time(D1, "bf16", large).seconds
    assert 2 * large.macs / seconds >= 0.97 * D1.matmul_flops_per_s("bf16")


def test_a_small_product_on_a_d1_node_by_hand():
    """16 x 16 sums: 2 x 2 blocks in 4 accumulators, 16 steps of 4 deep each, then the drain."""
    found = matrix_time(D1, "bf16", product(16, 16, 64))
    drain = D1.matrix.latency_cycles + D1.memory.latency_cycles
    assert found.seconds == pytest.approx((4 * 16 + drain) * CYCLE)
    assert found.matrix_s == pytest.approx(4 * 16 * CYCLE)
    # A step of the four blocks reads two blocks of rows and two of columns, 64 B each.
    assert found.sram_bytes == 16 * 4 * 64 + 16 * 16 * 2
    assert found.port_s == pytest.approx((16 * 4 + 8) / 2 * CYCLE)


def test_one_accumulator_and_one_address_unit_halve_a_d1_node():
    """Each step then reads both of its operands through one access a cycle."""
    poor = with_memory(with_matrix(D1, num_accumulators=1), accesses_per_cycle=1)
    large = product(240, 240, 4096)
    share = matrix_time(D1, "bf16", large).seconds / matrix_time(poor, "bf16", large).seconds
    assert share == pytest.approx(0.5, abs=0.01)


def test_half_of_the_accumulators_hide_the_drain_of_short_sums():
    """Two of four for one set of blocks: 2 of 8 cycles, and only the last drain is seen."""
    shallow = product(64, 64, 8)
    seconds = matrix_time(D1, "bf16", shallow).seconds
    drain = (D1.matrix.latency_cycles + D1.memory.latency_cycles) * CYCLE
    busy = 64 * 2 * CYCLE
    assert busy < seconds < busy + 64 / 4 * drain


def test_sizes_are_rounded_up_to_the_shape_of_the_unit():
    assert (
        matrix_time(D1, "bf16", product(17, 9, 5)).matrix_s
        == matrix_time(D1, "bf16", product(24, 16, 8)).matrix_s
    )


def test_a_pass_of_a_systolic_array_by_hand():
    """256 x 256 x 256: 4 tiles of weights on 2 arrays, 256 rows through each, sums waited for."""
    node = NODES["tpu_v3"]
    matrix = node.matrix
    cycles = matrix_time(node, "fp32", product(256, 256, 256)).seconds * matrix.clock_hz
    passes = 2 * (256 + matrix.latency_cycles)
    assert cycles == pytest.approx(matrix.load_cycles + passes + node.memory.latency_cycles)


def test_arrays_share_the_rows_of_a_pass_that_one_alone_would_have():
    node = NODES["tpu_v3"]
    one, three = (matrix_time(node, "fp32", product(2048, 128, 128 * k)).matrix_s for k in (1, 3))
    assert one == pytest.approx(1024 / node.matrix.clock_hz)
    assert three == pytest.approx(3 * one)


def test_few_rows_wait_for_the_next_weights():
    node = NODES["tpu_v3"]
    few, fewer = (matrix_time(node, "bf16", product(m, 1024, 1024)).seconds for m in (64, 8))
    assert few == fewer


def test_narrow_channels_waste_a_systolic_array():
    node = NODES["tpu_v3"]
    narrow, wide = (matrix_time(node, "bf16", product(4096, n, 1024)) for n in (65, 128))
    assert narrow.matrix_s == wide.matrix_s


def test_rows_of_a_window_begin_the_depth_anew():
    joined = matrix_time(D1, "bf16", product(64, 64, 18))
    apart = matrix_time(D1, "bf16", product(64, 64, 6, folds=3))
    assert joined.matrix_s * 6 == pytest.approx(apart.matrix_s * 5)


def test_fp32_on_a_d1_node_is_work_for_the_vector_unit():
    large = product(256, 256, 256)
    found = matrix_time(D1, "fp32", large)
    assert found.matrix_s == 0
    assert 2 * large.macs / found.seconds == pytest.approx(64e9, rel=0.01)


def test_a_group_of_one_channel_is_work_for_the_vector_unit():
    """9 of 128 x 128 places of an array; an eighth of a D1 unit is still more than its lanes."""
    narrow = product(3136, 1, 9, batch=32)
    assert matrix_time(NODES["tpu_v3"], "bf16", narrow).matrix_s == 0
    assert matrix_time(D1, "bf16", narrow).matrix_s > 0


def test_a_format_that_a_node_lacks():
    with pytest.raises(BackendError, match=r"no rate for fp8_e4m3; its formats are fp32, bf16"):
        matrix_time(D1, "fp8_e4m3", product(8, 8, 8))


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=60, deadline=None)
@given(each=products)
def test_never_faster_than_the_peak(name, each):
    node = NODES[name]
    for format_name in node.formats:
        found = matrix_time(node, format_name, each)
        peak = max(node.matmul_flops_per_s(format_name), node.vector_flops_per_s(format_name))
        assert 2 * each.macs / found.seconds <= peak
        assert found.seconds >= max(found.matrix_s, found.vector_s, found.port_s)


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=40, deadline=None)
@given(each=products, factor=st.floats(1, 8))
def test_better_units_are_never_slower(name, each, factor):
    node = NODES[name]
    matrix, memory = node.matrix, node.memory
    faster = {key: rate * factor for key, rate in matrix.macs_per_cycle.items()}
    ports = tuple(
        replace(port, bytes_per_cycle=port.bytes_per_cycle * factor) for port in memory.ports
    )
    # A wider array of ports keeps as many accesses as it had.
    better = (
        with_matrix(node, macs_per_cycle=faster),
        with_matrix(node, clock_hz=matrix.clock_hz * factor),
        with_matrix(node, latency_cycles=matrix.latency_cycles / factor),
        with_matrix(node, load_cycles=matrix.load_cycles / factor),
        with_matrix(node, num_units=int(matrix.num_units * factor), macs_per_cycle=faster)
        if factor == int(factor)
        else node,
        with_matrix(node, num_accumulators=matrix.num_accumulators + int(factor))
        if matrix.num_accumulators
        else node,
        with_memory(node, ports=ports),
        with_memory(node, accesses_per_cycle=memory.accesses_per_cycle * factor),
        replace(node, vector=replace(node.vector, clock_hz=node.vector.clock_hz * factor)),
    )
    before = matrix_time(node, "bf16", each).seconds
    for changed in better:
        assert matrix_time(changed, "bf16", each).seconds <= before * (1 + 1e-12)


def test_vector_work_by_hand():
    """1024 additions of two bf16 operands: 64 cycles of lanes, 96 accesses in 48 cycles."""
    found = vector_time(D1, "bf16", flops=1024, load_bytes=4096, store_bytes=2048)
    fill = D1.vector.latency_cycles + D1.memory.latency_cycles
    assert found.vector_s == pytest.approx(64 * CYCLE)
    assert found.port_s == pytest.approx(48 * CYCLE)
    assert found.seconds == pytest.approx((64 + fill) * CYCLE)


def test_special_functions_take_turns_with_the_lanes():
    plain = vector_time(D1, "fp32", flops=1600)
    special = vector_time(D1, "fp32", flops=1600, specials=100)
    assert special.vector_s - plain.vector_s == pytest.approx(50 * CYCLE)


def test_integers_are_worked_on_as_fp32():
    assert vector_time(D1, "int64", flops=160) == vector_time(D1, "fp32", flops=160)


def test_nothing_takes_no_time():
    assert vector_time(D1, "bf16", flops=0).seconds == 0


def test_units_work_side_by_side_but_each_one_thing_at_a_time():
    by_matrix = matrix_time(D1, "bf16", product(64, 64, 4096))
    short = vector_time(D1, "bf16", flops=1000)
    assert together(by_matrix, short).seconds == by_matrix.seconds
    long = vector_time(D1, "bf16", flops=1e7)
    both = together(together(by_matrix, long), long)
    assert both.seconds == pytest.approx(2 * long.vector_s + by_matrix.vector_s)
