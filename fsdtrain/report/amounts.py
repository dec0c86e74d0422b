"""Amounts for people: seconds, shares, and anything with a decimal prefix."""

PREFIXES = (
    (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""),
    (1e-3, "m"), (1e-6, "\u00b5"),
)  # fmt: skip
SHORT_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "\u00b5s"), (1e-9, "ns"))


def with_prefix(value: float, unit: str) -> str:
    """3.62e14, "FLOP/s" -> "362 TFLOP/s"; down to millionths."""
    factor, prefix = next((one for one in PREFIXES if abs(value) >= one[0]), (1.0, ""))
    return f"{value / factor:.4g} {prefix}{unit}"


def in_seconds(value: float) -> str:
    """0.0123 -> "12.3 ms"; at the smallest, nanoseconds."""
    factor, unit = next(
        (one for one in SHORT_TIMES if abs(value) >= 0.9995 * one[0]), SHORT_TIMES[-1]
    )
    return f"{value / factor:.3g} {unit}" if value < 100 else f"{value:,.0f} s"


def plain_number(value: float) -> str:
    """41234.5 -> "41,234", 3.14159 -> "3.142"."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """0.1234 -> "12.3%"; what would be rounded to nothing is "<0.1%"."""
    return "<0.1%" if 0 < share < 5e-4 else f"{share:.1%}"
