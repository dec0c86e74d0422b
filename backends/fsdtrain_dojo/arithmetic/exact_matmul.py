"""Matrix products as the matrix unit accumulates: `accumulate=exact`.

The order is an assumption (the reduction inside the 8x8x4 unit is not public), written down here
so that results can be reproduced bit for bit:

    p_k   = a_k * b_k, rounded once to FP32: exact for products of BF16 or CFloat8 values within
            FP32's range, and the definition for wider operands
    s     = rnd(rnd(p_0 + p_1) + rnd(p_2 + p_3))     K in steps of 4, the last one filled with zeros
    acc   = rnd(acc + s)                             from acc = +0 at the start of each K-tile
    total = rnd(total + acc)                         K-tiles in ascending order, from total = +0

rnd is nearest-even to the accumulator's format. In FP32 infinities and NaN go on as in IEEE 754.
The 21-bit format has neither: beyond its largest value it saturates, an infinity is its largest
value and so is NaN (positive, as where NaN is stored in a format without it). It underflows
gradually. A zero result is +0 in both. Threads and the shape of the rest do not change a result.
"""

import functools
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain_dojo.arithmetic.exact_kernel import (
    NUM_COLUMNS,
    Offsets,
    Operand,
    Result,
    Rounding,
    Values,
    multiply,
)
from fsdtrain_dojo.formats import FP32, Denormals, Format, Overflow

STEPS_PER_OP = 4  # the K of one 8x8x4 operation
MIN_PRODUCTS_PER_THREAD = 10_000_000  # some milliseconds, to be worth a thread


@dataclass(frozen=True)
class MatrixUnit:
    """How products are accumulated; the module's docstring has the order.

    Raises:
        BackendError: a `k_tile` that is no positive multiple of 4, or an accumulator that cannot be
            emulated.
    """

    accumulator: Format
    k_tile: int  # steps along K between two fresh accumulators

    def __post_init__(self) -> None:
        if self.k_tile < STEPS_PER_OP or self.k_tile % STEPS_PER_OP:
            raise BackendError(
                f"K-tile of {self.k_tile} steps: allowed are positive multiples of {STEPS_PER_OP}"
            )
        _rounding_to(self.accumulator)

    def run(self, a: Operand, b: Operand, out: Result) -> None:
        """Multiplies into `out`; whichever factor is longer lies along the vector lanes.

        Exchanging the factors exchanges those of each product and no sum, so it changes no bit.
        """
        if b.outer.size < NUM_COLUMNS and b.outer.size < a.outer.size:
            a, b, out = b, a, Result(out.flat, out.batches, out.columns, out.rows)
        rounding = _rounding_to(self.accumulator)
        parts = _share_out(a, b, out)
        if len(parts) == 1:
            multiply(a, b, out, self.k_tile, rounding)
            return
        with ThreadPoolExecutor(len(parts)) as pool:
            running = [pool.submit(multiply, *part, self.k_tile, rounding) for part in parts]
            for part in running:
                part.result()

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """The products [B, M, N] of a [B, M, K] and b [B, K, N]; nothing is checked here."""
        out = a.new_empty((a.shape[0], a.shape[1], b.shape[2]))
        self.run(
            Operand(flat_view(a), *axis_offsets(a)),
            Operand(flat_view(b), *axis_offsets(b.mT)),
            Result(flat_view(out), *axis_offsets(out)),
        )
        return out


def matmul_exact(a: Tensor, b: Tensor, accumulator: Format, k_tile: int) -> Tensor:
    """The product of a [M, K] and b [K, N], float32 of any strides: float32 [M, N], contiguous.

    Raises:
        BackendError: shapes that do not fit, not float32, not on the CPU; or see `MatrixUnit`.
    """
    check_operands("mm", a, b, num_dims=2)
    return MatrixUnit(accumulator, k_tile).multiply(a[None], b[None])[0]


