import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fsdtrain.engine.run_record import Figure, read_manifest, read_results
from fsdtrain.errors import DataError, UserError
from fsdtrain.report.html import write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Parses a page, checks that its tags are balanced, and keeps what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [one for _, one in self.tags if name in (one.get("class") or "").split()]


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
    page = report_of(add_readings(fake_run()))
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "action", "data", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert tag not in {"link", "base", "iframe", "object", "embed", "form"}
    style = re.search("<style>(.*?)</style>", page.html, re.DOTALL)
    assert style is not None
    assert "@import" not in style[1]
    assert "url(" not in style[1]
    for word in ("http:", "https:", "fetch(", "XMLHttpRequest", "import("):
        assert word not in page.html, word


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
    kinds = [one.get("type") for one in page.all("script")]
    own = [text for text, kind in zip(page.scripts, kinds, strict=True) if kind is None]
    expected = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in own]
    assert sources.split() == [f"'sha256-{value}'" for value in expected]


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
    assert len(page.all("script")) == 3, "the data, and two scripts of the page"
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
    assert "#numerics" not in without.html
    assert [one["href"] for one in page.all("a")].count("#numerics") == 1
    section = page.html.split('<section id="numerics">')[1].split("</section>")[0]
    assert section.count(">EMULATED</span>") == 1
    # Above the fold 12 tensors, the worst first; the rest behind it.
    rows = re.findall(r'<tr( class="lost")?>\s*<th scope="row">.*?>(net\.\w+)</span>', section)
    assert len(rows) == 25
    assert rows[:4] == [(' class="lost"', "net.head"), ("", "net.0"), ("", "net.1"), ("", "net.2")]
    assert section.index("The other 13 tensors") > section.index("net.head")
    assert section.count("<polyline") == 24, "all but the master weight have a history"
    assert "bias 11 (9 to 11)" in section
    assert "No rounding noise and nothing out of range: master weight." in page.text
    assert "1 of 25 tensors has lost its range at step 299" in page.text
    assert "a larger exponent bias" in page.text


def test_charts_of_number_formats_have_their_own_data(
    fake_run: Callable[..., Path], add_readings: Callable[..., Path]
) -> None:
    page = report_of(add_readings(fake_run()))
    panels = json.loads(page.scripts[0])
    figures = page.with_class("chart")
    assert len(panels) == len(figures) == 7 + 3 + 1
    assert [figure["data-panel"] for figure in figures] == [str(n) for n in range(11)]
    activation = {series["label"]: series for series in panels[7]["series"]}
    assert activation["median tensor"]["values"] == [25, 25, 25]
    assert activation["worst tensor"]["values"] == [20, 20, 20]
    assert activation["worst tensor"]["steps"] == [99, 199, 299]
    assert activation["limit"]["values"] == [10]
    lost = {series["label"]: series["values"] for series in panels[10]["series"]}
    assert lost == {"underflowed": [0, 30, 60], "saturated": [0, 0, 0]}


@pytest.mark.parametrize("text", [None, "{}", "not JSON"])
def test_number_formats_stand_without_their_histograms(
    fake_run: Callable[..., Path], add_readings: Callable[..., Path], text: str | None
) -> None:
    folder = add_readings(fake_run())
    assert len(report_of(folder).with_class("histogram")) == 4
    path = folder / "numerics_histograms.json"
    path.unlink() if text is None else path.write_text(text)
    page = report_of(folder)
    assert page.with_class("histogram") == []
    assert ("is missing" if text is None else "cannot be read") in page.text
    assert len(page.all("table")) == 2


def test_the_data_of_the_charts_are_those_of_the_file(fake_run: Callable[..., Path]) -> None:
    page = report_of(fake_run())
    panels = json.loads(page.scripts[0])
    assert len(panels) == len(page.with_class("chart")) == 7
    first = {series["label"]: series for series in panels[0]["series"]}
    assert len(first["train"]["steps"]) == len(first["train"]["values"]) == 300
    assert first["val"]["steps"] == [99, 199, 299, 399, 499, 599]
    for figure, panel in zip(page.with_class("chart"), panels, strict=True):
        assert panels[int(figure["data-panel"] or "")] is panel
    entries = [one for one in page.all("button") if "data-series" in one]
    assert len(entries) == sum(len(panel["series"]) for panel in panels)


def test_values_that_are_not_finite_are_null_and_said(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    (folder / "metrics.csv").write_text("step,train/loss\n0,1\n5,nan\n6,inf\n7,2\n")
    page = report_of(folder)
    assert json.loads(page.scripts[0])[0]["series"][0]["values"] == [1, None, None, 2]
    assert "train/loss is not finite at 2 of 4 points, first at step 5." in page.text


def test_long_curves_are_thinned_and_the_page_says_so(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    lines = "".join(f"{step},{step % 97}\n" for step in range(20_000))
    (folder / "metrics.csv").write_text("step,train/loss\n" + lines)
    page = report_of(folder)
    assert len(json.loads(page.scripts[0])[0]["series"][0]["steps"]) <= 1503
    assert "Long curves are thinned" in page.text
    assert len(page.html) < 500_000


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
    assert report_of(folder).with_class("chart") == []


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


def test_a_browser_draws_every_chart_without_complaint(
    fake_run: Callable[..., Path], add_readings: Callable[..., Path], tmp_path: Path
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium or google-chrome")
    report = write_report(add_readings(fake_run()))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run(
        [browser, *options, "--virtual-time-budget=2000", "--dump-dom", report.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    charts = done.stdout.split('<figure class="card chart')[1:]
    assert len(charts) == 11
    for chart in charts:
        assert 'class="line ' in chart
        assert chart.count('class="tick"') >= 4
