"""Headless Chromium on real pages: one of each kind, made once for a file of tests.

The browser is the system's (Debian's package chromium); nothing is downloaded.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sample_compare import make_compare_record, make_side_manifest
from sample_plan import make_plan_record
from sample_profile import make_profile
from sample_run import write_run

from fsdtrain.engine.profile_record import ProfileRecord
from fsdtrain.engine.run_record import write_json
from fsdtrain.report.pages import write_pages

KINDS = ("fit", "profile", "compare", "plan")
DESKTOP = {"width": 1280, "height": 900}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Opened:
    """A page that is open, with what it said and what it asked for."""

    page: Any  # of playwright
    url: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def scroll_through(self) -> None:
        """Bring everything into view once, so that charts are drawn."""
        height = self.page.evaluate("document.documentElement.scrollHeight")
        for top in range(0, height, 600):
            self.page.evaluate(f"window.scrollTo(0, {top})")
            self.page.wait_for_timeout(60)
        self.page.evaluate("window.scrollTo(0, 0)")


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Chromium; without one the tests are skipped, unless --require-browser is given."""
    is_required = request.config.getoption("--require-browser")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        reason = f"none of {', '.join(BROWSERS)} is installed"
        if is_required:
            pytest.fail(f"--require-browser: {reason}")
        pytest.skip(reason)
    if not is_required:
        pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers run as root, where Chromium's sandbox cannot be had.
        found = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each kind."""
    root = tmp_path_factory.mktemp("pages")
    folders = {kind: root / kind for kind in KINDS}
    for folder in folders.values():
        folder.mkdir()
    write_run(folders["fit"])
    profile = ProfileRecord(num_clips=256, profile=make_profile())
    write_json(folders["profile"] / "profile.json", profile)
    manifest = make_side_manifest("dojo", "Tesla D1 tile", "MODELLED")
    write_json(folders["profile"] / "manifest.json", manifest)
    write_json(folders["compare"] / "compare.json", make_compare_record())
    write_json(folders["plan"] / "plan.json", make_plan_record())
    written = {kind: write_pages(folder) for kind, folder in folders.items()}
    return {
        kind: next(path for path in paths if path.suffix == ".html")
        for kind, paths in written.items()
    }


@pytest.fixture(scope="module")
def open_url(browser: Any) -> Iterator[Callable[[str], Opened]]:
    """`open_url(url)` -> a page of its own, in light colours on a desktop's window."""
    contexts = []

    def open_(url: str) -> Opened:
        context = browser.new_context(viewport=DESKTOP, color_scheme="light")
        contexts.append(context)
        page = context.new_page()
        opened = Opened(page=page, url=url)
        page.on("console", lambda message: opened.complaints.append(message.text))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on("request", lambda asked: opened.requests.append(asked.url))
        page.goto(url)
        return opened

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def open_kind(
    open_url: Callable[[str], Opened], page_paths: dict[str, Path]
) -> Callable[[str], Opened]:
    """`open_kind("compare")` -> its page, scrolled through; the same one for a file of tests."""
    opened: dict[str, Opened] = {}

    def open_(kind: str) -> Opened:
        if kind not in opened:
            opened[kind] = open_url(page_paths[kind].as_uri())
            opened[kind].scroll_through()
        return opened[kind]

    return open_


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, open_kind: Callable[[str], Opened]) -> Iterator[Opened]:
    """The page of each kind in turn, as it was opened: light, on a desktop."""
    found = open_kind(request.param)
    yield found
    found.page.set_viewport_size(DESKTOP)
    found.page.emulate_media(color_scheme="light", media="screen")
