"""The kernel of exact accumulation: a matrix product in one documented order of roundings.

It knows neither tensors nor operators: it multiplies what two tables of offsets find in flat
arrays, so that a convolution needs no unfolded copy of its input.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.arithmetic.compiled import compiled

Offsets = NDArray[np.int64]
Values = NDArray[np.float32]


class Operand(NamedTuple):
    """A batch of matrices in a flat array: element (batch, i, k) is at the sum of its offsets."""

    flat: Values
    batches: Offsets
    outer: Offsets  # rows of the left factor, columns of the right one
    steps: Offsets  # along K


class Result(NamedTuple):
    """Where element (batch, row, column) of the product goes."""

    flat: Values
    batches: Offsets
    rows: Offsets
    columns: Offsets


class Rounding(NamedTuple):
    """How a float64 is rounded to a narrower format, nearest-even."""

    lowest_exponent: int  # of the format's normal numbers, as the exponent bits of a float64
    to_magic: int  # added to exponent bits: those of 1.5 * 2^(exponent + 52 - fraction bits)
    max_finite: float


NUM_COLUMNS = 64  # of a panel; with NUM_STEPS the panel stays in the first two caches
NUM_STEPS = 256
NUM_LANES = 16  # a panel of fewer columns is computed to a multiple of these
NUM_ROWS = 256  # accumulators: 64 x 256 x 4 or 8 bytes, twice
EXPONENT_BITS = 0x7FF0000000000000  # of a float64


@compiled
def _round(x: float, rounding: Rounding) -> float:
    """Nearest-even to the format, saturating; NaN becomes the largest value, -0 becomes +0."""
    exponent = int(np.float64(x).view(np.int64) & EXPONENT_BITS)
    magic_bits = np.int64(max(exponent, rounding.lowest_exponent) + rounding.to_magic)
    magic: float = magic_bits.view(np.float64)
    rounded = (x + magic) - magic
    top = rounding.max_finite
    rounded = rounded if rounded < top else top
    return rounded if rounded > -top else -top


@compiled
def _add_to_odd(x: float, y: float) -> float:
    """Float64 x + y, rounded to odd: rounded once more, it is as if it had been rounded once.

    Products have up to 24 significant bits, more than the format: one may lie half-way between two
    values of the format, and then an addend below float64's last bit decides. Source: Boldo and
    Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
    odd" (2008); the error of the sum is Knuth's.
    """
    total = x + y
    y_part = total - x
    error = (x - (total - y_part)) + (y - y_part)
    is_inexact = (error > 0.0) | (error < 0.0)  # not for NaN, which infinities give
    is_too_large = is_inexact & ((error < 0.0) != (total < 0.0))
    bits = (np.float64(total).view(np.int64) - np.int64(is_too_large)) | np.int64(is_inexact)
    odd: float = np.int64(bits).view(np.float64)
    return odd


@compiled
def _accumulate_fp32(
    panel: Values, row: Values, partial: Values, num_steps: int, width: int
) -> None:
    """Adds row[k] * panel[k, :] to partial[:], four k at a time, every adder rounding to FP32."""
    for k in range(0, num_steps, 4):
        a0, a1, a2, a3 = row[k], row[k + 1], row[k + 2], row[k + 3]
        for j in range(width):
            low = a0 * panel[k, j] + a1 * panel[k + 1, j]
            high = a2 * panel[k + 2, j] + a3 * panel[k + 3, j]
            partial[j] += low + high


@compiled
def _accumulate_narrow(
    panel: Values,
    row: Values,
    partial: NDArray[np.float64],
    num_steps: int,
    width: int,
    rounding: Rounding,
) -> None:
    """As `_accumulate_fp32`, every adder rounding to a narrower format.

    Sums of two of its values are exact enough in float64 for a second rounding to do no harm:
    2 * (14 + 1) <= 53 for the 14 significant bits of the 21-bit format.
    """
    for k in range(0, num_steps, 4):
        a0, a1, a2, a3 = row[k], row[k + 1], row[k + 2], row[k + 3]
        for j in range(width):
            low = _add_to_odd(np.float64(a0 * panel[k, j]), np.float64(a1 * panel[k + 1, j]))
            high = _add_to_odd(np.float64(a2 * panel[k + 2, j]), np.float64(a3 * panel[k + 3, j]))
            step = _round(_round(low, rounding) + _round(high, rounding), rounding)
            partial[j] = _round(partial[j] + step, rounding)


@compiled
def _pack_panel(panel: Values, b: Operand, base: int, steps: Offsets, columns: Offsets) -> None:
    """Gathers steps x columns of `b`; zero beyond the columns and to the next multiple of four."""
    for k in range(steps.size):
        offset = base + steps[k]
        for j in range(columns.size):
            panel[k, j] = b.flat[offset + columns[j]]
        panel[k, columns.size :] = 0
    panel[steps.size : -(-steps.size // 4) * 4] = 0


@compiled
def _pack_row(row: Values, a: Operand, base: int, steps: Offsets) -> int:
    """Gathers one row of `a`, filled with zeros to a multiple of four, which it returns."""
    num_steps = -(-steps.size // 4) * 4
    for k in range(steps.size):
        row[k] = a.flat[base + steps[k]]
    row[steps.size : num_steps] = 0
    return num_steps


@compiled
def _multiply(
    a: Operand,
    b: Operand,
    out: Result,
    k_tile: int,
    rounding: Rounding | None,
    sums: NDArray[np.float32] | NDArray[np.float64],
) -> None:
    """`multiply`; sums [2, rows, columns] are the accumulators of a block, in their precision."""
    depth = a.steps.size
    panel = np.empty((NUM_STEPS, NUM_COLUMNS), np.float32)
    row = np.empty(NUM_STEPS, np.float32)
    partial, total = sums[0], sums[1]
    for batch in range(out.batches.size):
        a_base, b_base, out_base = a.batches[batch], b.batches[batch], out.batches[batch]
        for first_column in range(0, b.outer.size, NUM_COLUMNS):
            columns = b.outer[first_column : first_column + NUM_COLUMNS]
            width = -(-columns.size // NUM_LANES) * NUM_LANES
            for first_row in range(0, a.outer.size, NUM_ROWS):
                rows = a.outer[first_row : first_row + NUM_ROWS]
                total[: rows.size] = 0
                for tile in range(0, depth, k_tile):
                    tile_end = min(tile + k_tile, depth)
                    partial[: rows.size] = 0
                    for first in range(tile, tile_end, NUM_STEPS):
                        last = min(first + NUM_STEPS, tile_end)
                        _pack_panel(panel, b, b_base, b.steps[first:last], columns)
                        for i in range(rows.size):
                            num_steps = _pack_row(row, a, a_base + rows[i], a.steps[first:last])
                            if rounding is None:  # decided at compile time
                                _accumulate_fp32(panel, row, partial[i], num_steps, width)
                            else:
                                _accumulate_narrow(
                                    panel, row, partial[i], num_steps, width, rounding
                                )
                    for i in range(rows.size):
                        for j in range(NUM_COLUMNS):
                            if rounding is None:
                                total[i, j] += partial[i, j]
                            else:
                                total[i, j] = _round(total[i, j] + partial[i, j], rounding)
                for i in range(rows.size):
                    target = out_base + out.rows[first_row + i]
                    for j in range(columns.size):
                        out.flat[target + out.columns[first_column + j]] = total[i, j]


def multiply(a: Operand, b: Operand, out: Result, k_tile: int, rounding: Rounding | None) -> None:
    """out[batch, i, j] = sum over k of a[batch, i, k] * b[batch, j, k] in the documented order.

    The order is that of `exact_matmul.matmul_exact`; `rounding` None means FP32 accumulators.
    """
    num_rows = min(NUM_ROWS, a.outer.size)
    sums = np.empty((2, num_rows, NUM_COLUMNS), np.float32 if rounding is None else np.float64)
    _multiply(a, b, out, k_tile, rounding, sums)
