"""profile.html: everything that a profile holds, and nothing from elsewhere."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parsed_page import Page, assert_loads_nothing
from sample_profile import make_assumptions, make_ops, make_profile

from fsdtrain.engine.profile_record import ProfileRecord
from fsdtrain.engine.run_record import write_json
from fsdtrain.errors import UserError
from fsdtrain.report.html import write_profile_page
from fsdtrain.report.palette import NUM_SERIES
from fsdtrain.report.profile_page import choose_places
from fsdtrain.report.profile_text import UNKNOWN_BOUND
from fsdtrain.step_profile import (
    HeatMap,
    MemoryUse,
    OpProfile,
    Rooflines,
    ScaleProfile,
    StepProfile,
)

OPS = "Ops, the slowest first"
TIME = "Time of the ops by what bounds them"


@pytest.fixture
def page_of(fake_run: Callable[..., Path]) -> Callable[[StepProfile], Page]:
    def _page_of(profile: StepProfile) -> Page:
        folder = fake_run()
        write_json(folder / "profile.json", ProfileRecord(num_clips=256, profile=profile))
        path = write_profile_page(folder)
        assert path == folder / "profile.html"
        return Page(path.read_text(encoding="utf-8"))

    return _page_of


PageOf = Callable[[StepProfile], Page]


def test_the_page_shows_all_there_is(page_of: PageOf) -> None:
    profile = make_profile()
    page = page_of(profile)
    assert page.sections() == ["step", "limits", "maps", "ops", "assumptions", "scale", "run"]
    for card in ("Step time", "Of the peak rate", "Of the roofline", "SRAM of a node, at most"):
        assert card in page.text
    assert page.text.count("MODELLED") >= 8
    assert profile.notes[0] in page.text
    assert "1.19 MB" in page.text
    assert "output-stationary, K whole" in page.html
    assert "exapod" in page.text
    assert "the batch of each replica stays as it is" in page.text
    charts = page.charts()
    assert set(charts) == {
        TIME, "Energy of the ops by what bounds them", "Roofline", "Compute", "Links", "HBM",
        "Memory of the fullest node over the step", "Step time over the range of each assumption",
    }  # fmt: skip
    ops = [trace for trace in charts["Roofline"]["data"] if trace["mode"] == "markers"]
    assert sum(len(trace["x"]) for trace in ops) == len(profile.ops)
    assert "capacity 1.25 MB" in page.html


def test_every_chart_and_table_has_its_origin_and_source(page_of: PageOf) -> None:
    page = page_of(make_profile())
    parts = page.html.split("<figure ")[1:] + page.html.split('<div class="card sortable">')[1:]
    assert len(parts) == 8 + 2
    for part in parts:
        part = part.split('<script type="application/json">')[0]
        assert '<span class="badge modelled"' in part
        assert "Source: profile.json" in part


def test_all_ops_are_in_the_table_the_slowest_first(page_of: PageOf) -> None:
    profile = make_profile()
    page = page_of(profile)
    rows = page.tables()[OPS]
    assert [row["op"] for row in rows] == [op.name for op in profile.ops]
    assert [row["bound"] for row in rows] == [op.bound_by for op in profile.ops]
    (head,) = [one for one in page.all("th") if one.get("aria-sort")][:1]
    assert head["aria-sort"] == "descending"


def test_the_bars_of_the_bounds_add_up(page_of: PageOf) -> None:
    profile = make_profile()
    traces = page_of(profile).charts()[TIME]["data"]
    assert {trace["name"] for trace in traces} == {op.bound_by for op in profile.ops}
    for place, phase in enumerate(("forward", "backward", "optimizer")):
        assert {trace["y"][place] for trace in traces} == {phase}
        total = sum(op.time_s for op in profile.ops if op.phase == phase)
        assert sum(trace["x"][place] for trace in traces) == pytest.approx(total, rel=1e-5)


def test_the_bars_of_energy_add_up(page_of: PageOf) -> None:
    profile = make_profile()
    traces = page_of(profile).charts()["Energy of the ops by what bounds them"]["data"]
    total = sum(op.energy_j for op in profile.ops)
    assert sum(sum(trace["x"]) for trace in traces) == pytest.approx(total, rel=1e-5)


def test_a_bound_has_a_look_of_its_own() -> None:
    bounds = ["SRAM port", "tensor core", "HBM", UNKNOWN_BOUND, "L2"]
    places = choose_places(bounds)
    assert len(set(places.values())) == len(bounds)
    assert places["HBM"] == choose_places(["matrix", "HBM"])["HBM"], "the same on every page"
    assert places[UNKNOWN_BOUND] == NUM_SERIES
    many = choose_places([f"bound {number}" for number in range(20)])
    assert len(set(many.values())) == 20


def test_assumptions_are_ranked_by_what_they_change(page_of: PageOf) -> None:
    page = page_of(make_profile())
    text = page.html
    order = ["op_start_ns", "hbm_efficiency_share", "die_crossing_ns", "special_per_cycle"]
    places = [text.index(name) for name in order]
    assert places == sorted(places)
    assert "-1.0% to +31.0%" in text
    assert "a talk at &lt;Hot Chips&gt;" not in page.html, "JSON is not escaped as HTML is"
    (table,) = [rows for caption, rows in page.tables().items() if "Assumptions" in caption]
    assert [row["assumption"] for row in table[:4]] == order
    assert [row["change"] for row in table[4:]] == ["", ""]


def test_nothing_is_loaded_from_elsewhere(page_of: PageOf) -> None:
    assert_loads_nothing(page_of(make_profile()))


def test_a_step_of_5000_ops_stays_small(page_of: PageOf) -> None:
    profile = replace(make_profile(), ops=make_ops(5000))
    page = page_of(profile)
    assert len(page.html.encode()) < 8_000_000
    assert len(page.tables()[OPS]) == 5000
    assert page.html.count("<tr>") < 20, "rows are made when they are shown"


@pytest.mark.parametrize("kind", ["modelled", "measured"])
def test_every_link_of_the_bar_has_its_section(page_of: PageOf, kind: str) -> None:
    page = page_of(make_profile() if kind == "modelled" else make_measured())
    links = [(link["href"] or "").removeprefix("#") for link in page.all("a")]
    assert links == ["main", *page.sections()]


def make_measured() -> StepProfile:
    """What a clock can tell: no machine, no memory, no bounds."""
    op = OpProfile(
        name="aten::mm", shapes="2x3, 3x4", dtype="fp32", num_calls=2, time_s=0.5, flops=48,
        num_bytes=None, bound_by=None, phase="forward",
    )  # fmt: skip
    return StepProfile(
        backend="cpu", device="x86_64", origin="MEASURED", step_time_s=0.75, ops=(op,), flops=144
    )


def test_a_page_without_a_machine_model_leaves_it_out(page_of: PageOf) -> None:
    page = page_of(make_measured())
    assert page.sections() == ["step", "limits", "ops", "run"]
    assert "MODELLED" not in page.text
    assert "MEASURED" in page.text
    assert page.tables()[OPS][0]["op"] == "mm"
    assert set(page.charts()) == {"Time of the ops"}
    for word in ("roofline", "Roofline", "bounds them", "not known", "SRAM", "None"):
        assert word not in page.text, word


@pytest.mark.parametrize(
    "change",
    [
        {"ops": ()},
        {"step_time_s": 0.0},
        {"rooflines": Rooflines(flops_per_s={}, bytes_per_s={})},
        {"sram_over_time": ((0.0, 0.0),), "sram_capacity_bytes": None},
        {"heat_maps": (HeatMap(title="none", unit="B", rows=((None,),)),)},
        {"heat_maps": (HeatMap(title="idle", unit="share", rows=((0.0, 0.0),)),)},
        {"heat_maps": (HeatMap(title="strip", unit="share", rows=((0.5,) * 108,)),)},
        {"heat_maps": (HeatMap(title="one", unit="share", rows=((0.5,),)),)},
        {"assumptions": make_assumptions(1.0)[-1:]},
        {"scale": ScaleProfile(rows=())},
        {"busy_s": {}, "memory": (MemoryUse(name="HBM", peak_bytes=0),)},
    ],
)
def test_odd_profiles_have_a_page(page_of: PageOf, change: dict[str, Any]) -> None:
    page = page_of(replace(make_profile(), **change))
    assert "nan" not in re.sub("<[^>]*>", "", page.html.split("<main")[1]).lower().split()


def test_an_op_that_overlaps_stands_where_it_would_by_itself(page_of: PageOf) -> None:
    hidden = OpProfile(
        name="conv", shapes="", dtype="bf16", num_calls=1, time_s=1e-9, alone_s=2e-3,
        flops=4 * 10**12, num_bytes=None, bound_by="matrix", roofline_s=1e-3,
        bytes_by_level={"HBM": 1e9},
    )  # fmt: skip
    page = page_of(replace(make_profile(), ops=(hidden,)))
    (ops,) = [t for t in page.charts()["Roofline"]["data"] if t["mode"] == "markers"]
    assert (ops["x"], ops["y"]) == ([4000], [2e15]), "below the roof of 9.06e15"
    assert "2 PFLOP/s at 4e+03 FLOP a byte of HBM" in ops["customdata"][0]
    assert page.tables()[OPS][0]["roof"] == "50.0%", "of the roofline"


def test_text_is_escaped(page_of: PageOf) -> None:
    evil = "</script><script>alert(1)</script><!--<b>"
    op = replace(make_ops(1)[0], name=evil, layer=evil, bound_by=evil, explanation=(evil,))
    profile = replace(make_profile(), device=evil, notes=(evil,), ops=(op,))
    page = page_of(profile)
    assert evil not in page.html
    assert page.text.count(evil) >= 2
    assert page.tables()[OPS][0]["op"] == evil
    assert page.charts()[TIME]["data"][0]["name"] == (
        "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;!--&lt;b&gt;"
    ), "plotly reads tags"
    assert "alert(1)" not in "".join(page.scripts)


def test_a_folder_without_a_profile_is_one_sentence(fake_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"profile\.json does not exist"):
        write_profile_page(fake_run())
