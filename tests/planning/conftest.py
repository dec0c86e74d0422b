"""A step, a fleet and a question made by hand, small enough to compute by head."""

from collections.abc import Callable

import pytest

from fsdtrain.planning.device_step import Workload
from fsdtrain.planning.fleet import Figure, Fleet, NetworkLevel
from fsdtrain.planning.record import Question
from fsdtrain.step_profile import OpProfile, Phase, StepProfile

MakeFleet = Callable[..., Fleet]
MakeQuestion = Callable[..., Question]


def figure(value: float, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value=value, source="a test", confidence="assumed", low=low, high=high)


def op(phase: Phase, layer: str, start_s: float, time_s: float, bound: str = "HBM") -> OpProfile:
    return OpProfile(
        name="convolution",
        shapes="4x3",
        dtype="bf16",
        num_calls=1,
        time_s=time_s,
        flops=None,
        num_bytes=None,
        bound_by=bound,
        phase=phase,
        layer=layer,
        start_s=start_s,
    )


@pytest.fixture
def profile() -> StepProfile:
    """One second: 0.3 s forward, 0.6 s backward from the last layer on, 0.1 s optimiser."""
    return StepProfile(
        backend="test",
        device="a test device",
        origin="MODELLED",
        step_time_s=1.0,
        energy_j=200.0,
        ops=(
            op("backward", "first", 0.5, 0.4),
            op("forward", "first", 0.0, 0.2, "matrix"),
            op("backward", "last", 0.3, 0.2),
            op("forward", "last", 0.2, 0.1, "matrix"),
            op("optimizer", "", 0.9, 0.1),
        ),
    )


@pytest.fixture
def workload() -> Workload:
    return Workload(
        model="a test model",
        parameter_shapes={"first.weight": (1000, 250), "last.weight": (1000, 750)},
    )


@pytest.fixture
def make_fleet() -> MakeFleet:
    """Nothing stops, nothing waits, until a figure says so."""

    def make(devices_per_node: int = 1, gb_per_s: float = 1.0, **figures: float) -> Fleet:
        return Fleet(
            name="test",
            summary="a test fleet",
            machine=None,
            devices_per_node=devices_per_node,
            levels=(
                NetworkLevel(
                    name="network",
                    num_devices=None,
                    latency_us=figure(0.0),
                    bandwidth_gb_per_s=figure(gb_per_s),
                ),
            ),
            **{name: figure(value) for name, value in figures.items()},
        )

    return make


@pytest.fixture
def make_question() -> MakeQuestion:
    def make(**given: float | None) -> Question:
        return Question(
            **{
                "num_samples": 1_000_000,
                "num_epochs": 2.0,
                "batch_per_device": 4,
                "target_s": None,
                "budget": None,
                "currency": "EUR",
                **given,
            }
        )

    return make
