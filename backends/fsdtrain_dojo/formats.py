"""The number formats of Dojo as data, and the exact value of every code.

Nothing here computes with tensors: rounding, encoding and decoding read these descriptors. Source
of the fields: Tesla, "Configurable Floating Point Formats & Arithmetic" (white paper, October
2021), tables 1-5; of the accumulator: US 11,556,615, claims 1-6.
"""

from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import Literal

from fsdtrain.backend import BackendError


class Denormals(Enum):
    """What an exponent field of zero means; f is the fraction field as 0.f, b the bias.

    The white paper prints denormals as 0.f * 2^-b but the smallest normal as 2^(1-b), which leaves
    a hole between them, and says in the same place that underflow is gradual.
    """

    GRADUAL = "gradual"  # 0.f * 2^(1-b): as IEEE 754, no hole; the default
    LITERAL = "literal"  # 0.f * 2^-b: as printed
    FLUSH = "flush"  # only zero: everything below the smallest normal rounds to it or to zero


class Overflow(Enum):
    """What becomes of values beyond the largest finite one."""

    SATURATE = "saturate"  # clamped, infinities too
    INFINITY = "infinity"  # IEEE 754


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format. A code is sign, exponent E and fraction f, from the highest bit down.

    Normal numbers are (-1)^s * 1.f * 2^(E-bias) with E = 1 .. all ones, or one less where the
    all-ones exponent means infinity and NaN (`has_specials`). A larger bias means smaller numbers.
    """

    name: str
    sign_bits: Literal[0, 1]
    exponent_bits: int
    mantissa_bits: int  # stored fraction bits
    bias: int  # the default
    min_bias: int
    max_bias: int
    has_specials: bool  # all-ones exponent: fraction zero is infinity, else NaN
    denormals: Denormals
    overflow: Overflow
    source: str
    confidence: str  # stated | claimed (in a patent) | assumed

    @property
    def num_bits(self) -> int:
        return self.sign_bits + self.exponent_bits + self.mantissa_bits

    @property
    def max_exponent_field(self) -> int:
        """The largest E of a finite number."""
        return (1 << self.exponent_bits) - (2 if self.has_specials else 1)

    def check_bias(self, bias: int) -> int:
        """`bias` itself.

        Raises:
            BackendError: this format has no such bias.
        """
        if not self.min_bias <= bias <= self.max_bias:
            allowed = (
                f"only {self.bias}"
                if self.min_bias == self.max_bias
                else f"{self.min_bias} to {self.max_bias}"
            )
            raise BackendError(f"bias {bias} of format {self.name}: allowed is {allowed}")
        return bias

    def min_normal_exponent(self, bias: int) -> int:
        """The smallest normal number is 2 to this power."""
        return 1 - bias

    def max_exponent(self, bias: int) -> int:
        """The largest power of two is 2 to this."""
        return self.max_exponent_field - bias

    def max_finite(self, bias: int) -> float:
        """The largest finite value; exact, for all formats fit into float64."""
        return float((2 - Fraction(1, 1 << self.mantissa_bits)) * _two_to(self.max_exponent(bias)))

    def value(self, code: int, bias: int) -> Fraction | float:
        """The exact value of a code; infinity and NaN are floats. -0 gives the Fraction 0."""
        fraction = code & ((1 << self.mantissa_bits) - 1)
        exponent = (code >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        sign = -1 if self.sign_bits and code >> (self.num_bits - 1) else 1
        scaled = Fraction(fraction, 1 << self.mantissa_bits)
        if exponent > self.max_exponent_field:
            return float("nan") if fraction else sign * float("inf")
        if exponent:
            return sign * (1 + scaled) * _two_to(exponent - bias)
        if self.denormals is Denormals.FLUSH:
            return Fraction(0)
        return sign * scaled * _two_to(-bias + (self.denormals is Denormals.GRADUAL))

    def with_denormals(self, denormals: Denormals) -> "Format":
        """This format with the other reading of its denormals."""
        return replace(self, denormals=denormals)

    def with_specials(self, has_specials: bool) -> "Format":
        """This format with or without codes for infinity and NaN."""
        overflow = Overflow.INFINITY if has_specials else Overflow.SATURATE
        return replace(self, has_specials=has_specials, overflow=overflow)


def _two_to(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


_WHITE_PAPER = "Tesla, Configurable Floating Point Formats & Arithmetic (2021)"

FP32 = Format(
    name="fp32", sign_bits=1, exponent_bits=8, mantissa_bits=23, bias=127, min_bias=127,
    max_bias=127, has_specials=True, denormals=Denormals.GRADUAL, overflow=Overflow.INFINITY,
    source="IEEE 754 binary32", confidence="stated",
)  # fmt: skip
BF16 = Format(
    name="bf16", sign_bits=1, exponent_bits=8, mantissa_bits=7, bias=127, min_bias=127,
    max_bias=127, has_specials=True, denormals=Denormals.GRADUAL, overflow=Overflow.INFINITY,
    source=_WHITE_PAPER, confidence="stated",
)  # fmt: skip
CFLOAT8_1_4_3 = Format(
    name="cfloat8_1_4_3", sign_bits=1, exponent_bits=4, mantissa_bits=3, bias=7, min_bias=0,
    max_bias=63, has_specials=False, denormals=Denormals.GRADUAL, overflow=Overflow.SATURATE,
    source=_WHITE_PAPER, confidence="stated; saturation by analogy with cfloat16_shp",
)  # fmt: skip
CFLOAT8_1_5_2 = Format(
    name="cfloat8_1_5_2", sign_bits=1, exponent_bits=5, mantissa_bits=2, bias=15, min_bias=0,
    max_bias=63, has_specials=False, denormals=Denormals.GRADUAL, overflow=Overflow.SATURATE,
    source=_WHITE_PAPER, confidence="stated; saturation by analogy with cfloat16_shp",
)  # fmt: skip
CFLOAT16_SHP = Format(
    name="cfloat16_shp", sign_bits=1, exponent_bits=5, mantissa_bits=10, bias=15, min_bias=0,
    max_bias=63, has_specials=False, denormals=Denormals.GRADUAL, overflow=Overflow.SATURATE,
    source=_WHITE_PAPER, confidence="stated",
)  # fmt: skip
# Unsigned: a negative operand is clamped to zero and counted as saturated. What the text says of
# its denormals and special values is lost; the defaults are those of the other CFloats.
CFLOAT16_UHP = Format(
    name="cfloat16_uhp", sign_bits=0, exponent_bits=6, mantissa_bits=10, bias=31, min_bias=31,
    max_bias=31, has_specials=False, denormals=Denormals.GRADUAL, overflow=Overflow.SATURATE,
    source=_WHITE_PAPER, confidence="fields stated; denormals and special values assumed",
)  # fmt: skip
# Wide enough that products of CFloat8 neither overflow nor underflow. Its bias and its rounding
# are not public.
ACCUMULATOR_21 = Format(
    name="accumulator_21", sign_bits=1, exponent_bits=7, mantissa_bits=13, bias=63, min_bias=63,
    max_bias=63, has_specials=False, denormals=Denormals.GRADUAL, overflow=Overflow.SATURATE,
    source="US 11,556,615, claims 1-6", confidence="claimed; bias, denormals and rounding assumed",
)  # fmt: skip

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (FP32, BF16, CFLOAT8_1_4_3, CFLOAT8_1_5_2, CFLOAT16_SHP, CFLOAT16_UHP)
}


def find_format(name: str) -> Format:
    """The storage format of this name.

    Raises:
        BackendError: there is none.
    """
    if name not in FORMATS:
        raise BackendError(f"format {name!r} is not known; known are {', '.join(FORMATS)}")
    return FORMATS[name]
