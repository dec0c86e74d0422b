"""Curves and bisection on made-up points, against trying every number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdtrain.planning.curve import (
    device_counts,
    fewest_devices,
    most_devices,
    quickest,
    to_nodes,
    trace_curve,
)
from fsdtrain.planning.record import ScalePoint


def made_up(count: int, time_s: float, cost: float = 0.0) -> ScalePoint:
    return ScalePoint(
        num_devices=count, step_s=1.0, compute_s=1.0, exposed_s=0.0, input_s=0.0,
        straggler_share=0.0, failure_share=0.0, checkpoint_interval_s=None, samples_per_s=1.0,
        time_to_train_s=time_s, efficiency=1.0, limit="compute", power_w=None, energy_j=None,
        ingest_bytes_per_s=0.0, cost=cost, samples_per_step=count,
    )  # fmt: skip


def test_counts_are_about_four_a_decade_and_whole_nodes() -> None:
    alone = (1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 316, 562, 1000, 1778, 3162, 5623, 10_000)
    assert device_counts(1) == alone
    boxes = device_counts(8)
    assert boxes[:6] == (1, 2, 3, 6, 8, 16)
    assert all(each % 8 == 0 for each in boxes if each > 8)
    assert boxes[-1] == 10_000
    assert device_counts(6)[-1] == 9_996  # whole trays, not above the most
    assert device_counts(1, most=5) == (1, 2, 3)


@given(st.integers(1, 20_000), st.integers(1, 64))
def test_rounding_fills_nodes_and_stays_near(count: int, size: int) -> None:
    found = to_nodes(count, size)
    assert found == count if count <= size else found % size == 0
    assert abs(found - count) <= size / 2


@given(
    target=st.floats(min_value=1.0, max_value=2e5),
    size=st.sampled_from([1, 6, 8]),
    floor=st.floats(min_value=0.0, max_value=100.0),
)
def test_the_fewest_are_found_as_by_trying_all(target: float, size: int, floor: float) -> None:
    def point_of(count: int) -> ScalePoint:
        return made_up(count, 1e5 / count + floor)

    curve = trace_curve(point_of, size, 2000)
    found = fewest_devices(point_of, curve, lambda each: each.time_to_train_s <= target, size)
    wanted = next(
        (
            count
            for count in range(1, curve[-1].num_devices + 1)
            if to_nodes(count, size) == count and point_of(count).time_to_train_s <= target
        ),
        None,
    )
    assert (found.num_devices if found else None) == wanted


@given(budget=st.floats(min_value=50.0, max_value=500.0), size=st.sampled_from([1, 8]))
def test_the_most_that_a_budget_pays_are_found_as_by_trying_all(budget: float, size: int) -> None:
    def point_of(count: int) -> ScalePoint:
        return made_up(count, 1e5 / count, cost=100 + count / 10)

    curve = trace_curve(point_of, size, 2000)
    found = most_devices(point_of, curve, lambda each: (each.cost or 0) <= budget, size)
    wanted = [
        count
        for count in range(1, curve[-1].num_devices + 1)
        if to_nodes(count, size) == count and 100 + count / 10 <= budget
    ]
    assert (found.num_devices if found else None) == (wanted[-1] if wanted else None)


def test_a_budget_does_not_buy_devices_that_make_it_slower() -> None:
    def point_of(count: int) -> ScalePoint:
        return made_up(count, 1e5 / count + 10 * count, cost=float(count))

    curve = trace_curve(point_of, 1, 10_000)
    found = most_devices(point_of, curve, lambda each: (each.cost or 0) <= 9000, 1)
    assert found == quickest(curve).point
    assert found is not None
    assert found.num_devices == 100
    assert quickest(curve).turns
    assert not quickest(curve[:3]).turns


def test_points_that_never_end_are_left_out() -> None:
    curve = trace_curve(lambda count: made_up(count, 1.0) if count < 100 else None, 1)
    assert curve[-1].num_devices == 56


def test_nothing_meets_a_target_below_the_floor() -> None:
    curve = (made_up(1, 10.0), made_up(2, 9.0))
    found = fewest_devices(
        lambda count: pytest.fail("nothing is left to try"),
        curve,
        lambda each: each.time_to_train_s < 5,
        1,
    )
    assert found is None
