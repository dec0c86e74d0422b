"""Every kind of page in a browser: quiet, offline, drawn, sortable, accessible, phone and paper."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

Opened = Any  # of conftest.py, which cannot be imported
OpenKind = Callable[[str], Opened]
MAX_BYTES = 8_000_000
# What plotly draws a mark with: lines, bars and points, cells of a heat map.
MARKS = (
    ".main-svg .trace path, .main-svg .traces path, .main-svg .points path, .main-svg .point path, "
    ".main-svg .hm image, .main-svg image, .main-svg .errorbar path"
)
FOCUSABLE = (
    "a[href], button:not(:disabled), input, summary, [tabindex='0'], select, textarea"
)  # fmt: skip
SERIOUS = {"serious", "critical"}


def test_no_complaint_and_no_request_but_the_file(opened: Opened) -> None:
    assert opened.complaints == []
    assert opened.requests == [opened.url]


def test_the_file_is_small(page_paths: dict[str, Path]) -> None:
    sizes = {kind: path.stat().st_size for kind, path in page_paths.items()}
    assert all(size < MAX_BYTES for size in sizes.values()), sizes


def test_every_chart_has_marks(opened: Opened) -> None:
    charts = opened.page.locator("figure[data-chart]:visible")
    assert charts.count() > 0
    for at in range(charts.count()):
        chart = charts.nth(at)
        title = chart.locator("h3").first.inner_text()
        assert chart.locator(MARKS).count() > 0, title
        assert chart.locator(".badge").count() == 1, f"{title}: no origin"
        assert "Source:" in chart.inner_text(), f"{title}: no source"


def tables_of(opened: Opened) -> list[Any]:
    """The tables that are shown and have more than one row."""
    found = opened.page.locator(".sortable:visible").all()
    return [table for table in found if table.locator("tbody tr").count() > 1]


# In one call, for a call costs more than a click.
SORT_BY_EACH_HEADING = """(tables) => tables.flatMap((table) => {
  const rows = () => [...table.querySelectorAll("tbody tr")];
  const cells = (at) => rows().map((row) => row.children[at].textContent);
  return [...table.querySelectorAll("thead th")].map((head, at) => {
    const click = () => {
      head.querySelector("button").click();
      return [head.getAttribute("aria-sort"), cells(at), rows()[0].textContent];
    };
    const [[first, , before], [second, texts, after]] = [click(), click()];
    return {
      heading: head.textContent, orders: [first, second], isChanged: before !== after,
      isDistinct: new Set(texts).size === texts.length,
      count: table.querySelectorAll("th[aria-sort]").length,
    };
  });
})"""


def test_tables_sort_and_say_so(opened: Opened) -> None:
    tables = [table.element_handle() for table in tables_of(opened)]
    for found in opened.page.evaluate(SORT_BY_EACH_HEADING, tables):
        assert set(found["orders"]) == {"ascending", "descending"}, found
        assert found["count"] == 1, found
        assert found["isChanged"] or not found["isDistinct"], found


@pytest.mark.parametrize(("number", "is_rising"), [(1, False), (2, True)])
def test_numbers_are_sorted_as_numbers(
    open_kind: OpenKind, number: int, *, is_rising: bool
) -> None:
    page = open_kind("compare").page
    table = page.locator(".sortable").first
    heads = table.locator("thead th button").all_inner_texts()
    column = next(at for at, text in enumerate(heads) if text.startswith("SNR of b"))
    # From a column that is not it, so that the first click is the first.
    table.locator("thead th button").first.click()
    for _ in range(number):
        table.locator("thead th button").nth(column).click()
    texts = table.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts()
    values = [float(text) for text in texts]
    assert len(set(values)) > 5
    assert all((a <= b) if is_rising else (a >= b) for a, b in pairwise(values))


def test_a_filter_leaves_what_holds_its_word(opened: Opened) -> None:
    for table in tables_of(opened):
        field = table.locator("input[type=search]")
        word = table.locator("tbody tr").first.locator("th").inner_text().split("\n")[0].strip()
        field.fill(word.upper())
        rows = table.locator("tbody tr").all_inner_texts()
        assert rows
        assert all(word.lower() in row.lower() for row in rows)
        field.fill("no row says this")
        assert table.locator("tbody tr").count() == 0
        assert "0 of" in table.locator(".count").inner_text()
        field.fill("")
        assert table.locator("tbody tr").count() > 1


def test_a_choice_filters(open_kind: OpenKind) -> None:
    table = open_kind("compare").page.locator(".sortable").first
    button = table.locator(".choices button", has_text="teacher-forced")
    before = table.locator("tbody tr").count()
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert 0 < table.locator("tbody tr").count() < before
    button.click()
    assert table.locator("tbody tr").count() == before


def test_no_list_of_rows_is_long(opened: Opened) -> None:
    longest = opened.page.evaluate(
        "Math.max(...[...document.querySelectorAll('tbody')].map((body) => body.children.length))"
    )
    assert longest <= 60


def test_the_keyboard_reaches_everything(opened: Opened) -> None:
    page = opened.page
    page.evaluate(
        f"""() => {{
          document.activeElement.blur();
          window.scrollTo(0, 0);
          window.unreached = new Set([...document.querySelectorAll("{FOCUSABLE}")].filter((one) =>
            one.checkVisibility({{ visibilityProperty: true }}) && one.tabIndex >= 0));
          document.addEventListener("focusin", (event) => window.unreached.delete(event.target));
        }}"""
    )
    limit = page.evaluate("window.unreached.size") + 20
    for _ in range(limit):
        page.keyboard.press("Tab")
    left = page.evaluate("[...window.unreached].map((one) => one.outerHTML.slice(0, 120))")
    assert left == []


@pytest.mark.parametrize("kind", ["profile", "compare", "plan"])
def test_keys_sort(open_kind: OpenKind, kind: str) -> None:
    page = open_kind(kind).page
    head = tables_of(open_kind(kind))[0].locator("thead th").last
    head.locator("button").focus()
    page.keyboard.press("Enter")
    first = head.get_attribute("aria-sort")
    page.keyboard.press("Space")
    assert {first, head.get_attribute("aria-sort")} == {"ascending", "descending"}


def test_keys_read_and_hide_curves(opened: Opened) -> None:
    page = opened.page
    entry = page.locator("[data-traces]:visible").first
    entry.focus()
    page.keyboard.press("Space")
    assert entry.get_attribute("aria-pressed") == "false"
    page.keyboard.press("Space")
    assert entry.get_attribute("aria-pressed") == "true"
    plot = page.locator("figure[data-chart]:visible", has=page.locator(".legend")).first
    plot.scroll_into_view_if_needed()
    plot.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    said = plot.locator(".reading").inner_text()
    page.keyboard.press("ArrowRight")
    assert said
    assert plot.locator(".reading").inner_text() != said


def test_arrows_move_the_slider_of_the_maps(open_kind: OpenKind) -> None:
    page = open_kind("profile").page
    slider = page.locator("input[type=range]")
    slider.focus()
    before = page.locator(".maptools output").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator(".maptools output").inner_text() != before
    assert slider.get_attribute("aria-valuetext") == page.locator(".maptools output").inner_text()


def test_details_of_a_tensor_open(open_kind: OpenKind) -> None:
    page = open_kind("compare").page
    row = page.locator(".sortable").first.locator("tbody tr").first
    summary = row.locator("summary")
    summary.focus()
    page.keyboard.press("Enter")
    text = row.inner_text()
    for part in ("a against the reference", "b against a", "stores", "cosine", "Pearson"):
        assert part in text
    page.keyboard.press("Enter")


def test_the_tree_opens_by_key_and_names_the_worst(open_kind: OpenKind) -> None:
    page = open_kind("compare").page
    tree = page.locator("[data-tree]")
    before = tree.locator(".node").count()
    branch = tree.locator("summary").nth(1)
    branch.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(50)
    assert tree.locator(".node").count() > before
    assert "1 outside" in tree.inner_text()
    page.keyboard.press("Enter")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Opened, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    opened.page.emulate_media(color_scheme=scheme)
    opened.page.wait_for_timeout(100)
    found = axe.Axe().run(opened.page).response["violations"]
    serious = [
        f"{one['id']}: {one['help']}: {[node['html'][:140] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in SERIOUS
    ]
    assert serious == []


def test_a_phone_has_no_sideways_scroll(opened: Opened) -> None:
    opened.page.set_viewport_size({"width": 390, "height": 844})
    opened.page.wait_for_timeout(100)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.page.evaluate("document.body.scrollWidth") <= 390


def test_paper_shows_the_charts_and_no_controls(opened: Opened) -> None:
    page = opened.page
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    # What is on stays, for it says how the charts are drawn.
    assert page.locator("button.tool[aria-pressed=false]:visible").count() == 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")
    assert page.pdf().startswith(b"%PDF")


def test_the_theme_button_changes_the_theme(opened: Opened) -> None:
    page = opened.page
    button = page.locator("[data-act=theme]")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.keyboard.press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light
