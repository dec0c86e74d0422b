"""The live page in a browser: it follows a run without being loaded again."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sample_run import start_run, write_metrics, write_run

from fsdtrain.report.live_page import LiveRun
from fsdtrain.report.live_server import LiveServer

Opened = Any  # of conftest.py, which cannot be imported
PATIENCE_MS = 30_000  # for what comes within two polls on an idle machine


@contextmanager
def following(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(LiveRun(folder).routes()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def wait_for(opened: Opened, text: str) -> None:
    opened.page.get_by_text(text).first.wait_for(timeout=PATIENCE_MS)


def titles(opened: Opened) -> list[str]:
    found: list[str] = opened.page.locator("figure[data-chart] h3").all_inner_texts()
    return found


def num_points(opened: Opened) -> int:
    """Of the first curve that is drawn."""
    found: int = opened.page.locator("figure[data-chart] .plot").first.evaluate(
        "(plot) => (plot.data ? plot.data[0].x.length : 0)"
    )
    return found


def test_values_appear_while_the_run_goes_on(
    open_url: Callable[[str], Opened], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with following(folder) as server:
        opened = open_url(server.url)
        page = opened.page
        page.evaluate("window.isTheSamePage = true")
        wait_for(opened, "Waiting for the run")
        start_run(folder)
        wait_for(opened, "nothing has been logged yet")
        write_metrics(folder / "metrics.csv", 60)
        wait_for(opened, "Running: 59 of 600 steps")
        assert titles(opened) == ["Loss", "Gradient norm", "Samples per second"]
        page.locator(".plot .main-svg").first.wait_for(state="attached", timeout=PATIENCE_MS)
        assert num_points(opened) == 30
        # A reader's choices stay: a curve that is hidden, and what has the focus.
        log = page.locator("[data-act=log]").first
        log.focus()
        page.keyboard.press("Space")
        write_metrics(folder / "metrics.csv", 90)
        wait_for(opened, "Running: 89 of 600 steps")
        for _ in range(100):
            if num_points(opened) == 45:
                break
            page.wait_for_timeout(100)
        assert num_points(opened) == 45
        assert log.get_attribute("aria-pressed") == "true"
        assert log.evaluate("(button) => button === document.activeElement")
        write_metrics(folder / "metrics.csv", 300)
        wait_for(opened, "Running: 300 of 600 steps")
        assert titles(opened) == ["Loss", "Gradient norm", "Vehicle IoU", "Samples per second"]
        opened.scroll_through()
        for chart in page.locator("figure[data-chart]").all():
            chart.scroll_into_view_if_needed()
            chart.locator(".main-svg .trace path").first.wait_for(state="attached")
        write_run(folder)
        wait_for(opened, "The run has finished.")
        assert page.evaluate("window.isTheSamePage")
        assert opened.complaints == []
        assert {url.removeprefix(server.url) for url in opened.requests} == {"", "part"}


def test_the_live_page_is_accessible_and_fits_a_phone(
    open_url: Callable[[str], Opened], tmp_path: Path
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    folder = start_run(tmp_path / "run")
    write_metrics(folder / "metrics.csv", 300)
    with following(folder) as server:
        opened = open_url(server.url)
        wait_for(opened, "Connected")
        for scheme in ("light", "dark"):
            opened.page.emulate_media(color_scheme=scheme)
            found = axe.Axe().run(opened.page).response["violations"]
            assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        opened.page.set_viewport_size({"width": 390, "height": 844})
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390


def hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_command_serves_until_ctrl_c_and_the_page_says_that_it_is_gone(
    open_url: Callable[[str], Opened], tmp_path: Path
) -> None:
    folder = start_run(tmp_path / "run")
    write_metrics(folder / "metrics.csv", 60)
    command = [sys.executable, "-m", "fsdtrain", "report", "serve", str(folder), "--port", "0"]
    # A shell that runs the tests in the background has them, and their children, ignore Ctrl-C.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "http://127.0.0.1:" in line
            opened = open_url(line.split()[-1])
            wait_for(opened, "Running: 59 of 600 steps")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    wait_for(opened, "Connection lost")
    shutil.rmtree(folder)
