"""Fleets of two kinds of machines that train one model together: "half Dojo, half NVIDIA".

The global batch is divided so that both kinds end their step together: the quicker kind gets a
larger batch, which is taken to need its share more time. Half can mean half of the devices, or half
of the samples a second; both are planned. All figures are MODELLED.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from fsdtrain.errors import UserError
from fsdtrain.planning.answers import answer, find_needed
from fsdtrain.planning.curve import MOST_DEVICES, trace_curve
from fsdtrain.planning.device_step import Workload
from fsdtrain.planning.machines import (
    PlannedMachine,
    check_price,
    check_question,
    notes_of,
    step_figure,
    step_of,
    with_point,
)
from fsdtrain.planning.provenance import fleet_figures
from fsdtrain.planning.record import MachinePlan, Question, ScalePoint, Sourced
from fsdtrain.planning.scaling import Part, scale_point

LARGEST_PART = 4  # of the kind with fewer devices in the smallest fleet of a mix
MANY = 10  # of the other kind for each: a rounded number is close enough


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One meaning of "half".

    Args:
        name: "half of the devices each".
        members: devices of either kind in the smallest fleet that has this mix; all others have
            several of it.
    """

    name: str
    members: tuple[int, int]

    @property
    def num_members(self) -> int:
        return sum(self.members)

    def divide(self, num_devices: int) -> tuple[int, int]:
        """So many devices by kind; a multiple of `num_members`."""
        times, rest = divmod(num_devices, self.num_members)
        assert rest == 0, (num_devices, self.members)
        return times * self.members[0], times * self.members[1]


def plan_mixed(
    name: str,
    machines: Sequence[PlannedMachine],
    workload: Workload,
    question: Question,
    *,
    most_devices: int = MOST_DEVICES,
) -> tuple[MachinePlan, ...]:
    """Both readings of a fleet that is half of one kind and half of another.

    Args:
        name: in words: "half Dojo, half NVIDIA".
        machines: the two kinds.
        workload: what is trained.
        question: how much of it.
        most_devices: of both kinds together.

    Raises:
        UserError: there are not two kinds, a mix needs more devices than `most_devices`, or see
            `machines.plan_machine`.
    """
    check_question(question)
    if len(machines) != 2:
        raise UserError(f"plan: a mixed fleet has two kinds of machines, not {len(machines)}")
    for machine in machines:
        check_price(machine.fleet, question)
    parts = _equal_steps([_part(each, workload, question) for each in machines])
    first, second = (part.step.samples_per_s for part in parts)
    readings = (
        Reading(name="half of the devices each", members=(1, 1)),
        Reading(name="half of the samples a second each", members=_ratio(second / first)),
    )
    return tuple(
        _plan(f"{name} ({each.name})", each, parts, workload, question, most_devices)
        for each in readings
    )


def _ratio(value: float) -> tuple[int, int]:
    """Two small numbers of about this ratio; 263.4 -> (263, 1)."""
    if value < 1:
        second, first = _ratio(1 / value)
        return first, second
    if value >= MANY:
        return round(value), 1
    fraction = Fraction(value).limit_denominator(LARGEST_PART)
    return fraction.numerator, fraction.denominator


def _part(machine: PlannedMachine, workload: Workload, question: Question) -> Part:
    return Part(step=step_of(machine, workload, question), fleet=machine.fleet, num_devices=1)


def _equal_steps(parts: Sequence[Part]) -> tuple[Part, ...]:
    """With batches for which all kinds take as long as the slowest takes for its own."""
    slowest_s = max(part.step.step_s for part in parts)
    return tuple(
        replace(part, step=part.step.resized(slowest_s / part.step.step_s)) for part in parts
    )


def mixed_point(
    num_devices: int,
    *,
    reading: Reading,
    parts: Sequence[Part],
    workload: Workload,
    question: Question,
) -> ScalePoint | None:
    """So many devices of both kinds; None: they never end, or have not this mix."""
    if num_devices % reading.num_members:
        return None
    counts = reading.divide(num_devices)
    shared = [replace(part, num_devices=count) for part, count in zip(parts, counts, strict=True)]
    return scale_point(shared, workload, question)


def _plan(
    name: str,
    reading: Reading,
    parts: Sequence[Part],
    workload: Workload,
    question: Question,
    most_devices: int,
) -> MachinePlan:
    if reading.num_members > most_devices:
        raise UserError(
            f"plan: {name}: the smallest such fleet has {reading.num_members:,} devices, and at "
            f"most {most_devices:,} are to be planned: raise most_devices"
        )
    point_of = partial(
        mixed_point, reading=reading, parts=parts, workload=workload, question=question
    )
    curve = trace_curve(point_of, reading.num_members, most_devices)
    if not curve:
        raise UserError(
            f"plan: {name}: these devices stop so often that this training never ends: look at "
            "device_mtbf_hours and restart_s of the fleets"
        )
    needed = find_needed(point_of, curve, question, reading.num_members)
    slowest = max(parts, key=lambda part: part.step.step_s)
    shown = needed or curve[-1]
    return MachinePlan(
        name=name,
        device=" with ".join(part.step.device for part in parts),
        step_time_s=slowest.step.step_s,
        step_bound=slowest.step.bound,
        step_origin="MODELLED",
        curve=with_point(curve, needed),
        needed=needed,
        sentence=answer(curve, needed, question, bound=slowest.step.bound, devices_per_node=1),
        figures=tuple(_figures(parts)),
        notes=(
            _split_note(shown, reading, parts),
            *_batch_notes(parts),
            "Both kinds exchange gradients as if all devices were on the slower one's networks.",
            "Where the kinds compute in other number formats, whether the training comes out the "
            "same is a question for compare, not for this plan.",
            *dict.fromkeys(
                f"{part.fleet.name}: {note}"
                for part in parts
                for note in (*part.fleet.notes, *part.step.notes)
            ),
            *notes_of(curve, workload, question, parts),
        ),
    )


def _figures(parts: Sequence[Part]) -> list[Sourced]:
    found = []
    for part in parts:
        for each in (step_figure(part.step), *fleet_figures(part.fleet)):
            named = f"{part.fleet.name}: {each.name}"
            found.append(
                Sourced(
                    name=named,
                    value=each.value,
                    unit=each.unit,
                    origin=each.origin,
                    source=each.source,
                )
            )
    return found


def _split_note(point: ScalePoint, reading: Reading, parts: Sequence[Part]) -> str:
    counts = reading.divide(point.num_devices)
    total = sum(count * part.step.num_samples for count, part in zip(counts, parts, strict=True))
    words = " and ".join(
        f"{count:,} {part.fleet.name} with {count * part.step.num_samples / total:.1%} of the batch"
        for count, part in zip(counts, parts, strict=True)
    )
    return f"Of {point.num_devices:,} devices: {words}."


def _batch_notes(parts: Sequence[Part]) -> list[str]:
    return [
        f"A device of {part.fleet.name} trains {part.step.num_samples:,.4g} samples a step, so "
        "that both kinds end together; step times are taken to grow with the batch, and a share "
        "of a sample stands for a batch that does not divide."
        for part in parts
    ]
