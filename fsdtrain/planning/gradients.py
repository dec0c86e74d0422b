"""When which gradients of a step are ready to be summed, out of its profile.

It does not know networks. Seconds from the step's start; bytes on the wire.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fsdtrain.step_profile import PHASES, OpProfile, StepProfile


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Of one parameter: how much, and when the backward pass has it."""

    num_bytes: float
    ready_s: float


@dataclass(frozen=True, kw_only=True)
class GradientSchedule:
    """All gradients of a step.

    Args:
        gradients: the first ready first.
        needed_s: when the step has nothing else to do but to wait for the sums.
        how: where the times are from, in words.
    """

    gradients: tuple[Gradient, ...]
    needed_s: float
    how: str

    def stretched(self, factor: float) -> "GradientSchedule":
        """The same schedule of a step that takes `factor` times as long."""
        return GradientSchedule(
            gradients=tuple(
                Gradient(num_bytes=each.num_bytes, ready_s=each.ready_s * factor)
                for each in self.gradients
            ),
            needed_s=self.needed_s * factor,
            how=self.how,
        )


def schedule_gradients(
    profile: StepProfile, parameter_bytes: Mapping[str, float]
) -> GradientSchedule:
    """The schedule of a step's gradients.

    A parameter's gradient is ready when the last op of its layer's backward pass ends. Where the
    profile has no times of these layers, gradients come evenly over the backward pass, the last
    layers' first; where it does not even know the phases, all come at the end of the step.

    Args:
        profile: of the step.
        parameter_bytes: of each gradient by the parameter's name, "network.stem.0.weight", in the
            order of the model.
    """
    backward = [op for op in profile.ops if op.phase == "backward"]
    if not backward:
        return _all_at_the_end(parameter_bytes, profile.step_time_s)
    ends = _layer_ends(backward)
    if not ends:
        return _evenly(profile, parameter_bytes)
    layers = {name: name.rpartition(".")[0] for name in parameter_bytes}
    if ends.keys().isdisjoint(layers.values()):
        return _evenly(profile, parameter_bytes)
    last = max(ends.values())
    gradients = [
        Gradient(num_bytes=num_bytes, ready_s=ends.get(layers[name], last))
        for name, num_bytes in parameter_bytes.items()
    ]
    return GradientSchedule(
        gradients=tuple(sorted(gradients, key=lambda each: each.ready_s)),
        needed_s=last,
        how="Gradients come when the profile's backward pass has them, layer by layer",
    )


def _layer_ends(backward: list[OpProfile]) -> dict[str, float]:
    """When the last backward op of each layer ends; empty where starts are not known."""
    ends: dict[str, float] = defaultdict(float)
    for op in backward:
        if op.start_s is None or op.num_calls > 1:
            return {}
        layer = op.layer or ""
        ends[layer] = max(ends[layer], op.start_s + op.alone)
    return dict(ends)


def _evenly(profile: StepProfile, parameter_bytes: Mapping[str, float]) -> GradientSchedule:
    seconds = {phase: sum(op.time_s for op in profile.ops if op.phase == phase) for phase in PHASES}
    # The ops of some profiles leave gaps, which are shared out.
    total = sum(seconds.values())
    scale = profile.step_time_s / total if total else 0.0
    start = seconds["forward"] * scale
    return GradientSchedule(
        gradients=tuple(_spread(parameter_bytes, start, seconds["backward"] * scale)),
        needed_s=start + seconds["backward"] * scale,
        how="Gradients are taken to come evenly over the backward pass: the profile does not tell "
        "when which layer ends",
    )


def _spread(
    parameter_bytes: Mapping[str, float], start_s: float, duration_s: float
) -> Iterator[Gradient]:
    total, done = sum(parameter_bytes.values()), 0.0
    for num_bytes in reversed(tuple(parameter_bytes.values())):
        done += num_bytes
        share = done / total if total else 1.0
        yield Gradient(num_bytes=num_bytes, ready_s=start_s + share * duration_s)


def _all_at_the_end(parameter_bytes: Mapping[str, float], step_s: float) -> GradientSchedule:
    return GradientSchedule(
        gradients=tuple(
            Gradient(num_bytes=num_bytes, ready_s=step_s) for num_bytes in parameter_bytes.values()
        ),
        needed_s=step_s,
        how="No exchange is hidden: the profile does not tell the backward pass from the rest",
    )
