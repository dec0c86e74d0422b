"""Against a nest that is walked step by step."""

from itertools import product

import pytest
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
from fsdtrain_dojo.timing.kernel_work import describe_work
from fsdtrain_dojo.timing.step_loads import plan_steps
from hypothesis import given
from hypothesis import strategies as st

M, N, K = 0, 1, 2


def make_work(m=64, n=48, k=80):
    values = {
        name: Value(
            name=name, shape=shape, format="bf16", element_bytes=2, kind=ValueKind.ACTIVATION
        )
        for name, shape in {"a": (m, k), "b": (k, n), "c": (m, n)}.items()
    }
    kernel = Kernel(
        name="product",
        op="aten.mm",
        phase=Phase.FORWARD,
        unit=Unit.MATRIX,
        loops=(Loop("m", m), Loop("n", n), Loop("k", k)),
        reads=(Access("a", (along(M), along(K))), Access("b", (along(K), along(N)))),
        writes=(Access("c", (along(M), along(N))),),
        macs=m * n * k,
        compute=lambda tensors, block: [tensors[0] @ tensors[1]],
    )
    return describe_work(kernel, values)


def plan(steps, *, room=0.0, local=(False, False), local_write=False, **others):
    work = make_work()
    return plan_steps(
        work,
        work.sizes,
        steps,
        room_bytes=room,
        local_reads=local,
        local_writes=[local_write],
        **{"is_partial": False, "keeps_sums": True, **others},
    )


def walk(order, counts, own, *, held, fixed):
    """Loads of pieces while the `fixed` outermost loops are in their first step."""
    loaded, last, seen = 0, None, set()
    for place in product(*(range(count) for count in counts)):
        if any(place[:fixed]):
            continue
        piece = tuple(at for at, loop in zip(place, order, strict=True) if loop in own)
        if piece not in seen if held else piece != last:
            loaded += 1
        last = piece
        seen.add(piece)
    return loaded


@given(
    order=st.permutations([M, N, K]),
    counts=st.tuples(*[st.integers(2, 5)] * 3),
    num_loops=st.integers(0, 3),
    held=st.booleans(),
)
def test_loads_are_those_of_a_walk_through_the_nest(order, counts, num_loops, held):
    order, counts = order[:num_loops], counts[:num_loops]
    found = plan(dict(zip(order, counts, strict=True)), room=1e9 if held else 0.0)
    for visits, own in zip(found.reads, ({M, K}, {K, N}), strict=True):
        walked = {
            is_held: tuple(
                walk(order, counts, own, held=is_held, fixed=fixed)
                for fixed in range(num_loops + 1)
            )
            for is_held in (False, True)
        }
        # Two halves are two buffers: what has no more pieces is held in any case.
        is_held = held or visits.pieces <= 2
        assert visits.loads == walked[is_held]
        assert visits.pieces == walk(order, counts, own, held=True, fixed=0)


def test_buffers_of_one_step_hold_everything_once():
    assert plan({}).num_bytes == 2 * (64 * 80 + 80 * 48 + 64 * 48)


def test_buffers_of_steps_are_double_where_pieces_follow_each_other():
    """All of b stays while m goes on: only a and the results have two buffers."""
    assert plan({M: 4}).num_bytes == 2 * (2 * 16 * 80 + 80 * 48 + 2 * 16 * 48)


def test_what_lies_in_place_needs_no_buffer():
    assert plan({}, local=(True, False)).num_bytes == 2 * (80 * 48 + 64 * 48)
    assert plan({}, local=(True, True), local_write=True).num_bytes == 0


def test_sums_of_a_divided_depth_that_the_unit_cannot_keep():
    kept, spilled = (plan({K: 4}, keeps_sums=keeps).num_bytes for keeps in (True, False))
    assert spilled - kept == 4 * 64 * 48


def test_parts_of_sums_travel_as_fp32():
    assert plan({}, is_partial=True).num_bytes == 2 * (64 * 80 + 80 * 48) + 4 * 64 * 48


def test_the_operand_that_is_loaded_most_often_again_is_held_first():
    """b is loaded again for each of 8 steps of m, a for each of 2 of n."""
    streamed = plan({M: 8, N: 2, K: 4})
    whole_b = 2 * 80 * 48
    buffers_of_b = 2 * 2 * 20 * 24
    some = plan({M: 8, N: 2, K: 4}, room=streamed.num_bytes + whole_b - buffers_of_b)
    assert some.num_bytes == streamed.num_bytes + whole_b - buffers_of_b
    assert [each.loads[0] for each in streamed.reads] == [64, 64]
    assert [each.loads[0] for each in some.reads] == [64, 8]


@given(room=st.floats(0, 3e4), counts=st.tuples(*[st.integers(1, 6)] * 3))
def test_what_is_held_follows_from_the_bytes_alone(room, counts):
    steps = dict(zip((N, M, K), counts, strict=True))
    found = plan(steps, room=room)
    assert plan(steps, room=found.num_bytes) == found


@pytest.mark.parametrize("steps", [{M: 3}, {N: 5, K: 7}])
def test_ragged_steps_are_as_large_as_the_largest(steps):
    smaller = plan({loop: count + 1 for loop, count in steps.items()})
    assert smaller.num_bytes < plan(steps).num_bytes
