"""How far one tensor is from another one.

All sums are in float64. It does not know what is allowed (`bands`), nor which side is wrong.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsdtrain.comparison.dot import dot
from fsdtrain.comparison.number_formats import Floats, Grid, spacing
from fsdtrain.comparison.record import Errors, Ulps

CHUNK: Final = 1 << 14  # elements: all arrays of a chunk stay in the second-level cache
DEFAULT_TOLERANCE: Final = 1e-3
MAX_SORTED: Final = 1 << 16  # elements whose quantiles are looked at; every n-th of larger tensors
_DIGITS: Final = 7  # of a figure in the record; cosines tell 0.99999
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Of all elements that are finite in both tensors; x' and r' are x and r less `pivot`.

    Args:
        count: of those elements.
        num_elements: of all.
        num_lost: x is NaN or infinite, and the reference is finite.
        num_gained: x is finite, or another infinity, where the reference is not finite.
        pivot: close to the reference's mean, so that variances do not cancel.
        xx: sum x'^2.
        rr: sum r'^2.
        xr: sum x' r'.
        x: sum x'.
        r: sum r'.
        dd: sum (x - r)^2.
        max_d: max |x - r|.
    """

    count: int
    num_elements: int
    num_lost: int
    num_gained: int
    pivot: float
    xx: float
    rr: float
    xr: float
    x: float
    r: float
    dd: float
    max_d: float

    @property
    def reference_power(self) -> float:
        """Sum r^2."""
        return self.rr + 2 * self.pivot * self.r + self.count * self.pivot**2

    @property
    def power(self) -> float:
        """Sum x^2."""
        return self.xx + 2 * self.pivot * self.x + self.count * self.pivot**2

    @property
    def product(self) -> float:
        """Sum x r."""
        return self.xr + self.pivot * (self.x + self.r) + self.count * self.pivot**2

    @property
    def is_finite(self) -> bool:
        """Whether infinities and NaN are where the reference has them."""
        return not self.num_lost and not self.num_gained


def compare_tensors(
    reference: Tensor,
    x: Tensor,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    ulps_of: Grid | None = None,
) -> Errors:
    """All measures of `x` against `reference`.

    Args:
        reference: of any dtype.
        x: of the same shape, of any dtype.
        tolerance: an element is within it if |x - ref| <= tolerance * max(|ref|, RMS(ref)).
        ulps_of: the grid that both are stored on; None: no distances in units of last places.

    Returns:
        Equal tensors have no signal-to-noise ratio, for there is no noise.
    """
    assert reference.shape == x.shape, f"{tuple(reference.shape)} and {tuple(x.shape)}"
    if is_bitwise_equal(reference, x):
        return Errors(is_bitwise_equal=True, max_over_rms=0.0, share_within=1.0)
    references, numbers = as_floats(reference), as_floats(x)
    sums = sum_up(references, numbers)
    return Errors(
        is_bitwise_equal=False,
        snr_db=shortened(_snr_db(sums)),
        cosine=shortened(_cosine(sums)),
        max_over_rms=shortened(_max_over_rms(sums)),
        share_within=shortened(_share_within(sums, references, numbers, tolerance)),
        pearson=shortened(_pearson(sums)),
        scale=shortened(_scale(sums)),
        nan_share=sums.num_lost / sums.num_elements,
        ulps=None if ulps_of is None else _ulps(references, numbers, ulps_of),
    )


def is_bitwise_equal(reference: Tensor, x: Tensor) -> bool:
    """Whether all bits are the same; of two formats, after the narrower one is widened."""
    if reference.dtype != x.dtype:
        wide = torch.promote_types(reference.dtype, x.dtype)
        reference, x = reference.to(wide), x.to(wide)
    if reference.is_floating_point():
        bits = _BITS[reference.element_size()]
        reference, x = reference.contiguous().view(bits), x.contiguous().view(bits)
    return torch.equal(reference, x)


