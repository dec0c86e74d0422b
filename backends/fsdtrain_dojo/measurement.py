"""How one tensor fared when it was rounded: signal to noise, and where its magnitudes lie.

EMULATED figures. They cost several passes over the tensor, so they are taken in a few steps only.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fsdtrain.backend import HISTOGRAM_BINS, HISTOGRAM_MIN_EXPONENT, TensorNumerics
from fsdtrain_dojo.arithmetic.compiled import compiled
from fsdtrain_dojo.arithmetic.flat_memory import in_memory_order
from fsdtrain_dojo.arithmetic.rounding import Count
from fsdtrain_dojo.formats import Denormals
from fsdtrain_dojo.site import Site


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of one tensor, before and after rounding with `bias`."""

    bias: int
    snr_db: float | None
    exponent_histogram: tuple[int, ...]


def measure(before: Tensor, after: Tensor, bias: int) -> Measurement:
    """Compare a float32 tensor with what it was rounded to.

    NaN and infinity, before or after, count for nothing; zeros are in no bin of the histogram.

    Args:
        before: dense in memory, on the CPU or a GPU.
        after: of the same layout.
        bias: that it was rounded with.
    """
    one, other = (in_memory_order(each.detach().cpu()).numpy() for each in (before, after))
    energies, by_exponent = np.zeros(2), np.zeros(256, np.int64)
    _accumulate(one, other, energies, by_exponent)
    signal, noise = energies.tolist()
    # Float32's own exponents; 0 is of denormals, which lie below all bins but the first.
    bins = np.clip(np.arange(256) - 127 - HISTOGRAM_MIN_EXPONENT, 0, HISTOGRAM_BINS - 1)
    histogram = np.bincount(bins, by_exponent, minlength=HISTOGRAM_BINS).astype(int)
    return Measurement(
        bias=bias,
        snr_db=10 * math.log10(signal / noise) if signal and noise else None,
        exponent_histogram=tuple(histogram.tolist()),
    )


@compiled
def _accumulate(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    energies: NDArray[np.float64],
    by_exponent: NDArray[np.int64],
) -> None:
    """Adds to energies [2], of signal and noise, and by_exponent [256]."""
    signal, noise = 0.0, 0.0
    bits = before.view(np.uint32)
    for index in range(len(before)):
        exponent = (bits[index] >> 23) & 255
        number, difference = np.float64(before[index]), np.float64(after[index])
        difference -= number
        if exponent < 255 and np.isfinite(difference):
            signal += number * number
            noise += difference * difference
            if number != 0:
                by_exponent[exponent] += 1
    energies[0] += signal
    energies[1] += noise


def describe(site: Site, counts: NDArray[np.int64], measured: Measurement) -> TensorNumerics:
    """The figures of a site for the user.

    Args:
        site: the tensor.
        counts: [NUM_COUNTS], over the steps since the last reading.
        measured: of the newest step.
    """
    rule, num_elements = site.rule, int(counts[Count.ELEMENTS])
    number_format, bias = rule.format, measured.bias
    smallest = number_format.min_normal_exponent(bias)
    if number_format.denormals is not Denormals.FLUSH:
        smallest -= number_format.mantissa_bits + (number_format.denormals is Denormals.LITERAL)
    return TensorNumerics(
        layer=site.layer,
        op=site.op,
        role=site.role.value,
        format=number_format.name,
        rounding=rule.rounding.value,
        bias=None if number_format.min_bias == number_format.max_bias else bias,
        num_elements=num_elements,
        saturated_share=int(counts[Count.SATURATED]) / max(num_elements, 1),
        underflowed_share=int(counts[Count.UNDERFLOWED]) / max(num_elements, 1),
        nan_share=int(counts[Count.NAN]) / max(num_elements, 1),
        amax=float(counts[Count.AMAX_BITS].astype(np.int32).view(np.float32)),
        snr_db=measured.snr_db,
        exponent_histogram=measured.exponent_histogram,
        representable_exponents=(smallest, number_format.max_exponent(bias)),
    )
