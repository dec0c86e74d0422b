"""compare.html: what compare.json holds, with origins and sources, and nothing that runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from sample_compare import (
    FAULTY,
    layer_of,
    make_compare_record,
    make_numerics,
    make_performance,
    make_training,
)

from fsdtrain.comparison.record import Errors, RankedUnit
from fsdtrain.engine.run_record import write_json
from fsdtrain.errors import UserError
from fsdtrain.report.compare_numerics import errors_in_words
from fsdtrain.report.compare_page import make_compare_page
from fsdtrain.report.compare_training import make_equivalence_chart
from fsdtrain.report.compare_words import as_sentence
from fsdtrain.report.html import render
from fsdtrain.report.layer_tree import make_layer_tree
from fsdtrain.report.pages import write_compare_page

FAULT = "b is 1.010 times the reference"


def html_of(**changes: object) -> str:
    return render("compare.html.j2", make_compare_page(make_compare_record(**changes)))


def without_scripts(html: str) -> str:
    return re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)


def test_the_verdict_and_its_checks_come_first() -> None:
    record = make_compare_record()
    page = make_compare_page(record)
    assert (page.tone, page.heading) == ("bad", "Different")
    assert [(one.name, one.tone) for one in page.checks] == [
        ("numerics", "bad"), ("training", "good"), ("performance", "open"),
    ]  # fmt: skip
    text = without_scripts(html_of())
    assert text.index("Different") < text.index("Configuration difference")
    for section in page.sections:
        assert f'<section id="{section[0]}">' in text
        assert f'href="#{section[0]}"' in text


@pytest.mark.parametrize(
    ("missing", "gone"),
    [("numerics", "numerics"), ("training", "training"), ("performance", "performance")],
)
def test_what_was_not_compared_has_no_section(missing: str, gone: str) -> None:
    page = make_compare_page(make_compare_record(**{missing: None}))
    assert gone not in [section for section, _ in page.sections]
    assert f'<section id="{gone}">' not in html_of(**{missing: None})


def test_the_worst_tensor_heads_the_table_with_its_errors() -> None:
    page = make_compare_page(make_compare_record())
    assert page.numerics is not None
    assert page.numerics.worst.num_rows == 20
    columns, strings = (page.numerics.worst.payload[key] for key in ("columns", "strings"))
    first = {name: [strings[at] for at in columns[0][name][0]] for name in ("small", "details")}
    assert FAULT in first["small"]
    assert any(line.startswith("b against the reference: SNR 40.00") for line in first["details"])
    assert columns[0]["warned"] == [0, 1]
    assert page.numerics.first_divergence.startswith(f"{layer_of(FAULTY)} convolution (forward)")


def test_the_lines_of_snr_are_those_of_the_record() -> None:
    record = make_compare_record()
    page = make_compare_page(record)
    assert page.numerics is not None
    assert record.numerics is not None
    lines = {trace["name"]: trace for trace in page.numerics.snr.figure["data"]}
    free = lines["b: dojo (cfp8), free-running"]
    rows = {
        row.order: row.b.snr_db
        for row in record.numerics.tensors
        if row.mode == "free_running" and row.kind in ("forward", "loss", "backward")
    }
    assert dict(zip(free["x"], free["y"], strict=True)) == pytest.approx(rows, rel=1e-5)
    assert lines["outside of its band"]["x"] == [FAULTY, FAULTY]


def test_many_tensors_stay_small_and_keep_the_worst() -> None:
    record = make_compare_record(num_ops=2500)
    html = render("compare.html.j2", make_compare_page(record))
    assert len(html) < 8_000_000
    assert record.numerics is not None
    assert len(record.numerics.tensors) > 10_000
    page = make_compare_page(record)
    assert page.numerics is not None
    assert "compare.csv has all errors" in page.numerics.all_tensors.note
    assert all(len(trace["x"]) <= 1503 for trace in page.numerics.snr.figure["data"])


def test_the_tree_shows_the_worst_of_all_below() -> None:
    rows = make_numerics(90, FAULT).tensors
    (network, losses) = make_layer_tree(rows).payload
    assert (network[0], losses[0]) == ("network", "losses")
    own = [
        row for row in rows if row.mode == "teacher_forced" or row.kind in ("gradient", "update")
    ]
    inner = [row for row in own if row.layer.startswith("network")]
    assert network[1] == len(inner)
    assert network[2] == 1
    lowest = min(row.b.snr_db or 0.0 for row in inner)
    assert network[3]["b"][1] == f"{lowest:.1f} dB"
    assert network[3]["a"][0] == 4


def test_the_tree_joins_what_has_one_child_and_ranks_what_is_not_finite() -> None:
    row = make_numerics(1, "").tensors[0]
    bad = msgspec.structs.replace(
        row, layer="a.b.c", b=Errors(is_bitwise_equal=False, nan_share=1.0),
        a=Errors(is_bitwise_equal=True),
    )  # fmt: skip
    ((name, _, _, sides, children),) = make_layer_tree([bad]).payload
    assert (name, children) == ("a.b.c", [])
    assert sides["a"][:2] == [4, "bitwise"]
    assert sides["b"][:2] == [0, "not finite"]


@pytest.mark.parametrize(("num_seeds", "said"), [(5, "equivalent"), (1, "no verdict")])
def test_the_equivalence_chart_shows_the_interval_and_the_margin(num_seeds: int, said: str) -> None:
    chart = make_equivalence_chart(make_training(num_seeds))
    (point,) = chart.figure["data"]
    assert said in chart.title
    assert point["x"] == [0.002]
    band = chart.figure["layout"]["shapes"][0]
    assert (band["x0"], band["x1"]) == (-0.02, 0.02)
    assert ("error_x" in point) == (num_seeds == 5)
    if num_seeds == 5:
        error = point["error_x"]
        assert error["array"] + error["arrayminus"] == pytest.approx([0.008, 0.008])


def test_the_waterfall_of_one_origin_ends_where_b_does() -> None:
    performance = make_performance()
    b = replace(performance.b, origin="MEASURED")
    record = make_compare_record(performance=msgspec.structs.replace(performance, b=b))
    page = make_compare_page(record)
    assert page.costs is not None
    assert page.costs.ops_chart is not None
    (trace,) = page.costs.ops_chart.figure["data"]
    assert trace["type"] == "waterfall"
    assert sum(trace["x"][:-1]) == pytest.approx(b.step_time_s, rel=1e-3)


def test_times_of_two_origins_are_not_subtracted() -> None:
    record = make_compare_record()
    page = make_compare_page(record)
    assert record.performance is not None
    assert page.costs is not None
    assert page.costs.ops_chart is not None
    first, second = page.costs.ops_chart.figure["data"]
    op = record.performance.ops[0]
    assert first["x"][0] == pytest.approx(100 * (op.a or 0) / 0.412, rel=1e-4)
    assert second["x"][0] == pytest.approx(100 * (op.b or 0) / 0.00093, rel=1e-4)
    assert "b minus a" not in [column.heading for column in page.costs.ops.columns]
    assert page.costs.ops_chart.origin == "MEASURED against MODELLED"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a step takes 3 s", "A step takes 3 s."), ("b is slower.", "b is slower."),
        ("ratios are none", "Ratios are none."), ("b's loss", "b's loss."), ("", ""),
    ],
)  # fmt: skip
def test_clauses_become_sentences(text: str, sentence: str) -> None:
    assert as_sentence(text) == sentence


def test_ratios_of_two_origins_are_labelled() -> None:
    text = without_scripts(html_of())
    totals = text.split("Totals of a step on both sides")[1].split("</table>")[0]
    assert totals.count("measured against modelled") == 4
    assert "MEASURED" in totals
    assert "MODELLED" in totals
    assert "within 25 % of published times" in text


def test_names_are_text() -> None:
    attack = "<img src=x onerror=alert(1)></script>"
    html = html_of(a_name=attack, b_name=attack)
    assert "<img src=x" not in html
    for text in re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL):
        json.loads(text)


def test_a_ranking_of_the_bisection_is_shown() -> None:
    record = make_compare_record()
    assert record.bisected is not None
    ranking = (RankedUnit(name="op_3", share=0.8), RankedUnit(name="op_9", share=0.1))
    bisected = msgspec.structs.replace(record.bisected, ranking=ranking)
    page = make_compare_page(msgspec.structs.replace(record, bisected=bisected))
    assert page.ranking is not None
    assert page.ranking.payload["strings"] == ["op_3", "op_9", "80.0%", "10.0%"]


def test_errors_in_words_leave_out_what_is_not_known() -> None:
    assert errors_in_words(Errors(is_bitwise_equal=True)) == "bitwise equal"
    assert errors_in_words(Errors(is_bitwise_equal=False)) == "no figure"
    text = errors_in_words(Errors(is_bitwise_equal=False, snr_db=20.0, nan_share=0.5))
    assert text == "SNR 20.00 dB, 50.0% not finite"


def test_the_file_is_made_from_the_record_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "compare.json", make_compare_record())
    first = write_compare_page(tmp_path).read_bytes()
    assert write_compare_page(tmp_path).read_bytes() == first


def test_another_version_is_a_sentence(tmp_path: Path) -> None:
    write_json(tmp_path / "compare.json", make_compare_record())
    text = (tmp_path / "compare.json").read_text()
    (tmp_path / "compare.json").write_text(text.replace('"version": 1', '"version": 9', 1))
    with pytest.raises(UserError, match="version 9"):
        write_compare_page(tmp_path)
