"""plan.html: the question, one answer a machine, curves, points, figures and press."""

from itertools import pairwise

import msgspec
import pytest
from sample_plan import make_plan_record

from fsdtrain.report.html import render
from fsdtrain.report.plan_charts import make_efficiency_chart, make_sensitivity_chart
from fsdtrain.report.plan_page import make_plan_page
from fsdtrain.report.plan_words import duration, money


def test_each_machine_has_its_answer() -> None:
    page = make_plan_page(make_plan_record())
    assert [(one.name, one.is_answered) for one in page.answers] == [
        ("h100", True), ("d1_tile", True), ("a100", False),
    ]  # fmt: skip
    assert page.answers[0].heading == "8 devices"
    facts = {fact.label: fact.value for fact in page.answers[1].facts}
    assert facts["Cost"] == "no price given"
    assert page.answers[2].heading == "No number of devices reaches it"


def test_a_step_has_the_samples_of_all_replicas_of_a_device() -> None:
    record = make_plan_record()
    assert " a step of 32 samples," in make_plan_page(record).answers[0].step
    many = msgspec.structs.replace(record.machines[0].curve[0], samples_per_step=800.0)
    machine = msgspec.structs.replace(record.machines[0], curve=(many,))
    page = make_plan_page(make_plan_record(machines=(machine,)))
    assert " a step of 800 samples," in page.answers[0].step


def test_without_a_target_no_machine_fails_it() -> None:
    record = make_plan_record()
    question = msgspec.structs.replace(record.question, target_s=None, budget=None)
    machine = msgspec.structs.replace(record.machines[0], needed=None)
    page = make_plan_page(make_plan_record(question=question, machines=(machine,)))
    assert page.answers[0].heading == "No target was asked for"
    assert not page.answers[0].has_target


def test_the_curves_are_those_of_the_record() -> None:
    record = make_plan_record()
    page = make_plan_page(record)
    assert page.rates is not None
    lines = {trace["name"]: trace for trace in page.rates.figure["data"]}
    for machine in record.machines:
        assert lines[machine.name]["x"] == [point.num_devices for point in machine.curve]
        rates = [point.samples_per_s for point in machine.curve]
        assert lines[machine.name]["y"] == pytest.approx(rates, rel=1e-5)
    assert lines["h100, needed"]["x"] == [8]
    assert "a100, needed" not in lines


def test_every_point_is_coloured_and_named_by_what_limits_it() -> None:
    machine = make_plan_record().machines[0]
    chart = make_efficiency_chart(machine)
    found = {devices: trace["name"] for trace in chart.figure["data"][1:] for devices in trace["x"]}
    assert found == {point.num_devices: point.limit for point in machine.curve}
    symbols = [trace["marker"]["symbol"] for trace in chart.figure["data"][1:]]
    assert len(set(symbols)) == len(symbols)


def test_sensitivities_reach_from_end_to_end() -> None:
    machine = make_plan_record().machines[0]
    chart = make_sensitivity_chart(machine)
    assert chart is not None
    (bars,) = chart.figure["data"]
    for row, start, width in zip(machine.sensitivities, bars["base"], bars["x"], strict=True):
        ends = sorted((row.time_at_low_s / 86_400, row.time_at_high_s / 86_400))
        assert [start, start + width] == pytest.approx(ends, rel=1e-4)


def test_times_have_units_that_fit_them() -> None:
    machine = make_plan_record().machines[0]
    rows = [
        msgspec.structs.replace(each, time_at_low_s=540.0, time_at_high_s=900.0)
        for each in machine.sensitivities
    ]
    chart = make_sensitivity_chart(msgspec.structs.replace(machine, sensitivities=tuple(rows)))
    assert chart is not None
    assert "minutes" in str(chart.figure["layout"]["xaxis"])
    (bars,) = chart.figure["data"]
    assert (bars["base"][0], bars["x"][0]) == pytest.approx((9.0, 6.0))


def test_the_legend_of_throughput_tells_the_best_of_a_curve() -> None:
    machine = make_plan_record().machines[0]
    few = [
        msgspec.structs.replace(point, samples_per_s=rate)
        for point, rate in zip(machine.curve, (10.0, 30.0, 20.0), strict=False)
    ]
    page = make_plan_page(
        make_plan_record(machines=(msgspec.structs.replace(machine, curve=tuple(few)),))
    )
    assert page.rates is not None
    assert [entry.value for entry in page.rates.legend] == ["at most 30/s"]


def test_the_table_has_every_point_and_the_page_every_source() -> None:
    record = make_plan_record()
    page = make_plan_page(record)
    assert page.points.num_rows == sum(len(machine.curve) for machine in record.machines)
    html = render("plan.html.j2", page)
    for line in record.press[0].lines:
        assert line.text in html
        assert line.source.replace("'", "&#39;") in html
    assert "a data sheet \\u003cof the maker\\u003e" in html
    assert "<of the maker>" not in html


def test_a_plan_without_machines_or_press_is_a_page() -> None:
    html = render("plan.html.j2", make_plan_page(make_plan_record(machines=(), press=())))
    assert '<section id="question">' in html
    assert '<section id="answers">' not in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "500 ms"), (90, "1.5 min"), (7200, "2 hours"), (3600, "1 hour"),
        (86_400 * 1.5, "1.5 days"),
        (86_400 * 1000, "2.738 years"), (float("inf"), "never"),
    ],
)  # fmt: skip
def test_times_are_in_the_words_of_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_grow_with_seconds() -> None:
    # In words that hold a number and a unit, no two neighbours are the same.
    texts = [duration(10**power) for power in range(9)]
    assert all(a != b for a, b in pairwise(texts))


def test_money_has_its_currency() -> None:
    assert money(1_234_567.0, "EUR") == "1,234,567 EUR"
    assert money(None, "EUR") == "no price given"
