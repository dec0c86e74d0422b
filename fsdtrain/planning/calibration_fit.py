"""The model of an all-reduce among processes that share a machine's cores, and its fit.

Gloo sums in a ring: 2 (p - 1) steps of 1 / p of the bytes, each in at least two messages. All p
ranks share c cores, so that a network model alone says too little:

    messages   4 (p - 1) alpha x ^ (contention - relief ln x), x = p / c
               threads wake each other and wait for a core; the more of them a core has, the more
               messages are found at one waking, so that contention is relieved; messages are not
               taken to get quicker by more ranks
    bytes      2 (p - 1) / p n / bandwidth x max(chain, p / c)
               copies and adds; a core's bandwidth is shared by its ranks, and a chain of few ranks
               waits for itself and leaves cores idle (chain > 1)
    time       (messages ^ overlap + bytes ^ overlap) ^ (1 / overlap)
               1: one after the other; more: waits for messages are partly filled with copies

Six parameters for all world sizes and sizes. It does not know how times are measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

NAMES = ("alpha_s", "contention", "relief", "bytes_per_s", "chain", "overlap")
# Within these the parameters mean something.
NO_RELIEF = 1e-3
LOW = np.log([1e-8, 0.05, NO_RELIEF, 1e5, 0.5, 1.0])
HIGH = np.log([1e-1, 4.0, 3.0, 1e13, 10.0, 8.0])
# Residuals over this count by their size, not its square: a disturbed point cannot bend the fit.
HUBER = 0.05
STEP = 1e-5  # of a parameter's logarithm, for slopes
CHAIN = np.array([name == "chain" for name in NAMES])


class SharedRing(msgspec.Struct, frozen=True, kw_only=True):
    """A ring of processes on one machine.

    Args:
        num_cores: that the processes share.
        alpha_s: of a message where each core has one rank.
        contention: power of ranks a core by which messages take longer.
        relief: by how much that power falls with the logarithm of ranks a core.
        bytes_per_s: that one core copies and adds.
        chain: how many times longer the bytes take at least, for ranks wait for each other.
        overlap: of messages' waits with copies; 1: none.
    """

    num_cores: int
    alpha_s: float
    contention: float
    relief: float
    bytes_per_s: float
    chain: float
    overlap: float

    def seconds(self, world_size: int, num_bytes: float) -> float:
        """Of one all-reduce of so many bytes among so many processes."""
        if world_size == 1:
            return 0.0
        messages, copies = self.parts(world_size, num_bytes)
        # The larger part is taken out, for powers of seconds would be too small for floats.
        larger = max(messages, copies)
        ratio = min(messages, copies) / larger
        return float(larger * (1 + ratio**self.overlap) ** (1 / self.overlap))

    def parts(self, world_size: int, num_bytes: float) -> tuple[float, float]:
        """Seconds of messages and of bytes, each by itself."""
        ranks_per_core = world_size / self.num_cores
        steps = world_size - 1
        # Beyond the ranks a core at which messages take longest they go on taking as long.
        logarithm = min(math.log(ranks_per_core), self.contention / (2 * self.relief))
        wait_s = self.alpha_s * math.exp(logarithm * (self.contention - self.relief * logarithm))
        messages = 4 * steps * wait_s
        share = 2 * steps / world_size * num_bytes
        return messages, share / self.bytes_per_s * max(self.chain, ranks_per_core)


class Timed(Protocol):
    """A point that can be fitted."""

    @property
    def world_size(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def time_s(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class TimedPoint:
    """Seconds of an all-reduce."""

    world_size: int
    num_bytes: int
    time_s: float


def fit_ring(points: Sequence[Timed], num_cores: int) -> SharedRing:
    """The ring whose relative errors are the least (Huber's loss; Levenberg and Marquardt).

    Args:
        points: of at least two world sizes and two sizes.
        num_cores: of the machine.
    """
    num_world_sizes = len({each.world_size for each in points})
    assert num_world_sizes >= 2
    assert len({each.num_bytes for each in points}) >= 2
    # Where `chain` is below all ranks a core it has no slope, so that it is searched for first.
    alpha_s, bytes_per_s = _least_alpha_s(points, num_cores), _most_bytes_per_s(points)
    starts = [
        np.log([alpha_s, 0.8, relief, bytes_per_s, chain, overlap])
        for chain in np.geomspace(1.0, 5.0, 9)
        for overlap in (1.2, 2.5)
        for relief in ((0.02, 0.4) if num_world_sizes > 2 else (NO_RELIEF,))
    ]
    # Two world sizes show a slope, but not how it bends.
    free = np.array([name != "relief" or num_world_sizes > 2 for name in NAMES])
    fits = [_descend(start, free & ~CHAIN, points, num_cores) for start in starts]
    fits.sort(key=lambda fit: _loss(_residuals(fit, points, num_cores)))
    fits = [_descend(fit, free, points, num_cores) for fit in fits[:3]]
    return _ring(min(fits, key=lambda fit: _loss(_residuals(fit, points, num_cores))), num_cores)


def _least_alpha_s(points: Sequence[Timed], num_cores: int) -> float:
    least = min(points, key=lambda each: (each.num_bytes, each.world_size))
    ranks_per_core = least.world_size / num_cores
    alpha_s: float = least.time_s / (4 * (least.world_size - 1)) / ranks_per_core**0.8
    return max(1e-7, alpha_s)


def _most_bytes_per_s(points: Sequence[Timed]) -> float:
    most = max(points, key=lambda each: (each.num_bytes, each.world_size))
    return 2 * most.num_bytes / most.time_s


def _ring(logs: NDArray[np.float64], num_cores: int) -> SharedRing:
    return SharedRing(
        num_cores=num_cores, **dict(zip(NAMES, (float(x) for x in np.exp(logs)), strict=True))
    )


def _residuals(
    logs: NDArray[np.float64], points: Sequence[Timed], num_cores: int
) -> NDArray[np.float64]:
    ring = _ring(logs, num_cores)
    return np.log([ring.seconds(each.world_size, each.num_bytes) / each.time_s for each in points])


def _loss(residuals: NDArray[np.float64]) -> float:
    size = np.abs(residuals)
    return float(np.where(size < HUBER, size**2 / 2, HUBER * (size - HUBER / 2)).sum())


def _descend(
    start: NDArray[np.float64],
    free: NDArray[np.bool_],
    points: Sequence[Timed],
    num_cores: int,
) -> NDArray[np.float64]:
    at = np.clip(start, LOW, HIGH)
    residuals = _residuals(at, points, num_cores)
    damping = 1e-2
    for _ in range(100):
        jacobian = _jacobian(at, residuals, points, num_cores)[:, free]
        weights = HUBER / np.maximum(np.abs(residuals), HUBER)
        curvature = jacobian.T @ (weights[:, None] * jacobian)
        slope = jacobian.T @ (weights * residuals)
        moved = np.zeros_like(at)
        moved[free] = np.linalg.solve(curvature + damping * np.eye(len(slope)), -slope)
        trial = np.clip(at + moved, LOW, HIGH)
        trial_residuals = _residuals(trial, points, num_cores)
        gained = _loss(residuals) - _loss(trial_residuals)
        if gained <= 0:
            damping *= 4
            if damping > 1e8:
                break
            continue
        at, residuals, damping = trial, trial_residuals, max(damping / 4, 1e-9)
        if gained < 1e-10:
            break
    return at


def _jacobian(
    at: NDArray[np.float64],
    residuals: NDArray[np.float64],
    points: Sequence[Timed],
    num_cores: int,
) -> NDArray[np.float64]:
    steps = np.where(at + STEP > HIGH, -STEP, STEP)
    columns = [
        (_residuals(at + step * one, points, num_cores) - residuals) / step
        for step, one in zip(steps, np.eye(len(at)), strict=True)
    ]
    return np.stack(columns, axis=1)
