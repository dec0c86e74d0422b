import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from parsed_page import Page, assert_loads_nothing
from PIL import Image

from fsdtrain.engine.run_record import Figure, read_manifest, read_results
from fsdtrain.errors import DataError, UserError
from fsdtrain.report.html import SCRIPTS, json_in_html, write_report


def report_of(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_holds_every_figure_with_its_origin_and_baselines(
    fake_run: Callable[..., Path],
) -> None:
    folder = fake_run()
    page = report_of(folder)
    cards = [part.split("</article>")[0] for part in page.html.split("<article")[1:]]
    figures = read_results(folder).figures
    assert len(cards) == len(figures)
    shown = {"vehicle_iou": ["0.371", "0.128", "0.131"], "step_time": ["612.0"]}
    shown |= {"path_fde_2s_turn": ["0.522", "1.314", "0.611"], "path_minade": ["0.283", "0.641"]}
    for figure, card in zip(figures, cards, strict=True):
        assert card.count(f">{figure.origin}</span>") == 1
        assert figure.description in card
        for value in shown[figure.name]:
            assert value in card
        for baseline in figure.baselines:
            assert baseline.replace("_", " ") in card.lower()
    assert "Better than every baseline on all 3 compared figures." in page.text
    assert "val split, 64 clips, 1 skipped" in page.text


def test_the_page_says_what_is_needed_to_repeat_the_run(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    page = report_of(folder)
    manifest = read_manifest(folder)
    wanted = [manifest.config_sha256, manifest.data_sha256, manifest.device, manifest.command]
    wanted += [manifest.started_at, manifest.python, manifest.platform, *manifest.packages.values()]
    wanted += [f"{manifest.git_revision} (with uncommitted changes)"]
    for text in wanted:
        assert text in page.text
    config = (folder / "config.yaml").read_text()
    assert config in page.text, "the whole configuration, to be copied"


def test_nothing_is_loaded_from_elsewhere(
    fake_run: Callable[..., Path], add_readings: Callable[..., Path]
) -> None:
    assert_loads_nothing(report_of(add_readings(fake_run())))


def test_the_policy_allows_the_pages_own_scripts_and_no_others(
    fake_run: Callable[..., Path],
) -> None:
    page = report_of(fake_run())
    (policy,) = [
        one["content"] or ""
        for one in page.all("meta")
        if one.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    (sources,) = re.findall(r"script-src ([^;]*)", policy)
    (plotly,) = re.findall(r'<script type="text/plain" id="plotly">(.*?)</script>', page.html, re.S)
    texts = [*page.scripts, plotly]
    expected = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    assert sources.split() == [f"'sha256-{value}'" for value in expected]
    assert "unsafe-eval" not in policy
    assert "connect-src" not in policy


def test_hostile_text_stays_text(
    fake_run: Callable[..., Path], add_readings: Callable[..., Path]
) -> None:
    attack = "</script><script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>"
    figure = Figure(
        name=attack, value=1.0, unit=attack, better="higher", origin="MEASURED",
        description=attack, baselines={attack: 0.5},
    )  # fmt: skip
    folder = fake_run(figures=(figure,), command=attack, device=attack, packages={attack: attack})
    (folder / "config.yaml").write_text(f"{attack}: {attack}  # {attack}\n")
    picture = folder / "pictures" / "clip-0.png"
    picture.rename(picture.with_name("<img src=x onerror=alert(1)>.png"))
    metrics = folder / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("train/path_wta", f"train/{attack}"))
    add_readings(folder, layer=attack, op=attack, format=attack, rounding=attack)
    add_readings(folder, role=attack)
    page = report_of(folder)
    assert len(page.scripts) == len(SCRIPTS), "no script but the page's own"
    assert "alert(1)" not in "".join(page.scripts)
    assert [one for one in page.all("img") if "onerror" in one] == []
    assert all((one["src"] or "").startswith("data:") for one in page.all("img"))
    assert attack in page.text
    assert "<img src=x onerror=alert(1)>" in page.text


def test_number_formats_are_shown_where_there_are_readings(
    fake_run: Callable[..., Path], add_readings: Callable[..., Path]
) -> None:
    folder = fake_run()
    without = report_of(folder)
    page = report_of(add_readings(folder))
    assert [one for one in without.all("section") if one["id"] == "numerics"] == []
    assert 'href="#numerics"' not in without.html
    assert [one["href"] for one in page.all("a")].count("#numerics") == 1
    section = page.html.split('<section id="numerics">')[1].split("</section>")[0]
    assert section.count(">EMULATED</span>") == 2 + 4 + 4, "section, table, charts, histograms"
    (rows,) = page.tables().values()
    assert [row["tensor"] for row in rows[:4]] == ["net.head", "net.0", "net.1", "net.2"]
    assert len(rows) == 25
    assert "bias 11 (9 to 11)" in section
    assert "No rounding noise and nothing out of range: master weight." in page.text
    assert "1 of 25 tensors has lost its range at step 299" in page.text
    assert "a larger exponent bias" in page.text


def test_charts_of_number_formats_show_the_readings(
    fake_run: Callable[..., Path], add_readings: Callable[..., Path]
) -> None:
    charts = report_of(add_readings(fake_run())).charts()
    assert len(charts) == 7 + 3 + 1 + 4
    activation = {trace["name"]: trace for trace in charts["Activation"]["data"]}
    assert activation["median tensor"]["y"] == [25, 25, 25]
    assert activation["worst tensor"]["y"] == [20, 20, 20]
    assert activation["worst tensor"]["x"] == [99, 199, 299]
    assert activation["limit"]["y"] == [10, 10, 10]
    lost = next(chart for chart in charts.values() if chart["data"][0]["name"] == "underflowed")
    assert {trace["name"]: trace["y"] for trace in lost["data"]} == {
        "underflowed": [0, 30, 60], "saturated": [0, 0, 0],
    }  # fmt: skip


@pytest.mark.parametrize("text", [None, "{}", "not JSON"])
def test_number_formats_stand_without_their_histograms(
    fake_run: Callable[..., Path], add_readings: Callable[..., Path], text: str | None
) -> None:
    folder = add_readings(fake_run())
    assert report_of(folder).html.count("out of range <b>") == 4
    path = folder / "numerics_histograms.json"
    path.unlink() if text is None else path.write_text(text)
    page = report_of(folder)
    assert "out of range <b>" not in page.html
    assert ("is missing" if text is None else "cannot be read") in page.text
    assert len(page.all("table")) == 1


def test_the_data_of_the_charts_are_those_of_the_file(fake_run: Callable[..., Path]) -> None:
    page = report_of(fake_run())
    charts = page.charts()
    assert len(charts) == 7
    first = {(trace["name"], trace.get("meta")): trace for trace in charts["Loss"]["data"]}
    assert len(first["train", "raw"]["x"]) == len(first["train", "raw"]["y"]) == 300
    assert first["val", None]["x"] == [99, 199, 299, 399, 499, 599]
    entries = [one["data-traces"] or "" for one in page.all("button") if "data-traces" in one]
    traces = sum(len(chart["data"]) for chart in charts.values())
    assert sum(len(entry.split()) for entry in entries) == traces, "each has its place"


def test_values_that_are_not_finite_are_null_and_said(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    (folder / "metrics.csv").write_text("step,train/loss\n0,1\n5,nan\n6,inf\n7,2\n")
    page = report_of(folder)
    assert page.charts()["Loss"]["data"][0]["y"] == [1, None, None, 2]
    assert "train/loss is not finite at 2 of 4 points, first at step 5." in page.text


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "&lt;", "\u2028", '"\\'])
def test_json_cannot_leave_its_element(text: str) -> None:
    found = json_in_html({"text": text})
    assert not set("<>&") & set(found)
    assert json.loads(found) == {"text": text}


def test_long_curves_are_thinned_and_the_page_says_so(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    lines = "".join(f"{step},{step % 97}\n" for step in range(20_000))
    (folder / "metrics.csv").write_text("step,train/loss\n" + lines)
    page = report_of(folder)
    assert len(page.charts()["Loss"]["data"][0]["x"]) <= 1503
    assert "Long curves are thinned" in page.text
    assert len(page.html.encode()) < 5_500_000


def test_pictures_are_inlined_in_their_own_size(fake_run: Callable[..., Path]) -> None:
    page = report_of(fake_run())
    pictures = [one for one in page.all("img") if "clip-" in (one["alt"] or "")]
    assert [one["alt"] for one in pictures] == [
        "clip-0: cameras and bird's-eye view",
        "clip-1: cameras and bird's-eye view",
    ]
    for one in pictures:
        kind, _, data = (one["src"] or "").partition(";base64,")
        assert kind == "data:image/webp"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == (int(one["width"] or 0), int(one["height"] or 0)) == (320, 120)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("results.json", "No final figures: this run was interrupted, or it is still going on."),
        ("metrics.csv", "No curves were logged: metrics.csv is missing or empty."),
        ("pictures", "There are no pictures in this folder."),
        ("config.yaml", "config.yaml is missing."),
    ],
)
def test_a_run_that_was_interrupted_is_reported_as_far_as_it_came(
    fake_run: Callable[..., Path], missing: str, said: str
) -> None:
    folder = fake_run()
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said in report_of(folder).text


