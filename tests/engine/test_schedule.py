"""The three schedules against their closed forms, written out here by hand."""

import math

import pytest

from fsdtrain.engine.schedule import FINAL_SHARE, rate_at, schedule_function

SCHEDULES = ("one_cycle", "cosine", "constant")


def rates(schedule: str, num_steps: int, warmup_fraction: float) -> list[float]:
    rate = schedule_function(
        num_steps=num_steps,
        schedule=schedule,  # type: ignore[arg-type]  # parametrised over the three literals
        warmup_fraction=warmup_fraction,
    )
    return [rate(step) for step in range(num_steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100, 401])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 0.5, 0.99])
def test_rises_once_to_the_peak_and_never_rises_again(
    schedule: str, num_steps: int, warmup_fraction: float
) -> None:
    values = rates(schedule, num_steps, warmup_fraction)
    peak = values.index(max(values))
    assert all(0 < value <= 1 for value in values)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert max(values) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_is_the_straight_line_that_ends_at_the_peak(schedule: str) -> None:
    values = rates(schedule, 200, 0.1)
    assert values[:20] == pytest.approx([k / 20 for k in range(1, 21)])


def test_one_cycle_falls_on_a_straight_line_to_the_last_step() -> None:
    values = rates("one_cycle", 101, 20 / 101)
    steps = [values[k] - values[k + 1] for k in range(20, 100)]
    assert steps == pytest.approx([(1 - FINAL_SHARE) / 80] * 80)
    assert values[20] == 1.0
    assert values[-1] == pytest.approx(FINAL_SHARE)


def test_cosine_is_half_a_cosine_to_the_last_step() -> None:
    values = rates("cosine", 101, 0.0)
    expected = [
        FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * k / 100))
        for k in range(101)
    ]
    assert values == pytest.approx(expected)
    assert values[50] == pytest.approx((1 + FINAL_SHARE) / 2)


def test_constant_stays_at_the_peak() -> None:
    assert rates("constant", 10, 0.2) == pytest.approx([0.5] + [1.0] * 9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_jump_anywhere(schedule: str) -> None:
    values = rates(schedule, 1000, 0.1)
    largest = max(abs(b - a) for a, b in zip(values, values[1:], strict=False))
    # 100 warm-up steps of 1/100 are the steepest part of all three.
    assert largest <= 1 / 100 + 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lightning_asks_one_step_too_far_and_gets_the_end_value(schedule: str) -> None:
    # LambdaLR computes the rate of step num_steps after the last optimiser step.
    beyond = rate_at(50, num_steps=50, schedule=schedule, warmup_fraction=0.1)  # type: ignore[arg-type]
    assert beyond == rates(schedule, 50, 0.1)[-1]
