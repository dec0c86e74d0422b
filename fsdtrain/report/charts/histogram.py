"""How the exponents of a tensor lie in the range of its number format."""

from fsdtrain.backend import TensorNumerics
from fsdtrain.engine.numerics_record import describe
from fsdtrain.report.cards import label_of
from fsdtrain.report.charts.chart import Chart, LegendEntry, PlotlyPart, axis, layout, plain

# How far a range that is wider than the values is drawn beyond them, in exponents.
MAX_EMPTY_EXPONENTS = 6


def make_histogram(tensor: TensorNumerics, min_exponent: int, *, origin: str, source: str) -> Chart:
    """Bars are shares of the elements that are not zero; `min_exponent` is that of bin 0."""
    counts = {
        min_exponent + index: count
        for index, count in enumerate(tensor.exponent_histogram)
        if count > 0
    }
    total = sum(counts.values()) or 1
    lowest, highest = tensor.representable_exponents
    first = max(min(lowest, *counts), min(counts) - MAX_EMPTY_EXPONENTS) if counts else lowest
    last = min(max(highest, *counts), max(counts) + MAX_EMPTY_EXPONENTS) if counts else highest
    # The near end of the range is always seen, however far the values are from it.
    first, last = min(first, highest - 1), max(last, lowest + 1)
    shares = {exponent: 100 * count / total for exponent, count in counts.items()}
    inside = {e: share for e, share in shares.items() if lowest <= e <= highest}
    outside = {e: share for e, share in shares.items() if e not in inside}
    traces = [_bars("in range", inside, "@s0", ""), _bars("out of range", outside, "@s1", "/")]
    text = describe(tensor)
    span = f"Its format holds 2^{lowest} to 2^{highest}."
    return Chart(
        title=label_of(tensor.role),
        figure={
            "data": traces,
            "layout": layout(
                x=axis("exponent of the value, floor(log2 |x|)", range=[first - 1, last + 1],
                       nticks=9, tickformat="d", showgrid=False),
                y=axis("% of values not 0", rangemode="tozero"),
                bargap=0.14, barmode="overlay", hovermode="closest",
                shapes=[
                    {
                        "type": "rect", "x0": max(lowest - 0.5, first - 1),
                        "x1": min(highest + 0.5, last + 1), "yref": "paper", "y0": 0, "y1": 1,
                        "line": {"width": 0, "color": "@s0"}, "fillcolor": "@s0/0.1",
                        "layer": "below",
                    }
                ],
            ),
        },
        summary=f"Exponents of the {text}. {span} {sum(outside.values()):.3g} % lie outside.",
        origin=origin, source=source, note=f"{text[:1].upper()}{text[1:]}. {span}",
        legend=tuple(
            LegendEntry(
                label=label, color=color, traces=(number,), pattern=pattern,
                value=f"{sum(of.values()):.3g} %",
            )
            for number, (label, color, pattern, of) in enumerate(
                (("in range", "@s0", "", inside), ("out of range", "@s1", "/", outside))
            )
        ),
        height_px=220,
    )  # fmt: skip


def _bars(name: str, shares: dict[int, float], color: str, pattern: str) -> PlotlyPart:
    return {
        "type": "bar", "name": plain(name), "x": list(shares),
        "y": [float(f"{share:.4g}") for share in shares.values()],
        "marker": {"color": color, "pattern": {"shape": pattern, "fgcolor": "@card/0.6"}},
        "hovertemplate": f"2^%{{x}}: %{{y:.3g}} %, {name}<extra></extra>",
    }  # fmt: skip
