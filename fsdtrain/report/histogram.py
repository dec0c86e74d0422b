"""Place the bars of an exponent histogram, and the range its format holds, in an SVG box.

It does not know HTML: the template turns places into elements.
"""

from dataclasses import dataclass

from fsdtrain.backend import TensorNumerics
from fsdtrain.engine.numerics_record import describe
from fsdtrain.report.cards import label_of
from fsdtrain.report.curve_picture import nice_ticks

WIDTH, HEIGHT = 350, 190  # of the box; a card is about as wide in px
LEFT, TOP, RIGHT, BOTTOM = 44, 22, 10, 40  # of the plot within it
# How far a range that is wider than the values is drawn beyond them, in exponents.
MAX_EMPTY_EXPONENTS = 6
MAX_LABELS = 9
MIN_BAR_HEIGHT = 1.5  # a bin that holds something is seen


@dataclass(frozen=True, kw_only=True)
class HistogramBar:
    """One bin, in the units of the box."""

    x: float
    y: float
    width: float
    height: float
    is_outside: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label and where it stands along its axis."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class HistogramView:
    """One histogram: bars, the shaded range, and the ticks of both axes."""

    title: str
    layer: str
    text: str
    range_x: float
    range_width: float
    range_text: str
    bars: tuple[HistogramBar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: int = LEFT
    top: int = TOP
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def make_histogram(tensor: TensorNumerics, min_exponent: int) -> HistogramView:
    """Bars are shares of the elements that are not zero; `min_exponent` is that of bin 0."""
    counts = {
        min_exponent + index: count
        for index, count in enumerate(tensor.exponent_histogram)
        if count > 0
    }
    total = sum(counts.values())
    lowest, highest = tensor.representable_exponents
    first = max(min(lowest, *counts), min(counts) - MAX_EMPTY_EXPONENTS) if counts else lowest
    last = min(max(highest, *counts), max(counts) + MAX_EMPTY_EXPONENTS) if counts else highest
    first, last = first - 1, last + 1
    slot = (WIDTH - LEFT - RIGHT) / (last - first + 1)
    top_percent = 100 * max(counts.values(), default=1) / max(total, 1) * 1.08
    scale = (HEIGHT - TOP - BOTTOM) / top_percent

    def left_of(exponent: int) -> float:
        return LEFT + (min(max(exponent, first), last + 1) - first) * slot

    bars = []
    for exponent, count in counts.items():
        percent = 100 * count / total
        height = max(percent * scale, MIN_BAR_HEIGHT)
        bars.append(
            HistogramBar(
                x=round(left_of(exponent) + 0.08 * slot, 2),
                y=round(HEIGHT - BOTTOM - height, 2),
                width=round(0.84 * slot, 2),
                height=round(height, 2),
                is_outside=not lowest <= exponent <= highest,
                text=f"2^{exponent}: {percent:.3g} %",
            )
        )
    stride = -(-(last - first + 1) // MAX_LABELS)
    return HistogramView(
        title=label_of(tensor.role),
        layer=tensor.layer,
        text=describe(tensor),
        range_x=round(left_of(lowest), 2),
        range_width=round(left_of(highest + 1) - left_of(lowest), 2),
        range_text=f"Its format holds 2^{lowest} to 2^{highest}",
        bars=tuple(bars),
        x_ticks=tuple(
            Tick(at=round(left_of(exponent) + slot / 2, 2), text=str(exponent))
            for exponent in range(first, last + 1)
            if exponent % stride == 0
        ),
        y_ticks=tuple(
            Tick(at=round(HEIGHT - BOTTOM - percent * scale, 2), text=f"{percent:g}")
            for percent in nice_ticks(0, top_percent, 4)
        ),
    )
