"""Loss bands, stacked bars, waterfalls and grouped bars."""

from collections.abc import Callable

import pytest

from fsdtrain.report.amounts import in_seconds
from fsdtrain.report.charts.bands import BandSeries, make_bands
from fsdtrain.report.charts.bars import Change, make_grouped_bars, make_stacked_bars, make_waterfall
from fsdtrain.report.charts.chart import Chart

Check = Callable[[Chart | None], Chart]
WHERE = {"origin": "MODELLED", "source": "profile.json"}


def band(label: str, mean: list[float]) -> BandSeries:
    return BandSeries(
        label=label, steps=range(len(mean)), mean=mean, low=[each - 1 for each in mean],
        high=[each + 1 for each in mean],
    )  # fmt: skip


def test_bands_reach_from_low_to_high_around_the_mean(checked: Check) -> None:
    series = (band("a: cpu", [5, 4]), band("b: dojo", [6, 5]))
    chart = checked(make_bands("Loss", series, y_title="loss", mark_step=1, **WHERE))
    assert [entry.label for entry in chart.legend] == ["a: cpu", "b: dojo"]
    for entry, mean in zip(chart.legend, ([5, 4], [6, 5]), strict=True):
        low, high, line = (chart.figure["data"][trace] for trace in entry.traces)
        assert line["y"] == mean
        assert low["y"] == [each - 1 for each in mean]
        assert high["y"] == [each + 1 for each in mean]
        assert high["fill"] == "tonexty", "between it and the one before"
        assert line["line"]["color"] == entry.color
    assert len({(entry.color, entry.dash) for entry in chart.legend}) == 2
    (mark,) = chart.figure["layout"]["shapes"]
    assert mark["x0"] == mark["x1"] == 1


def test_no_runs_make_an_empty_band(checked: Check) -> None:
    chart = checked(make_bands("Loss", (band("a", []),), y_title="loss", **WHERE))
    assert chart.legend[0].value == ""


BARS = {"forward": {"matrix": 0.01, "HBM": 0.03}, "backward": {"matrix": 0.05}}


def test_parts_stack_to_their_bars(checked: Check) -> None:
    chart = checked(make_stacked_bars("Time", BARS, text_of=in_seconds, unit="s", **WHERE))
    matrix, memory = chart.figure["data"]
    assert (matrix["name"], matrix["x"]) == ("matrix", [0.01, 0.05])
    assert (memory["name"], memory["x"]) == ("HBM", [0.03, 0.0])
    assert [entry.value for entry in chart.legend] == ["66.7%, 60 ms", "33.3%, 30 ms"]
    assert memory["customdata"][0] == "30 ms, 75.0% of forward"
    assert chart.summary.startswith("Time: forward 40 ms, most of it HBM; backward 50 ms")
    patterns = {trace["marker"]["pattern"]["shape"] for trace in chart.figure["data"]}
    assert len(patterns) == 2, "never colour alone"


def test_a_part_looks_the_same_in_every_chart() -> None:
    places = {"HBM": 3, "matrix": 1}
    chart = make_stacked_bars("Time", BARS, text_of=in_seconds, places=places, **WHERE)
    assert {entry.label: entry.color for entry in chart.legend} == {"HBM": "@s3", "matrix": "@s1"}


@pytest.mark.parametrize("bars", [{}, {"forward": {}}, {"forward": {"matrix": 0.0}}])
def test_no_time_makes_a_chart(checked: Check, bars: dict[str, dict[str, float]]) -> None:
    checked(make_stacked_bars("Time", bars, text_of=in_seconds, **WHERE))


def test_a_waterfall_goes_from_one_amount_to_the_other(checked: Check) -> None:
    changes = [Change(label="conv", amount=0.03), Change(label="mm", amount=-0.01)]
    chart = checked(
        make_waterfall(
            "Step", ("a", 0.1), changes, ("b", 0.12), unit="s", text_of=in_seconds, **WHERE,
        )
    )  # fmt: skip
    (trace,) = chart.figure["data"]
    assert trace["y"] == ["a", "conv", "mm", "b"]
    assert sum(trace["x"][:-1]) == pytest.approx(trace["x"][-1])
    assert trace["text"] == ["100 ms", "+30 ms", "-10 ms", "120 ms"]
    assert trace["measure"] == ["absolute", "relative", "relative", "total"]


@pytest.mark.parametrize("is_log", [False, True])
def test_what_is_not_known_has_no_bar(checked: Check, is_log: bool) -> None:
    chart = checked(
        make_grouped_bars(
            "Time", ["x", "y"], {"a": [1.0, None], "b": [2.0, 3.0]}, unit="s",
            text_of=in_seconds, is_log=is_log, **WHERE,
        )
    )  # fmt: skip
    assert chart.figure["data"][0]["x"] == [1.0, None]
    assert chart.figure["data"][0]["text"] == ["1 s", "not known"]
    assert "y: a not known, b 3 s" in chart.summary


def test_units_with_a_prefix_go_with_the_figures() -> None:
    def axis(unit: str) -> dict[str, object]:
        chart = make_grouped_bars("T", ["x"], {"a": [1.0]}, unit=unit, text_of=str, **WHERE)
        found: dict[str, object] = chart.figure["layout"]["xaxis"]
        return found

    assert axis("s")["ticksuffix"] == "s"
    assert "ticksuffix" not in axis("samples a second")
