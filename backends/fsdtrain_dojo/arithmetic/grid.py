"""Where the values of a format at one bias lie, as bit patterns of float32.

The bit patterns of non-negative float32 numbers ascend with the numbers, so that all comparisons
of the rounding kernels are made with integers. The kernels know only this, not the formats.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fsdtrain.backend import BackendError
from fsdtrain_dojo.formats import Denormals, Format

FLOAT32_MANTISSA_BITS = 23
FLOAT32_BIAS = 127
INFINITY_BITS = 0x7F800000
# Below this biased exponent of the smallest normal number the kernels' shifts of float32 denormals
# would no longer give zero. All CFloats lie above it; a format that lies below must have float32's
# own exponents.
MIN_EXPONENT = 63


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The magnitudes a format can hold; all fields are bit patterns but the first two.

    Between `gap_low` and `gap_high` there is no value; both are zero where the denormals leave no
    gap. From `gap_up` on, magnitudes in the gap are nearest to its upper end.
    """

    shift: int  # fraction bits that float32 has and the format has not
    exponent: int  # biased exponent field of float32 under which the steps no longer get smaller
    max_finite: int
    overflow: int  # the step after max_finite: the first that cannot be held
    gap_low: int
    gap_high: int
    gap_up: int

    def words(self) -> NDArray[np.uint32]:
        """The fields in order, as the kernels read them."""
        fields = (
            self.shift, self.exponent, self.max_finite, self.overflow,
            self.gap_low, self.gap_high, self.gap_up,
        )  # fmt: skip
        return np.array(fields, dtype=np.uint32)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What of a format and of the rounding is compiled into a kernel; the rest is its `Grid`."""

    counts_only: bool  # the format holds every float32
    stochastic: bool
    float32_exponents: bool
    has_gap: bool
    has_specials: bool
    is_signed: bool


def make_kind(format: Format, *, stochastic: bool) -> Kind:
    """The kind of kernel that rounds to `format`."""
    counts_only = format.mantissa_bits == FLOAT32_MANTISSA_BITS
    return Kind(
        counts_only=counts_only,
        stochastic=stochastic and not counts_only,
        float32_exponents=has_float32_exponents(format),
        has_gap=format.denormals is not Denormals.GRADUAL,
        has_specials=format.has_specials,
        is_signed=format.sign_bits == 1,
    )


@lru_cache(maxsize=1024)
def make_grid(format: Format, bias: int) -> Grid:
    """The grid of `format` at `bias`.

    Raises:
        BackendError: the format has no such bias, or float32's exponents and denormals finer than
            that allows.
    """
    format.check_bias(bias)
    if has_float32_exponents(format) and format.denormals is Denormals.LITERAL:
        raise BackendError(f"format {format.name} has no literal denormals; take gradual or flush")
    exponent = format.min_normal_exponent(bias) + FLOAT32_BIAS
    assert has_float32_exponents(format) or exponent > MIN_EXPONENT, format
    shift = FLOAT32_MANTISSA_BITS - format.mantissa_bits
    max_finite = bits_of(format.max_finite(bias))
    min_normal = 2.0 ** format.min_normal_exponent(bias)
    gap_low, gap_high, gap_up = 0, 0, 0
    if format.denormals is Denormals.LITERAL:
        exponent -= 1
        # The last denormal is odd, so that the middle goes up.
        last_denormal = (1 - 2.0**-format.mantissa_bits) * min_normal / 2
        gap_low, gap_high = bits_of(last_denormal), bits_of(min_normal)
        gap_up = bits_of((last_denormal + min_normal) / 2)
    elif format.denormals is Denormals.FLUSH:
        # Zero and the smallest normal number both have an even fraction: the middle goes to zero.
        gap_high = bits_of(min_normal)
        gap_up = bits_of(min_normal / 2) + 1
    return Grid(
        shift=shift,
        exponent=exponent,
        max_finite=max_finite,
        overflow=max_finite + (1 << shift),
        gap_low=gap_low,
        gap_high=gap_high,
        gap_up=gap_up,
    )


def has_float32_exponents(format: Format) -> bool:
    """Whether rounding to `format` is dropping fraction bits of float32, as for BF16."""
    return format.exponent_bits == 8 and format.bias == FLOAT32_BIAS and format.has_specials


def bits_of(number: float) -> int:
    """The bits of a number that float32 can hold."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    return int(bits)
