"""Plans of machines: the needed devices, the sentence, what is noted, what is refused."""

from dataclasses import replace

import msgspec
import pytest

from fsdtrain.errors import UserError
from fsdtrain.planning.device_step import Workload
from fsdtrain.planning.fleet import Fleet
from fsdtrain.planning.fleet_file import read_fleet
from fsdtrain.planning.machines import PlannedMachine, plan_machines
from fsdtrain.planning.record import MachinePlan, Question
from fsdtrain.step_profile import Assumption, StepProfile
from tests.planning.conftest import MakeFleet, MakeQuestion

DAY = 86400.0


def plan(
    profile: StepProfile, fleet: Fleet, workload: Workload, question: Question, most: int = 10_000
) -> MachinePlan:
    machine = PlannedMachine(fleet=fleet, profile=profile, batch_size=4)
    (found,) = plan_machines([machine], workload, question, most_devices=most)
    return found


def test_the_fewest_devices_for_a_target(
    profile: StepProfile, workload: Workload, make_fleet: MakeFleet, make_question: MakeQuestion
) -> None:
    """500,000 s of work on perfect devices: 50 take 10,000 s, 51 are the first below that."""
    fleet = make_fleet(gb_per_s=1e12)
    found = plan(profile, fleet, workload, make_question(target_s=9_999.0))
    assert found.needed is not None
    assert found.needed.num_devices == 51
    assert found.needed in found.curve
    assert [each.num_devices for each in found.curve] == sorted(
        {each.num_devices for each in found.curve}
    )
    assert found.sentence == (
        "51 devices take 2.72 hours at 100.0% efficiency; limited by the device's own memory."
    )
    boxes = make_fleet(gb_per_s=1e12, devices_per_node=8)
    in_boxes = plan(profile, boxes, workload, make_question(target_s=9_999.0))
    assert in_boxes.sentence.startswith("56 devices (7 nodes) take 2.48 hours")


def test_a_target_that_nothing_meets(
    profile: StepProfile, workload: Workload, make_fleet: MakeFleet, make_question: MakeQuestion
) -> None:
    found = plan(profile, make_fleet(), workload, make_question(target_s=1.0), most=100)
    assert found.needed is None
    assert found.sentence.startswith("No number of devices up to 100 trains it in 1 s.")
    turning = make_fleet(device_mtbf_hours=30.0, restart_s=900.0, checkpoint_start_s=30.0)
    worse = plan(profile, turning, workload, make_question(target_s=1.0))
    assert worse.sentence.endswith("More devices make it slower.")
    assert "limited by failures" in worse.sentence


def test_a_budget_buys_the_quickest_that_it_can_pay(
    profile: StepProfile, workload: Workload, make_fleet: MakeFleet, make_question: MakeQuestion
) -> None:
    fleet = make_fleet(gb_per_s=1e12, device_price_per_hour=3.6, straggler_share=0.05)
    # One device: 500,000 s at 0.001 a second; the slowest of N adds to that.
    found = plan(profile, fleet, workload, make_question(budget=580.0))
    assert found.needed is not None
    assert found.needed.cost == pytest.approx(580.0, abs=0.5)
    assert found.needed.num_devices > 100
    poor = plan(profile, fleet, workload, make_question(budget=400.0))
    assert poor.sentence.startswith("Not even 1 device can be paid from 400 EUR: ")
    late = plan(profile, fleet, workload, make_question(budget=400.0, target_s=DAY))
    assert late.needed is not None
    assert late.sentence.endswith("That is above the budget of 400 EUR.")
    with pytest.raises(UserError, match="fleet test has no price: give device_price_per_hour"):
        plan(profile, make_fleet(), workload, make_question(budget=400.0))


def test_notes_say_what_is_not_counted_and_when_batches_grow_too_large(
    profile: StepProfile, workload: Workload, make_fleet: MakeFleet, make_question: MakeQuestion
) -> None:
    question = make_question(num_samples=1000, max_global_batch=100)
    notes = plan(profile, make_fleet(), workload, question).notes
    assert any("does not tell device_watts" in note and "not counted" in note for note in notes)
    assert any("reading it is not counted" in note for note in notes)
    assert any("decoding is not counted" in note for note in notes)
    assert "From 32 devices on, a step has 128 samples or more, beyond what is said to train " in (
        " ".join(notes)
    )
    assert "From 316 devices on, a step has 1,264 samples or more, beyond the data set" in (
        " ".join(notes)
    )
    told = replace(workload, sample_bytes=1e6, pixels_per_sample=6e6)
    measured = replace(profile, origin="MEASURED")
    found = plan(measured, read_fleet("h100"), told, make_question())
    assert not any("not counted" in note for note in found.notes)
    assert any("is MEASURED; what joining devices costs is MODELLED" in n for n in found.notes)
    assert found.step_origin == "MEASURED"