@functools.cache
def _rounding_to(accumulator: Format) -> Rounding | None:
    """What the kernel needs to know of an accumulator; None is FP32.

    Raises:
        BackendError: the format cannot be emulated as an accumulator.
    """
    if accumulator == FP32:
        return None
    is_narrow = (
        accumulator.sign_bits == 1
        and accumulator.mantissa_bits <= 22  # for float64 to hold sums well enough
        and accumulator.exponent_bits <= 8
        and accumulator.max_exponent(accumulator.bias) <= 127  # results are handed on in FP32
        and accumulator.denormals is Denormals.GRADUAL
        and accumulator.overflow is Overflow.SATURATE
    )
    if not is_narrow:
        raise BackendError(
            f"format {accumulator.name} as an accumulator: allowed are fp32 and signed, saturating "
            "formats with gradual denormals that fit into it, such as accumulator_21"
        )
    lowest = 1023 + accumulator.min_normal_exponent(accumulator.bias)
    return Rounding(
        lowest_exponent=lowest << 52,
        to_magic=(52 - accumulator.mantissa_bits << 52) | (1 << 51),
        max_finite=accumulator.max_finite(accumulator.bias),
    )


def _share_out(a: Operand, b: Operand, out: Result) -> list[tuple[Operand, Operand, Result]]:
    """The work in parts, one a thread: batches if there are enough, else columns.

    No sum is divided, so the number of threads changes no bit.
    """
    num_batches, num_panels = out.batches.size, -(-b.outer.size // NUM_COLUMNS)
    work = num_batches * a.outer.size * b.outer.size * a.steps.size
    affordable = max(1, work // MIN_PRODUCTS_PER_THREAD)
    num_parts = min(torch.get_num_threads(), max(num_batches, num_panels), affordable)
    if num_parts <= 1:
        return [(a, b, out)]
    divided = num_batches if num_batches >= num_parts else num_panels
    bounds = [divided * part // num_parts for part in range(num_parts + 1)]
    parts = [slice(first, last) for first, last in itertools.pairwise(bounds)]
    if num_batches >= num_parts:
        return [
            (
                a._replace(batches=a.batches[part]),
                b._replace(batches=b.batches[part]),
                out._replace(batches=out.batches[part]),
            )
            for part in parts
        ]
    columns = [slice(part.start * NUM_COLUMNS, part.stop * NUM_COLUMNS) for part in parts]
    return [
        (a, b._replace(outer=b.outer[part]), out._replace(columns=out.columns[part]))
        for part in columns
    ]


def check_operands(op: str, *operands: Tensor, num_dims: int) -> None:
    """Whether operators on matrices can take these: left factor first, then the right one.

    Raises:
        BackendError: they cannot.
    """
    left, right = operands
    is_supported = left.ndim == right.ndim == num_dims and left.shape[:-2] == right.shape[:-2]
    if not is_supported or left.shape[-1] != right.shape[-2]:
        raise BackendError(
            f"{op} of {list(left.shape)} and {list(right.shape)}: these shapes do not fit"
        )
    check_float32_on_cpu(op, left, right)


def check_float32_on_cpu(op: str, *operands: Tensor) -> None:
    """Exact accumulation is a CPU kernel on float32.

    Raises:
        BackendError: an operand is something else.
    """
    for operand in operands:
        if operand.dtype != torch.float32 or operand.device.type != "cpu":
            raise BackendError(
                f"{op} with accumulate=exact: an operand of shape {list(operand.shape)} is "
                f"{operand.dtype} on {operand.device}; supported is torch.float32 on the CPU. "
                "Use accumulate=fast elsewhere"
            )


def flat_view(tensor: Tensor) -> Values:
    """The memory of a tensor from its first to its last element, for offsets by its strides."""
    if tensor.numel() == 0:
        return np.empty(0, np.float32)
    reach = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    flat = tensor.detach().as_strided((reach + 1,), (1,), tensor.storage_offset())
    return flat.numpy()


def offsets(sizes: Sequence[int], strides: Sequence[int]) -> Offsets:
    """The offset of every element of an index space, the last index fastest."""
    return combine([np.arange(n) * stride for n, stride in zip(sizes, strides, strict=True)])


def axis_offsets(tensor: Tensor) -> list[Offsets]:
    """The offsets along each axis."""
    return [np.arange(n) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def combine(axes: Sequence[Offsets]) -> Offsets:
    """The sums of one offset of each axis, the last axis fastest."""
    table = np.zeros(1, np.int64)
    for axis in axes:
        table = (table[:, None] + axis).ravel()
    return table
