"""Judges what an op stored against its exact values, and a side's run against one that only rounds.

The bounds are those of `bands`. Where the strict one is not met, the numbers' condition is looked
at: an op that subtracts large numbers may err by more than its format's step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import Tensor

from fsdtrain.comparison.bands import (
    Fault,
    default_snr_db,
    judge_store,
)
from fsdtrain.comparison.errors import as_floats, sum_up
from fsdtrain.comparison.number_formats import (
    FLOAT32,
    Floats,
    NumberFormat,
    find_format,
    grid_of,
)
from fsdtrain.comparison.teacher import Store

# Answers what error an op may make in float32, see `teacher.noise_of_float32`; it costs two runs.
NoiseRms = Callable[[], float]

_MIN_FLOAT32_BITS: Final = 23
# Of integers and truth values: comparisons of what is equal but for float32's last place.
_MAX_WRONG_SHARE: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether a store is within its band.

    Args:
        is_outside: it is not.
        fault: by what.
        allowed_power: of the error against the store's exact values; None: not looked for.
        excess_db: how far it is outside; 0 or less: within.
    """

    is_outside: bool
    fault: Fault = ""
    allowed_power: float | None = None
    excess_db: float = 0.0


_CLEAN: Final = Judgement(is_outside=False, excess_db=-math.inf)
_BROKEN: Final = Judgement(is_outside=True, excess_db=math.inf)


def format_of(store: Store) -> NumberFormat:
    """The format of a store that is a float."""
    return find_format(store.format or "float32")


def judge(store: Store, noise_rms: NoiseRms) -> Judgement:
    """Judge one store.

    Args:
        store: of any dtype.
        noise_rms: asked only where the strict bound is not met.
    """
    exact, stored = store.exact, store.stored
    if stored is None or stored.shape != exact.shape:
        return _BROKEN
    if not exact.is_floating_point():
        return _judge_whole_numbers(exact, stored, noise_rms)
    if not exact.numel():
        return _CLEAN
    format = format_of(store)
    if format.mantissa_bits >= _MIN_FLOAT32_BITS:
        return _judge_float32(exact, stored, format, noise_rms)
    wanted, found = _both_finite(exact, stored)
    if found is None:
        return _BROKEN
    grid = grid_of(format, float(np.abs(wanted).max(initial=0.0)))
    judged = judge_store(wanted, found, grid)
    if judged.fault:
        judged = judge_store(wanted, found, grid, slack_rms=noise_rms())
    return Judgement(
        is_outside=bool(judged.fault),
        fault=judged.fault,
        allowed_power=judged.allowed_power,
        excess_db=_decibel(judged.excess),
    )


def judge_meaning(reference: Tensor, own: Tensor, noise_rms: NoiseRms) -> Judgement:
    """Judge what the ops of a side compute, apart from how they compute and store it.

    Args:
        reference: a result of the unit in double.
        own: the same of the side's ops in double, nothing rounded.
        noise_rms: of float32, in which constants may be.
    """
    if own.shape != reference.shape or own.is_floating_point() != reference.is_floating_point():
        return _BROKEN
    if not reference.is_floating_point():
        return _judge_whole_numbers(reference, own, noise_rms)
    return _judge_float32(reference, own, FLOAT32, noise_rms) if reference.numel() else _CLEAN


def _judge_float32(
    exact: Tensor, stored: Tensor, format: NumberFormat, noise_rms: NoiseRms
) -> Judgement:
    sums = sum_up(as_floats(exact), as_floats(stored))
    if not sums.is_finite:
        return _BROKEN
    signal = max(sums.reference_power, 0.0)
    allowed = signal * 10 ** (-default_snr_db(format) / 10)
    if sums.dd > allowed:
        allowed = max(allowed, sums.count * noise_rms() ** 2)
    ratio = sums.dd / allowed if allowed else (math.inf if sums.dd else 0.0)
    return Judgement(
        is_outside=ratio > 1,
        fault="noise" if ratio > 1 else "",
        allowed_power=allowed,
        excess_db=_decibel(ratio),
    )


def _judge_whole_numbers(exact: Tensor, stored: Tensor, noise_rms: NoiseRms) -> Judgement:
    if stored.is_floating_point():
        return _BROKEN
    num_wrong = int((exact != stored).sum())
    allowed = 1 + _MAX_WRONG_SHARE * exact.numel()
    if num_wrong > allowed:
        allowed += exact.numel() * noise_rms()
    is_outside = num_wrong > allowed
    return Judgement(is_outside=is_outside, excess_db=_decibel(num_wrong / allowed))


def _both_finite(exact: Tensor, stored: Tensor) -> tuple[Floats, Floats | None]:
    """In double, where the exact number is finite; None: the stored one is not."""
    wanted = as_floats(exact).astype(np.float64)
    found = as_floats(stored).astype(np.float64)
    with np.errstate(invalid="ignore"):
        is_finite = np.isfinite(wanted)
    if not is_finite.all():
        wanted, found = wanted[is_finite], found[is_finite]
    if not math.isfinite(float(np.abs(found).max(initial=0.0))):
        return wanted, None
    return wanted, found


def band_snr_db(store: Store, reference: Tensor, judgement: Judgement) -> float | None:
    """The least signal-to-noise against the reference of a store that is within its band.

    What converting operands costs is in it: the distance of the store's exact values from the
    reference's.
    """
    if judgement.allowed_power is None or not reference.numel():
        return None
    sums = sum_up(as_floats(reference), as_floats(store.exact))
    signal = sums.reference_power
    if not sums.is_finite or signal <= 0:
        return None
    most = (math.sqrt(sums.dd) + math.sqrt(judgement.allowed_power)) ** 2
    return 10 * math.log10(signal / most) if most else None


def _decibel(ratio: float) -> float:
    if not math.isfinite(ratio):
        return math.inf
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf
