"""Rounding float32 tensors on a GPU: the arithmetic of rounding_cpu.py as a Triton kernel.

Bit for bit the same results, counts and random bits; see there for what is computed and why. No
step depends on whether the GPU flushes float32's own denormals: they round to zero in every format
but those with float32's exponents, and these are rounded with integers.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from fsdtrain_dojo.arithmetic.flat_memory import in_memory_order
from fsdtrain_dojo.arithmetic.grid import Kind
from fsdtrain_dojo.arithmetic.random_bits import (
    HIGH_WORD,
    MULTIPLIERS,
    Key,
    key_of_high_word,
    split_elements,
)

# Four numbers a thread, a load of 16 bytes; with their counts they leave room for four programs.
BLOCK = 1024
NUM_WARPS = 8
PROGRAMS_PER_MULTIPROCESSOR = 4
INFINITY = tl.constexpr(0x7F800000)
QUIET_NAN = tl.constexpr(0x7FC00000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
SIGN = tl.constexpr(0x80000000)
MULTIPLIER_0 = tl.constexpr(MULTIPLIERS[0])
MULTIPLIER_1 = tl.constexpr(MULTIPLIERS[1])
MULTIPLIER_2 = tl.constexpr(MULTIPLIERS[2])


def run(
    kind: Kind,
    tensor: torch.Tensor,
    counts: torch.Tensor,
    grid: torch.Tensor,
    key: Key,
    first_element: int,
) -> None:
    """Round a dense float32 tensor in place; counts and the grid's words on the same device."""
    flat = in_memory_order(tensor)
    for start, stop in split_elements(first_element, flat.numel()):
        element = first_element + start
        words = key_of_high_word(key, element // HIGH_WORD)
        num_programs = min(triton.cdiv(stop - start, BLOCK), _max_programs(tensor.device))
        _round_elements[(num_programs,)](
            flat[start:stop],
            counts,
            grid,
            stop - start,
            _as_int32(words[0] + element),
            _as_int32(words[1]),
            COUNTS_ONLY=kind.counts_only,
            IS_STOCHASTIC=kind.stochastic,
            FLOAT32_EXPONENTS=kind.float32_exponents,
            HAS_GAP=kind.has_gap,
            HAS_SPECIALS=kind.has_specials,
            IS_SIGNED=kind.is_signed,
            BLOCK_SIZE=BLOCK,
            num_warps=NUM_WARPS,
        )


@lru_cache
def _max_programs(device: torch.device) -> int:
    """As many as run at once; each takes more than one block of what is larger."""
    if device.type != "cuda":
        return 3  # interpreted, one after the other
    properties = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count) * PROGRAMS_PER_MULTIPROCESSOR


def _as_int32(word: int) -> int:
    """The lower 32 bits as a signed number: Triton compiles anew for arguments that need more."""
    return (word + (1 << 31)) % HIGH_WORD - (1 << 31)


