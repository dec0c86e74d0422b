"""Rounding against the list of all values of a format, made from the exact value of each code."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from fsdtrain_dojo.arithmetic.rounding import (
    NUM_COUNTS,
    Count,
    Rounding,
    make_rounder,
)
from fsdtrain_dojo.formats import (
    BF16,
    CFLOAT8_1_4_3,
    CFLOAT8_1_5_2,
    CFLOAT16_SHP,
    CFLOAT16_UHP,
    Denormals,
    Format,
)

SMALL = replace(CFLOAT8_1_4_3, name="small", exponent_bits=3, mantissa_bits=2)
SPECIAL = CFLOAT8_1_5_2.with_specials(True)
CASES = [
    (format.with_denormals(denormals), bias)
    for format in (CFLOAT8_1_4_3, CFLOAT8_1_5_2, SPECIAL, SMALL)
    for denormals in Denormals
    for bias in (0, 7, 31, 63)
] + [(CFLOAT16_SHP, 15), (CFLOAT16_SHP, 63), (CFLOAT16_UHP, 31), (BF16, 127)]
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def non_negative_values(format: Format, bias: int) -> tuple[np.ndarray, np.ndarray]:
    """All finite values from +0 up, and whether the fraction of the code is even."""
    found: dict[Fraction, bool] = {}
    for code in range(1 << (format.num_bits - format.sign_bits)):
        value = format.value(code, bias)
        if isinstance(value, Fraction) and value not in found:
            found[value] = code % 2 == 0
    values = sorted(found)
    return np.array([float(value) for value in values]), np.array([found[v] for v in values])


def interesting_magnitudes(values: np.ndarray) -> np.ndarray:
    """Every value, every middle and what lies next to them, the ends of float32, random ones."""
    middles = (values[1:] + values[:-1]) / 2
    step = values[-1] - values[-2]
    points = np.concatenate([values, middles, values[-1] + step * np.array([0.5, 1, 2])])
    with np.errstate(over="ignore"):
        exact = points.astype(np.float32)
    near = [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(np.inf))]
    ends = np.array([0, 1e-45, 1e-38, 2e-38, LARGEST_FLOAT32, np.inf], np.float32)
    generator = np.random.default_rng(0)
    random = 2 ** generator.uniform(np.log2(values[1]) - 4, np.log2(values[-1]) + 1, 4000)
    with np.errstate(over="ignore"):
        return np.concatenate([*near, ends, random.astype(np.float32)])


def nearest_even(magnitudes: np.ndarray, values: np.ndarray, is_even: np.ndarray) -> np.ndarray:
    """By search: the index of the nearest value; its length stands for one step further."""
    above_last = 2 * values[-1] - values[-2]
    steps = np.append(values, above_last)
    parity = np.append(is_even, not is_even[-1])
    wide = np.minimum(magnitudes.astype(np.float64), above_last)
    upper = np.clip(np.searchsorted(steps, wide), 1, len(steps) - 1)
    to_lower, to_upper = wide - steps[upper - 1], steps[upper] - wide
    # Where both codes are even, at the edge of flushed denormals, the lower one is taken.
    tie_up = parity[upper] & ~parity[upper - 1]
    return np.where((to_upper < to_lower) | ((to_upper == to_lower) & tie_up), upper, upper - 1)


def rounded(
    numbers: np.ndarray, format: Format, bias: int, rounding: Rounding = Rounding.NEAREST
) -> tuple[np.ndarray, list[int]]:
    tensor = torch.from_numpy(numbers.astype(np.float32))
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
    make_rounder(format, rounding)(tensor, bias, counts, key=(12, 34))
    return tensor.numpy(), counts.tolist()


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return bool(np.array_equal(left.view(np.uint32), right.astype(np.float32).view(np.uint32)))


@pytest.mark.parametrize(("format", "bias"), CASES, ids=lambda case: getattr(case, "name", case))
def test_nearest_finds_the_nearest_value(format: Format, bias: int) -> None:
    values, is_even = non_negative_values(format, bias)
    magnitudes = interesting_magnitudes(values)
    found = nearest_even(magnitudes, values, is_even)
    beyond = np.inf if format.has_specials else values[-1]
    expected = np.append(values, beyond)[found]
    result, counts = rounded(magnitudes, format, bias)
    assert same_bits(result, expected)
    assert counts[Count.ELEMENTS] == len(magnitudes)
    assert counts[Count.SATURATED] == np.sum(found == len(values))
    assert counts[Count.UNDERFLOWED] == np.sum((found == 0) & (magnitudes > 0))
    assert counts[Count.NAN] == 0
    assert counts[Count.AMAX_BITS] == int(np.float32(LARGEST_FLOAT32).view(np.uint32))
    if format.sign_bits:
        result, again = rounded(-magnitudes, format, bias)
        assert same_bits(result, -expected)
        assert again == counts
