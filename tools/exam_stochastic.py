"""The part of exam_numerics.py about stochastic rounding: statistics, threads, random bits."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from fsdtrain_dojo.arithmetic.codes import decode_table
from fsdtrain_dojo.arithmetic.random_bits import random_bits, stream_key
from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, Rounding, make_rounder
from fsdtrain_dojo.formats import (
    BF16,
    CFLOAT8_1_4_3,
    CFLOAT8_1_5_2,
    CFLOAT16_SHP,
    CFLOAT16_UHP,
    Format,
)
from numpy.typing import NDArray
from scipy.stats import chi2

Floats = NDArray[np.float32]
CHUNK = 1 << 24
MAX_STANDARD_ERRORS = 4.0
CASES = [
    (CFLOAT8_1_4_3, 7),
    (CFLOAT8_1_4_3, 63),
    (CFLOAT8_1_5_2, 0),
    (CFLOAT8_1_5_2, 15),
    (CFLOAT16_SHP, 15),
    (CFLOAT16_UHP, 31),
    (BF16, 127),
]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One comparison."""

    what: str
    num_compared: int
    num_different: int


def rounded(
    inputs: Floats, format: Format, bias: int, rounding: Rounding = Rounding.NEAREST, site: int = 0
) -> Floats:
    """What becomes of the inputs, which are left alone; `site` chooses the random bits."""
    tensor = torch.from_numpy(inputs.copy())
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
    make_rounder(format, rounding)(tensor, bias, counts, stream_key(0, 0, site))
    result: Floats = tensor.numpy()
    return result


def count_different(ours: Floats, theirs: Floats) -> int:
    """How many differ in any bit; NaN equals NaN whatever its bits."""
    differ = ours.view(np.uint32) != theirs.view(np.uint32)
    return int(np.sum(differ & ~(np.isnan(ours) & np.isnan(theirs))))


def examine_stochastic(num_samples: int) -> Iterator[Finding]:
    """Values that must not move, bias of every binade, threads, the generator's bits."""
    for format, bias in CASES:
        values = decode_table(format, bias)
        values = np.repeat(values[~np.isnan(values)], 1 << max(0, 20 - format.num_bits))
        moved = sum(
            count_different(rounded(values, format, bias, Rounding.STOCHASTIC, site), values)
            for site in range(16)
        )
        yield Finding(
            what=f"{format.name} at bias {bias}, values that must not move",
            num_compared=16 * len(values),
            num_different=moved,
        )
        yield _examine_binades(format, bias, num_samples // len(CASES))
        yield _examine_threads(format, bias)
    yield from _examine_generator()


def _examine_binades(format: Format, bias: int, num_samples: int) -> Finding:
    """In each binade the errors must add up to zero to within their standard error."""
    values = np.unique(np.abs(decode_table(format, bias).astype(np.float64)))
    values = values[np.isfinite(values)]
    low = max(-126.0, np.log2(values[1]) - 24)
    errors, variances = np.zeros(256), np.zeros(256)  # a binade each, from float32's smallest
    num_compared = num_misplaced = 0
    for chunk in range(-(-num_samples // CHUNK)):
        site = 1000 * bias + chunk
        generator = np.random.default_rng(site)
        numbers = (2 ** generator.uniform(low, np.log2(values[-1]), CHUNK)).astype(np.float32)
        numbers = numbers[numbers < values[-1]]
        upper = np.searchsorted(values, numbers, side="right")
        to_lower, to_upper = numbers - values[upper - 1], values[upper] - numbers
        error = rounded(numbers, format, bias, Rounding.STOCHASTIC, site) - numbers.astype(float)
        binade = numbers.view(np.int32) >> 23
        errors += np.bincount(binade, error, 256)
        variances += np.bincount(binade, to_lower * to_upper, 256)
        num_misplaced += int(np.sum((error != -to_lower) & (error != to_upper)))
        num_compared += len(numbers)
    # Far below the smallest step hardly any number goes up: there the normal distribution, and
    # standard errors with it, mean nothing.
    judged = variances > 100 * values[1] ** 2
    deviations = np.abs(errors[judged]) / np.sqrt(variances[judged])
    return Finding(
        what=f"{format.name} at bias {bias}, {np.sum(judged)} binades, worst mean error "
        f"{deviations.max():.1f} standard errors; {num_misplaced} are no neighbour",
        num_compared=num_compared,
        num_different=int(np.sum(deviations > MAX_STANDARD_ERRORS)) + num_misplaced,
    )


def _examine_threads(format: Format, bias: int) -> Finding:
    """One tensor rounded by 1, 2 and 8 threads: results and counts."""
    inputs = np.random.default_rng(0).standard_normal(8_000_009).astype(np.float32)
    before = torch.get_num_threads()
    results, all_counts = [], []
    for num_threads in (1, 2, 8):
        torch.set_num_threads(num_threads)
        results.append(torch.from_numpy(inputs.copy()))
        all_counts.append(torch.zeros(NUM_COUNTS, dtype=torch.int64))
        rounder = make_rounder(format, Rounding.STOCHASTIC)
        rounder(results[-1], bias, all_counts[-1], stream_key(1, 2, 3))
    torch.set_num_threads(before)
    different = sum(
        int((result != results[0]).sum()) + int((counts != all_counts[0]).sum())
        for result, counts in zip(results[1:], all_counts[1:], strict=True)
    )
    return Finding(
        what=f"{format.name} at bias {bias}, 2 and 8 threads against 1",
        num_compared=2 * len(inputs),
        num_different=different,
    )


def _examine_generator() -> Iterator[Finding]:
    """Chi-square of the used bits, and of pairs of elements and of keys, at many distances."""
    elements = np.arange(1 << 22, dtype=np.uint64)
    p_values = []
    for key in (stream_key(seed, 1000, 17) for seed in range(8)):
        bits = random_bits(key, elements)
        p_values += [_p_value(bits >> np.uint32(32 - used), 1 << used) for used in (8, 10, 13, 16)]
        top = bits >> np.uint32(26)
        for distance in [1 << place for place in range(26)] + [3, 96, 1000, 12_288]:
            other = random_bits(key, elements + np.uint64(distance)) >> np.uint32(26)
            p_values.append(_p_value(top * np.uint32(64) + other, 1 << 12))
        for next_key in (stream_key(0, 1001, 17), stream_key(0, 1000, 18)):
            other = random_bits(next_key, elements) >> np.uint32(26)
            p_values.append(_p_value(top * np.uint32(64) + other, 1 << 12))
    limit = 0.001 / len(p_values)  # one false alarm in a thousand exams
    extreme = sum(min(p, 1 - p) < limit for p in p_values)
    yield Finding(
        what=f"generator, chi-square of used bits and of pairs, least p {min(p_values):.1e}, "
        f"largest 1-{1 - max(p_values):.1e}",
        num_compared=len(p_values),
        num_different=extreme,
    )


def _p_value(cells: NDArray[np.uint32], num_cells: int) -> float:
    counts = np.bincount(cells, minlength=num_cells)
    expected = len(cells) / num_cells
    return float(chi2.sf(np.sum((counts - expected) ** 2) / expected, num_cells - 1))
