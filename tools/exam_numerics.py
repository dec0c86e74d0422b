"""Examines Dojo's emulated number formats at length: their codes, their rounding, its random bits.

    python tools/exam_numerics.py [--parts codes nearest bfloat16 stochastic] [--samples 100000000]

Every check has an oracle that shares no code with the kernels: exact fractions for the codes,
ml_dtypes and gfloat for rounding to nearest, statistics for stochastic rounding. Each line says how
much was compared and how much differed; the exit status is 1 if anything did. The whole exam takes
some four minutes on one core.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import gfloat
import ml_dtypes
import numpy as np
import torch
from exam_stochastic import CHUNK, Finding, Floats, count_different, examine_stochastic, rounded
from fsdtrain_dojo.arithmetic.codes import code_dtype, decode, decode_table, encode
from fsdtrain_dojo.formats import (
    BF16,
    CFLOAT8_1_4_3,
    CFLOAT8_1_5_2,
    CFLOAT16_SHP,
    CFLOAT16_UHP,
    Denormals,
    Format,
)

# ml_dtypes' formats that hold the values of ours at one bias. Those without infinity differ beyond
# the largest value, where they become NaN, and have no -0; both are left out.
COINCIDING = [
    (CFLOAT8_1_4_3, 11, ml_dtypes.float8_e4m3b11fnuz),
    (CFLOAT8_1_4_3, 8, ml_dtypes.float8_e4m3fnuz),
    (CFLOAT8_1_5_2, 16, ml_dtypes.float8_e5m2fnuz),
    (CFLOAT8_1_4_3.with_specials(True), 7, ml_dtypes.float8_e4m3),
    (CFLOAT8_1_5_2.with_specials(True), 15, ml_dtypes.float8_e5m2),
]


def main() -> int:
    """Run the chosen parts; 1 if anything differs."""
    parts: dict[str, Callable[[int], Iterator[Finding]]] = {
        "codes": examine_codes,
        "nearest": examine_nearest,
        "bfloat16": examine_bfloat16,
        "stochastic": examine_stochastic,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--samples", type=int, default=100_000_000, help="random inputs of a check")
    arguments = parser.parse_args()
    findings = []
    for part in arguments.parts:
        started = time.monotonic()
        for finding in parts[part](arguments.samples):
            findings.append(finding)
            print(
                f"MEASURED {part}: {finding.what}: {finding.num_compared:,} compared, "
                f"{finding.num_different:,} differ",
                flush=True,
            )
        print(f"MEASURED {part}: {time.monotonic() - started:.0f} s", flush=True)
    num_different = sum(finding.num_different for finding in findings)
    num_compared = sum(finding.num_compared for finding in findings)
    print(
        f"MEASURED in all: {len(findings)} checks of EMULATED formats, {num_compared:,} compared, "
        f"{num_different:,} differ"
    )
    return int(num_different > 0)


def examine_codes(num_samples: int) -> Iterator[Finding]:
    """Every code of every format at every bias against its exact fraction, and back to the code."""
    cases = [
        *itertools.product((CFLOAT8_1_4_3, CFLOAT8_1_5_2), Denormals),
        (CFLOAT16_SHP, Denormals.GRADUAL),
        (CFLOAT16_SHP, Denormals.LITERAL),
        (CFLOAT16_UHP, Denormals.GRADUAL),
        (BF16, Denormals.GRADUAL),
    ]
    for plain, denormals in cases:
        format = plain.with_denormals(denormals)
        num_codes = 1 << format.num_bits
        codes = torch.arange(num_codes).to(code_dtype(format))
        num_compared = num_different = 0
        for bias in range(format.min_bias, format.max_bias + 1):
            numbers = decode(codes, format, bias)
            for code, number in enumerate(numbers.tolist()):
                num_different += not _is_value(number, format.value(code, bias))
            kept = ~torch.isnan(numbers)
            if denormals is Denormals.FLUSH:  # zero has several codes
                kept &= (numbers != 0) | (codes == 0)
            num_different += int((encode(numbers, format, bias) != codes)[kept].sum())
            num_compared += num_codes + int(kept.sum())
        yield Finding(
            what=f"{format.name}, denormals {denormals.value}, biases {format.min_bias} to "
            f"{format.max_bias}",
            num_compared=num_compared,
            num_different=num_different,
        )


def _is_value(number: float, value: Fraction | float) -> bool:
    if isinstance(value, Fraction):
        return abs(number) < float("inf") and Fraction(number) == value
    return number == value or (number != number and value != value)


def examine_nearest(num_samples: int) -> Iterator[Finding]:
    """Random and all boundary inputs against ml_dtypes and gfloat."""
    for format, bias, dtype in COINCIDING:
        num_compared = num_different = 0
        for inputs in _inputs(format, bias, num_samples):
            ours = rounded(inputs, format, bias)
            with np.errstate(invalid="ignore"):  # NaN and infinities are among the inputs
                theirs = inputs.astype(dtype).astype(np.float32)
            if not format.has_specials:
                inside = np.abs(ours) < format.max_finite(bias)
                ours, theirs = ours[inside] + np.float32(0), theirs[inside]
            num_compared += len(ours)
            num_different += count_different(ours, theirs)
        yield Finding(
            what=f"{format.name} at bias {bias} against ml_dtypes {np.dtype(dtype)}",
            num_compared=num_compared,
            num_different=num_different,
        )
    formats = (CFLOAT8_1_4_3, CFLOAT8_1_5_2, CFLOAT16_SHP, CFLOAT16_UHP)
    num_cases = sum(format.max_bias - format.min_bias + 1 for format in formats)
    for format in formats:
        num_compared = num_different = 0
        for bias in range(format.min_bias, format.max_bias + 1):
            for inputs in _inputs(format, bias, num_samples // num_cases):
                expected = _rounded_by_gfloat(inputs, format, bias)
                num_compared += len(inputs)
                num_different += count_different(rounded(inputs, format, bias), expected)
        yield Finding(
            what=f"{format.name} at biases {format.min_bias} to {format.max_bias} against gfloat",
            num_compared=num_compared,
            num_different=num_different,
        )


def _inputs(format: Format, bias: int, num_samples: int) -> Iterator[Floats]:
    """All boundary inputs; then random ones, half any bits, half about the format's range."""
    yield _boundary_inputs(format, bias)
    generator = np.random.default_rng(bias)
    for start in range(0, num_samples, CHUNK):
        num = min(CHUNK, num_samples - start)
        inputs = generator.integers(0, 1 << 32, num, dtype=np.uint32)
        low = format.min_normal_exponent(bias) - format.mantissa_bits - 3 + 127
        high = format.max_exponent(bias) + 3 + 127
        exponents = generator.integers(low, high, num // 2, dtype=np.uint32)
        inputs[::2][: num // 2] &= np.uint32(0x807FFFFF)
        inputs[::2][: num // 2] |= exponents << np.uint32(23)
        yield inputs.view(np.float32)


def _boundary_inputs(format: Format, bias: int) -> Floats:
    """Every value, every middle of neighbours, what lies next to them; the ends of float32."""
    values = np.unique(np.abs(decode_table(format, bias).astype(np.float64)))
    values = values[np.isfinite(values)]
    last_step = values[-1] - values[-2]
    beyond = values[-1] + last_step * np.array([0.5, 1.0, 2.0])
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2, beyond])
    with np.errstate(over="ignore"):  # beyond BF16's largest value lies float32's infinity
        exact = points.astype(np.float32)
    ends = np.array([1e-45, 1.1754944e-38, 3.4028235e38, np.inf, np.nan], np.float32)
    infinity = np.float32(np.inf)
    above, below = np.nextafter(exact, infinity), np.nextafter(exact, -infinity)
    positive = np.concatenate([exact, above, below, ends])
    return np.concatenate([positive, -positive])


def _rounded_by_gfloat(inputs: Floats, format: Format, bias: int) -> Floats:
    """With Tesla's descriptors; what gfloat has no rule for is as our documentation says."""
    described = gfloat.FormatInfo(
        format.name,
        format.num_bits,
        format.mantissa_bits + 1,
        bias=bias,
        is_signed=format.sign_bits == 1,
        domain=gfloat.Domain.Finite,
        has_nz=format.sign_bits == 1,
        num_high_nans=0,
        has_subnormals=True,
        is_twos_complement=False,
    )
    numbers = np.where(np.isnan(inputs), np.inf, inputs).astype(np.float64)
    if not format.sign_bits:
        numbers = np.where(numbers < 0, 0, numbers)
    return gfloat.round_ndarray(described, numbers, sat=True).astype(np.float32)


def examine_bfloat16(num_samples: int) -> Iterator[Finding]:
    """All 2^32 inputs against ml_dtypes: rounded values and codes."""
    num_different = 0
    for start in range(0, 1 << 32, CHUNK):
        inputs = np.arange(start, start + CHUNK, dtype=np.uint64).astype(np.uint32)
        numbers = inputs.view(np.float32)
        with np.errstate(invalid="ignore"):  # NaN are among the inputs
            expected = numbers.astype(ml_dtypes.bfloat16).view(np.uint16)
        ours = rounded(numbers, BF16, BF16.bias)
        in_float32 = (expected.astype(np.uint32) << np.uint32(16)).view(np.float32)
        num_different += count_different(ours, in_float32)
        codes = encode(torch.from_numpy(numbers), BF16, BF16.bias).numpy().view(np.uint16)
        num_different += int(np.sum((codes != expected) & ~np.isnan(numbers)))
        if start % (1 << 29) == 0:
            print(f"bfloat16: {start / (1 << 32):.0%}", flush=True)
    yield Finding(
        what="all 2^32 inputs, rounded and as codes, against ml_dtypes",
        num_compared=1 << 33,
        num_different=num_different,
    )


if __name__ == "__main__":
    sys.exit(main())