def as_floats(tensor: Tensor) -> NDArray[np.generic]:
    """All elements in one row, as NumPy knows them; 16-bit floats as float32."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor.reshape(-1).numpy()
    if tensor.is_floating_point():
        return tensor.float().reshape(-1).numpy()
    return tensor.double().reshape(-1).numpy()


def sum_up(references: NDArray[np.generic], numbers: NDArray[np.generic]) -> Sums:
    """One pass in chunks."""
    head = references[:CHUNK].astype(np.float64)
    head = head[np.isfinite(head)]
    pivot = float(head.mean()) if head.size else 0.0
    parts = [
        _sum_chunk(references[start : start + CHUNK], numbers[start : start + CHUNK], pivot)
        for start in range(0, len(references), CHUNK)
    ]
    totals = np.array(parts).reshape(-1, 10)
    added = totals[:, :9].sum(axis=0)
    return Sums(
        count=int(added[0]),
        num_elements=len(references),
        num_lost=int(added[1]),
        num_gained=int(added[2]),
        pivot=pivot,
        xx=float(added[3]),
        rr=float(added[4]),
        xr=float(added[5]),
        x=float(added[6]),
        r=float(added[7]),
        dd=float(added[8]),
        max_d=float(totals[:, 9].max(initial=0.0)),
    )


def _sum_chunk(
    references: NDArray[np.generic], numbers: NDArray[np.generic], pivot: float
) -> tuple[float, ...]:
    r, x = references.astype(np.float64), numbers.astype(np.float64)
    # NaN and infinities show in the sums, so that looking for them costs nothing where none is.
    with np.errstate(invalid="ignore", over="ignore"):
        d = x - r
        dd = dot(d, d)
        lost = gained = 0
        if not math.isfinite(dd):
            is_r, is_x = np.isfinite(r), np.isfinite(x)
            lost = int(np.sum(is_r & ~is_x))
            is_same = (r == x) | (np.isnan(r) & np.isnan(x))
            gained = int(np.sum(~is_r & ~is_same))
            both = is_r & is_x
            r, x, d = r[both], x[both], d[both]
            dd = dot(d, d)
    max_d = float(np.abs(d).max(initial=0.0))
    r -= pivot
    x -= pivot
    return (
        len(r), lost, gained, dot(x, x), dot(r, r), dot(x, r), float(x.sum()),
        float(r.sum()), dd, max_d,
    )  # fmt: skip


def _snr_db(sums: Sums) -> float | None:
    signal = sums.reference_power
    if not sums.is_finite or sums.dd == 0 or signal <= 0:
        return None
    return 10 * (math.log10(signal) - math.log10(sums.dd))


def _cosine(sums: Sums) -> float | None:
    lengths = math.sqrt(max(sums.power, 0.0)) * math.sqrt(max(sums.reference_power, 0.0))
    if not sums.is_finite or lengths == 0:
        return None
    return max(-1.0, min(1.0, sums.product / lengths))


def _max_over_rms(sums: Sums) -> float | None:
    signal = sums.reference_power
    if not sums.is_finite or signal <= 0:
        return None
    return sums.max_d / math.sqrt(signal / sums.count)


def _pearson(sums: Sums) -> float | None:
    if not sums.is_finite or sums.count < 2:
        return None
    x_variance = sums.xx - sums.x**2 / sums.count
    r_variance = sums.rr - sums.r**2 / sums.count
    # What is left of a constant is rounding of the sums.
    is_constant = (
        x_variance <= 1e-14 * max(sums.power, 0) or r_variance <= 1e-14 * sums.reference_power
    )
    if is_constant:
        return None
    covariance = sums.xr - sums.x * sums.r / sums.count
    return max(-1.0, min(1.0, covariance / math.sqrt(x_variance) / math.sqrt(r_variance)))


def _scale(sums: Sums) -> float | None:
    signal = sums.reference_power
    return sums.product / signal if sums.is_finite and signal > 0 else None


def _share_within(
    sums: Sums,
    references: NDArray[np.generic],
    numbers: NDArray[np.generic],
    tolerance: float,
) -> float | None:
    if not sums.num_elements or not sums.count:
        return None
    signal = max(sums.reference_power, 0.0)
    floor = tolerance * math.sqrt(signal / sums.count)
    if sums.is_finite and sums.max_d <= floor:
        return 1.0
    num_within = 0
    for start in range(0, len(references), CHUNK):
        r = references[start : start + CHUNK].astype(np.float64)
        x = numbers[start : start + CHUNK].astype(np.float64)
        with np.errstate(invalid="ignore"):
            is_within = np.abs(x - r) <= np.maximum(floor, tolerance * np.abs(r))
            # Infinities of one sign are no error, and neither is NaN for NaN.
            num_within += int(np.sum(is_within & np.isfinite(r) | (x == r)))
            num_within += int(np.sum(np.isnan(x) & np.isnan(r)))
    return num_within / len(references)


def _ulps(references: NDArray[np.generic], numbers: NDArray[np.generic], grid: Grid) -> Ulps | None:
    """In spacings of the reference's binade; p50 and p99 of every n-th element of large tensors."""
    stride = -(-len(references) // MAX_SORTED)
    largest = 0.0
    sample: list[Floats] = []
    chunk = CHUNK * stride
    for start in range(0, len(references), chunk):
        r = references[start : start + chunk].astype(np.float64)
        x = numbers[start : start + chunk].astype(np.float64)
        is_finite = np.isfinite(r) & np.isfinite(x)
        if not is_finite.all():
            r, x = r[is_finite], x[is_finite]
        distances = np.abs(x - r) / spacing(r, grid)
        largest = max(largest, float(distances.max(initial=0.0)))
        sample.append(distances[::stride])
    distances = np.concatenate(sample) if sample else np.zeros(0)
    if not distances.size:
        return None
    p50, p99 = np.quantile(distances, [0.5, 0.99])
    values = [shortened(float(value)) for value in (p50, p99, largest)]
    assert values[0] is not None
    assert values[1] is not None
    assert values[2] is not None
    return Ulps(p50=values[0], p99=values[1], max=values[2])


def shortened(value: float | None) -> float | None:
    """To as many digits as a reader can use, so that a record of 5,000 ops stays small."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")
