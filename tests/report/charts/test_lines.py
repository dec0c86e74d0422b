"""Curves of a run: what is drawn, what the legend says, what is thinned."""

from collections.abc import Callable

import numpy as np
import pytest

from fsdtrain.engine.metrics_file import Curve
from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.charts.lines import MAX_POINTS, make_lines
from fsdtrain.report.curves import Role, Series

Check = Callable[[Chart | None], Chart]


def series(role: Role, values: list[float], *, label: str = "", first: int = 0) -> Series:
    curve = Curve(
        steps=np.arange(first, first + len(values), dtype=np.int64),
        values=np.array(values, dtype=np.float64),
    )
    return Series(label=label or role, role=role, column=role, curve=curve)


def lines(*all_series: Series, steps: tuple[int, int] = (0, 10), **changes: bool) -> Chart:
    return make_lines(
        "Loss", all_series, origin="MEASURED", source="metrics.csv", steps=steps, **changes
    )


def test_points_are_those_of_the_curve(checked: Check) -> None:
    chart = checked(lines(series("train", [3.0, 2.0, np.nan, 1.0], first=5)))
    (trace,) = chart.figure["data"]
    assert trace["x"] == [5, 6, 7, 8]
    assert trace["y"] == [3.0, 2.0, None, 1.0]
    assert chart.legend[0].value == "1.000"
    assert "train: last 1.000." in chart.summary


def test_roles_differ_in_more_than_colour(checked: Check) -> None:
    chart = checked(
        lines(
            series("baseline", [0.4], label="prior"), series("baseline", [0.3], label="blind"),
            series("train", [1.0, 0.5]), series("val", [1.0, 0.5]),
        )
    )  # fmt: skip
    assert [entry.label for entry in chart.legend] == ["val", "train", "blind", "prior"]
    looks = [(entry.color, entry.dash) for entry in chart.legend]
    assert len(set(looks)) == 4
    assert [dash for _, dash in looks[2:]] == ["dot", "dash"], "baselines are never solid"


def test_a_baseline_that_was_evaluated_once_goes_across(checked: Check) -> None:
    chart = checked(lines(series("baseline", [0.4], first=7), steps=(2, 90)))
    (trace,) = chart.figure["data"]
    assert (trace["x"], trace["y"]) == ([2, 7, 90], [0.4, 0.4, 0.4])


def test_a_long_curve_is_thinned_and_smoothed(checked: Check) -> None:
    values = np.sin(np.arange(20_000) / 700)
    values[12_345] = 9.0
    chart = checked(lines(series("train", values.tolist())))
    raw, smooth = chart.figure["data"]
    assert (raw["meta"], smooth["meta"]) == ("raw", "smooth")
    assert len(raw["x"]) == len(smooth["x"]) <= MAX_POINTS + 3
    assert 9.0 in raw["y"], "a spike is kept"
    assert max(smooth["y"]) < 1.2
    assert chart.legend[0].traces == (0, 1)


@pytest.mark.parametrize(
    ("values", "can_be_log", "controls"),
    [([1.0, 2.0], True, ("log",)), ([1.0, 2.0], False, ()), ([0.0, -1.0], True, ())],
)
def test_what_has_no_positive_value_has_no_logarithm(
    values: list[float], can_be_log: bool, controls: tuple[str, ...]
) -> None:
    assert lines(series("train", values), can_be_log=can_be_log).controls == controls


def test_names_are_text_to_plotly(checked: Check) -> None:
    chart = checked(lines(series("train", [1.0], label="<a href='x'>&")))
    assert chart.figure["data"][0]["name"] == "&lt;a href='x'&gt;&amp;"
    assert chart.legend[0].label == "<a href='x'>&", "the template escapes it"
