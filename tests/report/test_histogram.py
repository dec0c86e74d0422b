"""Where the bars of an exponent histogram and the range of its format lie."""

from collections.abc import Callable

import numpy as np
import pytest

from fsdtrain.backend import HISTOGRAM_BINS, HISTOGRAM_MIN_EXPONENT, TensorNumerics
from fsdtrain.report.histogram import HistogramView, make_histogram

Make = Callable[..., TensorNumerics]


def histogram(counts: dict[int, int]) -> tuple[int, ...]:
    bins = [0] * HISTOGRAM_BINS
    for exponent, count in counts.items():
        bins[exponent - HISTOGRAM_MIN_EXPONENT] = count
    return tuple(bins)


def view_of(
    make: Make, counts: dict[int, int], exponents: tuple[int, int] = (-11, 6)
) -> HistogramView:
    tensor = make(exponent_histogram=histogram(counts), representable_exponents=exponents)
    return make_histogram(tensor, HISTOGRAM_MIN_EXPONENT)


def exponent_at(view: HistogramView, x: float) -> float:
    """The exponent at a place, from the axis' own labels."""
    places = [tick.at for tick in view.x_ticks]
    values = [int(tick.text) for tick in view.x_ticks]
    slope, offset = np.polyfit(places, values, 1)
    return float(slope * x + offset)


def test_bars_stand_over_their_exponents_and_are_as_high_as_their_shares(
    make_tensor_numerics: Make,
) -> None:
    view = view_of(make_tensor_numerics, {-3: 600, -2: 300, 4: 100})
    assert [bar.text for bar in view.bars] == ["2^-3: 60 %", "2^-2: 30 %", "2^4: 10 %"]
    for bar, exponent in zip(view.bars, (-3, -2, 4), strict=True):
        assert exponent_at(view, bar.x + bar.width / 2) == pytest.approx(exponent, abs=0.05)
        assert bar.y + bar.height == pytest.approx(view.bottom, abs=0.02)
    heights = [bar.height for bar in view.bars]
    assert heights[0] / heights[2] == pytest.approx(6, rel=1e-2)
    # The vertical axis says the same: 60 % stands where its labels put it.
    places = [tick.at for tick in view.y_ticks]
    percent = np.interp(
        -view.bars[0].y, [-at for at in places], [float(t.text) for t in view.y_ticks]
    )
    assert percent == pytest.approx(60, abs=0.5)


@pytest.mark.parametrize(
    ("counts", "exponents", "outside"),
    [
        ({-12: 1, -11: 1, 0: 1, 6: 1, 7: 1}, (-11, 6), [True, False, False, False, True]),
        ({-30: 9, -25: 1}, (-11, 6), [True, True]),
        ({0: 1}, (-133, 127), [False]),
    ],
)
def test_what_the_format_does_not_hold_is_marked_and_lies_outside_the_shade(
    make_tensor_numerics: Make,
    counts: dict[int, int],
    exponents: tuple[int, int],
    outside: list[bool],
) -> None:
    view = view_of(make_tensor_numerics, counts, exponents)
    assert [bar.is_outside for bar in view.bars] == outside
    for bar in view.bars:
        middle = bar.x + bar.width / 2
        is_shaded = view.range_x <= middle <= view.range_x + view.range_width
        assert is_shaded == (not bar.is_outside)
        assert view.left <= bar.x <= bar.x + bar.width <= view.right + 0.02


def test_a_rare_value_is_still_seen(make_tensor_numerics: Make) -> None:
    view = view_of(make_tensor_numerics, {-3: 10**9, 5: 1})
    assert view.bars[1].height >= 1


def test_a_wide_range_does_not_squeeze_the_values(make_tensor_numerics: Make) -> None:
    view = view_of(make_tensor_numerics, {-3: 1, -2: 1}, (-149, 127))
    assert view.bars[0].width > 10
    assert view.range_text == "Its format holds 2^-149 to 2^127"


def test_a_tensor_of_zeros_shows_the_range_alone(make_tensor_numerics: Make) -> None:
    view = view_of(make_tensor_numerics, {})
    assert view.bars == ()
    assert view.range_width > 200
