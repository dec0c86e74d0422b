"""Rounding float32 numbers in memory to a grid: numba kernels for CPUs, and their threads.

The kernels get addresses instead of arrays, which saves a microsecond a call, and work on bit
patterns alone. What they compute for one element, all in float32 or uint32:

    magnitude  the bits of |x|; NaN above infinity above all numbers
    clipped    min(magnitude, overflow): the first step beyond the largest value stands for the rest
    nearest    (|x| + c) - c with c = 2^(e + shift), e the exponent of |x| or the smallest of the
               format: c's last bit is worth one step of the format, so that the addition rounds to
               nearest even. With float32's own exponents: bits + half a step, last bits cleared.
    stochastic the significand, an integer of 24 bits, is moved right to where the steps of the
               format are whole numbers, after as many random bits as fall off were added to it.
               At most 31 bits fall off; of numbers further below the smallest step the rest is cut
               first. So a value of the format never moves, and the chance to go up is the distance
               from the value below, in steps, exactly or to within 2^-31 of a step.
    gap        where the format lacks values (see `Grid`): nearest by comparison; stochastic by
               comparing 23 random bits with the distance, to within 2^-23.

The loops contain no floating-point reduction, so that LLVM vectorises them as they stand; the
counts of a block fit 32 bits.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

from fsdtrain_dojo.arithmetic.compiled import (
    Bits,
    array_at,
    as_bits,
    as_float32,
    as_pointer,
    compiled,
    f32,
    i64,
    inlined,
    shift_right,
    u32,
)
from fsdtrain_dojo.arithmetic.grid import Kind
from fsdtrain_dojo.arithmetic.random_bits import (
    HIGH_WORD,
    MULTIPLIERS,
    Key,
    key_of_high_word,
    split_elements,
)

# address, number of elements, address of the counts, address of the grid's words, the key's two
# words, lower word of the first element's index
Kernel = Callable[[int, int, int, int, int, int, int], None]

BLOCK = 1 << 20
MIN_ELEMENTS_PER_THREAD = 1 << 19  # fewer are rounded while a thread wakes up


def run(
    kernel: Kernel,
    address: int,
    num_elements: int,
    counts: torch.Tensor,
    grid_address: int,
    key: Key,
    first_element: int,
) -> None:
    """Run `kernel` over float32 numbers in memory, on torch's number of threads if they are many.

    The random bits follow the element's index, so the result does not depend on the threads.
    """
    low = first_element & (HIGH_WORD - 1)
    num_threads = 1
    if num_elements >= 2 * MIN_ELEMENTS_PER_THREAD:
        num_threads = min(torch.get_num_threads(), num_elements // MIN_ELEMENTS_PER_THREAD)
    if num_threads == 1 and low + num_elements <= HIGH_WORD:
        key = key_of_high_word(key, first_element >> 32)
        kernel(address, num_elements, counts.data_ptr(), grid_address, *key, low)
        return
    pieces = split_elements(first_element, num_elements, num_threads)
    rows = counts.new_zeros((len(pieces), counts.numel()))
    width = rows.shape[1] * rows.element_size()

    def run_piece(index: int) -> None:
        start, stop = pieces[index]
        element = first_element + start
        words = key_of_high_word(key, element >> 32)
        kernel(
            address + 4 * start, stop - start, rows.data_ptr() + width * index,
            grid_address, *words, element & (HIGH_WORD - 1),
        )  # fmt: skip

    others = [_pool(num_threads).submit(run_piece, index) for index in range(1, len(pieces))]
    run_piece(0)
    for other in others:
        other.result()
    counts[:-1] += rows[:, :-1].sum(0)
    counts[-1] = torch.maximum(counts[-1], rows[:, -1].max())


@lru_cache(maxsize=1)
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(num_threads - 1, 1), thread_name_prefix="dojo-rounding")


@lru_cache(maxsize=64)
def make_kernel(kind: Kind) -> Kernel:
    """The kernel of one kind; compiled at its first call, then cached on disk."""
    if kind.counts_only:
        return observe_elements
    # Plain constants, which numba compiles in and tells cached kernels apart by.
    stochastic, float32_exponents, has_gap = kind.stochastic, kind.float32_exponents, kind.has_gap
    has_specials, is_signed = kind.has_specials, kind.is_signed

    @compiled
    def round_elements(
        address: int,
        num_elements: int,
        counts_address: int,
        grid_address: int,
        key_0: int,
        key_1: int,
        first_element: int,
    ) -> None:
        grid = array_at(as_pointer(grid_address), 7, u32)
        counts = array_at(as_pointer(counts_address), 5, i64)
        shift, exponent, max_finite, overflow = grid[0], grid[1], grid[2], grid[3]
        gap_low, gap_high, gap_up = grid[4], grid[5], grid[6]
        for start in range(0, num_elements, BLOCK):
            length = min(BLOCK, num_elements - start)
            block = array_at(as_pointer(address + 4 * start), length, u32)
            counter = u32(u32(first_element + start) + u32(key_0))
            num_saturated, num_underflowed, num_nan, amax = u32(0), u32(0), u32(0), u32(0)
            for index in range(length):
                bits = block[index]
                sign = u32(bits & u32(0x80000000))
                magnitude = u32(bits & u32(0x7FFFFFFF))
                is_nan = magnitude > u32(0x7F800000)
                num_nan = u32(num_nan + u32(is_nan))
                amax = max(amax, magnitude if magnitude < u32(0x7F800000) else u32(0))
                if not is_signed:
                    is_negative = (sign > u32(0)) & (not is_nan)
                    num_saturated = u32(num_saturated + u32(is_negative & (magnitude > u32(0))))
                    magnitude = u32(0) if is_negative else magnitude
                    sign = u32(0)
                random = u32(0)
                if stochastic:
                    random = _random(counter, u32(key_1))
                    counter = u32(counter + u32(1))
                clipped = min(magnitude, overflow)
                if float32_exponents:
                    rounded = _drop(clipped, shift, random, stochastic)
                elif stochastic:
                    rounded = _round_stochastic(clipped, shift, exponent, random)
                else:
                    rounded = _round_nearest(clipped, shift, exponent)
                if has_gap and gap_low < magnitude and magnitude < gap_high:
                    goes_up = magnitude >= gap_up
                    if stochastic:
                        goes_up = _goes_up(magnitude, gap_low, gap_high, random)
                    rounded = gap_high if goes_up else gap_low
                num_saturated = u32(num_saturated + u32(rounded > max_finite))
                is_zeroed = (rounded == u32(0)) & (magnitude > u32(0))
                num_underflowed = u32(num_underflowed + u32(is_zeroed))
                if has_specials:
                    rounded = _with_specials(rounded, magnitude, max_finite, stochastic)
                else:
                    rounded = min(rounded, max_finite)
                    sign = u32(0) if is_nan else sign
                block[index] = u32(rounded | sign)
            counts[0] += length
            counts[1] += i64(num_saturated) - i64(num_nan)
            counts[2] += num_underflowed
            counts[3] += num_nan
            counts[4] = max(counts[4], i64(amax))

    return round_elements


@inlined
def _round_nearest(clipped: Bits, shift: Bits, exponent: Bits) -> Bits:
    large = u32(max(u32(clipped >> u32(23)), exponent) + shift)
    anchor = as_float32(u32(large << u32(23)))
    return as_bits(f32(f32(as_float32(clipped) + anchor) - anchor))


@inlined
def _round_stochastic(clipped: Bits, shift: Bits, exponent: Bits, random: Bits) -> Bits:
    own_exponent = u32(clipped >> u32(23))
    step_exponent = max(own_exponent, exponent)
    below = u32(step_exponent - own_exponent)
    further = min(below, u32(u32(31) - shift))
    cut = min(u32(below - further), u32(31))
    dropped = u32(shift + further)
    significand = shift_right(u32(u32(clipped & u32(0x7FFFFF)) | u32(0x800000)), cut)
    added = shift_right(random, u32(u32(32) - dropped))
    steps = shift_right(u32(significand + added), dropped)
    anchor = u32(u32(step_exponent + shift) << u32(23))
    return as_bits(f32(as_float32(u32(anchor + steps)) - as_float32(anchor)))


@inlined
def _drop(clipped: Bits, shift: Bits, random: Bits, stochastic: bool) -> Bits:
    mask = u32((u32(1) << shift) - u32(1))
    added = u32(u32(mask >> u32(1)) + u32(shift_right(clipped, shift) & u32(1)))
    if stochastic:
        added = shift_right(random, u32(u32(32) - shift))
    return u32(u32(clipped + added) & u32(~mask))


@inlined
def _goes_up(magnitude: Bits, gap_low: Bits, gap_high: Bits, random: Bits) -> Bits:
    """Whether one of the 2^23 middles of equal intervals of 0 to 1 lies below the distance."""
    one_to_two = as_float32(u32(u32(random >> u32(9)) | u32(0x3F800000)))
    distance = f32(as_float32(magnitude) - as_float32(gap_low))
    width = f32(as_float32(gap_high) - as_float32(gap_low))
    return f32(one_to_two - f32(1 - 2.0**-24)) < f32(distance / width)


@inlined
def _with_specials(rounded: Bits, magnitude: Bits, max_finite: Bits, stochastic: bool) -> Bits:
    is_infinite = magnitude == u32(0x7F800000) if stochastic else rounded > max_finite
    rounded = u32(0x7F800000) if is_infinite else min(rounded, max_finite)
    return u32(0x7FC00000) if magnitude > u32(0x7F800000) else rounded


@inlined
def _random(hashed: Bits, key_1: Bits) -> Bits:
    """The generator of random_bits.py from where the counter was added to the first key word."""
    hashed = u32(hashed ^ u32(hashed >> u32(17)))
    hashed = u32(u32(hashed * u32(MULTIPLIERS[0])) ^ key_1)
    hashed = u32(hashed ^ u32(hashed >> u32(11)))
    hashed = u32(hashed * u32(MULTIPLIERS[1]))
    hashed = u32(hashed ^ u32(hashed >> u32(15)))
    hashed = u32(hashed * u32(MULTIPLIERS[2]))
    return u32(hashed ^ u32(hashed >> u32(14)))


@compiled
def observe_elements(
    address: int,
    num_elements: int,
    counts_address: int,
    grid_address: int,
    key_0: int,
    key_1: int,
    first_element: int,
) -> None:
    """Count only, as for FP32: elements, infinities as saturated, NaN, largest finite magnitude."""
    counts = array_at(as_pointer(counts_address), 5, i64)
    for start in range(0, num_elements, BLOCK):
        length = min(BLOCK, num_elements - start)
        block = array_at(as_pointer(address + 4 * start), length, u32)
        num_not_finite, num_nan, amax = u32(0), u32(0), u32(0)
        for index in range(length):
            magnitude = u32(block[index] & u32(0x7FFFFFFF))
            num_nan = u32(num_nan + u32(magnitude > u32(0x7F800000)))
            num_not_finite = u32(num_not_finite + u32(magnitude >= u32(0x7F800000)))
            amax = max(amax, magnitude if magnitude < u32(0x7F800000) else u32(0))
        counts[0] += length
        counts[1] += i64(num_not_finite) - i64(num_nan)
        counts[3] += num_nan
        counts[4] = max(counts[4], i64(amax))
