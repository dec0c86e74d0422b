"""Shares that were clamped or became zero, against counts by hand and against the clamp itself."""

import math

import pytest
import torch

from fsdtrain.comparison.number_formats import find_format, grid_of, round_to
from fsdtrain.comparison.storage import measure_storage


def shares(exact: list[float], stored: list[float], format: str) -> tuple[float, float]:
    found = measure_storage(torch.tensor(exact, dtype=torch.float64), torch.tensor(stored), format)
    assert found.saturated_share is not None
    assert found.underflowed_share is not None
    return found.saturated_share, found.underflowed_share


def test_storage_counts_what_is_clamped_and_what_becomes_zero() -> None:
    exact = [0.0, 1e-9, 1.0, -5.0, 100.0, 0.5]
    # 3.75 is 1.111 times 2: the largest number of 1-4-3 at some bias. 4 is the largest at none.
    assert shares(exact, [0.0, 0.0, 1.0, -3.75, 3.75, 0.5], "cfloat8_1_4_3") == (2 / 6, 1 / 6)
    assert shares(exact, [0.0, 0.0, 1.0, -4.0, 4.0, 0.5], "cfloat8_1_4_3") == (0, 1 / 6)
    # Half a step beyond is what rounding does.
    assert shares([3.85, -3.99], [3.75, -3.75], "cfloat8_1_4_3") == (0, 0)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("format", ["bf16", "float16", "cfloat8_1_4_3", "cfloat16_shp"])
def test_a_constant_that_is_wrong_is_not_saturated(size: int, format: str) -> None:
    """Whatever is wrong with it: the format had numbers beyond."""
    assert shares([0.3] * size, [0.25] * size, format) == (0, 0)


def test_a_format_of_a_fixed_bias_has_its_own_limits() -> None:
    largest = (2 - 2.0**-7) * 2.0**127
    assert shares([1e39, -1.0, math.inf, 3e38], [largest, -1, largest, largest], "bf16") == (0.5, 0)
    # A sum that cancels to zero in float32, one that is dropped, and one below 2**-126.
    assert shares([1e-18, 0.25, 1e-39, 0.0, 1.0], [0, 0, 0, 0, 1], "bf16") == (0, 1 / 5)
    assert shares([65520.0, 1e-9, 1e-4], [65504.0, 0, 0], "float16") == (1 / 3, 1 / 3)


@pytest.mark.parametrize("name", ["float32", "fp32", "float64"])
def test_what_is_not_stored_in_few_bits_has_no_shares(name: str) -> None:
    healthy = torch.tensor([0.97, 1.0, 0.1])
    found = measure_storage(2 * healthy, healthy, name)
    assert (found.saturated_share, found.underflowed_share) == (None, None)
    assert measure_storage(torch.ones(3, dtype=torch.int64), healthy, "bf16").format == "bf16"


@pytest.mark.parametrize("name", ["bf16", "cfloat8_1_4_3", "cfloat8_1_5_2", "cfloat16_shp"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_clamped_is_counted_as_the_clamp_counts(name: str, seed: int) -> None:
    """Against a bias so large that the tensor's largest numbers do not fit."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(997, generator=generator, dtype=torch.float64)
    grid = grid_of(find_format(name), 1.0)
    stored = torch.from_numpy(round_to(exact.numpy(), grid))
    found = measure_storage(exact, stored, name)
    step = 2.0 ** -find_format(name).mantissa_bits
    beyond = exact.abs() > (2 - step) + step if name != "bf16" else exact.abs() > grid.max_finite
    assert found.saturated_share == pytest.approx(float(beyond.double().mean()))
    assert found.underflowed_share == float(((stored == 0) & (exact != 0)).double().mean())
