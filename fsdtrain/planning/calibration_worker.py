"""What each process of a calibration does: timed all-reduces of gloo, in groups of several sizes.

All processes are started once and sums are taken among the first few of them, so that all world
sizes are measured in turn, in the same minutes, in an order that changes from round to round; who
takes no part sleeps in a barrier. It does not know how the times are judged.
"""

import os
import random
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from fsdtrain.planning.calibration_ddp import StepSample, measure_steps

COULD_NOT_JOIN = 3  # exit code


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure.

    Args:
        world_sizes: of the groups.
        sizes: of the all-reduces, in bytes; a multiple of 4.
        seconds: of measuring all-reduces.
        sample_s: that one sample takes, about.
        min_rounds: over all cases, whatever time they take.
        step_world_sizes: of data-parallel training steps.
        step_rounds: of these; 0: none.
        timeout_s: after which a process that waits for another one gives up.
    """

    world_sizes: tuple[int, ...]
    sizes: tuple[int, ...]
    seconds: float
    sample_s: float
    min_rounds: int
    step_world_sizes: tuple[int, ...]
    step_rounds: int
    timeout_s: float


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Several calls in a row of one case, as one process saw them.

    Args:
        round: of all cases.
        world_size: of the group.
        num_bytes: that each process summed.
        calls: in a row.
        time_s: of a call.
        cpu_s: of a call, that this process was on a core.
    """

    round: int
    world_size: int
    num_bytes: int
    calls: int
    time_s: float
    cpu_s: float


class CoreUse(msgspec.Struct, frozen=True, kw_only=True):
    """Of the machine while all-reduces were measured; None: the machine does not tell.

    Args:
        wall_s: how long that was.
        cpu_s: that this process was on a core.
        busy_s: that any core was busy with anything, of all cores together.
        steal_s: that a core was wanted, but the host had it.
    """

    wall_s: float
    cpu_s: float
    busy_s: float | None
    steal_s: float | None


class RankResult(msgspec.Struct, frozen=True, kw_only=True):
    """All that one process measured."""

    samples: tuple[Sample, ...]
    core_use: CoreUse
    steps: tuple[StepSample, ...]


def run_worker(rank: int, work: Work, folder: str) -> None:
    """Join the others, measure, write rank-<n>.json into the folder, and leave.

    Raises:
        SystemExit: with `COULD_NOT_JOIN`; rank-<n>.txt says why.
    """
    torch.set_num_threads(1)
    place = Path(folder)
    try:
        dist.init_process_group(
            "gloo",
            init_method=(place / "rendezvous").absolute().as_uri(),
            rank=rank,
            world_size=max(work.world_sizes),
            timeout=timedelta(seconds=work.timeout_s),
        )
    except RuntimeError as error:
        (place / f"rank-{rank}.txt").write_text(str(error), encoding="utf-8")
        raise SystemExit(COULD_NOT_JOIN) from error
    try:
        result = _measure(rank, work)
        (place / f"rank-{rank}.json").write_bytes(msgspec.json.encode(result))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _measure(rank: int, work: Work) -> RankResult:
    world = max(work.world_sizes)
    groups = {
        size: dist.group.WORLD if size == world else dist.new_group(list(range(size)))
        for size in sorted({*work.world_sizes, *work.step_world_sizes})
    }
    before = _core_use()
    samples = _measure_all_reduces(rank, work, groups)
    use = _since(before)
    steps = measure_steps(rank, work.step_world_sizes, work.step_rounds, groups)
    return RankResult(samples=samples, core_use=use, steps=steps)


def _measure_all_reduces(
    rank: int, work: Work, groups: dict[int, dist.ProcessGroup | None]
) -> tuple[Sample, ...]:
    buffer = torch.zeros(max(work.sizes) // 4)
    cases = [(world_size, size) for world_size in work.world_sizes for size in work.sizes]
    calls = _choose_calls(rank, cases, work.sample_s, buffer, groups)
    samples: list[Sample] = []
    start = time.perf_counter()
    number = 0
    while _agree(number < work.min_rounds or time.perf_counter() - start < work.seconds):
        order = list(range(len(cases)))
        random.Random(number).shuffle(order)
        for at in order:
            world_size, size = cases[at]
            dist.barrier()
            if rank >= world_size:
                continue
            time_s, cpu_s = _time_calls(buffer[: size // 4], groups[world_size], calls[at])
            samples.append(
                Sample(
                    round=number,
                    world_size=world_size,
                    num_bytes=size,
                    calls=calls[at],
                    time_s=time_s,
                    cpu_s=cpu_s,
                )
            )
        number += 1
    return tuple(samples)


def _choose_calls(
    rank: int,
    cases: Sequence[tuple[int, int]],
    sample_s: float,
    buffer: torch.Tensor,
    groups: dict[int, dist.ProcessGroup | None],
) -> list[int]:
    """How many calls of each case take `sample_s`: the same on every rank, as the first sees it."""
    calls = torch.ones(len(cases), dtype=torch.int64)
    for at, (world_size, size) in enumerate(cases):
        dist.barrier()
        if rank < world_size:
            time_s, _ = _time_calls(buffer[: size // 4], groups[world_size], 2)
            calls[at] = max(1, min(500, round(sample_s / time_s)))
    dist.broadcast(calls, src=0)
    return [int(each) for each in calls]


def _time_calls(
    part: torch.Tensor, group: dist.ProcessGroup | None, calls: int
) -> tuple[float, float]:
    """Seconds, and seconds on a core, of one of so many calls in a row; the first is not timed."""
    dist.all_reduce(part, group=group)
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(calls):
        dist.all_reduce(part, group=group)
    return (
        (time.perf_counter() - start) / calls,
        (time.process_time() - cpu_start) / calls,
    )


def _agree(goes_on: bool) -> bool:
    """What rank 0 says."""
    answer = torch.tensor([int(goes_on)])
    dist.broadcast(answer, src=0)
    return bool(answer.item())


def _core_use() -> CoreUse:
    busy_s = steal_s = None
    if Path("/proc/stat").exists():
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        # user, nice, system, idle, iowait, irq, softirq, steal; man 5 proc_stat
        ticks = [int(each) / os.sysconf("SC_CLK_TCK") for each in first.split()[1:9]]
        busy_s, steal_s = sum(ticks[:3]) + ticks[5] + ticks[6], ticks[7]
    return CoreUse(
        wall_s=time.perf_counter(), cpu_s=time.process_time(), busy_s=busy_s, steal_s=steal_s
    )


def _since(before: CoreUse) -> CoreUse:
    now = _core_use()
    return CoreUse(
        wall_s=now.wall_s - before.wall_s,
        cpu_s=now.cpu_s - before.cpu_s,
        busy_s=_difference(now.busy_s, before.busy_s),
        steal_s=_difference(now.steal_s, before.steal_s),
    )


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before
