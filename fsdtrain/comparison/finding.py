"""Says in one clause what is wrong with a tensor, from the tensor itself.

    x = 1.01 * reference        =>   "is 1.010 times the reference"
    x = softmax(other axis)     =>   "holds the values of another axis order"

It looks for the simplest change of the reference that explains the tensor; it does not know whether
the tensor is outside of its band, nor whose it is.
"""

import math
from typing import Final

import numpy as np
from torch import Tensor

from fsdtrain.comparison.alternatives import Context, along_other_axes, with_earlier_inputs
from fsdtrain.comparison.bands import Fault
from fsdtrain.comparison.errors import Sums, as_floats, sum_up
from fsdtrain.comparison.number_formats import (
    Floats,
    Grid,
    NumberFormat,
    grid_of,
    spacing,
    store_as,
)
from fsdtrain.comparison.number_formats import used_mantissa_bits as used_bits

# What is left of the error must be this much smaller for a cause to count as found.
_EXPLAINED: Final = 0.9
_BETTER: Final = 10.0  # of the power of the error
MAX_SORTED: Final = 1 << 22  # elements whose order is looked at
_MIN_ELEMENTS: Final = 4  # fewer say nothing about resolution or order
_NAMES_BY_BITS: Final = {2: "1-5-2?", 3: "1-4-3?", 7: "bf16?", 10: "a 16-bit float?"}


def find_cause(
    reference: Tensor,
    x: Tensor | None,
    format: NumberFormat,
    *,
    fault: Fault = "",
    context: Context | None = None,
) -> str:
    """The clause after "b ".

    Args:
        reference: what the tensor should be, before it is stored.
        x: what it is; None: it is not there.
        format: that it is stored in.
        fault: what `bands.judge_store` found.
        context: of the tensor.
    """
    if x is None:
        return "is missing"
    if x.shape != reference.shape:
        cause = f"has shape {list(x.shape)} where the reference has {list(reference.shape)}"
        return f"{cause}{_why_of_this_shape(x, format, context)}"
    references = as_floats(reference).astype(np.float64)
    numbers = as_floats(x).astype(np.float64)
    sums = sum_up(references, numbers)
    return (
        _not_finite(sums)
        or _nothing(references, numbers)
        or _earlier(x, format, sums, context)
        or _other_axis(x, format, sums, context)
        or _coarse(references, numbers, format, fault)
        or _multiple(sums)
        or _shifted(sums)
        or _reordered(reference, x, format, sums)
        or _clamped(references, numbers, format)
        or _by_statistics(sums, fault)
        or _in_part(references, numbers, format)
        or _by_numbers(sums)
    )


def _not_finite(sums: Sums) -> str:
    if sums.num_lost:
        return f"is NaN or infinite in {_share(sums.num_lost, sums.num_elements)}"
    if sums.num_gained:
        return (
            f"is finite where the reference is not in {_share(sums.num_gained, sums.num_elements)}"
        )
    return ""


def _nothing(references: Floats, numbers: Floats) -> str:
    return "is zero" if references.any() and not numbers.any() else ""


def _earlier(x: Tensor, format: NumberFormat, sums: Sums, context: Context | None) -> str:
    if context is None:
        return ""
    if context.previous is not None and _explains(context.previous, x, format, sums):
        return "equals the value of the step before"
    for name, result in with_earlier_inputs(context):
        if _explains(result, x, format, sums):
            return f"reads the value of {name} of the step before (stale weight)"
    return ""


def _coarse(references: Floats, numbers: Floats, format: NumberFormat, fault: Fault) -> str:
    """Fewer fraction bits than the format has, where the reference needs more."""
    if len(numbers) < _MIN_ELEMENTS:
        return ""
    largest = float(np.abs(numbers).max())
    grid = _reference_grid(largest)
    used, needed = used_bits(numbers, grid), used_bits(references, grid)
    if used is None or needed is None or used >= min(needed, format.mantissa_bits):
        return ""
    rounded = Grid(mantissa_bits=used, min_exponent=grid.min_exponent)
    distances = np.abs(numbers - references)
    # Twice a step, for a bias that flushes what is small, and for stochastic rounding.
    is_rounding = distances <= np.maximum(
        2 * spacing(references, rounded), 2.0 ** (grid.min_exponent - used)
    )
    if fault != "resolution" and not is_rounding.mean() > 1 - 1e-3:
        return ""
    name = _NAMES_BY_BITS.get(used, "")
    return f"has the resolution of {used} mantissa bits{f' ({name})' if name else ''}"


def _reference_grid(amax: float) -> Grid:
    """Of what is no less than 2**-12 of the largest, so that denormals do not count."""
    top = math.frexp(amax)[1] - 1 if amax > 0 else 0
    return Grid(mantissa_bits=52, min_exponent=top - 12)


def _multiple(sums: Sums) -> str:
    signal = sums.reference_power
    if not signal or not sums.dd:
        return ""
    scale = sums.product / signal
    left = sums.dd - (scale - 1) ** 2 * signal
    return _times(scale) if left <= (1 - _EXPLAINED) * sums.dd else ""


