"""What storing a tensor in a number format did to it: what was clamped, and what became zero.

It does not know what is allowed, nor which op gave the tensor.
"""

import math

import numpy as np
from torch import Tensor

from fsdtrain.comparison.errors import as_floats
from fsdtrain.comparison.number_formats import FLOAT32, find_format, grid_of, spacing
from fsdtrain.comparison.record import StoredTensor


def measure_storage(exact: Tensor, stored: Tensor, format: str) -> StoredTensor:
    """What storing in `format` did to a tensor whose values before that were `exact`.

    Saturated: became the format's largest number, and was beyond it. Underflowed: became zero, and
    was smaller than its smallest normal number, but not zero. Of a format whose bias follows the
    tensor nobody says which bias it had: its largest number can only be the tensor's largest
    magnitude, beyond it is what no rounding explains, and all that became zero is underflowed.
    Shares are None of float32 or wider, and of what is no float.
    """
    number_format = find_format(format) if exact.is_floating_point() and exact.numel() else None
    if number_format is None or number_format.mantissa_bits >= FLOAT32.mantissa_bits:
        return StoredTensor(format=format)
    before, magnitudes = np.abs(as_floats(exact)), np.abs(as_floats(stored))
    largest = float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0))
    grid = grid_of(number_format, largest)
    beyond, too_small = grid.max_finite, 2.0**grid.min_exponent
    if number_format.follows_amax:
        step = float(spacing(np.array([beyond]), grid)[0])
        beyond, too_small = beyond + 1.001 * step, math.inf
    is_clamped = (before > beyond) & (magnitudes == grid.max_finite)
    is_flushed = (before < too_small) & (before != 0) & (magnitudes == 0)
    return StoredTensor(
        format=format,
        saturated_share=float(np.mean(is_clamped)),
        underflowed_share=float(np.mean(is_flushed)),
    )
