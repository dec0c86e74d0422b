"""When gradients are ready: from a profile with times, without starts, without phases."""

from dataclasses import replace

import pytest

from fsdtrain.planning.gradients import schedule_gradients
from fsdtrain.step_profile import StepProfile

BYTES = {"first.weight": 10.0, "first.bias": 1.0, "last.weight": 30.0}


def test_a_gradient_is_ready_when_its_layer_ends(profile: StepProfile) -> None:
    found = schedule_gradients(profile, BYTES)
    ready = [(each.num_bytes, each.ready_s) for each in found.gradients]
    assert ready == [(30.0, 0.5), (10.0, 0.9), (1.0, 0.9)]
    assert found.needed_s == 0.9


def test_a_layer_that_is_not_in_the_profile_comes_last(profile: StepProfile) -> None:
    found = schedule_gradients(profile, {"last.weight": 30.0, "other.weight": 5.0})
    assert [each.ready_s for each in found.gradients] == [0.5, found.needed_s]
    assert found.needed_s == 0.9


def test_a_profile_of_other_layers_tells_only_the_phases(profile: StepProfile) -> None:
    found = schedule_gradients(profile, {f"step.{name}": size for name, size in BYTES.items()})
    assert "evenly" in found.how
    assert found.gradients[0].ready_s < found.needed_s


def test_without_starts_gradients_come_evenly(profile: StepProfile) -> None:
    ops = tuple(replace(each, start_s=None) for each in profile.ops)
    found = schedule_gradients(replace(profile, ops=ops), BYTES)
    ready = {each.num_bytes: each.ready_s for each in found.gradients}
    assert ready[30.0] == pytest.approx(0.3 + 0.6 * 30 / 41)
    assert ready[10.0] == pytest.approx(0.9)
    assert found.needed_s == pytest.approx(0.9)
    assert "evenly" in found.how


def test_without_phases_nothing_is_hidden(profile: StepProfile) -> None:
    ops = tuple(replace(each, phase=None) for each in profile.ops)
    found = schedule_gradients(replace(profile, ops=ops), BYTES)
    assert {each.ready_s for each in found.gradients} == {found.needed_s} == {1.0}
    assert found.how.startswith("No exchange is hidden")


def test_a_longer_step_stretches_all_times(profile: StepProfile) -> None:
    found = schedule_gradients(profile, BYTES).stretched(3.0)
    assert found.needed_s == pytest.approx(2.7)
    assert found.gradients[0].ready_s == pytest.approx(1.5)