def test_a_manifest_alone_makes_a_page(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    for path in folder.iterdir():
        if path.name != "manifest.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert report_of(folder).charts() == {}


@pytest.mark.parametrize("text", ["", "step,epoch\n"])
def test_an_empty_metrics_file_is_no_curves(fake_run: Callable[..., Path], text: str) -> None:
    folder = fake_run()
    (folder / "metrics.csv").write_text(text)
    assert "No curves were logged" in report_of(folder).text


def test_a_broken_picture_is_named_and_the_others_are_shown(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    whole = (folder / "pictures" / "clip-0.png").read_bytes()
    (folder / "pictures" / "clip-0.png").write_bytes(whole[: len(whole) // 2])
    page = report_of(folder)
    assert "clip-0.png cannot be read" in page.text
    assert len(page.with_class("picture")) == 1


def test_figures_that_are_not_numbers_are_said_not_hidden(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text.replace("0.3712", "null"))
    page = report_of(folder)
    assert "The final figures cannot be read, so they are not shown." in page.text
    assert "$.figures[0].value" in page.text


def test_no_run_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        write_report(tmp_path)


def test_a_metrics_file_without_numbers_is_a_data_error(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    (folder / "metrics.csv").write_text("step,train/loss\n0,good\n")
    with pytest.raises(DataError, match="'good' is not a number"):
        write_report(folder)


def test_a_report_that_cannot_be_written_is_a_user_error(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        write_report(folder)
    assert not (folder / "report.html.partial").exists()


def test_two_reports_of_one_folder_are_equal(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()
