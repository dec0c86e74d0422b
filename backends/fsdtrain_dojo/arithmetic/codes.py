"""Codes of the formats with at most 16 bits: from float32 numbers and back.

Codes of up to 8 bits are uint8, others int16 holding the bits of the code. A tensor of codes has
the dimensions and the memory order of its numbers. Decoding looks up a table of all codes.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from fsdtrain.backend import BackendError
from fsdtrain_dojo.arithmetic.compiled import Bits, as_bits, as_float32, compiled, u32
from fsdtrain_dojo.arithmetic.flat_memory import in_memory_order, is_dense
from fsdtrain_dojo.arithmetic.grid import FLOAT32_BIAS, has_float32_exponents, make_grid
from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, Rounding, make_rounder
from fsdtrain_dojo.formats import Denormals, Format


def encode(numbers: torch.Tensor, format: Format, bias: int) -> torch.Tensor:
    """The codes of float32 numbers, rounded to nearest even first, as rounding.py says.

    Raises:
        BackendError: no codes for this format, no such bias, not float32, not on the CPU.
    """
    dtype = code_dtype(format)
    _check_on_cpu(numbers)
    rounded = numbers.detach().clone()
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
    make_rounder(format, Rounding.NEAREST)(rounded, bias, counts)
    codes = torch.empty_like(rounded, dtype=dtype)
    unsigned = in_memory_order(codes).numpy().view(f"uint{8 * dtype.itemsize}")
    bits = in_memory_order(rounded).numpy().view(np.uint32)
    _pack(bits, unsigned, _pack_words(format, bias))
    return codes


def decode(
    codes: torch.Tensor, format: Format, bias: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The float32 numbers of codes made by `encode`; exact.

    With `out`, float32 of the codes' shape and memory order, they are written there: new memory
    costs more than decoding.

    Raises:
        BackendError: no codes for this format, no such bias, another dtype, not on the CPU, an
            `out` that does not fit.
    """
    if codes.dtype is not code_dtype(format):
        raise BackendError(
            f"codes of format {format.name} are {code_dtype(format)}, not {codes.dtype}"
        )
    _check_on_cpu(codes)
    dense = codes if is_dense(codes) else codes.contiguous()
    numbers = torch.empty_like(dense, dtype=torch.float32) if out is None else out
    if (
        numbers.dtype is not torch.float32
        or numbers.shape != dense.shape
        or numbers.stride() != dense.stride()
    ):
        raise BackendError(
            f"decoding into {numbers.dtype} of shape {tuple(numbers.shape)} and strides "
            f"{numbers.stride()}: it must be torch.float32, {tuple(dense.shape)}, {dense.stride()}"
        )
    unsigned = in_memory_order(dense).numpy().view(f"uint{8 * codes.dtype.itemsize}")
    _look_up(unsigned, decode_table(format, bias), in_memory_order(numbers).numpy())
    return numbers


def code_dtype(format: Format) -> torch.dtype:
    """The integer type of a format's codes.

    Raises:
        BackendError: the format has more than 16 bits.
    """
    if format.num_bits > 16:
        raise BackendError(
            f"format {format.name} has {format.num_bits} bits; there are codes for up to 16"
        )
    return torch.uint8 if format.num_bits <= 8 else torch.int16


@lru_cache(maxsize=64)
def decode_table(format: Format, bias: int) -> NDArray[np.float32]:
    """The values of all codes in their order, float32 [2^num_bits], read-only.

    Raises:
        BackendError: the format has no such bias.
    """
    format.check_bias(bias)
    code = np.arange(1 << format.num_bits)
    fraction = code % (1 << format.mantissa_bits)
    exponent = (code >> format.mantissa_bits) % (1 << format.exponent_bits)
    is_normal = exponent > 0
    significand = fraction + (is_normal << format.mantissa_bits)
    if format.denormals is Denormals.FLUSH:
        significand[~is_normal] = 0
    scale = exponent - bias - format.mantissa_bits
    if format.denormals is Denormals.GRADUAL:
        scale[~is_normal] += 1
    value = np.ldexp(significand.astype(np.float64), scale)
    is_special = exponent > format.max_exponent_field
    value[is_special] = np.where(fraction[is_special] == 0, np.inf, np.nan)
    is_negative = code >> (format.exponent_bits + format.mantissa_bits) == 1
    table: NDArray[np.float32] = np.where(is_negative, -value, value).astype(np.float32)
    table.flags.writeable = False
    return table


def _check_on_cpu(tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise BackendError(f"codes are made and read on the CPU, this tensor is on {tensor.device}")


@lru_cache(maxsize=1024)
def _pack_words(format: Format, bias: int) -> NDArray[np.uint32]:
    """What `_pack` must know: see there."""
    grid = make_grid(format, bias)
    first_exponent = format.min_normal_exponent(bias) + FLOAT32_BIAS
    # Where exponents are float32's own, denormals are packed like all others.
    min_normal = 0 if has_float32_exponents(format) else first_exponent << 23
    words = (
        grid.shift,
        min_normal,
        (grid.exponent + grid.shift) << 23,
        (first_exponent - 1) << format.mantissa_bits,
        (format.max_exponent_field + 1) << format.mantissa_bits,
        format.num_bits - 1,
    )
    return np.array(words, dtype=np.uint32)


@compiled
def _pack(
    bits: NDArray[np.uint32], codes: NDArray[np.unsignedinteger], words: NDArray[np.uint32]
) -> None:
    """The codes of numbers a format can hold, given as the bits of float32.

    Normal: the bits without the fraction's tail, the exponent's origin moved. Denormal: the number
    of steps above zero, which adding the anchor, 2^23 steps, leaves in the last bits.
    """
    shift, min_normal, anchor, origin, infinity = words[0], words[1], words[2], words[3], words[4]
    sign_place = words[5]
    for index in range(bits.size):
        sign = u32(u32(bits[index] >> u32(31)) << sign_place)
        magnitude: Bits = u32(bits[index] & u32(0x7FFFFFFF))
        head = u32(magnitude >> shift)
        code = u32(head - origin)
        if magnitude < min_normal:
            code = u32(as_bits(as_float32(magnitude) + as_float32(anchor)) - anchor)
        if magnitude >= u32(0x7F800000):
            code = u32(infinity + u32(head - u32(u32(0x7F800000) >> shift)))
        codes[index] = u32(code | sign)


@compiled
def _look_up(
    codes: NDArray[np.unsignedinteger], table: NDArray[np.float32], numbers: NDArray[np.float32]
) -> None:
    for index in range(codes.size):
        numbers[index] = table[codes[index]]
