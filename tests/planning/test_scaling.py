"""Points of a scaling curve: closed forms, and what can only go one way."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdtrain.planning.device_step import Workload, device_step
from fsdtrain.planning.fleet import Fleet
from fsdtrain.planning.record import Question, ScalePoint
from fsdtrain.planning.scaling import Part, scale_point
from fsdtrain.planning.stragglers import expected_maximum
from fsdtrain.step_profile import StepProfile
from tests.planning.conftest import MakeFleet, MakeQuestion

MakePoint = Callable[..., ScalePoint]
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture
def point(profile: StepProfile, workload: Workload, make_question: MakeQuestion) -> MakePoint:
    """A point of so many devices of one fleet."""

    def find(
        count: int,
        fleet: Fleet,
        question: Question | None = None,
        work: Workload = workload,
        **step: float,
    ) -> ScalePoint:
        one = replace(device_step(profile, work, batch_size=4), **step)
        part = Part(step=one, fleet=fleet, num_devices=count)
        found = scale_point([part], work, question or make_question())
        assert found is not None
        return found

    return find


def test_one_device_takes_the_profiles_step(point: MakePoint, make_fleet: MakeFleet) -> None:
    found = point(1, make_fleet(straggler_share=0.05))
    assert (found.step_s, found.compute_s, found.exposed_s) == (1.0, 1.0, 0.0)
    assert (found.straggler_share, found.failure_share, found.efficiency) == (0.0, 0.0, 1.0)
    assert found.checkpoint_interval_s is None
    assert found.samples_per_s == 4.0
    assert found.time_to_train_s == 500_000
    assert found.limit == "memory"  # the profile's own bound


def test_an_infinite_network_exposes_nothing(point: MakePoint, make_fleet: MakeFleet) -> None:
    found = point(64, make_fleet(gb_per_s=1e12))
    assert found.exposed_s == pytest.approx(0.0, abs=1e-9)
    assert found.efficiency == pytest.approx(1.0)
    assert found.samples_per_step == 256


def test_exposed_exchange_is_that_of_the_last_bucket(
    point: MakePoint, make_fleet: MakeFleet
) -> None:
    """Two devices, 1 GB/s: 3 MB are summed while the first layer works, 1 MB is not hidden."""
    assert point(2, make_fleet(gb_per_s=1.0)).exposed_s == pytest.approx(1e-3)
    slow = point(2, make_fleet(gb_per_s=1e-3))  # 3 s and 1 s after 0.5 s; the pass ends at 0.9 s
    assert slow.exposed_s == pytest.approx(0.5 + 3 + 1 - 0.9)
    assert slow.limit == "network"


def test_the_slowest_device_is_waited_for(point: MakePoint, make_fleet: MakeFleet) -> None:
    found = point(1000, make_fleet(gb_per_s=1e12, straggler_share=0.05))
    assert found.step_s == pytest.approx(1 + 0.05 * expected_maximum(1000))
    assert found.limit == "stragglers"


def test_input_is_waited_for(point: MakePoint, make_fleet: MakeFleet, workload: Workload) -> None:
    work = replace(workload, sample_bytes=1e9, pixels_per_sample=100e6)
    fast = {"storage_gb_per_s": 80.0, "node_input_gb_per_s": 40.0, "devices_per_node": 2}
    # 8 devices and 4 samples of 1 GB: 32 GB at 80 GB/s are hidden.
    hidden = point(8, make_fleet(gb_per_s=1e12, **fast), work=work)
    assert hidden.input_s == 0.0
    assert hidden.ingest_bytes_per_s == pytest.approx(32e9)
    storage = point(32, make_fleet(gb_per_s=1e12, **fast), work=work)
    assert storage.step_s == pytest.approx(128 / 80)
    assert storage.limit == "input"
    node = point(2, make_fleet(gb_per_s=1e12, **fast | {"node_input_gb_per_s": 2.0}), work=work)
    assert node.step_s == pytest.approx(4.0)
    decoded = point(
        2,
        make_fleet(gb_per_s=1e12, node_decode_megapixels_per_s=400.0, devices_per_node=2),
        work=work,
    )
    assert decoded.step_s == pytest.approx(2.0)
    waiting = point(1, make_fleet(), data_wait_s=0.5)
    assert waiting.step_s == pytest.approx(1.5)


def test_what_is_read_ahead_is_not_late_for_the_slowest(
    point: MakePoint, make_fleet: MakeFleet, workload: Workload
) -> None:
    """8 devices of one node read 32 GB a step: devices that wait for each other read on."""
    work = replace(workload, sample_bytes=1e9)

    def step_s(gb_per_s: float) -> float:
        figures = {"straggler_share": 0.1, "node_input_gb_per_s": gb_per_s, "devices_per_node": 8}
        return point(8, make_fleet(gb_per_s=1e12, **figures), work=work).step_s

    waited_s = 1 + 0.1 * expected_maximum(8)
    assert step_s(32 / waited_s * 1.001) == pytest.approx(waited_s)
    assert step_s(16.0) == pytest.approx(2.0)


def test_stops_and_checkpoints_cost_time(point: MakePoint, make_fleet: MakeFleet) -> None:
    """1,024 devices that stop each 7.9 h together, 5 s a checkpoint, 300 s a restart: 2.9 %."""
    fleet = make_fleet(
        gb_per_s=1e12, device_mtbf_hours=7.9 * 1024, checkpoint_start_s=5 - 12e-3,
        checkpoint_gb_per_s=1.0, restart_s=300.0,
    )  # fmt: skip
    found = point(1024, fleet)
    assert found.failure_share == pytest.approx(0.029, abs=0.001)
    assert found.checkpoint_interval_s == pytest.approx(530, abs=1)
    assert found.step_s == pytest.approx(1.0)
    assert found.efficiency == pytest.approx(1 - found.failure_share)
    worse = point(1024 * 64, fleet)
    assert worse.limit == "failures"


def test_devices_that_stop_at_once_never_end(
    profile: StepProfile, workload: Workload, make_fleet: MakeFleet, make_question: MakeQuestion
) -> None:
    fleet = make_fleet(device_mtbf_hours=1.0, restart_s=300.0, checkpoint_start_s=5.0)
    part = Part(step=device_step(profile, workload, batch_size=4), fleet=fleet, num_devices=10_000)
    assert scale_point([part], workload, make_question()) is None


def test_power_energy_and_cost_add_up(point: MakePoint, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(
        gb_per_s=1e12, devices_per_node=8, device_watts=500.0, node_watts=1000.0, pue=1.5,
        device_price_per_hour=2.0, energy_price_per_kwh=0.1,
    )  # fmt: skip
    found = point(10, fleet)  # two nodes
    hours = found.time_to_train_s / 3600
    assert found.power_w == pytest.approx((10 * 500 + 2 * 1000) * 1.5)
    # The step draws 200 W on average.
    assert found.energy_j == pytest.approx((10 * 200 + 2 * 1000) * 1.5 * hours * 3600)
    kilowatt_hours = found.energy_j / 3.6e6
    assert found.cost == pytest.approx(10 * 2.0 * hours + 0.1 * kilowatt_hours)
    # What a step would draw above the limit, it cannot; what is not known is the limit.
    for watts in (None, 900.0):
        hot = point(10, fleet, watts=watts)
        assert hot.energy_j == pytest.approx((10 * 500 + 2 * 1000) * 1.5 * hours * 3600)
    unknown = point(10, make_fleet())
    assert (unknown.power_w, unknown.energy_j, unknown.cost) == (None, None, None)


@SHARED
@given(factor=st.floats(min_value=1.0, max_value=100.0), count=st.integers(1, 3000))
def test_twice_the_data_takes_twice_as_long(
    point: MakePoint, make_fleet: MakeFleet, make_question: MakeQuestion, factor: float, count: int
) -> None:
    fleet = make_fleet(straggler_share=0.02, device_mtbf_hours=1e5, checkpoint_start_s=5.0)
    once = point(count, fleet, make_question(num_epochs=1.0))
    more = point(count, fleet, make_question(num_epochs=factor))
    assert more.time_to_train_s == pytest.approx(factor * once.time_to_train_s)
    assert more.step_s == once.step_s


@SHARED
@given(
    name=st.sampled_from(["device_mtbf_hours", "storage_gb_per_s", "node_input_gb_per_s"]),
    factor=st.floats(min_value=1.0, max_value=50.0),
    count=st.integers(1, 4000),
)
def test_a_better_fleet_is_never_slower(
    point: MakePoint,
    make_fleet: MakeFleet,
    workload: Workload,
    name: str,
    factor: float,
    count: int,
) -> None:
    fleet = make_fleet(
        straggler_share=0.02, device_mtbf_hours=5e4, checkpoint_start_s=5.0, restart_s=60.0,
        storage_gb_per_s=100.0, node_input_gb_per_s=0.1,
    )  # fmt: skip
    work = replace(workload, sample_bytes=1e8)
    better = fleet.with_figure(name, factor * (fleet.figures()[name].value))
    quick = point(count, better, work=work).time_to_train_s
    assert quick <= point(count, fleet, work=work).time_to_train_s * (1 + 1e-12)


@SHARED
@given(count=st.integers(1, 4000), sigma=st.floats(min_value=0.0, max_value=0.1))
def test_losses_account_for_the_lost_efficiency(
    point: MakePoint, make_fleet: MakeFleet, workload: Workload, count: int, sigma: float
) -> None:
    fleet = make_fleet(
        straggler_share=sigma, device_mtbf_hours=5e4, checkpoint_start_s=5.0, storage_gb_per_s=1e3
    )
    found = point(count, fleet, work=replace(workload, sample_bytes=1e8))
    work_s = found.compute_s + found.exposed_s
    assert found.step_s == pytest.approx(work_s * (1 + found.straggler_share) + found.input_s)
    assert found.efficiency == pytest.approx((1 - found.failure_share) / found.step_s)
    assert 0 < found.efficiency <= 1
    assert math.isfinite(found.time_to_train_s)
