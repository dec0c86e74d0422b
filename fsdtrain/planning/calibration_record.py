"""all-reduce-gloo.json: measured all-reduces, the fitted model, and what it predicts of them.

Measured figures are MEASURED on the machine that `device` names; predicted ones are MODELLED. It
does not know how anything is measured or fitted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from fsdtrain.engine.run_record import read_record
from fsdtrain.planning.calibration_fit import SharedRing
from fsdtrain.planning.fleet import Figure, NetworkLevel

RECORD_VERSION: Final = 1

# What of a point the fit did not see.
HeldOut = Literal["", "size", "world size", "size and world size"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One world size and size.

    Args:
        world_size: processes that summed.
        num_bytes: that each of them had.
        num_samples: one a round.
        time_s: measured, of a call.
        spread: of the samples, half of the distance between their quartiles over their median.
        core_share: of all cores, that the processes used meanwhile.
        predicted_s: of a call.
        held_out: whether the fit has seen it.
    """

    world_size: int
    num_bytes: int
    num_samples: int
    time_s: float
    spread: float
    core_share: float
    predicted_s: float
    held_out: HeldOut

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_s / self.time_s - 1


class StepPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Data-parallel steps of a small model: forward and backward.

    Args:
        world_size: processes that trained.
        num_samples: one a round.
        held_out: whether the fit has seen this world size.
        bucket_bytes: of torch's buckets.
        without_s: measured, of a step that exchanges nothing.
        with_s: measured, of one that does.
        exchange_s: predicted, of all buckets one after the other.
        exposed_s: predicted, of the exchange that delays the step: the cores that it uses are the
            step's own.
        exposed_elsewhere_s: predicted, if the exchange had hardware of its own.
    """

    world_size: int
    num_samples: int
    held_out: bool
    bucket_bytes: tuple[int, ...]
    without_s: float
    with_s: float
    exchange_s: float
    exposed_s: float
    exposed_elsewhere_s: float

    @property
    def step_error(self) -> float:
        """Predicted step over measured step, less 1."""
        return (self.without_s + self.exposed_s) / self.with_s - 1

    @property
    def exposed_error(self) -> float:
        """Predicted exposed time over measured one, less 1."""
        measured_s = self.with_s - self.without_s
        return self.exposed_s / measured_s - 1 if measured_s > 0 else float("inf")


class ErrorSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Of the sizes of relative errors."""

    num_points: int
    median: float
    percentile_90: float
    worst: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """One calibration.

    Args:
        started_at: ISO 8601, UTC.
        device: in words.
        torch: its version.
        num_rounds: over all cases.
        statistic: what is made of a case's samples, in words.
        busy_elsewhere: share of all cores that others used meanwhile; None: not known.
        stolen: share of all cores that the machine's host took; None: not known.
        ring: the fitted model.
        points: by world size and size.
        errors: by what the fit had not seen; "" is what it had.
        steps: data-parallel ones.
        notes: what a reader must know.
    """

    schema: Literal["fsdtrain-all-reduce"] = "fsdtrain-all-reduce"
    version: Literal[1] = RECORD_VERSION
    backend: Literal["gloo"] = "gloo"
    started_at: str
    device: str
    torch: str
    num_rounds: int
    statistic: str
    busy_elsewhere: float | None
    stolen: float | None
    ring: SharedRing
    points: tuple[Point, ...]
    errors: dict[HeldOut, ErrorSummary]
    steps: tuple[StepPoint, ...] = ()
    notes: tuple[str, ...] = ()


def typical(values: Sequence[float]) -> float:
    """Mean of the faster half: others that use the machine make samples longer, never shorter."""
    ordered = np.sort(np.asarray(values))
    return float(ordered[: (len(ordered) + 1) // 2].mean())


def summarise_errors(points: tuple[Point, ...]) -> dict[HeldOut, ErrorSummary]:
    """Of the points by what of them was held out."""
    found: dict[HeldOut, list[float]] = {}
    for each in points:
        found.setdefault(each.held_out, []).append(abs(each.error))
    return {
        held_out: ErrorSummary(
            num_points=len(errors),
            median=float(np.median(errors)),
            percentile_90=float(np.quantile(errors, 0.9)),
            worst=max(errors),
        )
        for held_out, errors in sorted(found.items())
    }


def read_calibration(path: Path) -> Calibration:
    """A calibration out of its file.

    Raises:
        UserError: it is missing, or of another schema or version.
    """
    return read_record(path, Calibration, remedy="calibrate again")


def to_level(
    calibration: Calibration, world_size: int, *, num_devices: int | None = None
) -> NetworkLevel:
    """The network of a fleet whose devices are such processes: its latency and bandwidth.

    The calibrated model at one world size, as latency and bandwidth of a ring: the two that fit its
    measured sizes best. Processes of one machine share its cores, so that other world sizes have
    other figures.

    Args:
        calibration: of this machine.
        world_size: of the all-reduces that the level is for.
        num_devices: that the level joins; None: all there are.
    """
    sizes = np.array(sorted({each.num_bytes for each in calibration.points}), dtype=np.float64)
    times = np.array([calibration.ring.seconds(world_size, size) for size in sizes])
    steps = 2 * (world_size - 1)
    columns = np.stack([np.full_like(sizes, steps), steps / world_size * sizes], axis=1)
    (alpha_s, beta), *_ = np.linalg.lstsq(columns / times[:, None], np.ones_like(times), rcond=None)
    # A model whose messages are filled with copies may leave none of their time over.
    alpha_s = max(0.0, alpha_s)
    errors = np.abs(columns @ (alpha_s, beta) / times - 1)
    source = (
        f"gloo among {world_size} processes on {calibration.device}; alpha and beta of a ring, "
        f"within {errors.max():.0%} of the calibrated model from {int(sizes[0]):,} to "
        f"{int(sizes[-1]):,} bytes"
    )
    return NetworkLevel(
        name=f"gloo on {calibration.ring.num_cores} cores",
        num_devices=num_devices,
        latency_us=Figure(value=float(alpha_s) * 1e6, source=source, confidence="measured"),
        bandwidth_gb_per_s=Figure(value=1e-9 / float(beta), source=source, confidence="measured"),
    )
