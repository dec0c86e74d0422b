"""What a GPU reaches at best, MEASURED on the spot: how fast it copies, and how fast it multiplies.

A second is enough, and no data sheet is believed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

COPIED_BYTES = 1 << 28  # five times the largest cache
MATRIX_SIZE = 8192
NUM_RUNS = 10


@dataclass(frozen=True, kw_only=True)
class DeviceRates:
    """Medians of NUM_RUNS.

    Args:
        bytes_per_s: read and written by a copy in device memory.
        flops_per_s: of a square matrix product in `dtype`; a multiply-add is two.
        dtype: of the product.
    """

    bytes_per_s: float
    flops_per_s: float
    dtype: torch.dtype


def measure_rates(dtype: torch.dtype) -> DeviceRates:
    """Copy and multiply on the current GPU, under the switches that are set for TF32."""
    return DeviceRates(
        bytes_per_s=2 * COPIED_BYTES / _time_copy(),
        flops_per_s=2 * MATRIX_SIZE**3 / _time_product(dtype),
        dtype=dtype,
    )


def _time_copy() -> float:
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return measure_seconds(lambda: target.copy_(source))


def _time_product(dtype: torch.dtype) -> float:
    left, right = (
        torch.randn(MATRIX_SIZE, MATRIX_SIZE, device="cuda", dtype=dtype) for _ in range(2)
    )
    product = torch.empty_like(left)
    return measure_seconds(lambda: torch.mm(left, right, out=product))


def measure_seconds(run: Callable[[], object]) -> float:
    """The median of NUM_RUNS by CUDA's events, after two that do not count."""
    times_s: list[float] = []
    for number in range(NUM_RUNS + 2):
        start, end = _event(), _event()
        start.record()
        run()
        end.record()
        end.synchronize()
        if number >= 2:
            times_s.append(1e-3 * start.elapsed_time(end))
    return median(times_s)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
