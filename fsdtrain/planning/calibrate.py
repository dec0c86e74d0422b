"""`plan calibrate`: short real all-reduces here, the model fitted to them, and its errors.

Some sizes and whole world sizes are held out of the fit and predicted. Then data-parallel steps of
a small model are predicted by bucket replay and measured. Writes all-reduce-gloo.json and .md.
"""

import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import torch

from fsdtrain.errors import UserError
from fsdtrain.planning.calibration_fit import TimedPoint, fit_ring
from fsdtrain.planning.calibration_record import (
    Calibration,
    HeldOut,
    Point,
    summarise_errors,
    typical,
)
from fsdtrain.planning.calibration_run import run_processes
from fsdtrain.planning.calibration_steps import judge_steps
from fsdtrain.planning.calibration_words import in_markdown
from fsdtrain.planning.calibration_worker import RankResult, Work

logger = logging.getLogger(__name__)

MiB = 2**20
STATISTIC = "mean of the faster half of the samples, one a round, slowest process of each"
QUIET = 0.05  # share of the cores that others may use before a note says so


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """What to measure. The defaults take less than five minutes.

    Args:
        world_sizes: of all-reduces that the model is fitted to; at least two.
        held_out_world_sizes: that it has to predict.
        sizes: in bytes, that the model is fitted to; at least two; multiples of 4.
        held_out_sizes: that it has to predict.
        seconds: of measuring all-reduces; more rounds are more exact.
        sample_s: that one sample takes, about.
        min_rounds: whatever time they take.
        step_world_sizes: of data-parallel steps; among the world sizes above.
        step_rounds: of data-parallel steps; 0: none.
        timeout_s: after which a process that waits for another one gives up.
    """

    world_sizes: tuple[int, ...] = (2, 4, 5, 8)
    held_out_world_sizes: tuple[int, ...] = (3, 6)
    sizes: tuple[int, ...] = (MiB // 16, MiB // 4, MiB, 4 * MiB, 12 * MiB, 32 * MiB)
    held_out_sizes: tuple[int, ...] = (MiB // 2, 2 * MiB, 8 * MiB, 25 * MiB)
    seconds: float = 230.0
    sample_s: float = 0.05
    min_rounds: int = 4
    step_world_sizes: tuple[int, ...] = (2, 3)
    step_rounds: int = 30
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        worlds = (*self.world_sizes, *self.held_out_world_sizes)
        _check(len(self.world_sizes) >= 2, "world_sizes", self.world_sizes, "two or more")
        _check(min(worlds) >= 2, "world sizes", worlds, "2 or more each")
        _check(len({*worlds}) == len(worlds), "world sizes", worlds, "different ones")
        sizes = (*self.sizes, *self.held_out_sizes)
        _check(len(self.sizes) >= 2, "sizes", self.sizes, "two or more")
        _check(
            min(sizes) >= 4 and not any(size % 4 for size in sizes),
            "sizes", sizes, "multiples of 4 bytes, for float32 is summed",
        )  # fmt: skip
        _check(len({*sizes}) == len(sizes), "sizes", sizes, "different ones")
        _check(self.seconds > 0 and self.sample_s > 0, "seconds", self.seconds, "above 0")
        _check(self.min_rounds >= 1, "min_rounds", self.min_rounds, "1 or more")
        _check(
            {*self.step_world_sizes} <= {*worlds},
            "step_world_sizes", self.step_world_sizes, f"some of {worlds}",
        )  # fmt: skip


def calibrate(settings: CalibrationSettings, folder: Path) -> Calibration:
    """Measure, fit, predict; write all-reduce-gloo.json and all-reduce-gloo.md into the folder.

    Raises:
        UserError: see `CalibrationSettings` and `run_processes`; or the folder cannot be written.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"calibration: {folder} cannot be made: {error.strerror}") from error
    worlds = (*settings.world_sizes, *settings.held_out_world_sizes)
    logger.info("all-reduces of gloo among %s processes, %.0f s", worlds, settings.seconds)
    results = run_processes(
        Work(
            world_sizes=tuple(sorted(worlds)),
            sizes=tuple(sorted((*settings.sizes, *settings.held_out_sizes))),
            seconds=settings.seconds,
            sample_s=settings.sample_s,
            min_rounds=settings.min_rounds,
            step_world_sizes=settings.step_world_sizes,
            step_rounds=settings.step_rounds,
            timeout_s=settings.timeout_s,
        )
    )
    calibration = judge(settings, results, started_at=started_at)
    (folder / "all-reduce-gloo.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n"
    )
    (folder / "all-reduce-gloo.md").write_text(in_markdown(calibration), encoding="utf-8")
    return calibration


def judge(
    settings: CalibrationSettings, results: Sequence[RankResult], *, started_at: str
) -> Calibration:
    """What the measurements say: fit to what is not held out, predict all."""
    num_cores = count_cores()
    timed = _time_cases(settings, results, num_cores)
    fitted = [each for each in timed if not each.held_out]
    ring = fit_ring(
        [
            TimedPoint(world_size=each.world_size, num_bytes=each.num_bytes, time_s=each.time_s)
            for each in fitted
        ],
        num_cores,
    )
    points = tuple(
        msgspec.structs.replace(each, predicted_s=ring.seconds(each.world_size, each.num_bytes))
        for each in timed
    )
    busy_elsewhere, stolen = _use_by_others(results, num_cores)
    return Calibration(
        started_at=started_at,
        device=f"{platform.machine()} {platform.system()}, {num_cores} cores",
        torch=str(torch.__version__),
        num_rounds=1 + max(each.round for each in results[0].samples),
        statistic=STATISTIC,
        busy_elsewhere=busy_elsewhere,
        stolen=stolen,
        ring=ring,
        points=points,
        errors=summarise_errors(points),
        steps=tuple(
            judge_steps(
                [
                    [each for each in result.steps if each.world_size == world_size]
                    for result in results[:world_size]
                ],
                ring,
                core_share=_share_when_quiet(fitted, busy_elsewhere),
                held_out=world_size in settings.held_out_world_sizes,
            )
            for world_size in (settings.step_world_sizes if settings.step_rounds else ())
        ),
        notes=_notes(busy_elsewhere, stolen),
    )


def count_cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _time_cases(
    settings: CalibrationSettings, results: Sequence[RankResult], num_cores: int
) -> list[Point]:
    slowest: dict[tuple[int, int], dict[int, float]] = {}
    on_cores: dict[tuple[int, int], dict[int, float]] = {}
    for result in results:
        for each in result.samples:
            case = (each.world_size, each.num_bytes)
            times = slowest.setdefault(case, {})
            times[each.round] = max(times.get(each.round, 0.0), each.time_s)
            cores = on_cores.setdefault(case, {})
            cores[each.round] = cores.get(each.round, 0.0) + each.cpu_s
    points = []
    for case, by_round in sorted(slowest.items()):
        times_s = [*by_round.values()]
        low, middle, high = np.quantile(times_s, (0.25, 0.5, 0.75))
        shares = [on_cores[case][at] / time_s / num_cores for at, time_s in by_round.items()]
        points.append(
            Point(
                world_size=case[0],
                num_bytes=case[1],
                num_samples=len(times_s),
                time_s=typical(times_s),
                spread=float((high - low) / 2 / middle),
                core_share=float(np.median(shares)),
                predicted_s=0.0,
                held_out=_held_out(settings, *case),
            )
        )
    return points


def _held_out(settings: CalibrationSettings, world_size: int, num_bytes: int) -> HeldOut:
    is_world = world_size in settings.held_out_world_sizes
    if num_bytes in settings.held_out_sizes:
        return "size and world size" if is_world else "size"
    return "world size" if is_world else ""


def _use_by_others(
    results: Sequence[RankResult], num_cores: int
) -> tuple[float | None, float | None]:
    use = results[0].core_use
    if use.busy_s is None or use.steal_s is None:
        return None, None
    own_s = sum(each.core_use.cpu_s for each in results)
    available_s = use.wall_s * num_cores
    return max(0.0, use.busy_s - own_s) / available_s, use.steal_s / available_s


def _share_when_quiet(points: Sequence[Point], busy_elsewhere: float | None) -> float:
    """Of all cores, that an all-reduce uses where nobody else wants them."""
    share = float(np.median([each.core_share for each in points]))
    return min(1.0, share / max(1 - (busy_elsewhere or 0.0), share))


def _notes(busy_elsewhere: float | None, stolen: float | None) -> tuple[str, ...]:
    if busy_elsewhere is None:
        return ("This machine does not tell how busy others kept it.",)
    taken = busy_elsewhere + (stolen or 0.0)
    if taken <= QUIET:
        return ()
    return (
        f"Others used {taken:.0%} of the cores meanwhile: measure again when the machine is quiet.",
    )


def _check(holds: bool, name: str, given: object, allowed: str) -> None:
    if not holds:
        raise UserError(f"calibration: {name}={given}: give {allowed}")
