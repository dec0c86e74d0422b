"""Stochastic rounding: the chosen neighbour from the specification, and its statistics."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fsdtrain_dojo.arithmetic.codes import decode_table
from fsdtrain_dojo.arithmetic.random_bits import random_bits, stream_key
from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, Count, Rounding, make_rounder
from fsdtrain_dojo.formats import (
    BF16,
    CFLOAT8_1_4_3,
    CFLOAT8_1_5_2,
    CFLOAT16_SHP,
    CFLOAT16_UHP,
    Denormals,
    Format,
)

KEY = stream_key(seed=1, step=2, site=3)
CASES = [
    (CFLOAT8_1_4_3, 7),
    (CFLOAT8_1_5_2, 63),
    (CFLOAT16_SHP, 15),
    (CFLOAT16_UHP, 31),
    (BF16, 127),
]


@pytest.fixture
def keep_num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stochastically_rounded(
    numbers: np.ndarray, format: Format, bias: int, first_element: int = 0
) -> tuple[np.ndarray, list[int]]:
    tensor = torch.from_numpy(numbers.copy())
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
    make_rounder(format, Rounding.STOCHASTIC)(tensor, bias, counts, KEY, first_element)
    return tensor.numpy(), counts.tolist()


def magnitudes_and_neighbours(
    format: Format, bias: int, num: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random non-negative numbers over the whole range and 30 binades below, and their bounds."""
    values = np.unique(decode_table(format, bias).astype(np.float64))
    values = values[(values >= 0) & (values < np.inf)]
    generator = np.random.default_rng(0)
    exponents = generator.uniform(max(np.log2(values[1]) - 30, -149), np.log2(values[-1]), num)
    numbers = (2.0**exponents).astype(np.float32)
    numbers = numbers[numbers < values[-1]]
    upper = np.searchsorted(values, numbers, side="right")
    return numbers, values[upper - 1], values[upper]


@pytest.mark.parametrize(("format", "bias"), CASES)
@pytest.mark.parametrize("first_element", [0, 2**32 - 1000])
def test_the_step_up_follows_the_random_bits(format: Format, bias: int, first_element: int) -> None:
    numbers, lower, upper = magnitudes_and_neighbours(format, bias, 20_000)
    elements = np.arange(len(numbers), dtype=np.uint64) + np.uint64(first_element)
    random = random_bits(KEY, elements).astype(np.int64) >> 1
    part = np.floor((numbers - lower) / (upper - lower) * 2.0**31).astype(np.int64)
    expected = np.where(part + random >= 1 << 31, upper, lower)
    result, counts = stochastically_rounded(numbers, format, bias, first_element)
    np.testing.assert_array_equal(result, expected)
    assert counts[Count.SATURATED] == counts[Count.NAN] == 0
    assert counts[Count.UNDERFLOWED] == np.sum((expected == 0) & (numbers > 0))


@pytest.mark.parametrize("denormals", [Denormals.LITERAL, Denormals.FLUSH])
def test_gaps_are_crossed_in_proportion(denormals: Denormals) -> None:
    format = CFLOAT8_1_4_3.with_denormals(denormals)
    low, high = (0.875 * 2**-7, 2**-6) if denormals is Denormals.LITERAL else (0, 2**-6)
    number = np.float32(low + 0.3 * (high - low))
    result, _ = stochastically_rounded(np.full(200_000, number), format, 7)
    assert set(result) == {np.float32(low), np.float32(high)}
    share = (number - low) / (high - low)
    standard_error = np.sqrt(share * (1 - share) / len(result))
    assert abs(np.mean(result == np.float32(high)) - share) < 4 * standard_error


@pytest.mark.parametrize(("format", "bias"), CASES)
@pytest.mark.parametrize("denormals", Denormals)
def test_values_of_the_format_never_move(format: Format, bias: int, denormals: Denormals) -> None:
    if format is BF16 and denormals is Denormals.LITERAL:
        return
    format = format.with_denormals(denormals)
    values = decode_table(format, bias)
    values = values[~np.isnan(values)]
    for repetition in range(4):
        result, _ = stochastically_rounded(values, format, bias, repetition * len(values))
        assert np.array_equal(result.view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize(("format", "bias"), CASES)
def test_unbiased_in_every_binade(format: Format, bias: int) -> None:
    numbers, lower, upper = magnitudes_and_neighbours(format, bias, 400_000)
    result, _ = stochastically_rounded(numbers, format, bias)
    wide = numbers.astype(np.float64)
    binade = np.frexp(wide)[1]
    for exponent in np.unique(binade):
        chosen = binade == exponent
        error = np.sum(result[chosen] - wide[chosen])
        variance = np.sum((wide - lower)[chosen] * (upper - wide)[chosen])
        # Where no step up is expected at all, one is not four standard errors.
        assert abs(error) <= 4 * np.sqrt(variance) + np.max((upper - lower)[chosen]), exponent


def test_beyond_the_largest_value_is_clamped() -> None:
    numbers = np.array([480, 481, 511, 512, 1e30, np.inf, -1e30], np.float32)
    result, counts = stochastically_rounded(numbers, CFLOAT8_1_4_3, 7)
    assert result.tolist() == [480] * 6 + [-480]
    assert 4 <= counts[Count.SATURATED] <= 6  # 481 and 511 by chance
    largest = np.float32(BF16.max_finite(127))
    result, _ = stochastically_rounded(np.full(100, np.finfo(np.float32).max), BF16, 127)
    assert set(result) == {largest}


@pytest.mark.usefixtures("keep_num_threads")
@pytest.mark.parametrize("rounding", Rounding)
def test_threads_and_pieces_change_nothing(rounding: Rounding) -> None:
    tensor = torch.randn(4_500_007, generator=torch.Generator().manual_seed(0)) * 100
    tensor[::1000] = torch.nan
    rounder = make_rounder(CFLOAT8_1_4_3, rounding)
    results, all_counts = [], []
    for num_threads in (1, 2, 8):
        torch.set_num_threads(num_threads)
        results.append(tensor.clone())
        all_counts.append(torch.zeros(NUM_COUNTS, dtype=torch.int64))
        rounder(results[-1], 7, all_counts[-1], KEY)
    results.append(tensor.clone())
    all_counts.append(torch.zeros(NUM_COUNTS, dtype=torch.int64))
    for start in range(0, len(tensor), 1_333_333):
        piece = results[-1][start : start + 1_333_333]
        rounder(piece, 7, all_counts[-1], KEY, first_element=start)
    for result, counts in zip(results[1:], all_counts[1:], strict=True):
        assert torch.equal(result, results[0])
        assert torch.equal(counts, all_counts[0])
