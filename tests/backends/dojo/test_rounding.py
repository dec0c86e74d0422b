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
    amax,
    make_rounder,
)
from fsdtrain_dojo.formats import (
    ACCUMULATOR_21,
    BF16,
    CFLOAT8_1_4_3,
    CFLOAT8_1_5_2,
    CFLOAT16_SHP,
    CFLOAT16_UHP,
    FP32,
    Denormals,
    Format,
)

from fsdtrain.backend import BackendError

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


def test_signed_zeros_infinities_and_nan_where_there_are_none() -> None:
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0], np.float32)
    result, counts = rounded(special, CFLOAT8_1_4_3, 7)
    assert same_bits(result, np.array([0.0, -0.0, 480, -480, 480, 480, 1.0], np.float32))
    one = int(np.float32(1).view(np.uint32))
    assert counts == [7, 2, 0, 2, one]


@pytest.mark.parametrize("format", [BF16, SPECIAL])
@pytest.mark.parametrize("rounding", Rounding)
def test_formats_with_infinity_keep_infinities_and_nan(format: Format, rounding: Rounding) -> None:
    special = np.array([np.inf, -np.inf, np.nan, -np.nan, -0.0], np.float32)
    special[2:4].view(np.uint32)[:] |= 1  # a payload
    result, counts = rounded(special, format, format.bias, rounding)
    assert same_bits(result, np.array([np.inf, -np.inf, np.nan, -np.nan, -0.0], np.float32))
    assert counts == [5, 2, 0, 2, 0]


@pytest.mark.parametrize("rounding", Rounding)
def test_an_unsigned_format_clamps_negative_numbers_to_zero(rounding: Rounding) -> None:
    numbers = np.array([-1.0, -np.inf, -1e-45, -0.0, 1.5, 1e-45, -np.nan], np.float32)
    result, counts = rounded(numbers, CFLOAT16_UHP, 31, rounding)
    largest = np.float32(CFLOAT16_UHP.max_finite(31))
    assert same_bits(result, np.array([0, 0, 0, 0, 1.5, 0, largest]))
    assert counts == [7, 3, 1, 1, int(np.float32(1.5).view(np.uint32))]


@pytest.mark.parametrize("rounding", Rounding)
def test_fp32_is_counted_and_left_alone(rounding: Rounding) -> None:
    numbers = np.array([1e-45, -3.0, np.nan, np.inf], np.float32)
    result, counts = rounded(numbers, FP32, 127, rounding)
    assert same_bits(result, numbers)
    assert counts == [4, 1, 0, 1, int(np.float32(3).view(np.uint32))]


def test_counts_are_added_and_the_largest_magnitude_kept() -> None:
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
    rounder = make_rounder(CFLOAT8_1_4_3, Rounding.NEAREST)
    for number in (2.0, 1e9, 1e-9, 3.0):
        rounder(torch.tensor([number]), 7, counts)
    assert counts[:4].tolist() == [4, 1, 1, 0]
    assert counts[Count.AMAX_BITS].int().view(torch.float32) == 1e9


def test_amax_is_of_finite_numbers() -> None:
    assert amax(torch.tensor([1.0, -7.5, np.inf, np.nan])) == 7.5
    assert amax(torch.tensor([np.nan])) == 0
    assert amax(torch.zeros(0)) == 0


def test_accumulator_of_21_bits_rounds_to_14_significant_bits() -> None:
    result, _ = rounded(np.array([1 + 2**-14, 1 + 3 * 2**-14, 1e30]), ACCUMULATOR_21, 63)
    assert result.tolist() == [1.0, 1 + 2**-12, (2 - 2**-13) * 2.0**64]


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("order", [(0, 3, 1, 2), (3, 1, 0, 2)])
def test_memory_order_decides_not_the_order_of_dimensions(
    rounding: Rounding, order: tuple[int, ...]
) -> None:
    in_memory = torch.randn(2, 4, 5, 3)
    image = in_memory.clone().permute(order)
    counts = torch.zeros(2, NUM_COUNTS, dtype=torch.int64)
    rounder = make_rounder(CFLOAT8_1_4_3, rounding)
    rounder(image, 7, counts[0], key=(1, 2))
    rounder(in_memory, 7, counts[1], key=(1, 2))
    assert torch.equal(image, in_memory.permute(order))
    assert torch.equal(counts[0], counts[1])


def test_bad_operands_are_named() -> None:
    rounder = make_rounder(CFLOAT8_1_4_3, Rounding.NEAREST)
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
    with pytest.raises(BackendError, match=r"not torch\.float64"):
        rounder(torch.zeros(3, dtype=torch.float64), 7, counts)
    with pytest.raises(BackendError, match="not on meta"):
        rounder(torch.zeros(3, device="meta"), 7, counts)
    with pytest.raises(BackendError, match=r"strides \(2,\)"):
        rounder(torch.zeros(6)[::2], 7, counts)
    with pytest.raises(BackendError, match=r"strides \(0, 1\)"):
        rounder(torch.zeros(3).expand(2, 3), 7, counts)
    with pytest.raises(BackendError, match="bias 64 .* 0 to 63"):
        rounder(torch.zeros(3), 64, counts)
    with pytest.raises(BackendError, match="literal"):
        make_rounder(BF16.with_denormals(Denormals.LITERAL), Rounding.NEAREST)(
            torch.zeros(3), 127, counts
        )
