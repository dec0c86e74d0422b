"""Plans of kinds of machines: scaling curve, devices needed, what limits, what it all rests on.

It does not know how a profile was found, nor how a plan looks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fsdtrain.errors import UserError
from fsdtrain.planning.answers import answer, find_needed
from fsdtrain.planning.curve import MOST_DEVICES, quickest, trace_curve
from fsdtrain.planning.device_step import DeviceStep, Workload, device_step
from fsdtrain.planning.fleet import Fleet
from fsdtrain.planning.provenance import fleet_figures
from fsdtrain.planning.record import MachinePlan, Question, ScalePoint, Sourced
from fsdtrain.planning.scaling import Part, scale_point
from fsdtrain.planning.sensitivity import find_sensitivities
from fsdtrain.step_profile import StepProfile

# Where nothing says how many devices are meant, sensitivities are told of about so many, or of as
# many as train the quickest.
SENSITIVITY_DEVICES = 1000


@dataclass(frozen=True, kw_only=True)
class PlannedMachine:
    """One kind of machine to plan.

    Args:
        fleet: what joins and feeds the devices.
        profile: of the captured step on one device.
        batch_size: of that step.
    """

    fleet: Fleet
    profile: StepProfile
    batch_size: int


def check_question(question: Question) -> None:
    """Whether it can be answered.

    Raises:
        UserError: it cannot; with what was given and what is allowed.
    """
    for name in ("num_samples", "num_epochs", "batch_per_device"):
        if not getattr(question, name) > 0:
            raise UserError(f"plan: {name}={getattr(question, name)}: must be above 0")
    for name in ("target_s", "budget", "sample_bytes", "pixels_per_sample", "max_global_batch"):
        value = getattr(question, name)
        if value is not None and not value > 0:
            raise UserError(f"plan: {name}={value}: must be above 0, or null if it is not asked")


def check_price(fleet: Fleet, question: Question) -> None:
    """Whether a budget can be compared with what this fleet costs.

    Raises:
        UserError: it cannot.
    """
    if question.budget is not None and fleet.device_price_per_hour is None:
        raise UserError(
            f"plan: a budget is asked for, and fleet {fleet.name} has no price: give "
            "device_price_per_hour"
        )


def plan_machines(
    machines: Sequence[PlannedMachine],
    workload: Workload,
    question: Question,
    *,
    most_devices: int = MOST_DEVICES,
) -> tuple[MachinePlan, ...]:
    """A plan for each kind of machine.

    Raises:
        UserError: see `check_question` and `plan_machine`.
    """
    check_question(question)
    return tuple(
        plan_machine(each, workload, question, most_devices=most_devices) for each in machines
    )


def plan_machine(
    machine: PlannedMachine, workload: Workload, question: Question, *, most_devices: int
) -> MachinePlan:
    """A plan for one kind of machine.

    Raises:
        UserError: a budget is asked for and no price is given, or not even one device could ever
            end this training.
    """
    fleet = machine.fleet
    check_price(fleet, question)
    step = step_of(machine, workload, question)

    alone = Part(step=step, fleet=fleet, num_devices=1)

    def point_of(count: int) -> ScalePoint | None:
        return scale_point([replace(alone, num_devices=count)], workload, question)

    curve = trace_curve(point_of, fleet.devices_per_node, most_devices)
    if not curve:
        raise UserError(
            f"plan: on fleet {fleet.name} even one device stops so often that this training never "
            f"ends: look at device_mtbf_hours ({fleet.si('device_mtbf_hours')} s) and restart_s"
        )
    needed = find_needed(point_of, curve, question, fleet.devices_per_node)
    curve = with_point(curve, needed)
    most = min(SENSITIVITY_DEVICES, quickest(curve).point.num_devices)
    shown = needed.num_devices if needed else _near(most, curve)

    def time_of(changed: DeviceStep, changed_fleet: Fleet) -> float | None:
        part = Part(step=changed, fleet=changed_fleet, num_devices=shown)
        point = scale_point([part], workload, question)
        return None if point is None else point.time_to_train_s

    return MachinePlan(
        name=fleet.name,
        device=step.device,
        step_time_s=step.step_s,
        step_bound=step.bound,
        step_origin=step.origin,
        curve=curve,
        needed=needed,
        sentence=answer(
            curve, needed, question, bound=step.bound, devices_per_node=fleet.devices_per_node
        ),
        figures=(step_figure(step), *fleet_figures(fleet)),
        notes=(*fleet.notes, *step.notes, *notes_of(curve, workload, question, [alone])),
        sensitivities=find_sensitivities(time_of, step, fleet, num_devices=shown),
    )


def step_of(machine: PlannedMachine, workload: Workload, question: Question) -> DeviceStep:
    """One step of one device, of no more samples than there are, and than are said to train well.

    Raises:
        UserError: the profile has no time.
    """
    if machine.batch_size < 1 or not machine.profile.step_time_s > 0:
        raise UserError(
            f"plan: the profile for fleet {machine.fleet.name} has a step of "
            f"{machine.profile.step_time_s:g} s with {machine.batch_size} samples: both must be "
            "above 0; profile the step again"
        )
    limits = [float(question.num_samples)]
    if question.max_global_batch is not None:
        limits.append(question.max_global_batch)
    return device_step(
        machine.profile, workload, batch_size=machine.batch_size, max_samples=min(limits)
    )


def with_point(curve: tuple[ScalePoint, ...], point: ScalePoint | None) -> tuple[ScalePoint, ...]:
    """A curve with one more point in its place."""
    if point is None or any(each.num_devices == point.num_devices for each in curve):
        return curve
    return tuple(sorted((*curve, point), key=lambda each: each.num_devices))


def _near(count: int, curve: tuple[ScalePoint, ...]) -> int:
    return min((each.num_devices for each in curve), key=lambda each: abs(each - count))


def step_figure(step: DeviceStep) -> Sourced:
    """The figure that all others start from."""
    return Sourced(
        name="step of one device",
        value=step.step_s,
        unit="s",
        origin=step.origin,
        source=f"profile of {step.device}, {step.num_samples:g} samples",
    )


def notes_of(
    curve: tuple[ScalePoint, ...], workload: Workload, question: Question, parts: Sequence[Part]
) -> Iterator[str]:
    """What a reader of a plan must know, besides what its fleets and steps say."""
    if any(part.step.origin == "MEASURED" for part in parts):
        yield "The step of one device is MEASURED; what joining devices costs is MODELLED."
    for part in parts:
        missing = part.fleet.missing()
        if missing:
            yield f"Fleet {part.fleet.name} does not tell {', '.join(missing)}: not counted."
    if workload.sample_bytes is None:
        yield "How many bytes a sample has in storage was not told: reading it is not counted."
    if workload.pixels_per_sample is None:
        yield "How many pixels a sample has was not told: decoding is not counted."
    yield from _batch_notes(curve, question)
    if curve[-1].power_w is not None:
        yield (
            "Power is what the site has to supply, all devices at their limit; energy is what the "
            "modelled step draws, where the profile tells it."
        )


def _batch_notes(curve: tuple[ScalePoint, ...], question: Question) -> Iterator[str]:
    limits = (
        (question.num_samples, "the data set"),
        (question.max_global_batch, "what is said to train well"),
    )
    for limit, words in limits:
        above = ((each.num_devices, each.samples_per_step or 0.0) for each in curve)
        first = next((each for each in above if limit is not None and each[1] > limit), None)
        if first is not None:
            yield (
                f"From {first[0]:,} devices on, a step has {first[1]:,.0f} samples or more, beyond "
                f"{words} ({limit:,})."
            )
