"""The live page's contents: a run that waits, runs, has finished, or is odd."""

import os
import re
from pathlib import Path

import pytest
from sample_run import start_run, write_metrics, write_run

from fsdtrain.report.live_page import LiveRun, collect_live_page
from fsdtrain.report.pages import write_pages


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    page = collect_live_page(tmp_path / "run")
    assert page.sentence.startswith("Waiting for the run")
    assert (page.manifest, page.step, page.charts, page.figures) == (None, None, (), ())


def test_a_run_that_has_logged_nothing_says_so(tmp_path: Path) -> None:
    page = collect_live_page(start_run(tmp_path / "run"))
    assert page.sentence == "The run has begun; nothing has been logged yet."
    assert (page.max_steps, page.step) == (600, None)


def test_a_running_run_has_steps_values_and_time_left(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "run")
    write_metrics(folder / "metrics.csv", 200)
    # An hour after the manifest says that it started.
    os.utime(folder / "metrics.csv", (1_795_342_364, 1_795_342_364))
    page = collect_live_page(folder)
    assert page.sentence == "Running: 200 of 600 steps."
    found = {figure.label: figure for figure in page.figures}
    assert found["Since its start"].value == "1 hour"
    assert found["Since its start"].note == "about 2 hours left at this rate"
    assert found["Train loss"].note == "at step 198"
    assert {figure.origin for figure in page.figures} == {"MEASURED"}
    assert not page.is_finished


def test_a_run_that_has_finished_links_its_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert collect_live_page(folder).is_finished
    run = LiveRun(folder)
    assert run.give_report() is None
    write_pages(folder)
    assert b'href="/report.html"' in run.give_part().body
    report = run.give_report()
    assert report is not None
    assert report.body == (folder / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.csv", "step,train/loss\n0,good\n", "not a number"),
        ("metrics.csv", "step,train/loss\n0,nan\n", "is not finite"),
        ("manifest.json", "{", "manifest.json"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, text: str, said: str) -> None:
    folder = start_run(tmp_path / "run")
    (folder / name).write_text(text)
    assert said in LiveRun(folder).give_part().body.decode()


def test_half_a_line_is_not_read(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "run")
    (folder / "metrics.csv").write_text("step,train/loss\n0,1.5\n2,1.2\n4,0.0000")
    page = collect_live_page(folder)
    assert page.step == 3
    assert page.notices == ()


def test_a_part_has_a_new_tag_when_something_has_changed(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "run")
    write_metrics(folder / "metrics.csv", 20)
    run = LiveRun(folder)
    first = run.give_part()
    assert run.give_part() is first
    write_metrics(folder / "metrics.csv", 40)
    assert run.give_part().tag != first.tag


def test_the_page_may_ask_only_its_own_server_and_run_only_its_scripts(tmp_path: Path) -> None:
    answer = LiveRun(start_run(tmp_path / "run")).give_page()
    policy = answer.content_security_policy
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    scripts = re.search(r"script-src ([^;]*)", policy)
    assert scripts is not None
    assert all(one.startswith("'sha256-") for one in scripts[1].split())
    # What the file says of itself is no wider.
    assert scripts[1].strip() in answer.body.decode()


def test_names_are_text(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "<img src=x>")
    (folder / "metrics.csv").write_text("step,<img src=y>\n0,1\n1,2\n")
    run = LiveRun(folder)
    for answer in (run.give_page(), run.give_part()):
        assert b"<img src=" not in answer.body
