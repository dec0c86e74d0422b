"""Amounts of a plan for people: long times, money."""

import math

from fsdtrain.report.amounts import in_seconds, plain_number

DAY_S = 86_400.0
YEAR_DAYS = 365.25
UNITS = (("days", DAY_S), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def duration(seconds: float) -> str:
    """90000 -> "1.04 days"; years above two of them, hours and less below one day."""
    if not math.isfinite(seconds):
        return "never"
    days = seconds / DAY_S
    if days >= 2 * YEAR_DAYS:
        return f"{plain_number(days / YEAR_DAYS)} years"
    if days >= 1:
        return _counted(days, "day")
    if seconds >= 3600:
        return _counted(seconds / 3600, "hour")
    return f"{seconds / 60:.3g} min" if seconds >= 60 else in_seconds(seconds)


def _counted(value: float, unit: str) -> str:
    text = f"{value:.3g}"
    return f"{text} {unit}" if text == "1" else f"{text} {unit}s"


def time_unit(seconds: float) -> tuple[str, float]:
    """For an axis that ends there: 9000 -> ("hours", 3600)."""
    return next((unit for unit in UNITS if seconds >= 1.5 * unit[1]), UNITS[-1])


def money(value: float | None, currency: str) -> str:
    """1234567, "EUR" -> "1,234,567 EUR"."""
    return "no price given" if value is None else f"{plain_number(value)} {currency}".strip()