@triton.jit(do_not_specialize=["counter", "key_1"])
def _round_elements(
    numbers_ptr,
    counts_ptr,
    grid_ptr,
    num_elements,
    counter,
    key_1,
    COUNTS_ONLY: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    FLOAT32_EXPONENTS: tl.constexpr,
    HAS_GAP: tl.constexpr,
    HAS_SPECIALS: tl.constexpr,
    IS_SIGNED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Round every num_programs-th block of the numbers, float32 [num_elements].

    Adds to the counts, int64 [5], once a program: atomics on one address wait for each other. The
    grid's words are int32 [7]; counter is the lower word of the first element's index plus the
    key's first word. Full blocks are read without a mask, which would keep the loads narrow.
    """
    program = tl.program_id(0)
    num_full = num_elements // BLOCK_SIZE
    saturated = tl.zeros([BLOCK_SIZE], tl.int32)
    underflowed = tl.zeros([BLOCK_SIZE], tl.int32)
    nan = tl.zeros([BLOCK_SIZE], tl.int32)
    amax = tl.zeros([BLOCK_SIZE], tl.int32)
    lane = tl.arange(0, BLOCK_SIZE)
    for block in range(program, num_full, tl.num_programs(0)):
        offsets = tl.full([], block, tl.int64) * BLOCK_SIZE + lane
        bits = tl.load(numbers_ptr + offsets).to(tl.uint32, bitcast=True)
        result, is_saturated, is_underflowed, is_nan, finite = _round_bits(
            bits, offsets, grid_ptr, counter, key_1, COUNTS_ONLY, IS_STOCHASTIC, FLOAT32_EXPONENTS,
            HAS_GAP, HAS_SPECIALS, IS_SIGNED,
        )  # fmt: skip
        if not COUNTS_ONLY:
            tl.store(numbers_ptr + offsets, result)
        saturated += is_saturated.to(tl.int32)
        underflowed += is_underflowed.to(tl.int32)
        nan += is_nan.to(tl.int32)
        amax = tl.maximum(amax, finite)
    if program == num_full % tl.num_programs(0):
        # Numbers past the end are read as zero, which no count counts.
        offsets = tl.full([], num_full, tl.int64) * BLOCK_SIZE + lane
        is_inside = offsets < num_elements
        numbers = tl.load(numbers_ptr + offsets, mask=is_inside, other=0.0)
        bits = numbers.to(tl.uint32, bitcast=True)
        result, is_saturated, is_underflowed, is_nan, finite = _round_bits(
            bits, offsets, grid_ptr, counter, key_1, COUNTS_ONLY, IS_STOCHASTIC, FLOAT32_EXPONENTS,
            HAS_GAP, HAS_SPECIALS, IS_SIGNED,
        )  # fmt: skip
        if not COUNTS_ONLY:
            tl.store(numbers_ptr + offsets, result, mask=is_inside)
        saturated += is_saturated.to(tl.int32)
        underflowed += is_underflowed.to(tl.int32)
        nan += is_nan.to(tl.int32)
        amax = tl.maximum(amax, finite)
        tl.atomic_add(counts_ptr, tl.full([], num_elements, tl.int64))
    num_saturated = tl.sum(saturated, 0)
    if num_saturated > 0:
        tl.atomic_add(counts_ptr + 1, num_saturated.to(tl.int64))
    num_underflowed = tl.sum(underflowed, 0)
    if num_underflowed > 0:
        tl.atomic_add(counts_ptr + 2, num_underflowed.to(tl.int64))
    num_nan = tl.sum(nan, 0)
    if num_nan > 0:
        tl.atomic_add(counts_ptr + 3, num_nan.to(tl.int64))
    tl.atomic_max(counts_ptr + 4, tl.max(amax, 0).to(tl.int64))


@triton.jit
def _round_bits(
    bits,
    offsets,
    grid_ptr,
    counter,
    key_1,
    COUNTS_ONLY: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    FLOAT32_EXPONENTS: tl.constexpr,
    HAS_GAP: tl.constexpr,
    HAS_SPECIALS: tl.constexpr,
    IS_SIGNED: tl.constexpr,
):
    """Of the bits of float32: rounded, is saturated, underflowed, NaN, finite magnitude or 0."""
    magnitude = bits & MAGNITUDE
    is_nan = magnitude > INFINITY
    finite = tl.where(magnitude < INFINITY, magnitude, 0).to(tl.int32)
    if COUNTS_ONLY:
        nothing = magnitude > MAGNITUDE
        return bits.to(tl.float32, bitcast=True), magnitude == INFINITY, nothing, is_nan, finite
    shift = tl.load(grid_ptr).to(tl.uint32, bitcast=True)
    exponent = tl.load(grid_ptr + 1).to(tl.uint32, bitcast=True)
    max_finite = tl.load(grid_ptr + 2).to(tl.uint32, bitcast=True)
    overflow = tl.load(grid_ptr + 3).to(tl.uint32, bitcast=True)
    sign = bits & SIGN
    is_negative = (sign > 0) & (magnitude > 0) & (magnitude <= INFINITY)
    if not IS_SIGNED:
        magnitude = tl.where(is_negative, 0, magnitude)
        sign = tl.zeros_like(sign)
    clipped = tl.minimum(magnitude, overflow)
    random = tl.zeros_like(bits)
    if IS_STOCHASTIC:
        index = offsets.to(tl.uint32) + counter.to(tl.uint32, bitcast=True)
        random = _random(index, key_1.to(tl.uint32, bitcast=True))
    if FLOAT32_EXPONENTS:
        rounded = _drop(clipped, shift, random, IS_STOCHASTIC)
    elif IS_STOCHASTIC:
        rounded = _round_stochastic(clipped, shift, exponent, random)
    else:
        rounded = _round_nearest(clipped, shift, exponent)
    if HAS_GAP:
        rounded = _cross_gap(magnitude, rounded, grid_ptr, random, IS_STOCHASTIC)
    is_saturated = (rounded > max_finite) & (magnitude <= INFINITY)
    if not IS_SIGNED:
        is_saturated = is_saturated | is_negative
    is_underflowed = (rounded == 0) & (magnitude > 0)
    if HAS_SPECIALS:
        is_infinite = rounded > max_finite
        if IS_STOCHASTIC:
            is_infinite = magnitude == INFINITY
        rounded = tl.where(is_infinite, INFINITY, tl.minimum(rounded, max_finite))
        rounded = tl.where(is_nan, QUIET_NAN, rounded)
    else:
        rounded = tl.minimum(rounded, max_finite)
        sign = tl.where(is_nan, 0, sign)
    result = (rounded | sign).to(tl.uint32).to(tl.float32, bitcast=True)
    return result, is_saturated, is_underflowed, is_nan, finite


@triton.jit
def _round_nearest(clipped, shift, exponent):
    anchor_bits = (tl.maximum(clipped >> 23, exponent) + shift) << 23
    anchor = anchor_bits.to(tl.float32, bitcast=True)
    return ((clipped.to(tl.float32, bitcast=True) + anchor) - anchor).to(tl.uint32, bitcast=True)


@triton.jit
def _round_stochastic(clipped, shift, exponent, random):
    own_exponent = clipped >> 23
    step_exponent = tl.maximum(own_exponent, exponent)
    below = step_exponent - own_exponent
    further = tl.minimum(below, 31 - shift)
    cut = tl.minimum(below - further, 31)
    dropped = shift + further
    significand = ((clipped & 0x7FFFFF) | 0x800000) >> cut
    steps = (significand + (random >> (32 - dropped))) >> dropped
    anchor = (step_exponent + shift) << 23
    distance = (anchor + steps).to(tl.float32, bitcast=True) - anchor.to(tl.float32, bitcast=True)
    return distance.to(tl.uint32, bitcast=True)


@triton.jit
def _drop(clipped, shift, random, IS_STOCHASTIC: tl.constexpr):
    if IS_STOCHASTIC:
        added = random >> (32 - shift)
    else:
        added = (tl.full([], 1, tl.uint32) << (shift - 1)) - 1 + ((clipped >> shift) & 1)
    return ((clipped + added) >> shift) << shift


@triton.jit
def _cross_gap(magnitude, rounded, grid_ptr, random, IS_STOCHASTIC: tl.constexpr):
    gap_low = tl.load(grid_ptr + 4).to(tl.uint32, bitcast=True)
    gap_high = tl.load(grid_ptr + 5).to(tl.uint32, bitcast=True)
    gap_up = tl.load(grid_ptr + 6).to(tl.uint32, bitcast=True)
    goes_up = magnitude >= gap_up
    if IS_STOCHASTIC:
        low = gap_low.to(tl.float32, bitcast=True)
        width = gap_high.to(tl.float32, bitcast=True) - low
        distance = magnitude.to(tl.float32, bitcast=True) - low
        one_to_two = ((random >> 9) | 0x3F800000).to(tl.float32, bitcast=True)
        # Rounded as IEEE 754 says, like the division on a CPU.
        goes_up = one_to_two - (1 - 2.0**-24) < tl.div_rn(distance, width)
    crossed = tl.where(goes_up, gap_high, gap_low)
    return tl.where((gap_low < magnitude) & (magnitude < gap_high), crossed, rounded)


@triton.jit
def _random(hashed, key_1):
    hashed = (hashed ^ (hashed >> 17)) * MULTIPLIER_0
    hashed = hashed ^ key_1
    hashed = (hashed ^ (hashed >> 11)) * MULTIPLIER_1
    hashed = (hashed ^ (hashed >> 15)) * MULTIPLIER_2
    return hashed ^ (hashed >> 14)
