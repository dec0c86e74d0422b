"""Which placement of replicas trains most samples a second on a machine, and what the others do.

Tries each level that can hold a replica by itself, and pipelines over several of its slices where
one does not hold the model or has to move some of it out. All figures are MODELLED.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.schema import Machine, Topology
from fsdtrain_dojo.scale.grid import lay_slices
from fsdtrain_dojo.scale.placement import (
    PlacedTime,
    ProgramTimeOn,
    Site,
    choose_block,
    divide_batch,
    peak_of,
    stage_machine,
)
from fsdtrain_dojo.scale.words import describe, name_home

MOST_STAGES = 8  # of a pipeline; each count is another lowering


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A home that cannot run the step."""

    home: str
    why: str


@dataclass(frozen=True, kw_only=True)
class ScalePlan:
    """What was found; MODELLED.

    Args:
        best: of most samples a second.
        placed: all that run, worst first, `best` last.
        refused: all that do not.
        strong: the same global batch over all replicas of `best`; None: it does not divide.
        sentences: for the report.
    """

    best: PlacedTime
    placed: tuple[PlacedTime, ...]
    refused: tuple[Refused, ...]
    strong: PlacedTime | None
    sentences: tuple[str, ...]


def plan_scale(
    machine: Machine,
    program_time_on: ProgramTimeOn,
    *,
    peak_format: str,
    levels: Sequence[str] | None = None,
    least_levels: int | None = None,
    most_stages: int = MOST_STAGES,
) -> ScalePlan:
    """The best placement of a training step on a machine.

    Args:
        machine: the whole.
        program_time_on: lowers and schedules the step on a slice; raises BackendError where it
            cannot run there.
        peak_format: of the matrix products that `PlacedTime.matmul_share` is a share of.
        levels: to try as homes; default: see `home_levels`.
        least_levels: to try from the outermost one on; those further in are tried only while each
            trains more samples a second than all around it. None: all.
        most_stages: of a pipeline.

    Raises:
        BackendError: it runs nowhere; with the reason of every home.
    """
    peak = peak_of(machine, peak_format)
    placed: list[PlacedTime] = []
    refused: list[Refused] = []
    best_rate = 0.0
    for number, level in enumerate(reversed(levels or home_levels(machine)), start=1):
        _try_level(machine, level, program_time_on, peak, most_stages, placed, refused)
        rate = max((each.samples_per_s for each in placed), default=0.0)
        if least_levels is not None and number >= least_levels and rate == best_rate > 0:
            break
        best_rate = rate
    if not placed:
        reasons = "\n".join(f"- on {each.home}: {each.why}" for each in refused)
        raise BackendError(
            f"the step runs on no part of machine {machine.name}, as homes of replicas:\n{reasons}"
        )
    placed.sort(key=lambda each: each.samples_per_s)
    best = placed[-1]
    strong, strong_words = _strong(best, machine, peak)
    return ScalePlan(
        best=best,
        placed=tuple(placed),
        refused=tuple(refused),
        strong=strong,
        sentences=(*describe(best, machine), strong_words),
    )


def home_levels(machine: Machine) -> list[str]:
    """Levels whose groups can hold a replica each: joined by links, from the inside out."""
    depth = max(
        (
            number
            for number, level in enumerate(machine.levels)
            if level.topology is Topology.SWITCH
        ),
        default=0,
    )
    return [
        level.name for level in machine.levels[depth:] if level.topology is not Topology.NETWORK
    ]


def _try_level(
    machine: Machine,
    level: str,
    program_time_on: ProgramTimeOn,
    peak: float,
    most_stages: int,
    placed: list[PlacedTime],
    refused: list[Refused],
) -> None:
    """One slice as a home, then two, four and so on while that makes it fit, or quicker."""
    grid = lay_slices(machine, level)
    num_stages, best = 1, 0.0
    while num_stages <= most_stages:
        block = choose_block(grid, num_stages)
        if block is not None:
            try:
                replica = program_time_on(stage_machine(machine, level, num_stages))
            except BackendError as error:
                refused.append(Refused(home=name_home(level, num_stages), why=str(error)))
            else:
                site = Site(machine, level, num_stages, block)
                placed.append(site.time(replica, peak))
                is_better = placed[-1].samples_per_s > best
                best = placed[-1].samples_per_s
                if not (is_better and replica.spilled_bytes):
                    return
        num_stages *= 2


def _strong(best: PlacedTime, machine: Machine, peak: float) -> tuple[PlacedTime | None, str]:
    batch, count = best.replica.batch_size, best.placement.num_replicas
    try:
        strong = divide_batch(best, machine, peak)
    except BackendError as error:
        return None, f"Strong scaling: {error}."
    return strong, (
        f"Strong scaling: the batch of {batch} over {count} replicas takes at best "
        f"{strong.step_s * 1e3:.3g} ms, {best.pipeline.seconds / strong.step_s:.1f} times as "
        "quick as one replica alone."
    )
