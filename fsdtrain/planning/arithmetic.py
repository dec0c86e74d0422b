"""Sums that show how they are made: every line names its factors, its result and its sources.

It does not know what is computed.
"""

from collections.abc import Sequence

from fsdtrain.planning.record import ArithmeticLine, Sourced
from fsdtrain.planning.words import amount

ABOVE = "the lines above"
WITH_PREFIX = frozenset({"FLOP/s", "FLOP/s/W", "B", "B/s", "W", "Hz", "bit/s"})


def in_unit(value: float, unit: str) -> str:
    """3.62e14, "FLOP/s" -> "362 TFLOP/s"; 276243.1, "D1" -> "276,243 D1"."""
    if unit in WITH_PREFIX:
        return amount(value, unit, digits=5)
    if unit == "share":
        return f"{value:.1%}"
    is_whole = abs(value) >= 100 or value == round(value)
    text = f"{value:,.0f}" if is_whole else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


class Sheet:
    """A sum that grows line by line; each method adds a line and gives its result."""

    def __init__(self) -> None:
        self._lines: list[ArithmeticLine] = []

    @property
    def lines(self) -> tuple[ArithmeticLine, ...]:
        return tuple(self._lines)

    def multiply(self, name: str, unit: str, *factors: Sourced) -> Sourced:
        """The product of all factors."""
        value = 1.0
        for factor in factors:
            value *= factor.value
        return self._add(name, unit, value, " x ".join(_said(each) for each in factors), factors)

    def divide(self, name: str, unit: str, whole: Sourced, part: Sourced) -> Sourced:
        """How often the part goes into the whole."""
        text = f"{_said(whole)} / {_said(part)}"
        return self._add(name, unit, whole.value / part.value, text, (whole, part))

    def add(self, name: str, unit: str, *terms: Sourced) -> Sourced:
        """The sum of all terms."""
        text = " + ".join(_said(each) for each in terms)
        return self._add(name, unit, sum(each.value for each in terms), text, terms)

    def compare(self, found: Sourced, published: Sourced) -> float:
        """By how much a result is above what was published, as a share of that."""
        share = found.value / published.value - 1
        text = (
            f"{found.name}: {in_unit(found.value, found.unit)} here against "
            f"{in_unit(published.value, published.unit)} published: {share:+.2%}"
        )
        self._lines.append(
            ArithmeticLine(text=text, value=share, unit="share", source=published.source)
        )
        return share

    def _add(
        self, name: str, unit: str, value: float, text: str, used: Sequence[Sourced]
    ) -> Sourced:
        sources = dict.fromkeys(
            source for each in used for source in each.source.split("; ") if source
        )
        self._lines.append(
            ArithmeticLine(
                text=f"{name} = {text} = {in_unit(value, unit)}",
                value=value,
                unit=unit,
                source="; ".join(sources) or ABOVE,
            )
        )
        # What is computed brings no source of its own: its line has named them.
        return Sourced(name=name, value=value, unit=unit, origin="MODELLED", source="")


def _said(figure: Sourced) -> str:
    """A figure and what it is: "362 TFLOP/s (peak of a D1, as printed)"."""
    return f"{in_unit(figure.value, figure.unit)} ({figure.name})"
