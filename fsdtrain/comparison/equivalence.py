"""Are two sides' final figures the same within a margin? Two one-sided t-tests on pairs of seeds.

A pair is one seed on both sides: the same initial weights, order of the data and augmentation, so
what the seed alone does to the figure cancels in b - a. With five seeds, tests on unpaired means
(Welch's) have an interval of +- 1.18 standard deviations, wider than a margin of one whatever the
figures are; that of pairs is narrower as soon as both sides correlate by more than 0.24. The test
is chosen before the figures are seen, and holds its error rate whatever the correlation.

Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15 (1987) 657-680, the two tests; Student,
Biometrika 6 (1908) 1-25, the pairs; Lakens, Social Psychological and Personality Science 8 (2017)
355-362, how to report them.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from fsdtrain.comparison.record import Equivalence

ALPHA = 0.05
MIN_SEEDS = 5
MAX_SEEDS_NEEDED = 200


def equivalence_of_pairs(
    a: Sequence[float], b: Sequence[float], *, metric: str, margin: float | None
) -> Equivalence:
    """Whether the mean of b - a lies within +- `margin`.

    Args:
        a: the final figure of side a, by seed.
        b: of side b, in the same order.
        metric: the figure's name.
        margin: what counts as the same; None: one standard deviation of `a` over its seeds.
    """
    assert len(a) == len(b) > 0
    differences = [of_b - of_a for of_a, of_b in zip(a, b, strict=True)]
    source = "stated"
    if margin is None:
        margin, source = _spread_over_seeds(a)
    mean = fmean(differences)
    low, high, p_value = _two_tests(differences, margin)
    is_enough = len(a) >= MIN_SEEDS
    return Equivalence(
        metric=metric,
        margin=margin,
        margin_source=source,
        difference=mean,
        low=low,
        high=high,
        p_value=p_value if is_enough else None,
        is_equivalent=p_value is not None and p_value < ALPHA if is_enough else None,
    )


def _spread_over_seeds(a: Sequence[float]) -> tuple[float, str]:
    if len(a) < 2:
        return 0.0, "none: one seed has no standard deviation"
    return stdev(a), f"one standard deviation of side a over its {len(a)} seeds"


def _two_tests(
    differences: Sequence[float], margin: float
) -> tuple[float | None, float | None, float | None]:
    """(low, high) of the 90 % interval of the mean, and the larger p-value."""
    if len(differences) < 2:
        return None, None, None
    mean, dof = fmean(differences), len(differences) - 1
    error = stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        # Bitwise equal sides are within any margin, even that of seeds that do not differ.
        return mean, mean, 0.0 if mean == 0 or abs(mean) < margin else 1.0
    half = student_t_quantile(1 - ALPHA, dof) * error
    p_value = student_t_cdf((abs(mean) - margin) / error, dof)
    return mean - half, mean + half, p_value


def p_value_of_difference(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Of Student's two-sided paired t-test that b and a have one mean; None: fewer than 2 pairs."""
    if len(a) < 2:
        return None
    differences = [of_b - of_a for of_a, of_b in zip(a, b, strict=True)]
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * student_t_cdf(-abs(mean) / error, len(differences) - 1)


def num_seeds_needed(a: Sequence[float], b: Sequence[float], margin: float) -> int | None:
    """The fewest pairs that show equivalence if their mean and spread stay what they are.

    None: the difference is not within the margin, or more than `MAX_SEEDS_NEEDED` would be needed.
    """
    differences = [of_b - of_a for of_a, of_b in zip(a, b, strict=True)]
    mean, spread = abs(fmean(differences)), stdev(differences)
    return next(
        (
            count
            for count in range(MIN_SEEDS, MAX_SEEDS_NEEDED + 1)
            if mean + student_t_quantile(1 - ALPHA, count - 1) * spread / math.sqrt(count) < margin
        ),
        None,
    )


def student_t_cdf(t: float, dof: int) -> float:
    """P(T <= t) of Student's t, by its finite series for a whole number of degrees of freedom.

    Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    assert dof >= 1
    angle = math.atan2(t, math.sqrt(dof))
    sine, cosine = math.sin(angle), math.cos(angle)
    if dof % 2:
        term, total = cosine, 0.0
        for number in range(1, dof - 1, 2):
            total += term
            term *= cosine**2 * (number + 1) / (number + 2)
        inside = (angle + sine * total) * 2 / math.pi
    else:
        term, total = 1.0, 0.0
        for number in range(0, dof, 2):
            total += term
            term *= cosine**2 * (number + 1) / (number + 2)
        inside = sine * total
    return 0.5 + 0.5 * inside


def student_t_quantile(probability: float, dof: int) -> float:
    """The t below which Student's distribution has this probability, by bisection."""
    assert 0 < probability < 1
    low, high = -1.0, 1.0
    while student_t_cdf(low, dof) > probability:
        low *= 2
    while student_t_cdf(high, dof) < probability:
        high *= 2
    while high - low > 1e-12 * max(1.0, abs(low)):
        middle = 0.5 * (low + high)
        if student_t_cdf(middle, dof) < probability:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