def test_every_figure_of_the_fleet_is_told_with_its_source(
    profile: StepProfile, workload: Workload, make_question: MakeQuestion
) -> None:
    fleet = read_fleet("h100", {"restart_s": 60})
    figures = {each.name: each for each in plan(profile, fleet, workload, make_question()).figures}
    assert figures["step of one device"].origin == "MODELLED"
    assert figures["restart_s"].origin == "GIVEN"
    assert figures["device_mtbf_hours"].origin == "PUBLISHED"
    assert figures["InfiniBand latency_us"].origin == "ASSUMED"
    assert figures["InfiniBand latency_us"].unit == "us"
    assert set(fleet.figures()) == set(figures) - {"step of one device"}


def test_what_moves_the_time_most_comes_first(
    profile: StepProfile, workload: Workload, make_question: MakeQuestion
) -> None:
    crossing = Assumption(
        name="crossing_ns", value=100, unit="ns", source="a test", confidence="assumed",
        low=50, high=300, step_time_at_low_s=0.5, step_time_at_high_s=3.0,
    )  # fmt: skip
    doubtful = replace(profile, assumptions=(crossing,))
    found = plan(doubtful, read_fleet("h100"), workload, make_question(target_s=DAY))
    assert found.needed is not None
    first, *others = found.sensitivities
    assert first.name == "crossing_ns"
    now = found.needed.time_to_train_s
    assert first.num_devices == found.needed.num_devices
    assert first.time_at_low_s == pytest.approx(0.5 * now, rel=0.01)
    assert first.time_at_high_s == pytest.approx(3.0 * now, rel=0.01)
    moves = [abs(each.time_at_high_s - each.time_at_low_s) for each in found.sensitivities]
    assert moves == sorted(moves, reverse=True)
    stragglers = next(each for each in others if each.name == "straggler_share")
    assert stragglers.time_at_low_s < now < stragglers.time_at_high_s
    assert not any(each.name == "pue" for each in others)  # moves no time


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"num_samples": 0}, "num_samples=0: must be above 0"),
        ({"num_epochs": -1.0}, "num_epochs=-1.0: must be above 0"),
        ({"num_epochs": float("nan")}, "num_epochs=nan: must be above 0"),
        ({"target_s": 0.0}, "target_s=0.0: must be above 0, or null"),
        ({"budget": -5.0}, "budget=-5.0: must be above 0, or null"),
        ({"max_global_batch": 0}, "max_global_batch=0: must be above 0, or null"),
    ],
)
def test_a_question_that_cannot_be_answered(
    profile: StepProfile,
    workload: Workload,
    make_fleet: MakeFleet,
    make_question: MakeQuestion,
    given: dict[str, float],
    sentence: str,
) -> None:
    with pytest.raises(UserError, match="^plan: ") as caught:
        plan(profile, make_fleet(), workload, make_question(**given))
    assert sentence in str(caught.value)


def test_a_profile_without_time_and_a_fleet_that_always_stops(
    profile: StepProfile, workload: Workload, make_fleet: MakeFleet, make_question: MakeQuestion
) -> None:
    with pytest.raises(UserError, match="a step of 0 s with 4 samples: both must be above 0"):
        plan(replace(profile, step_time_s=0.0), make_fleet(), workload, make_question())
    broken = make_fleet(device_mtbf_hours=1e-3, restart_s=900.0, checkpoint_start_s=1.0)
    with pytest.raises(UserError, match="fleet test even one device stops so often"):
        plan(profile, broken, workload, make_question())


def test_a_plan_goes_through_json(
    profile: StepProfile, workload: Workload, make_question: MakeQuestion
) -> None:
    found = plan(profile, read_fleet("exapod"), workload, make_question(target_s=DAY))
    assert msgspec.json.decode(msgspec.json.encode(found), type=MachinePlan) == found
