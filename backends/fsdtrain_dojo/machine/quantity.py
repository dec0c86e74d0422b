"""A constant of a machine: value, unit, where it was found and how far to trust it.

It does not know which machine it belongs to, nor what its value is used for.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

from fsdtrain.backend import BackendError


class Confidence(Enum):
    """How a constant is known, from the best to the worst."""

    STATED = "stated"  # by the maker, read in the maker's own text
    ATTRIBUTED = "attributed"  # to the maker, by someone who saw the maker's text
    DERIVED = "derived"  # by arithmetic from stated or attributed figures
    PRESS = "press"  # reported, source not named
    CONFLICTING = "conflicting"  # sources differ; `source` says which was taken
    INFERRED = "inferred"  # by an analyst, or by measuring a similar part
    RECALLED = "recalled"  # from memory of a publication that was not at hand
    ASSUMED = "assumed"  # not public: a choice
    GIVEN = "given"  # set by the user in place of one of the above


ASSUMPTIONS = frozenset({Confidence.INFERRED, Confidence.RECALLED, Confidence.ASSUMED})

# Of each unit: the SI value of one of it, and the ending that the name of such a constant has.
UNITS: dict[str, tuple[float, str]] = {
    "count": (1.0, ""),
    "share": (1.0, "_share"),
    "cycles": (1.0, "_cycles"),
    "1/cycle": (1.0, "_per_cycle"),
    "B": (1.0, "_bytes"),
    "kB": (1e3, "_kb"),
    "KiB": (1024.0, "_kib"),
    "MB": (1e6, "_mb"),
    "MiB": (1024.0**2, "_mib"),
    "GB": (1e9, "_gb"),
    "GiB": (1024.0**3, "_gib"),
    "GHz": (1e9, "_ghz"),
    "ns": (1e-9, "_ns"),
    "GB/s": (1e9, "_gb_per_s"),
    "TB/s": (1e12, "_tb_per_s"),
    "B/cycle": (1.0, "_bytes_per_cycle"),
    "W": (1.0, "_watts"),
    "pJ": (1e-12, "_pj"),
    "pJ/B": (1e-12, "_pj_per_byte"),
}


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One constant.

    Args:
        value: in `unit`.
        unit: a key of UNITS. A "count" is a whole number, a "share" lies above 0 and up to 1.
        source: where the value is from, short.
        confidence: how far to trust it.
        low: with `high` the range within which the truth is thought to lie; None: not judged.
        high: see `low`.
    """

    value: float
    unit: str
    source: str
    confidence: Confidence
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        assert self.unit in UNITS, self.unit
        assert (self.low is None) == (self.high is None), self.source
        assert self.low is None or self.high is None or self.low <= self.value <= self.high

    @property
    def si(self) -> float:
        """The value in bytes, seconds, hertz, watts, joules, cycles or pieces."""
        return self.value * UNITS[self.unit][0]

    @property
    def is_assumed(self) -> bool:
        """Whether nobody who knows has said so."""
        return self.confidence in ASSUMPTIONS

    def given(self, name: str, value: object) -> "Quantity":
        """This constant with the value that a user wants.

        Raises:
            BackendError: `value` is not a number that a constant of this unit can have.
        """
        was = f"(preset: {self.value:g} {self.unit}, {self.confidence.value})"
        where = f"backend.machine.{name}={value!r}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BackendError(f"{where}: must be a number in {self.unit} {was}")
        if not math.isfinite(value) or value < 0:
            raise BackendError(f"{where}: must be finite and at least 0 {was}")
        if self.unit == "count" and value != int(value):
            raise BackendError(f"{where}: must be a whole number {was}")
        if self.unit == "share" and not 0 < value <= 1:
            raise BackendError(f"{where}: must be above 0 and at most 1 {was}")
        if value == self.value:
            return self
        return replace(
            self,
            value=float(value),
            source=f"given by the user; preset: {self.value:g} {self.unit} ({self.source})",
            confidence=Confidence.GIVEN,
            low=None,
            high=None,
        )


def constant(
    value: float,
    unit: str,
    confidence: Confidence,
    source: str,
    bounds: tuple[float, float] | None = None,
) -> Quantity:
    """A Quantity in one line of a table."""
    low, high = bounds if bounds else (None, None)
    return Quantity(
        value=value, unit=unit, source=source, confidence=confidence, low=low, high=high
    )
