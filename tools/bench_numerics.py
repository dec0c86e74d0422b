"""Measures rounding to Dojo's formats and decoding their codes, on one thread.

    python tools/bench_numerics.py [--elements 4194304] [--rounds 15]

Rounding is in place, with the counts of saturated, underflowed and NaN elements and the largest
magnitude made in the same pass. Beside it, in the same process and in turns, stand what users would
reach for otherwise: torch's clamp and cast to float8_e4m3fn with a scale and back (which counts
nothing and knows one format), ml_dtypes' cast and back, gfloat's rounding. gfloat gets fewer
elements, for its speed. Printed are millions of elements per second: the median of the rounds and
the quartiles about it.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gfloat
import ml_dtypes
import numba
import numpy as np
import torch
from fsdtrain_dojo.arithmetic.codes import decode, encode
from fsdtrain_dojo.arithmetic.random_bits import stream_key
from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, Rounding, make_rounder
from fsdtrain_dojo.formats import (
    BF16,
    CFLOAT8_1_4_3,
    CFLOAT8_1_5_2,
    CFLOAT16_SHP,
    CFLOAT16_UHP,
    Format,
)

GFLOAT_SHARE = 64  # of the elements, one in so many
GOALS_M_PER_S = {"nearest": 5000.0, "stochastic": 2000.0, "decode": 500.0}
FORMATS = [
    (CFLOAT8_1_4_3, 7),
    (CFLOAT8_1_4_3, 63),
    (CFLOAT8_1_5_2, 0),
    (CFLOAT8_1_5_2, 15),
    (CFLOAT16_SHP, 15),
    (CFLOAT16_UHP, 31),
    (BF16, 127),
]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something to time. `prepare` makes what `run` works on anew, outside the time."""

    what: str
    name: str
    num_elements: int
    prepare: Callable[[], None]
    run: Callable[[], object]
    goal: float | None = None


def main() -> None:
    """Time all contestants in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 22)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = torch.randn(arguments.elements, generator=torch.Generator().manual_seed(0))
    contestants = [*rounding(numbers), *rounding_elsewhere(numbers), *decoding(numbers)]
    times: list[list[float]] = [[] for _ in contestants]
    for contestant in contestants:  # compile, allocate
        contestant.prepare()
        contestant.run()
    for _ in range(arguments.rounds):
        for contestant, its_times in zip(contestants, times, strict=True):
            contestant.prepare()
            started = time.perf_counter()
            contestant.run()
            its_times.append(time.perf_counter() - started)
    print(f"MEASURED on {_machine()}; 1 thread, {arguments.elements:,} elements")
    print(f"{'':11s}{'':42s}{'M elements/s':>13s}  {'quartiles':>15s}  goal")
    for contestant, its_times in zip(contestants, times, strict=True):
        speeds = [contestant.num_elements / seconds / 1e6 for seconds in its_times]
        low, median, high = statistics.quantiles(speeds, n=4)
        goal = ""
        if contestant.goal is not None:
            goal = f"{contestant.goal:,.0f} {'reached' if median >= contestant.goal else 'MISSED'}"
        print(
            f"{contestant.what:11s}{contestant.name:42s}{median:13,.1f}  {low:7,.0f}-{high:7,.0f}"
            f"  {goal}"
        )


def rounding(numbers: torch.Tensor) -> list[Contestant]:
    """Our roundings in place, of a fresh copy each time."""
    work = numbers.clone()
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
    key = stream_key(1, 2, 3)

    def contestant(format: Format, bias: int, how: Rounding) -> Contestant:
        rounder = make_rounder(format, how)
        return Contestant(
            what=how.value,
            name=f"fsdtrain {format.name} at bias {bias}",
            num_elements=work.numel(),
            prepare=lambda: _copy(work, numbers),
            run=lambda: rounder(work, bias, counts, key),
            goal=GOALS_M_PER_S[how.value] if format.num_bits == 8 else None,
        )

    return [contestant(format, bias, how) for how in Rounding for format, bias in FORMATS]


def rounding_elsewhere(numbers: torch.Tensor) -> list[Contestant]:
    """The same to nearest with other libraries; copies of the result where they cannot else."""
    work = numbers.clone()
    array = work.numpy()
    few = array[: len(array) // GFLOAT_SHARE]
    described = gfloat.FormatInfo(
        "cfloat8_1_4_3", 8, 4, bias=7, is_signed=True, domain=gfloat.Domain.Finite, has_nz=True,
        num_high_nans=0, has_subnormals=True, is_twos_complement=False,
    )  # fmt: skip
    scale = 2.0**3

    def with_torch() -> None:
        work.mul_(scale).clamp_(-448, 448)
        work.copy_(work.to(torch.float8_e4m3fn)).mul_(1 / scale)

    def with_torch_bfloat16() -> None:
        work.copy_(work.to(torch.bfloat16))

    def with_ml_dtypes() -> None:
        array[:] = array.astype(ml_dtypes.float8_e4m3b11fnuz)

    ways: list[tuple[str, int, Callable[[], object]]] = [
        ("torch clamp, float8_e4m3fn, scale", len(array), with_torch),
        ("torch bfloat16", len(array), with_torch_bfloat16),
        ("ml_dtypes float8_e4m3b11fnuz", len(array), with_ml_dtypes),
        ("gfloat 1-4-3", len(few), lambda: gfloat.round_ndarray(described, few, sat=True)),
    ]
    return [
        Contestant(
            what="nearest",
            name=name,
            num_elements=num_elements,
            prepare=lambda: _copy(work, numbers),
            run=run,
        )
        for name, num_elements, run in ways
    ]


def decoding(numbers: torch.Tensor) -> list[Contestant]:
    """Codes to float32 in memory that exists, ours and others'."""
    out = numbers.clone()
    codes_8, codes_16 = encode(numbers, CFLOAT8_1_4_3, 7), encode(numbers, CFLOAT16_SHP, 15)
    torch_codes = numbers.to(torch.float8_e4m3fn)
    other_codes = numbers.numpy().astype(ml_dtypes.float8_e4m3b11fnuz)
    goal = GOALS_M_PER_S["decode"]
    ways: list[tuple[str, float | None, Callable[[], object]]] = [
        ("fsdtrain cfloat8_1_4_3", goal, lambda: decode(codes_8, CFLOAT8_1_4_3, 7, out)),
        ("fsdtrain cfloat16_shp", None, lambda: decode(codes_16, CFLOAT16_SHP, 15, out)),
        ("torch float8_e4m3fn", None, lambda: out.copy_(torch_codes)),
        ("ml_dtypes float8_e4m3b11fnuz", None, lambda: np.copyto(out.numpy(), other_codes)),
    ]
    return [
        Contestant(
            what="decode",
            name=name,
            num_elements=numbers.numel(),
            prepare=lambda: None,
            run=run,
            goal=goal,
        )
        for name, goal, run in ways
    ]


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _machine() -> str:
    cpu = platform.processor()
    cpu_file = Path("/proc/cpuinfo")
    if cpu_file.exists():
        lines = cpu_file.read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    return f"{cpu}, torch {torch.__version__}, numba {numba.__version__}, numpy {np.__version__}"


if __name__ == "__main__":
    main()
