"""Exponents of a tensor and the range of its format."""

from collections.abc import Callable

import pytest

from fsdtrain.backend import HISTOGRAM_BINS, HISTOGRAM_MIN_EXPONENT, TensorNumerics
from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.charts.histogram import MAX_EMPTY_EXPONENTS, make_histogram

Make = Callable[..., TensorNumerics]
Check = Callable[[Chart | None], Chart]


def histogram(make: Make, counts: dict[int, int], exponents: tuple[int, int] = (-11, 6)) -> Chart:
    bins = [0] * HISTOGRAM_BINS
    for exponent, count in counts.items():
        bins[exponent - HISTOGRAM_MIN_EXPONENT] = count
    tensor = make(exponent_histogram=tuple(bins), representable_exponents=exponents)
    return make_histogram(tensor, HISTOGRAM_MIN_EXPONENT, origin="EMULATED", source="x.json")


def test_bars_are_shares_at_their_exponents(make_tensor_numerics: Make, checked: Check) -> None:
    chart = checked(histogram(make_tensor_numerics, {-3: 600, -2: 300, 4: 100}))
    inside, outside = chart.figure["data"]
    assert dict(zip(inside["x"], inside["y"], strict=True)) == {-3: 60, -2: 30, 4: 10}
    assert outside["x"] == []


@pytest.mark.parametrize(
    ("counts", "exponents", "outside"),
    [
        ({-12: 1, -11: 1, 0: 1, 6: 1, 7: 1}, (-11, 6), [-12, 7]),
        ({-30: 9, -25: 1}, (-11, 6), [-30, -25]),
        ({0: 1}, (-133, 127), []),
    ],
)
def test_what_its_format_does_not_hold_is_hatched(
    make_tensor_numerics: Make,
    checked: Check,
    counts: dict[int, int],
    exponents: tuple[int, int],
    outside: list[int],
) -> None:
    chart = checked(histogram(make_tensor_numerics, counts, exponents))
    inside, beyond = chart.figure["data"]
    assert beyond["x"] == outside
    assert sorted([*inside["x"], *beyond["x"]]) == sorted(counts)
    assert beyond["marker"]["pattern"]["shape"]
    (shade,) = chart.figure["layout"]["shapes"]
    low, high = chart.figure["layout"]["xaxis"]["range"]
    assert low <= shade["x0"] <= shade["x1"] <= high
    assert f"2^{exponents[0]} to 2^{exponents[1]}" in chart.note


def test_a_wide_range_does_not_squeeze_the_values(make_tensor_numerics: Make) -> None:
    chart = histogram(make_tensor_numerics, {0: 1, 3: 1}, (-133, 127))
    low, high = chart.figure["layout"]["xaxis"]["range"]
    assert (low, high) == (-MAX_EMPTY_EXPONENTS - 1, 3 + MAX_EMPTY_EXPONENTS + 1)


def test_only_zeros_make_an_empty_chart(make_tensor_numerics: Make, checked: Check) -> None:
    chart = checked(histogram(make_tensor_numerics, {}))
    assert chart.legend[0].value == "0 %"
