"""Number formats by name: their grid, rounding onto it, and the noise that rounding makes.

The core knows no backend, so a format is what its name says: "float32", "bf16", or fields as in
"cfloat8_1_4_3" (sign, exponent and mantissa bits). It does not know tensors of a step.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsdtrain.errors import UserError

Floats = NDArray[np.float64]

_EXPONENT_SHIFT: Final = 52  # of float64
_EXPONENT_MASK: Final = 0x7FF
_EXPONENT_BIAS: Final = 1023


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """One format.

    Args:
        name: "cfloat8_1_4_3".
        exponent_bits: of the field.
        mantissa_bits: stored fraction bits.
        follows_amax: whether the exponent's bias is chosen so that the largest magnitude of a
            tensor just fits, as that of CFloat8 is; else it is IEEE 754's.
        is_signed: whether there are negative numbers.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    follows_amax: bool = False
    is_signed: bool = True


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers of a format at one bias.

    Args:
        mantissa_bits: stored fraction bits.
        min_exponent: the smallest normal number is 2 to this power; below, the spacing stays.
        max_finite: larger magnitudes become this or infinity.
    """

    mantissa_bits: int
    min_exponent: int
    max_finite: float = math.inf


FLOAT32 = NumberFormat(name="float32", exponent_bits=8, mantissa_bits=23)
FLOAT32_GRID = Grid(mantissa_bits=23, min_exponent=-126)
# Tesla's CFloat16: signed half precision has 5 exponent bits, unsigned 6 (white paper, 2021).
_NAMED = {
    "fp32": FLOAT32,
    "float32": FLOAT32,
    "float64": NumberFormat(name="float64", exponent_bits=11, mantissa_bits=52),
    "bf16": NumberFormat(name="bf16", exponent_bits=8, mantissa_bits=7),
    "bfloat16": NumberFormat(name="bf16", exponent_bits=8, mantissa_bits=7),
    "fp16": NumberFormat(name="float16", exponent_bits=5, mantissa_bits=10),
    "float16": NumberFormat(name="float16", exponent_bits=5, mantissa_bits=10),
    "cfloat16_shp": NumberFormat(
        name="cfloat16_shp", exponent_bits=5, mantissa_bits=10, follows_amax=True
    ),
    "cfloat16_uhp": NumberFormat(
        name="cfloat16_uhp", exponent_bits=6, mantissa_bits=10, is_signed=False
    ),
}


def find_format(name: str) -> NumberFormat:
    """The format of this name.

    Raises:
        UserError: a name that says nothing.
    """
    if name in _NAMED:
        return _NAMED[name]
    fields = re.search(r"1_(\d+)_(\d+)$", name)
    if fields is None:
        raise UserError(
            f"number format {name!r} is not known: known are {', '.join(_NAMED)}, and names that "
            "end with their fields, as cfloat8_1_4_3"
        )
    return NumberFormat(
        name=name,
        exponent_bits=int(fields[1]),
        mantissa_bits=int(fields[2]),
        follows_amax=name.startswith("cfloat"),
    )


def grid_of(format: NumberFormat, amax: float) -> Grid:
    """The grid of a tensor whose largest magnitude is `amax`."""
    if not format.follows_amax:
        bias = (1 << (format.exponent_bits - 1)) - 1
        is_ieee = format.is_signed
        max_exponent = bias if is_ieee else bias + 1
        largest = (2 - 2.0**-format.mantissa_bits) * 2.0**max_exponent
        return Grid(mantissa_bits=format.mantissa_bits, min_exponent=1 - bias, max_finite=largest)
    # All exponents hold numbers: the largest field is amax's exponent, the smallest normal one
    # is 2**bits - 2 binades below.
    top = math.frexp(amax)[1] - 1 if amax > 0 and math.isfinite(amax) else 0
    largest_mantissa = 2 - 2.0**-format.mantissa_bits
    if amax > largest_mantissa * 2.0**top:
        top += 1
    return Grid(
        mantissa_bits=format.mantissa_bits,
        min_exponent=top - ((1 << format.exponent_bits) - 2),
        max_finite=largest_mantissa * 2.0**top,
    )


def spacing(numbers: Floats, grid: Grid) -> Floats:
    """Distance of each number's neighbours on the grid, of its own binade."""
    bits = np.ascontiguousarray(numbers).view(np.int64)
    exponents = ((bits >> _EXPONENT_SHIFT) & _EXPONENT_MASK) - _EXPONENT_BIAS
    np.maximum(exponents, grid.min_exponent, out=exponents)
    exponents += _EXPONENT_BIAS - grid.mantissa_bits
    return (exponents << _EXPONENT_SHIFT).view(np.float64)


def round_to(numbers: Floats, grid: Grid) -> Floats:
    """To nearest, ties to even; clamped to the largest number. NaN stays."""
    steps = spacing(numbers, grid)
    return np.clip(np.rint(numbers / steps) * steps, -grid.max_finite, grid.max_finite)


def store_as(value: Tensor, format: str | None) -> Tensor:
    """Rounded to nearest, in float32; what is no float stays.

    Args:
        value: of any shape.
        format: by name; None: it is no float.
    """
    if format is None or not value.is_floating_point():
        return value
    found = find_format(format)
    if found.mantissa_bits >= FLOAT32.mantissa_bits or not value.numel():
        return value.float()
    if found.name == "bf16":
        return value.float().bfloat16().float()
    numbers = value.detach().cpu().double().reshape(-1).numpy()
    finite = np.abs(numbers[np.isfinite(numbers)])
    rounded = round_to(numbers, grid_of(found, float(finite.max(initial=0.0))))
    return torch.from_numpy(rounded).reshape(value.shape).float().to(value.device)


def used_mantissa_bits(numbers: Floats, grid: Grid) -> int | None:
    """The most fraction bits that any normal number here needs; None: there is none."""
    magnitudes = np.abs(numbers)
    normal = magnitudes[(magnitudes >= 2.0**grid.min_exponent) & np.isfinite(magnitudes)]
    if not normal.size:
        return None
    fractions = normal.view(np.int64) & ((1 << _EXPONENT_SHIFT) - 1)
    used = int(np.bitwise_or.reduce(fractions))
    return 0 if used == 0 else _EXPONENT_SHIFT - ((used & -used).bit_length() - 1)
