"""Two kinds that train together: equal steps, both readings of half."""

from dataclasses import replace

import pytest

from fsdtrain.errors import UserError
from fsdtrain.planning.device_step import Workload
from fsdtrain.planning.machines import PlannedMachine, plan_machines
from fsdtrain.planning.mixed import plan_mixed
from fsdtrain.step_profile import StepProfile
from tests.planning.conftest import MakeFleet, MakeQuestion


@pytest.fixture
def kinds(profile: StepProfile, make_fleet: MakeFleet) -> list[PlannedMachine]:
    """The second kind is twelve times as quick."""
    fleet = make_fleet(gb_per_s=1e12)
    return [
        PlannedMachine(fleet=fleet, profile=profile, batch_size=4),
        PlannedMachine(fleet=fleet, profile=quicker(profile, 12.0), batch_size=4),
    ]


def quicker(profile: StepProfile, factor: float) -> StepProfile:
    return replace(profile, step_time_s=profile.step_time_s / factor)


def test_both_readings_of_half(
    kinds: list[PlannedMachine], workload: Workload, make_question: MakeQuestion
) -> None:
    by_device, by_rate = plan_mixed("half and half", kinds, workload, make_question())
    assert by_device.name == "half and half (half of the devices each)"
    assert by_rate.name == "half and half (half of the samples a second each)"
    two = by_device.curve[0]
    assert two.num_devices == 2
    assert two.step_s == pytest.approx(1.0)  # both end together, when the slower does
    assert two.samples_per_step == pytest.approx(4 + 12 * 4)
    thirteen = by_rate.curve[0]
    assert thirteen.num_devices == 13
    assert thirteen.samples_per_step == pytest.approx(12 * 4 + 12 * 4)
    assert all(each.num_devices % 13 == 0 for each in by_rate.curve)
    assert two.efficiency == pytest.approx(1.0)
    assert any("with 50.0% of the batch" in note for note in by_rate.notes)


def test_two_halves_of_one_kind_are_that_kind(
    kinds: list[PlannedMachine], workload: Workload, make_question: MakeQuestion
) -> None:
    question = make_question(target_s=9_700.0)
    (alone,) = plan_machines(kinds[:1], workload, question)
    for mixed in plan_mixed("twice the same", [kinds[0], kinds[0]], workload, question):
        assert mixed.needed == alone.needed
        at = {each.num_devices: each for each in alone.curve}
        assert all(each == at[each.num_devices] for each in mixed.curve if each.num_devices in at)


def test_the_order_of_the_kinds_does_not_matter(
    kinds: list[PlannedMachine], workload: Workload, make_question: MakeQuestion
) -> None:
    question = make_question(target_s=5_000.0)
    for a, b in zip(
        plan_mixed("m", kinds, workload, question),
        plan_mixed("m", kinds[::-1], workload, question),
        strict=True,
    ):
        assert a.needed is not None
        assert b.needed is not None
        assert a.needed.num_devices == b.needed.num_devices
        assert a.needed.time_to_train_s == pytest.approx(b.needed.time_to_train_s)


def test_what_cannot_be_mixed(
    kinds: list[PlannedMachine], workload: Workload, make_question: MakeQuestion
) -> None:
    with pytest.raises(UserError, match="has two kinds of machines, not 1"):
        plan_mixed("m", kinds[:1], workload, make_question())
    with pytest.raises(UserError, match="fleet test has no price"):
        plan_mixed("m", kinds, workload, make_question(budget=100.0))
    with pytest.raises(UserError, match=r"smallest such fleet has 13 devices, and at most 10"):
        plan_mixed("m", kinds, workload, make_question(), most_devices=10)
