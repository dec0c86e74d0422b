"""One device by itself: the profile's own step, or the best placement of several replicas."""

from dataclasses import replace

import pytest

from fsdtrain.planning.device_step import Workload, device_step
from fsdtrain.step_profile import ScaleProfile, ScaleRow, StepProfile


def row(num_replicas: int, num_samples: int, step_s: float, exposed_s: float = 0.0) -> ScaleRow:
    return ScaleRow(
        machine="test",
        num_replicas=num_replicas,
        placement=f"{num_replicas} x one die, batch 4 each",
        num_samples=num_samples,
        step_time_s=step_s,
        exposed_s=exposed_s,
        energy_j=50.0,
    )


def with_rows(profile: StepProfile, *rows: ScaleRow) -> StepProfile:
    return replace(profile, scale=ScaleProfile(rows=rows))


def test_without_replicas_it_is_the_profile(profile: StepProfile, workload: Workload) -> None:
    found = device_step(profile, workload, batch_size=4)
    assert (found.step_s, found.num_samples, found.exposed_s) == (1.0, 4, 0.0)
    assert (found.bound, found.limit, found.watts) == ("HBM", "memory", 200.0)
    alone = device_step(with_rows(profile, row(1, 4, 1.0)), workload, batch_size=4)
    assert alone == found


def test_the_placement_with_most_samples_a_second_is_taken(
    profile: StepProfile, workload: Workload
) -> None:
    rows = (row(25, 100, 2.0, 0.5), row(1, 4, 1.0))
    found = device_step(with_rows(profile, *rows), workload, batch_size=4)
    assert (found.step_s, found.num_samples, found.exposed_s, found.watts) == (2.0, 100, 0.5, 25.0)
    assert found.schedule.needed_s == pytest.approx(1.8)
    assert found.device == "test, 25 x one die, batch 4 each"
    assert any("25 x one die" in note and "alpha-beta" in note for note in found.notes)


def test_no_step_has_more_samples_than_allowed(profile: StepProfile, workload: Workload) -> None:
    rows = (row(25, 100, 2.0), row(5, 20, 1.5), row(1, 4, 1.0))
    found = device_step(with_rows(profile, *rows), workload, batch_size=4, max_samples=50)
    assert found.num_samples == 20


def test_gradients_and_checkpoint_weigh_what_the_parameters_do(workload: Workload) -> None:
    assert workload.num_parameters == 1_000_000
    assert workload.checkpoint_bytes == 12e6
    assert workload.gradient_bytes() == {"first.weight": 1e6, "last.weight": 3e6}


def test_a_larger_batch_takes_its_share_more_time(profile: StepProfile, workload: Workload) -> None:
    one = device_step(profile, workload, batch_size=4)
    assert one.resized(2.5).num_samples == 10
    assert one.resized(2.5).samples_per_s == pytest.approx(one.samples_per_s)
    assert one.slowed(2.0).samples_per_s == pytest.approx(one.samples_per_s / 2)
