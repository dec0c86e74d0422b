"""The paired equivalence test against SciPy, and its error rates by simulation."""

import math
from statistics import stdev

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fsdtrain.comparison.equivalence import (
    equivalence_of_pairs,
    num_seeds_needed,
    p_value_of_difference,
    student_t_cdf,
    student_t_quantile,
)

NUM_TRIALS = 4000


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 8, 9, 30, 101, 400])
def test_the_t_distribution_is_scipys(dof: int) -> None:
    for t in (-40.0, -3.3, -1.0, -1e-3, 0.0, 0.2, 2.132, 7.0, 100.0):
        assert student_t_cdf(t, dof) == pytest.approx(stats.t.cdf(t, dof), abs=1e-12)
    for probability in (0.001, 0.05, 0.5, 0.9, 0.95, 0.995):
        expected = stats.t.ppf(probability, dof)
        assert student_t_quantile(probability, dof) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_two_tests_are_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.5, 0.02, (2, 5 + seed))
    margin = 0.02
    found = equivalence_of_pairs(a, b, metric="iou", margin=margin)
    above = stats.ttest_1samp(b - a, -margin, alternative="greater")
    below = stats.ttest_1samp(b - a, margin, alternative="less")
    assert found.p_value == pytest.approx(max(above.pvalue, below.pvalue), abs=1e-10)
    interval = stats.ttest_rel(b, a).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-10)
    assert found.low is not None
    assert found.high is not None
    assert found.is_equivalent == (-margin < found.low and found.high < margin)
    assert p_value_of_difference(a, b) == pytest.approx(stats.ttest_rel(b, a).pvalue, abs=1e-10)


def simulate(difference: float, correlation: float, num_seeds: int) -> NDArray[np.float64]:
    """Pairs of unit spread: (trial, side, seed)."""
    rng = np.random.default_rng(5)
    shared, own_a, own_b = rng.normal(size=(3, NUM_TRIALS, num_seeds))
    of_seed, of_side = math.sqrt(correlation), math.sqrt(1 - correlation)
    a = of_seed * shared + of_side * own_a
    return np.stack([a, of_seed * shared + of_side * own_b + difference], axis=1)


def share_equivalent(trials: NDArray[np.float64], margin: float | None) -> float:
    verdicts = [
        equivalence_of_pairs(a.tolist(), b.tolist(), metric="", margin=margin).is_equivalent
        for a, b in trials
    ]
    return sum(verdict is True for verdict in verdicts) / len(trials)


@pytest.mark.parametrize("difference", [1.0, -1.0])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_sides_that_differ_by_the_margin_pass_in_one_of_twenty(
    difference: float, correlation: float
) -> None:
    # The standard error of a share of 5 % over the trials is 0.34 %.
    rate = share_equivalent(simulate(difference, correlation, 10), margin=1.0)
    assert rate <= 0.06
    if correlation:  # else both tests together are stricter than one of them
        assert rate >= 0.04


def test_pairs_find_what_means_alone_cannot() -> None:
    """Five seeds, a margin of one standard deviation, no difference."""
    trials = simulate(0.0, 0.9, 5)
    assert share_equivalent(trials, margin=1.0) > 0.9
    # Welch's tests: the half-width of the interval of two means against the margin.
    a, b = trials[:, 0], trials[:, 1]
    error = np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / 5)
    half = stats.t.ppf(0.95, 8) * error
    assert np.mean(np.abs((b - a).mean(1)) + half < 1.0) < 0.35


def test_a_margin_from_five_seeds_is_looser_than_one_that_is_known() -> None:
    """What the margin's own uncertainty does to the rate at a true difference of one s.d."""
    rate = share_equivalent(simulate(1.0, 0.9, 5), margin=None)
    assert 0.05 < rate < 0.35


def test_bitwise_equal_sides_are_equivalent_whatever_the_margin() -> None:
    for a in ([0.4] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]):
        found = equivalence_of_pairs(a, a, metric="iou", margin=None)
        assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 0)
        assert found.is_equivalent is True


def test_a_constant_difference_beyond_the_margin_is_not() -> None:
    a = [0.25, 0.5, 0.75, 1.0, 1.25]
    found = equivalence_of_pairs(a, [one + 0.5 for one in a], metric="iou", margin=0.25)
    assert found.is_equivalent is False
    assert found.p_value == 1


def test_the_margin_is_one_standard_deviation_of_a_unless_it_is_stated() -> None:
    a, b = [0.1, 0.2, 0.4, 0.3, 0.6], [0.1, 0.2, 0.4, 0.3, 0.7]
    found = equivalence_of_pairs(a, b, metric="iou", margin=None)
    assert found.margin == stdev(a)
    assert "standard deviation of side a over its 5 seeds" in found.margin_source
    assert equivalence_of_pairs(a, b, metric="iou", margin=0.5).margin_source == "stated"


@pytest.mark.parametrize("num_seeds", [1, 2, 4])
def test_fewer_than_five_seeds_give_no_verdict(num_seeds: int) -> None:
    a = [0.1 * number for number in range(num_seeds)]
    found = equivalence_of_pairs(a, a, metric="iou", margin=0.1)
    assert found.is_equivalent is None
    assert found.p_value is None
    assert (found.low is None) == (num_seeds == 1)


def test_the_seeds_that_are_needed_are_the_fewest() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 0.02, (2, 6))
    margin = 0.02
    needed = num_seeds_needed(a.tolist(), b.tolist(), margin)
    assert needed is not None

    def half(count: int) -> float:
        return float(stats.t.ppf(0.95, count - 1) * stdev(b - a) / math.sqrt(count))

    assert abs((b - a).mean()) + half(needed) < margin
    assert needed == 5 or abs((b - a).mean()) + half(needed - 1) >= margin
    assert num_seeds_needed(a.tolist(), (b + 1).tolist(), margin) is None
