"""What is expected of a tensor by the format that it is stored in, and whether it is met.

Two kinds of bounds. Published ones by format (`default_snr_db`) hold for ops that add up no large
numbers to a small one. Derived ones come from the numbers themselves: what a correctly rounded op
gives from these inputs, see `RoundingNoise`; a store must be unbiased and no noisier than
stochastic rounding, which is the noisiest way to store. It does not know ops.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from fsdtrain.comparison.dot import dot
from fsdtrain.comparison.number_formats import (
    Floats,
    Grid,
    NumberFormat,
    round_to,
    spacing,
    used_mantissa_bits,
)

# Least signal-to-noise in dB by stored fraction bits, per op. 23, 7, 3 and 2 bits: the project's
# requirement; the others by the same rule, 6.02 dB a bit less the margin of the next one known.
_DEFAULT_SNR_DB: Final = {52: 200.0, 23: 100.0, 10: 58.0, 7: 40.0, 3: 20.0, 2: 14.0}
# Sums of many terms and functions of several instructions err more than one rounding does.
FLOAT32_MARGIN_DB: Final = 20.0
# A side's run may drift from one that only rounds, by other biases, orders of sums, random bits.
DRIFT_MARGIN_DB: Final = 10.0
# Bernstein's inequality: a sum of independent errors, each at most M, is beyond 6 standard
# deviations plus 6 M with a probability below 2 exp(-18) = 3e-8. M matters for few elements, of
# which one may be rounded the unlikely way.
DEVIATIONS: Final = 6.0
NOISE_FACTOR: Final = 1.25  # power: of results that are rounded twice on their way
# Of the sums of a low-precision store in float32, relative to the tensor.
_ACCUMULATION: Final = 1e-6
# A tensor that needs its last bit in so many elements and never has it, has less resolution.
_MIN_LAST_BITS: Final = 24
_EPSILON: Final = 2.0**-24

Fault = Literal["", "noise", "scale", "offset", "resolution"]


def default_snr_db(*formats: NumberFormat) -> float:
    """The published bound of the worst of these formats."""
    return min(
        (
            _DEFAULT_SNR_DB.get(format.mantissa_bits, 6.02 * format.mantissa_bits - 2)
            for format in formats
        ),
        default=_DEFAULT_SNR_DB[23],
    )


@dataclass(frozen=True, kw_only=True)
class RoundingNoise:
    """What rounding exact numbers v to a grid does to them, nearest and stochastic.

    With f the place of v between its two neighbours, step s apart: to nearest errs by min(f, 1-f)
    s, always the same way; stochastic by f s or (1-f) s with a mean of zero, a mean square of
    f (1-f) s^2 and a mean fourth power that follows from the two.

    Args:
        power: sum f (1-f) s^2, which is at least the power of nearest.
        power_deviation: standard deviation of the power of stochastic rounding.
        scale_nearest: the least and the largest best scale to nearest, less 1: numbers halfway
            between two neighbours go to either, as their sum in float32 happens to be.
        scale_deviation: standard deviation of the best scale.
        mean_nearest: the least and the largest mean error to nearest.
        mean_deviation: standard deviation of the mean error.
        num_last_bits: elements whose last fraction bit is set, to nearest.
        largest_power: of one element's error that is not always the same.
        largest_scale: that one such element can add to the best scale.
        largest_mean: that one such element can add to the mean error.
    """

    power: float
    power_deviation: float
    scale_nearest: tuple[float, float]
    scale_deviation: float
    mean_nearest: tuple[float, float]
    mean_deviation: float
    num_last_bits: int
    largest_power: float
    largest_scale: float
    largest_mean: float


@dataclass(frozen=True, kw_only=True)
class StoreJudgement:
    """Whether a stored tensor is what storing its exact values gives.

    Args:
        fault: what it fails by; "": nothing.
        allowed_power: of its error, the most that is within the band.
        power: of its error.
        excess: of what it fails by, over what is allowed; 1 or less: it is within.
    """

    fault: Fault
    allowed_power: float
    power: float
    excess: float


def rounding_noise(exact: Floats, grid: Grid) -> RoundingNoise:
    """Of finite numbers."""
    steps = spacing(exact, grid)
    scaled = np.abs(exact) / steps
    places = scaled - np.floor(scaled)
    nearest = round_to(exact, grid)
    variances = places * (1 - places) * steps**2
    energy = dot(exact, exact)
    errors = nearest - exact
    count = max(len(exact), 1)
    around = _ACCUMULATION * np.maximum(np.abs(exact), math.sqrt(energy / count))
    upper = round_to(exact + around, grid) - exact
    lower = round_to(exact - around, grid) - exact
    scales = [dot(each, exact) for each in _by_sign(lower, upper, exact)]
    # What is on the grid already stays there.
    largest = float(steps[variances > 0].max(initial=0.0))
    largest_product = float((steps * np.abs(exact))[variances > 0].max(initial=0.0))
    codes = np.rint(np.abs(nearest) / steps)
    is_even_or_zero = codes % 2 == 0
    return RoundingNoise(
        # Clamped numbers err by more than a step.
        power=max(float(variances.sum()), dot(errors, errors)),
        power_deviation=math.sqrt(float((variances * (steps * (1 - 2 * places)) ** 2).sum())),
        scale_nearest=_ordered(*(each / energy if energy else 0.0 for each in scales)),
        scale_deviation=math.sqrt(dot(variances, exact**2)) / energy if energy else 0.0,
        mean_nearest=_ordered(float(lower.sum()) / count, float(upper.sum()) / count),
        mean_deviation=math.sqrt(float(variances.sum())) / count,
        num_last_bits=int(np.sum(~is_even_or_zero)),
        largest_power=largest**2,
        largest_scale=largest_product / energy if energy else 0.0,
        largest_mean=largest / count,
    )


def _by_sign(lower: Floats, upper: Floats, exact: Floats) -> tuple[Floats, Floats]:
    """Errors towards zero, and away from it."""
    is_positive = exact > 0
    return np.where(is_positive, lower, upper), np.where(is_positive, upper, lower)


def _ordered(first: float, second: float) -> tuple[float, float]:
    return min(first, second), max(first, second)


def judge_store(
    exact: Floats, stored: Floats, grid: Grid, *, slack_rms: float = 0.0
) -> StoreJudgement:
    """Judge numbers that should be `exact` rounded to the grid, to nearest or stochastically.

    Args:
        exact: finite.
        stored: finite, as many.
        grid: of the format.
        slack_rms: of the error that the numbers may have had before they were rounded.
    """
    noise = rounding_noise(exact, grid)
    errors = stored - exact
    count = max(len(exact), 1)
    energy = dot(exact, exact)
    rms = math.sqrt(energy / count)
    slack = max(slack_rms, _ACCUMULATION * rms)
    power = dot(errors, errors)
    allowed = (
        math.sqrt(
            NOISE_FACTOR * noise.power + DEVIATIONS * (noise.power_deviation + noise.largest_power)
        )
        + slack * math.sqrt(count)
    ) ** 2
    excesses: dict[Fault, float] = {"noise": power / allowed if allowed else math.inf * power}
    if energy:
        excesses["scale"] = _excess(
            dot(errors, exact) / energy,
            noise.scale_nearest,
            DEVIATIONS * (noise.scale_deviation + noise.largest_scale) + slack / rms,
        )
    excesses["offset"] = _excess(
        float(errors.sum()) / count,
        noise.mean_nearest,
        DEVIATIONS * (noise.mean_deviation + noise.largest_mean) + slack,
    )
    # What is left of sums that cancel has as few bits as the sum had for it.
    has_all_bits = slack < rms * 2.0 ** -(grid.mantissa_bits + 2)
    if has_all_bits and noise.num_last_bits >= _MIN_LAST_BITS:
        used = used_mantissa_bits(stored, grid)
        is_coarse = used is not None and used < grid.mantissa_bits
        excesses["resolution"] = 2.0 if is_coarse else 0.0
    fault, excess = max(excesses.items(), key=lambda each: each[1])
    return StoreJudgement(
        fault=fault if excess > 1 else "", allowed_power=allowed, power=power, excess=excess
    )


def _excess(found: float, to_nearest: tuple[float, float], allowed: float) -> float:
    """How far `found` is outside of the interval of 0 and `to_nearest`, in allowed widths."""
    low, high = min(0.0, to_nearest[0]), max(0.0, to_nearest[1])
    distance = max(low - found, found - high, 0.0)
    if distance == 0:
        return 0.0
    return distance / allowed if allowed else math.inf
