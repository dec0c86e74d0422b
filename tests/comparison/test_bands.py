"""Grids against ml_dtypes, rounding noise against simulation, healthy and faulty stores."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdtrain.comparison.bands import default_snr_db, judge_store, rounding_noise
from fsdtrain.comparison.number_formats import (
    Floats,
    Grid,
    find_format,
    grid_of,
    round_to,
    spacing,
    used_mantissa_bits,
)
from fsdtrain.errors import UserError

LOW = ["bf16", "cfloat8_1_4_3", "cfloat8_1_5_2", "cfloat16_shp"]


def normal(seed: int, count: int, *, mean: float = 0.0) -> Floats:
    return np.random.default_rng(seed).normal(mean, 1.0, count)


def stochastically(exact: Floats, grid: Grid, seed: int) -> Floats:
    """Up or down by chance; without bias."""
    steps = spacing(exact, grid)
    draws = np.random.default_rng(seed).random(len(exact))
    return np.floor(exact / steps + draws) * steps


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bf16", ml_dtypes.bfloat16), ("float16", np.float16), ("float32", np.float32)],
)
def test_ieee_grids_round_as_other_libraries_do(name: str, dtype: type) -> None:
    exact = normal(0, 10_000) * 10.0 ** np.random.default_rng(1).uniform(-9, 3, 10_000)
    # By way of float32, as ml_dtypes goes; that is exact for what is a float32 already.
    exact = exact.astype(np.float32).astype(np.float64)
    found = round_to(exact, grid_of(find_format(name), 1.0))
    np.testing.assert_array_equal(found, exact.astype(dtype).astype(np.float64))


@pytest.mark.parametrize(
    ("name", "amax", "dtype"),
    [
        ("cfloat8_1_4_3", 2.0**4 * 1.875, ml_dtypes.float8_e4m3b11fnuz),
        ("cfloat8_1_5_2", 2.0**15 * 1.75, ml_dtypes.float8_e5m2fnuz),
    ],
)
def test_a_cfloat_grid_has_all_exponents_up_to_the_largest_magnitude(
    name: str, amax: float, dtype: type
) -> None:
    exact = np.append(normal(2, 10_000) * 0.1, amax)
    found = round_to(exact, grid_of(find_format(name), amax))
    np.testing.assert_array_equal(found, exact.astype(dtype).astype(np.float64))


def test_a_magnitude_beyond_the_largest_mantissa_raises_the_exponent() -> None:
    grid = grid_of(find_format("cfloat8_1_4_3"), 1.9)
    assert grid.max_finite == 2 * 1.875
    assert grid_of(find_format("cfloat8_1_4_3"), 0.0).max_finite > 0


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UserError, match="posit"):
        find_format("posit")


@pytest.mark.parametrize(
    ("bits", "name"), [(2, "cfloat8_1_5_2"), (3, "cfloat8_1_4_3"), (7, "bf16")]
)
def test_used_bits_are_those_of_the_format(bits: int, name: str) -> None:
    exact = normal(3, 1000)
    grid = grid_of(find_format(name), float(abs(exact).max()))
    assert used_mantissa_bits(round_to(exact, grid), grid) == bits
    assert used_mantissa_bits(np.zeros(3), grid) is None
    assert used_mantissa_bits(np.array([1.0, 4.0]), grid) == 0


@pytest.mark.parametrize("name", LOW)
def test_rounding_noise_is_what_rounding_many_times_gives(name: str) -> None:
    exact = normal(4, 50, mean=0.3)
    grid = grid_of(find_format(name), float(abs(exact).max()))
    noise = rounding_noise(exact, grid)
    trials = [stochastically(exact, grid, seed) - exact for seed in range(4000)]
    powers = np.array([error @ error for error in trials])
    scales = np.array([error @ exact / (exact @ exact) for error in trials])
    means = np.array([error.mean() for error in trials])
    assert powers.mean() == pytest.approx(noise.power, rel=0.02)
    assert powers.std() == pytest.approx(noise.power_deviation, rel=0.1)
    assert scales.std() == pytest.approx(noise.scale_deviation, rel=0.1)
    assert abs(scales.mean()) < 0.1 * noise.scale_deviation
    assert means.std() == pytest.approx(noise.mean_deviation, rel=0.1)
    error = round_to(exact, grid) - exact
    low, high = noise.mean_nearest
    assert low - 1e-12 <= error.mean() <= high + 1e-12
    low, high = noise.scale_nearest
    assert low - 1e-12 <= error @ exact / (exact @ exact) <= high + 1e-12


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("is_up", [True, False])
def test_equal_numbers_halfway_may_all_go_to_the_same_side(sign: float, is_up: bool) -> None:
    """Sums of a few equal terms in float32 are a last place off, each time the same way."""
    grid = grid_of(find_format("bf16"), 1.0)
    exact = sign * np.full(400, 1 + 2.0**-8)
    stored = sign * np.full(400, 1 + 2.0**-7 if is_up else 1.0)
    assert judge_store(exact, stored, grid).fault == ""


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.sampled_from([1, 2, 7, 100, 5000]),
    name=st.sampled_from(LOW),
    mean=st.sampled_from([0.0, 3.0]),
    is_constant=st.booleans(),
)
def test_healthy_stores_are_within_their_band(
    seed: int, count: int, name: str, mean: float, is_constant: bool
) -> None:
    exact = np.full(count, normal(seed, 1)[0]) if is_constant else normal(seed, count, mean=mean)
    grid = grid_of(find_format(name), float(abs(exact).max()))
    for stored in (exact, round_to(exact, grid), stochastically(exact, grid, seed)):
        judgement = judge_store(exact, stored, grid)
        assert judgement.fault == "", judgement


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_few_elements_may_be_rounded_the_unlikely_way(count: int) -> None:
    """A number next to the grid goes to the far neighbour once in a hundred times."""
    grid = grid_of(find_format("bf16"), 1.0)
    exact = np.full(count, 1 + 2.0**-7 * 0.01)
    for seed in range(2000):
        judgement = judge_store(exact, stochastically(exact, grid, seed), grid)
        assert judgement.fault == "", (seed, judgement)


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("is_nearest", [True, False])
@pytest.mark.parametrize("factor", [1.01, 0.99, -1.0])
def test_a_scale_hides_in_no_format(name: str, is_nearest: bool, factor: float) -> None:
    exact = normal(5, 20_000, mean=0.5)
    grid = grid_of(find_format(name), float(abs(exact).max()))
    wrong = factor * exact
    stored = round_to(wrong, grid) if is_nearest else stochastically(wrong, grid, 6)
    assert judge_store(exact, stored, grid).fault


@pytest.mark.parametrize("name", ["bf16", "cfloat8_1_4_3"])
def test_an_offset_of_a_thousandth_is_found_among_many_elements(name: str) -> None:
    exact = normal(7, 400_000)
    grid = grid_of(find_format(name), float(abs(exact).max()))
    judgement = judge_store(exact, stochastically(exact + 2e-3, grid, 8), grid)
    assert judgement.fault == "offset"


def test_one_bit_less_is_found() -> None:
    exact = normal(9, 5000)
    amax = float(abs(exact).max())
    stored = round_to(exact, grid_of(find_format("cfloat8_1_5_2"), amax))
    judgement = judge_store(exact, stored, grid_of(find_format("cfloat8_1_4_3"), amax))
    assert judgement.fault == "resolution"


def test_what_is_left_of_sums_that_cancel_may_have_few_bits() -> None:
    exact = 1e-8 * normal(10, 200)
    stored = np.rint((exact + 1e-8 * normal(11, 200)) * 2.0**28) / 2.0**28
    grid = grid_of(find_format("bf16"), 1e-7)
    assert judge_store(exact, stored, grid).fault
    assert judge_store(exact, stored, grid, slack_rms=3e-8).fault == ""


def test_published_bounds() -> None:
    found = [default_snr_db(find_format(name)) for name in ["float32", "bf16", *LOW[1:3]]]
    assert found == [100, 40, 20, 14]
    both = default_snr_db(find_format("bf16"), find_format("cfloat8_1_5_2"))
    assert both == 14
    assert math.isfinite(default_snr_db(find_format("float8_1_4_6")))
