"""Maps over a machine: cells, levels, slices of the step."""

import base64
from collections.abc import Callable

import pytest

from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.charts.heat_map import levels_of, make_heat_map, slice_labels
from fsdtrain.step_profile import HeatMap, MapLevel, MapSlices, OpProfile, Phase, StepProfile

Check = Callable[[Chart | None], Chart]
SLICES = MapSlices(
    edges_s=(0.0, 0.5, 1.0), top=0.8, cells=(bytes([0, 127, 255]), bytes([254, 3, 255]))
)


def op(phase: Phase, start_s: float) -> OpProfile:
    return OpProfile(
        name="mm", shapes="", dtype="fp32", num_calls=1, time_s=0.1, flops=None, num_bytes=None,
        bound_by=None, phase=phase, start_s=start_s,
    )  # fmt: skip


PROFILE = StepProfile(
    backend="dojo", device="d1_tile", origin="MODELLED", step_time_s=1.0,
    ops=(op("backward", 0.6), op("forward", 0.0)),
)  # fmt: skip


def make_map(**changes: object) -> HeatMap:
    fields = {"title": "links", "unit": "share", "rows": ((0.25, 0.5, None),)} | changes
    return HeatMap(**fields)  # type: ignore[arg-type]  # a table of fields for tests


def test_the_page_gets_the_cells_and_slices(checked: Check) -> None:
    chart = checked(make_heat_map(make_map(slices=SLICES), PROFILE))
    assert chart.title == "Links"
    assert chart.maps["whole"] == [[0.25, 0.5, None]]
    assert chart.maps["top"] == 0.8
    assert [base64.b64decode(each) for each in chart.maps["slices"]] == list(SLICES.cells)
    assert chart.note == "Mean 37.5%, largest 50.0%."
    assert chart.origin == "MODELLED"


def test_labels_say_when_and_which_phase() -> None:
    assert slice_labels(SLICES, PROFILE) == [
        "whole step", "0 to 500 ms, forward", "500 ms to 1 s, backward",
    ]  # fmt: skip


def test_levels_are_named_or_made_of_the_group() -> None:
    assert [level.name for level in levels_of(make_map())] == ["place"]
    of_group = levels_of(make_map(group=(2, 3)))
    assert [(level.name, level.rows, level.columns) for level in of_group] == [
        ("place", 1, 1), ("group", 2, 3),
    ]  # fmt: skip
    named = (MapLevel(name="node", rows=1, columns=1), MapLevel(name="die", rows=1, columns=3))
    assert levels_of(make_map(levels=named)) == named


@pytest.mark.parametrize("rows", [((None, None),), ((0.5,),), ()])
def test_nothing_to_see_is_no_chart(rows: tuple[tuple[float | None, ...], ...]) -> None:
    assert make_heat_map(make_map(rows=rows), PROFILE) is None


@pytest.mark.parametrize("rows", [((0.0, 0.0),), ((0.5,) * 108,), ((1e12, 2e12),) * 40])
def test_any_shape_has_a_chart(rows: tuple[tuple[float | None, ...], ...], checked: Check) -> None:
    chart = checked(make_heat_map(make_map(rows=rows, unit="B"), PROFILE))
    assert 100 < chart.height_px < 500


def test_borders_lie_between_the_parts() -> None:
    chart = make_heat_map(make_map(rows=((0.1,) * 6,) * 4, group=(2, 3)), PROFILE)
    assert chart is not None
    lines = chart.figure["layout"]["shapes"]
    assert [(line["x0"], line["x1"]) for line in lines] == [(-0.5, 5.5), (2.5, 2.5)]
    assert [(line["y0"], line["y1"]) for line in lines] == [(1.5, 1.5), (-0.5, 3.5)]
