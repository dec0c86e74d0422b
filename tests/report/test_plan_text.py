"""A plan in the terminal: every machine, its point, what it rests on, the arithmetic."""

import io

import pytest
from rich.console import Console, RenderableType

from fsdtrain.planning.device_step import Workload
from fsdtrain.planning.fleet_file import read_fleet
from fsdtrain.planning.machines import PlannedMachine, plan_machines
from fsdtrain.planning.press import answer_press_questions
from fsdtrain.planning.record import PlanRecord, Question
from fsdtrain.report.plan_text import curve_table, plan_text, press_table, summary_table
from fsdtrain.step_profile import OpProfile, StepProfile

PROFILE = StepProfile(
    backend="test",
    device="a [test] device",
    origin="MEASURED",
    step_time_s=0.25,
    ops=(
        OpProfile(
            name="convolution", shapes="4x3", dtype="bf16", num_calls=1, time_s=0.25, flops=None,
            num_bytes=None, bound_by="matrix",
        ),
    ),
)  # fmt: skip
WORKLOAD = Workload(
    model="a model of 1 M parameters",
    parameter_shapes={"stem.weight": (1000, 1000)},
    sample_bytes=1e6,
    pixels_per_sample=6e6,
)


def record(target_s: float | None = 86400.0, price: float | None = 2.0) -> PlanRecord:
    question = Question(
        num_samples=10_000_000, num_epochs=2.0, batch_per_device=8, target_s=target_s, budget=None,
        currency="EUR",
    )  # fmt: skip
    given = {} if price is None else {"device_price_per_hour": price}
    machines = [
        PlannedMachine(fleet=read_fleet(name, given), profile=PROFILE, batch_size=8)
        for name in ("h100", "d1_tile")
    ]
    return PlanRecord(
        question=question,
        model=WORKLOAD.model,
        machines=plan_machines(machines, WORKLOAD, question, most_devices=1000),
        press=answer_press_questions()[:1],
    )


def printed(part: RenderableType, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(part)
    return console.export_text()


def test_a_row_a_machine_with_origin_and_limit() -> None:
    text = printed(summary_table(record()))
    assert "a model of 1 M parameters: 10,000,000 samples x 2 in 24 hours" in text
    h100 = next(line for line in text.splitlines() if "h100" in line)
    assert "h100 (MEASURED)" in h100
    assert "8" in h100.split()
    assert "EUR" in h100
    assert "compute (matrix)" in h100


def test_what_misses_its_target_is_marked_and_what_is_not_known_is_a_dash() -> None:
    missed = printed(summary_table(record(target_s=10.0, price=None)))
    assert missed.count("(misses)") == 2
    assert " - " in missed
    assert "(misses)" not in printed(summary_table(record(target_s=None)))


def test_the_curve_has_a_row_for_every_point() -> None:
    found = record().machines[0]
    table = curve_table(found, record().question)
    assert table.row_count == len(found.curve)
    text = printed(table)
    assert "a [test] device" in text
    assert "batch" in text
    last = next(line.split() for line in text.splitlines() if line.split()[:1] == ["1,000"])
    assert last[1:3] == ["8", "k"], "8 samples of each device"
    assert "cost" in text
    free = record(price=None)
    assert "cost" not in printed(curve_table(free.machines[0], free.question))
    for limit in {point.limit for point in found.curve}:
        assert limit in text


def test_the_press_has_its_arithmetic_with_sources() -> None:
    text = " ".join(printed(press_table(record().press[0])).split())
    assert "362 TFLOP/s" in text
    assert "published: over 276,000 D1 or about 320,500 A100" in text


@pytest.mark.parametrize("width", [60, 100, 200])
def test_all_of_it_fits_any_terminal(width: int) -> None:
    text = printed(plan_text(record()), width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert "h100: 8 devices take" in words
    assert "rests on straggler_share 0.02 share (ASSUMED): with 0.005 to 0.05, 8 devices" in words
    assert "The step of one device is MEASURED" in words
    assert "276,243 D1 by the peak that is printed" in words
