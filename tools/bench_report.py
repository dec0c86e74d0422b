"""How long pages take: to write, to open in Chromium until their first chart is drawn, to answer.

    python tools/bench_report.py runs/a/report.html runs/b/compare.html
    python tools/bench_report.py --ops 5000     # the page of a made-up profile of so many ops

Medians over --repeat; wall clock, so an idle machine is needed. From the start of the navigation:
shown: the first contentful paint; charts: two frames after the first chart is drawn, to which the
page is scrolled. An interaction: from its event to the second frame after it, which is when its
result can be seen. MEASURED.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from fsdtrain.engine.profile_record import ProfileRecord
from fsdtrain.engine.run_record import make_manifest, write_json
from fsdtrain.report.pages import write_pages
from fsdtrain.step_profile import OpProfile, StepProfile

# Milliseconds from an event to the second frame after it.
TIMED = """() => new Promise((resolve) => {
  const start = performance.now();
  ACT;
  requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
})"""
PAINTED = """() => new Promise((resolve) => new PerformanceObserver((list) => {
  const paint = list.getEntriesByName("first-contentful-paint")[0];
  if (paint) resolve(paint.startTime);
}).observe({ type: "paint", buffered: true }))"""
INTERACTIONS = {
    "sort": "document.querySelectorAll('.sortable thead button')[1].click()",
    "filter": "const field = document.querySelector('.sortable input[type=search]');"
    "field.value = field.value ? '' : 'conv';"
    "field.dispatchEvent(new Event('input', { bubbles: true }))",
    "next page": "document.querySelectorAll('.sortable .pages button')[1].click()",
    "hide a curve": "document.querySelector('[data-traces]').click()",
}
NEEDS = {
    "sort": ".sortable", "filter": ".sortable", "next page": ".sortable .pages:not([hidden])",
    "hide a curve": "[data-traces]",
}  # fmt: skip


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="HTML files")
    parser.add_argument("--ops", type=int, help="write and time the page of a made-up profile")
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        sys.exit("needs chromium or google-chrome")
    table = Table(
        "page",
        "MB",
        "write, s",
        "shown, ms",
        "charts, ms",
        *(f"{name}, ms" for name in INTERACTIONS),
    )
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        pages: list[tuple[Path, str]] = [(path, "") for path in given.pages]
        if given.ops:
            pages.append(write_profile(Path(folder), given.ops, given.repeat))
        for path, write_s in pages:
            times = [time_once(chromium, path) for _ in range(given.repeat)]
            shown, drawn, answers = zip(*times, strict=True)
            table.add_row(
                f"{path.parent.name}/{path.name}", f"{path.stat().st_size / 1e6:.1f}", write_s,
                f"{median(shown):.0f}", f"{median(drawn):.0f}", *summarise(answers),
            )  # fmt: skip
        chromium.close()
    Console(width=140).print(table)


def time_once(chromium: Any, path: Path) -> tuple[float, float, dict[str, float]]:
    """(ms until it is shown, until its first chart is drawn, ms by interaction), a fresh window."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(path.resolve().as_uri())
    shown = page.evaluate(PAINTED)
    charts = page.locator("figure[data-chart]")
    if charts.count():
        charts.first.scroll_into_view_if_needed()
        page.locator(".main-svg").first.wait_for(state="attached")
    page.evaluate(TIMED.replace("ACT", ""))
    drawn = page.evaluate("performance.now()")
    found = dict(answers_of(page))
    context.close()
    return shown, drawn, found


def answers_of(page: Page) -> Iterator[tuple[str, float]]:
    """The slower of two of each interaction that the page has."""
    for name, act in INTERACTIONS.items():
        if page.locator(NEEDS[name]).count():
            yield name, max(page.evaluate(TIMED.replace("ACT", act)) for _ in range(2))


def summarise(answers: tuple[dict[str, float], ...]) -> list[str]:
    """Medians by interaction; "" where the page has none."""
    return [
        f"{median(one[name] for one in answers):.0f}" if name in answers[0] else ""
        for name in INTERACTIONS
    ]


def write_profile(folder: Path, num_ops: int, repeat: int) -> tuple[Path, str]:
    """(the page of a profile of `num_ops` ops, seconds to write it, the median)."""
    op = OpProfile(
        name="convolution", shapes="256x64x56x56, 64x64x3x3", dtype="cfloat8_1_4_3", num_calls=1,
        time_s=1e-5, flops=10**9, num_bytes=10**6, bound_by="matrix", phase="forward",
        layer="network.backbone.0", line="fsdtrain/models/backbone.py:41",
        explanation=("output-stationary, K whole: 31.2 us; weight-stationary: 44.0 us",),
    )  # fmt: skip
    ops = tuple(
        replace(op, name=f"convolution_{at}", layer=f"network.backbone.{at % 97}",
                time_s=1e-5 / (1 + at), bound_by=("matrix", "HBM", "link")[at % 3])
        for at in range(num_ops)
    )  # fmt: skip
    profile = StepProfile(
        backend="made-up", device="none", origin="MODELLED",
        step_time_s=sum(each.time_s for each in ops), ops=ops,
    )  # fmt: skip
    write_json(folder / "profile.json", ProfileRecord(num_clips=1, profile=profile))
    manifest = make_manifest(
        command="bench_report", started_at="2026-01-01T00:00:00Z", seed=0, backend="made-up",
        device="none", origin="MODELLED", config_yaml="", data_sha256="",
    )  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        (path,) = write_pages(folder)
        seconds.append(time.perf_counter() - start)
    return path, f"{median(seconds):.2f}"


if __name__ == "__main__":
    main()
