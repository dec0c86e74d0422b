"""Where a sample of `ms_deform_attn` lies: what its kernels share."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def locate(ptr, stride_xy, is_read, rows, columns, SUM_DTYPE: tl.constexpr):
    """(row, column, share of the row below, share of the column to the right) of samples.

    Row and column are those of the top left one of four pixels and may lie outside of the map; so
    do those of samples that are not read.
    """
    x = tl.load(ptr, mask=is_read, other=-2.0).to(SUM_DTYPE) * columns - 0.5
    y = tl.load(ptr + stride_xy, mask=is_read, other=-2.0).to(SUM_DTYPE) * rows - 0.5
    # However far outside: a number beyond int32 must not come back inside.
    x = tl.minimum(tl.maximum(x, -2.0), columns + 1.0)
    y = tl.minimum(tl.maximum(y, -2.0), rows + 1.0)
    left, top = tl.floor(x), tl.floor(y)
    return top.to(tl.int32), left.to(tl.int32), y - top, x - left


@triton.jit
def size_of(level, LEVEL_SIZES: tl.constexpr):
    """(rows, columns) of a map whose number is known when the kernel runs."""
    rows = tl.full([], LEVEL_SIZES[0], tl.int32)
    columns = tl.full([], LEVEL_SIZES[1], tl.int32)
    for other in tl.static_range(1, len(LEVEL_SIZES) // 2):
        rows = tl.where(level == other, LEVEL_SIZES[2 * other], rows)
        columns = tl.where(level == other, LEVEL_SIZES[2 * other + 1], columns)
    return rows, columns


def sum_dtype(value: Tensor, locations: Tensor) -> tl.dtype:
    """In which dtype kernels compute."""
    is_double = torch.float64 in (value.dtype, locations.dtype)
    return tl.float64 if is_double else tl.float32
