"""One step of one device by itself, as plans use it: out of a profile, measured or modelled.

A device that holds several replicas (a Dojo tile of 25 dies) trains in the placement with the most
samples a second; what its replicas exchange inside it is the profile's own figure.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from fsdtrain.planning.gradients import GradientSchedule, schedule_gradients
from fsdtrain.planning.record import Limit
from fsdtrain.step_profile import Assumption, Origin, ScaleRow, StepProfile

MEMORY_BOUNDS = frozenset({"HBM", "SRAM port", "memory", "shared memory"})
UNKNOWN_BOUND = "not known"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained, as far as a fleet feels it.

    Args:
        model: in words: "hydra-bev tiny, 0.196 M parameters".
        parameter_shapes: by name, in the order of the model: what has a gradient.
        wire_bytes: of one element of a gradient on the network; 4 is FP32.
        state_bytes: of one parameter in a checkpoint: 12 is FP32 with two moments of AdamW.
        sample_bytes: of a sample in storage; None: not known, and not counted.
        pixels_per_sample: to decode; None: not known, and not counted.
    """

    model: str
    parameter_shapes: Mapping[str, tuple[int, ...]]
    wire_bytes: float = 4.0
    state_bytes: float = 12.0
    sample_bytes: float | None = None
    pixels_per_sample: float | None = None

    @property
    def num_parameters(self) -> int:
        return sum(prod(shape) for shape in self.parameter_shapes.values())

    @property
    def checkpoint_bytes(self) -> float:
        return self.state_bytes * self.num_parameters

    def gradient_bytes(self) -> dict[str, float]:
        """By parameter."""
        return {
            name: self.wire_bytes * prod(shape) for name, shape in self.parameter_shapes.items()
        }


@dataclass(frozen=True, kw_only=True)
class DeviceStep:
    """One step of one device by itself.

    Args:
        device: in words.
        origin: of the time.
        num_samples: that it trains.
        step_s: whole.
        exposed_s: of that, the exchange inside the device that nothing hides.
        bound: what bounds most of the step's time, in the profile's word.
        limit: the same in a plan's word.
        watts: on average while it trains; None: not known.
        data_wait_s: that a measured step waits for its batch on its own host.
        schedule: of the gradients that leave the device.
        assumptions: of the profile, whose times are of `profile_step_s`.
        profile_step_s: of the profile, which may be of another placement.
        notes: what a reader must know.
    """

    device: str
    origin: Origin
    num_samples: float
    step_s: float
    exposed_s: float
    bound: str
    limit: Limit
    watts: float | None
    data_wait_s: float
    schedule: GradientSchedule
    assumptions: tuple[Assumption, ...]
    profile_step_s: float
    notes: tuple[str, ...]

    @property
    def samples_per_s(self) -> float:
        return self.num_samples / self.step_s

    def resized(self, factor: float) -> "DeviceStep":
        """With a batch `factor` times as large, which is taken to need as many times as long."""
        return replace(self.slowed(factor), num_samples=self.num_samples * factor)

    def slowed(self, factor: float) -> "DeviceStep":
        """The same batch on a device that takes `factor` times as long."""
        return replace(
            self,
            step_s=self.step_s * factor,
            exposed_s=self.exposed_s * factor,
            schedule=self.schedule.stretched(factor),
        )


def device_step(
    profile: StepProfile, workload: Workload, *, batch_size: int, max_samples: float | None = None
) -> DeviceStep:
    """The step of one device.

    Args:
        profile: of the captured step.
        workload: what is trained.
        batch_size: of the captured step.
        max_samples: that a step may train; None: any number.
    """
    row = _best_row(profile, max_samples)
    step_s = profile.step_time_s if row is None else row.step_time_s
    schedule = schedule_gradients(profile, workload.gradient_bytes())
    bound = _main_bound(profile)
    energy_j = profile.energy_j if row is None else row.energy_j
    return DeviceStep(
        # The profile of a large machine is that of the part which holds one replica.
        device=profile.device if row is None else f"{row.machine}, {row.placement}",
        origin=profile.origin,
        num_samples=batch_size if row is None else row.num_samples,
        step_s=step_s,
        exposed_s=0.0 if row is None else row.exposed_s or 0.0,
        bound=bound,
        limit="memory" if bound in MEMORY_BOUNDS else "compute",
        watts=None if energy_j is None else energy_j / step_s,
        data_wait_s=profile.data_wait_s or 0.0,
        schedule=schedule.stretched(step_s / profile.step_time_s),
        assumptions=profile.assumptions,
        profile_step_s=profile.step_time_s,
        notes=(*profile.notes, *(() if row is None else (_row_note(row),)), schedule.how + "."),
    )


def _best_row(profile: StepProfile, max_samples: float | None) -> ScaleRow | None:
    """The placement of several replicas with the most samples a second; None: one is best."""
    rows = [] if profile.scale is None else profile.scale.rows
    alone = next((each for each in rows if each.num_replicas == 1), None)
    best = max(
        (each for each in rows if max_samples is None or each.num_samples <= max_samples),
        key=lambda each: each.num_samples / each.step_time_s,
        default=None,
    )
    if best is None or best.num_replicas == 1 or best == alone:
        return None
    return best


def _row_note(row: ScaleRow) -> str:
    return (
        f"A device trains {row.placement}, {row.num_samples} samples a step; what they exchange "
        "inside it is the backend's own model of the mesh, and only what leaves it is alpha-beta."
    )


def _main_bound(profile: StepProfile) -> str:
    seconds: Counter[str] = Counter()
    for op in profile.ops:
        if op.bound_by is not None:
            seconds[op.bound_by] += op.time_s  # type: ignore[assignment]  # seconds, not a count
    return seconds.most_common(1)[0][0] if seconds else UNKNOWN_BOUND
