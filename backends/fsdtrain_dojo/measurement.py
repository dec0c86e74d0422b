"""How one tensor fared when it was rounded: signal to noise, and where its magnitudes lie.

EMULATED figures. They cost several passes over the tensor, so they are taken in a few steps only.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsdtrain.backend import HISTOGRAM_BINS, HISTOGRAM_MIN_EXPONENT, TensorNumerics
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
    """Compare a float32 tensor with what it was rounded to; NaN and infinity count for nothing."""
    is_finite = torch.isfinite(before) & torch.isfinite(after)
    signal = before[is_finite].double()
    noise_energy = (after[is_finite].double() - signal).square().sum().item()
    signal_energy = signal.square().sum().item()
    snr_db = (
        10 * math.log10(signal_energy / noise_energy) if noise_energy and signal_energy else None
    )
    exponents = torch.frexp(before[is_finite & (before != 0)]).exponent - 1
    bins = (exponents - HISTOGRAM_MIN_EXPONENT).clamp(0, HISTOGRAM_BINS - 1)
    histogram = torch.bincount(bins, minlength=HISTOGRAM_BINS)
    return Measurement(bias=bias, snr_db=snr_db, exponent_histogram=tuple(histogram.tolist()))


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
