"""Heat maps of a modelled step by slices of time, small enough for a profile. MODELLED.

A kernel's work and traffic count evenly over the time that it runs, results that still travel
afterwards included. It does not know what is mapped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsdtrain.step_profile import MapSlices

NUM_SLICES = 24
TOP_BYTE, NOTHING_BYTE = 254, 255

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TimeSlices:
    """Equal parts of a step of `seconds`."""

    seconds: float
    count: int = NUM_SLICES

    @property
    def edges_s(self) -> Floats:
        return np.linspace(0.0, self.seconds, self.count + 1)

    def shares(self, start_s: float, end_s: float) -> list[tuple[int, float]]:
        """(slice, share of what lasts from `start_s` to `end_s`); shares add up to 1."""
        width_s = self.seconds / self.count
        first = min(max(int(start_s / width_s), 0), self.count - 1)
        last = min(max(int(end_s / width_s), first), self.count - 1)
        if first == last or end_s <= start_s:
            return [(first, 1.0)]
        parts = []
        for number in range(first, last + 1):
            begin_s = start_s if number == first else number * width_s
            stop_s = end_s if number == last else (number + 1) * width_s
            parts.append((number, (stop_s - begin_s) / (end_s - start_s)))
        return [(number, share) for number, share in parts if share > 0]


def pack_slices(maps: Sequence[Floats], slices: TimeSlices) -> MapSlices:
    """Maps of every slice [rows, columns], NaN where nothing is, as a byte a place."""
    values = np.stack(maps)
    top = float(np.nanmax(values, initial=0.0)) or 1.0
    shares = np.where(np.isnan(values), 0.0, values) / top
    cells = np.where(np.isnan(values), NOTHING_BYTE, np.rint(TOP_BYTE * shares)).astype(np.uint8)
    return MapSlices(
        edges_s=tuple(slices.edges_s.tolist()),
        top=top,
        cells=tuple(each.tobytes() for each in cells),
    )
