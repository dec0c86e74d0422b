"""The wait for the slowest device: against closed forms, a bound and drawn step times."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdtrain.planning.stragglers import expected_maximum, straggler_share


@pytest.mark.parametrize(
    ("count", "exact"),
    [
        (1, 0.0),
        (2, 1 / math.sqrt(math.pi)),
        (3, 3 / (2 * math.sqrt(math.pi))),
        (4, 3 / math.sqrt(math.pi) * (0.5 + math.asin(1 / 3) / math.pi)),
    ],
)
def test_small_counts_have_closed_forms(count: int, exact: float) -> None:
    assert expected_maximum(count) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("count", [16, 512, 4096])
def test_agrees_with_drawn_step_times(count: int) -> None:
    steps = np.random.default_rng(5).standard_normal((2000, count)).max(axis=1)
    error = steps.std() / math.sqrt(len(steps))
    assert expected_maximum(count) == pytest.approx(steps.mean(), abs=4 * error)


@given(st.integers(min_value=2, max_value=200_000))
def test_stays_below_the_bound_and_grows(count: int) -> None:
    assert expected_maximum(count) < math.sqrt(2 * math.log(count))
    assert expected_maximum(count) > expected_maximum(count - 1)


def test_published_anchor_of_two_percent() -> None:
    """By the bound 1 + s sqrt(2 ln N), 2 % cost 7.1 % at 512 devices; exactly it is 6.1 %."""
    share = straggler_share(0.02, 512)
    assert share == pytest.approx(0.0609, abs=2e-4)
    assert share < 0.02 * math.sqrt(2 * math.log(512))
