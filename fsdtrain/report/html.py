"""Write report.html and profile.html: offline pages of a run, each made from its folder alone.

It knows files and templates, not what a run is: `run_page.py` and `profile_page.py` gather what the
pages show, and `templates/` says what they look like.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fsdtrain.errors import UserError
from fsdtrain.report.cards import ORIGIN_MEANINGS
from fsdtrain.report.palette import css
from fsdtrain.report.profile_page import collect_profile_page
from fsdtrain.report.run_page import collect_run_page

TEMPLATES = Path(__file__).parent / "templates"
# page.js first: it sets the theme that the charts are drawn in; figures.js fills maps by maps.js.
SCRIPTS = ("page.js", "table.js", "maps.js", "tree.js", "figures.js")
STYLES = ("page.css", "compare.css")


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html and return its path.

    A run that was interrupted is reported as far as it came: without results.json, metrics.csv,
    pictures or config.yaml the page says so.

    Raises:
        UserError: there is no readable manifest.json, or the folder cannot be written to.
        DataError: metrics.csv does not hold numbers.
    """
    return write_page(run_dir / "report.html", "run.html.j2", collect_run_page(run_dir))


def write_profile_page(run_dir: Path) -> Path:
    """Write `run_dir`/profile.html and return its path.

    Raises:
        UserError: there is no readable manifest.json or profile.json, or the folder cannot be
            written to.
    """
    return write_page(run_dir / "profile.html", "profile.html.j2", collect_profile_page(run_dir))


def write_page(path: Path, template: str, page: object) -> Path:
    """Render a page into a file, whole or not at all; UserError where it cannot be written."""
    temporary = path.with_suffix(".html.partial")
    try:
        temporary.write_text(render(template, page), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path


def render(template: str, page: object, *, live_script: str | None = None) -> str:
    """Fill a page template; only the page's own scripts, allowed by their hashes, will run in it.

    `page` needs a `title`; the template knows the rest. A page with a `live_script` may ask the
    server that it came from, and nobody else.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = json_in_html
    sources, plotly = [_read(name) for name in SCRIPTS], get_plotlyjs()
    if live_script is not None:
        sources.append(_read(live_script))
    hashes = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in (*sources, plotly)
    )
    return environment.get_template(template).render(
        page=page,
        # The package's own files: with JSON the only text on the page that is not escaped.
        style=Markup(css() + "".join(_read(name) for name in STYLES)),
        scripts=[Markup(text) for text in sources],
        plotly=Markup(plotly),
        script_sources=Markup(" ".join(f"'sha256-{value.decode()}'" for value in hashes)),
        origin_meanings=ORIGIN_MEANINGS,
        is_live=live_script is not None,
    )


def json_in_html(value: Any) -> Markup:
    """JSON for a script element: no text in it can end the element or open a comment."""
    text = msgspec.json.encode(value).decode()
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