def _times(scale: float) -> str:
    if abs(scale + 1) < 5e-3:
        return "has the opposite sign"
    # 1.010, and not 1.0100 where sums of float32 make 1.0099999 of it.
    exponent = math.floor(math.log10(abs(scale - 1)) + 1e-3) if scale != 1 else -2
    digits = min(max(3, 1 - exponent), 9)
    return f"is {scale:.{digits}f} times the reference"


def _shifted(sums: Sums) -> str:
    offset = (sums.x - sums.r) / max(sums.count, 1)
    left = sums.dd - sums.count * offset**2
    return _off(sums) if sums.count > 1 and left <= (1 - _EXPLAINED) * sums.dd else ""


def _off(sums: Sums) -> str:
    offset = (sums.x - sums.r) / max(sums.count, 1)
    rms = math.sqrt(sums.reference_power / max(sums.count, 1))
    if not rms:
        return f"is off by a constant of {offset:.3g}"
    return f"is off by a constant of {offset / rms:.2g} of the reference's RMS"


def _reordered(reference: Tensor, x: Tensor, format: NumberFormat, sums: Sums) -> str:
    """The same numbers elsewhere; a constant tensor has no order."""
    if not _MIN_ELEMENTS <= x.numel() <= MAX_SORTED:
        return ""
    ours, theirs = x.double().flatten().sort().values, reference.double().flatten().sort().values
    return "holds the values of another axis order" if _explains(theirs, ours, format, sums) else ""


def _other_axis(x: Tensor, format: NumberFormat, sums: Sums, context: Context | None) -> str:
    if context is None:
        return ""
    for result in along_other_axes(context):
        if result.numel() == x.numel() and _explains(result.reshape(x.shape), x, format, sums):
            return "holds the values of another axis order (the op ran along another axis)"
    return ""


def _why_of_this_shape(x: Tensor, format: NumberFormat, context: Context | None) -> str:
    """Of a result of another shape."""
    if context is None:
        return ""
    is_found = any(
        result.shape == x.shape and _is_stored(result, x, format)
        for result in along_other_axes(context)
    )
    return ": the op ran along another axis" if is_found else ""


def _clamped(references: Floats, numbers: Floats, format: NumberFormat) -> str:
    """Where the error is, the tensor has its largest magnitude, and the reference a larger one.

    One number alone is the largest by chance, unless the format has none that is larger.
    """
    magnitudes = np.abs(numbers)
    largest = float(magnitudes.max(initial=0.0))
    is_clamped = (magnitudes == largest) & (np.abs(references) > 1.1 * largest)
    is_by_chance = is_clamped.sum() == 1 and largest != grid_of(format, largest).max_finite
    if not is_clamped.any() or is_by_chance:
        return ""
    squares = (numbers - references) ** 2
    if squares[is_clamped].sum() < _EXPLAINED * squares.sum():
        return ""
    return f"is saturated at {largest:.3g} in {_share(int(is_clamped.sum()), len(numbers))}"


def _by_statistics(sums: Sums, fault: Fault) -> str:
    """Faults that hide in rounding noise, as the band found them."""
    if fault == "scale":
        return _times(sums.product / sums.reference_power)
    if fault == "offset":
        return _off(sums)
    return ""


def _in_part(references: Floats, numbers: Floats, format: NumberFormat) -> str:
    """Most elements are right."""
    largest = float(np.abs(references).max(initial=0.0))
    rms = math.sqrt(float(np.mean(references**2)))
    allowed = 2 * spacing(references, grid_of(format, largest)) + 1e-5 * rms
    num_wrong = int(np.sum(np.abs(numbers - references) > allowed))
    if not 0 < num_wrong <= len(numbers) // 2:
        return ""
    is_zero = np.abs(numbers - references) > allowed
    what = "is zero" if not numbers[is_zero].any() else "is wrong"
    return f"{what} in {_share(num_wrong, len(numbers))}, and as expected elsewhere"


def _by_numbers(sums: Sums) -> str:
    if not sums.reference_power:
        return f"is not zero as the reference is, but up to {sums.max_d:.3g}"
    ratio = 10 * math.log10(sums.reference_power / sums.dd) if sums.dd else math.inf
    return f"differs from the reference: {ratio:.1f} dB"


def _explains(candidate: Tensor, x: Tensor, format: NumberFormat, sums: Sums) -> bool:
    """Whether x is the candidate, as stored in the format, and not the reference."""
    if candidate.shape != x.shape or not _is_stored(candidate, x, format):
        return False
    # Rounding may be larger than what tells the candidate from the reference.
    both = (candidate, store_as(candidate, format.name))
    left = min(sum_up(as_floats(each), as_floats(x)).dd for each in both)
    return left * _BETTER < sums.dd


def _is_stored(candidate: Tensor, x: Tensor, format: NumberFormat) -> bool:
    """Whether x is the candidate but for rounding."""
    sums = sum_up(as_floats(candidate), as_floats(x))
    rounding = 4.0 ** -(min(format.mantissa_bits, 12) + 1)
    return sums.is_finite and sums.dd <= rounding * max(sums.reference_power, 0.0)


def _share(count: int, total: int) -> str:
    if count == total:
        return f"all of its {total:,} elements"
    return f"{count:,} of {total:,} elements"
