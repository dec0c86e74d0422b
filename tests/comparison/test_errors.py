"""Measures of a pair of tensors against NumPy, SciPy, exact fractions and closed forms."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsdtrain.comparison.errors import CHUNK, compare_tensors
from fsdtrain.comparison.number_formats import FLOAT32_GRID, find_format, grid_of
from fsdtrain.comparison.record import Errors

SIZES = st.integers(2, 3 * CHUNK)
SEEDS = st.integers(0, 2**31)


def random_pair(seed: int, size: int, *, noise: float, mean: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(size, generator=generator) + mean
    return reference, reference + noise * torch.randn(size, generator=generator)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, size=SIZES, noise=st.sampled_from([1e-6, 1e-2, 3.0]), mean=st.floats(-99, 99))
def test_measures_are_those_of_numpy_and_scipy(
    seed: int, size: int, noise: float, mean: float
) -> None:
    reference, x = random_pair(seed, size, noise=noise, mean=mean)
    errors = compare_tensors(reference, x, tolerance=1e-2)
    if errors.is_bitwise_equal:
        return
    r, y = reference.numpy().astype(np.longdouble), x.numpy().astype(np.longdouble)
    d = y - r
    rms = np.sqrt((r**2).mean())
    assert errors.snr_db == pytest.approx(float(10 * np.log10((r**2).sum() / (d**2).sum())))
    assert errors.cosine == pytest.approx(
        float((y * r).sum() / np.sqrt((y**2).sum() * (r**2).sum())), abs=1e-6
    )
    assert errors.max_over_rms == pytest.approx(float(abs(d).max() / rms), rel=1e-6)
    assert errors.scale == pytest.approx(float((y * r).sum() / (r**2).sum()), rel=1e-6)
    assert errors.share_within == pytest.approx(
        float((abs(d) <= 1e-2 * np.maximum(abs(r), rms)).mean()), abs=1e-6
    )
    expected = scipy.stats.pearsonr(r.astype(np.float64), y.astype(np.float64)).statistic
    assert errors.pearson == pytest.approx(expected, abs=1e-6)
    assert errors.nan_share == 0


def test_small_tensors_are_exact() -> None:
    """Against sums of fractions: the error of an error is below six digits."""
    values = [1.0, -2.5, 3.25, 0.1]
    reference = torch.tensor(values)
    x = reference * torch.tensor([1.0, 1.0000001, 1.0, 0.9999999])
    both = zip(reference.tolist(), x.tolist(), strict=True)
    pairs = [(Fraction(r), Fraction(y)) for r, y in both]
    signal = sum(r * r for r, _ in pairs)
    noise = sum((y - r) ** 2 for r, y in pairs)
    errors = compare_tensors(reference, x)
    assert errors.snr_db == pytest.approx(10 * math.log10(signal / noise), rel=1e-6)


@pytest.mark.parametrize("factor", [1.01, -1.0, 0.0, 1e-20])
def test_a_scale_is_found(factor: float) -> None:
    reference = torch.linspace(-1, 2, 1000, dtype=torch.float64)
    errors = compare_tensors(reference, factor * reference)
    assert errors.scale == pytest.approx(factor, rel=1e-6)
    assert errors.snr_db == pytest.approx(-20 * math.log10(abs(factor - 1)), abs=1e-5)


def test_pearson_is_blind_to_scale_and_shift_and_the_others_are_not() -> None:
    reference = torch.linspace(1, 2, 100)
    errors = compare_tensors(reference, 3 * reference + 5)
    assert errors.pearson == pytest.approx(1)
    assert errors.snr_db is not None
    assert errors.snr_db < 0


def test_equal_tensors_are_bitwise_equal() -> None:
    reference = torch.tensor([1.0, math.nan, math.inf, -0.0])
    assert compare_tensors(reference, reference.clone()) == Errors(
        is_bitwise_equal=True, max_over_rms=0.0, share_within=1.0
    )


def test_the_sign_of_zero_and_the_bits_of_nan_count() -> None:
    zeros = compare_tensors(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]))
    assert not zeros.is_bitwise_equal
    assert (zeros.snr_db, zeros.max_over_rms, zeros.share_within) == (None, 0.0, 1.0)
    nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    other = compare_tensors(nan[:1], nan[1:])
    assert not other.is_bitwise_equal
    assert other.nan_share == 0


def test_a_narrower_format_with_the_same_values_is_bitwise_equal() -> None:
    x = torch.randn(100).bfloat16()
    assert compare_tensors(x.float(), x).is_bitwise_equal
    assert not compare_tensors(torch.randn(100), x).is_bitwise_equal


def test_empty_tensors_are_equal() -> None:
    assert compare_tensors(torch.empty(0, 3), torch.empty(0, 3)).is_bitwise_equal


def test_what_has_no_value_is_none() -> None:
    against_zero = compare_tensors(torch.zeros(5), torch.ones(5))
    assert (against_zero.snr_db, against_zero.cosine, against_zero.scale) == (None, None, None)
    assert against_zero.share_within == 0
    to_zero = compare_tensors(torch.ones(5), torch.zeros(5))
    assert to_zero.snr_db == pytest.approx(0)
    assert (to_zero.cosine, to_zero.scale) == (None, 0)
    constant = compare_tensors(torch.full((5,), 0.1), torch.full((5,), 0.2))
    assert constant.pearson is None
    assert constant.scale == pytest.approx(2)


def test_nan_and_infinities() -> None:
    reference = torch.tensor([1.0, 2.0, math.inf, math.nan])
    lost = compare_tensors(reference, torch.tensor([math.nan, 2.0, math.inf, math.nan]))
    assert (lost.nan_share, lost.snr_db, lost.cosine) == (0.25, None, None)
    assert lost.share_within == 0.75
    noisy = compare_tensors(reference, torch.tensor([1.5, 2.0, math.inf, math.nan]))
    assert noisy.nan_share == 0
    assert noisy.snr_db == pytest.approx(10 * math.log10(5 / 0.25))
    other_sign = compare_tensors(reference, torch.tensor([1.0, 2.0, -math.inf, math.nan]))
    assert (other_sign.snr_db, other_sign.share_within) == (None, 0.75)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_and_bools(dtype: torch.dtype) -> None:
    reference = torch.tensor([0, 1, 1, 1]).to(dtype)
    x = torch.tensor([1, 1, 1, 1]).to(dtype)
    assert compare_tensors(reference, reference.clone()).is_bitwise_equal
    errors = compare_tensors(reference, x)
    assert errors.snr_db == pytest.approx(10 * math.log10(3))
    assert errors.share_within == 0.75


def test_large_magnitudes_do_not_overflow() -> None:
    errors = compare_tensors(torch.full((9,), 1e38), torch.full((9,), 3e38))
    assert errors.scale == pytest.approx(3)


def float32_steps(low: float, high: float) -> int:
    """Numbers of float32 between two of one sign, by their codes."""
    codes = torch.tensor([low, high]).view(torch.int32).tolist()
    return abs(codes[1] - codes[0])


@pytest.mark.parametrize("steps", [1, 2, 100])
@pytest.mark.parametrize("start", [1.0, 1.75, 0.1, 1e-40, 3e38])
def test_ulps_of_float32_are_differences_of_codes(start: float, steps: int) -> None:
    reference = torch.tensor([start])
    x = (reference.view(torch.int32) + steps).view(torch.float32)
    errors = compare_tensors(reference, x, ulps_of=FLOAT32_GRID)
    assert errors.ulps is not None
    assert errors.ulps.max == float32_steps(start, x.item())


@pytest.mark.parametrize("name", ["bf16", "cfloat8_1_4_3", "cfloat8_1_5_2", "cfloat16_shp"])
def test_ulps_of_a_format_are_counts_of_its_numbers(name: str) -> None:
    """All neighbours on a small grid are one apart, and the quantiles are those of NumPy."""
    grid = grid_of(find_format(name), 1.75)
    fractions = [1 + k * 2.0**-grid.mantissa_bits for k in range(1 << grid.mantissa_bits)]
    low = max(grid.min_exponent, -10)
    numbers = [f * 2.0**e for e, f in itertools.product(range(low, 1), fractions)]
    reference, x = torch.tensor(numbers[:-1]), torch.tensor(numbers[1:])
    errors = compare_tensors(reference, x, ulps_of=grid)
    assert errors.ulps is not None
    assert (errors.ulps.p50, errors.ulps.p99, errors.ulps.max) == (1, 1, 1)
    far = compare_tensors(torch.ones(100), torch.ones(100) + torch.arange(100) / 8, ulps_of=grid)
    assert far.ulps is not None
    expected = np.quantile(np.arange(100) / 8 * 2**grid.mantissa_bits, [0.5, 0.99])
    assert [far.ulps.p50, far.ulps.p99] == pytest.approx(expected.tolist())


def test_the_largest_ulp_of_a_large_tensor_is_not_left_out() -> None:
    reference = torch.ones(1_000_003)
    x = reference.clone()
    x[123_457] += 1e-3
    errors = compare_tensors(reference, x, ulps_of=FLOAT32_GRID)
    assert errors.ulps is not None
    assert errors.ulps.max == pytest.approx(1e-3 * 2**23, rel=1e-3)
    assert errors.ulps.p50 == 0
