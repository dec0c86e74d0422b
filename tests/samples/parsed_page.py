"""A page of the report as a test reads it: tags, text, and the JSON of charts and tables."""

import json
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Parses a page and checks that its tags are balanced.

    `text` is what is read, without scripts; `data` the JSON of scripts, in order; `scripts` those
    that run.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.data: list[Any] = []
        self._open: list[str] = []
        self._script = ""
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"
        if tag != "script":
            return
        kind = self.all("script")[-1].get("type")
        if kind == "application/json":
            self.data.append(json.loads(self._script))
        elif kind is None:
            self.scripts.append(self._script)

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self._script += data
        elif self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [one for _, one in self.tags if name in (one.get("class") or "").split()]

    def sections(self) -> list[str | None]:
        return [section.get("id") for section in self.all("section")]

    def charts(self) -> dict[str, dict[str, Any]]:
        """The figures by their headings; equal headings are numbered."""
        found: dict[str, dict[str, Any]] = {}
        parts = self.html.split("<figure ")[1:]
        figures = [
            part.split("</figure>")[0] for part in parts if part.startswith('class="card ch')
        ]
        for figure in figures:
            title = figure.split("<h3>")[1].split("</h3>")[0]
            title = title if title not in found else f"{title} {len(found)}"
            text = figure.split('<script type="application/json">')[1].split("</script>")[0]
            found[title] = json.loads(text)
        return found

    def tables(self) -> dict[str, list[dict[str, str]]]:
        """The rows of tables that sort, by their captions; a cell by its heading."""
        found = {}
        for part in self.html.split('<div class="card sortable">')[1:]:
            caption = part.split('<caption class="unseen">')[1].split("</caption>")[0]
            heads = [each.split(">")[-1] for each in part.split("</button></th>")[:-1]]
            text = part.split('<script type="application/json">')[1].split("</script>")[0]
            data = json.loads(text)
            columns = [[data["strings"][each] for each in one["text"]] for one in data["columns"]]
            found[caption] = [
                dict(zip(heads, row, strict=True)) for row in zip(*columns, strict=True)
            ]
        return found


def assert_loads_nothing(page: Page) -> None:
    """No address of anywhere else, but in the text of plotly's own script."""
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "action", "data", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert tag not in {"link", "base", "iframe", "object", "embed", "form"}
    before, _, rest = page.html.partition('<script type="text/plain" id="plotly">')
    own = before + rest.partition("</script>")[2]
    for word in ("https:", "@import", "url(", "fetch(", "XMLHttpRequest", "import("):
        assert word not in own, word
    assert own.count("http:") == own.count("http://www.w3.org/2000/svg"), "a name, not an address"
