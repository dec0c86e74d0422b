"""Write report.html and profile.html: offline pages of a run, each made from its folder alone.

It knows files and templates, not what a run is: `run_page.py` and `profile_page.py` gather what the
pages show, and `templates/` says what they look like.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from fsdtrain.errors import UserError
from fsdtrain.report.cards import ORIGIN_MEANINGS
from fsdtrain.report.profile_page import collect_profile_page
from fsdtrain.report.run_page import collect_run_page

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html and return its path.

    A run that was interrupted is reported as far as it came: without results.json, metrics.csv,
    pictures or config.yaml the page says so.

    Raises:
        UserError: there is no readable manifest.json, or the folder cannot be written to.
        DataError: metrics.csv does not hold numbers.
    """
    text = render("run.html.j2", collect_run_page(run_dir), scripts=("page.js", "charts.js"))
    return _write(run_dir / "report.html", text)


def write_profile_page(run_dir: Path) -> Path:
    """Write `run_dir`/profile.html and return its path.

    Raises:
        UserError: there is no readable manifest.json or profile.json, or the folder cannot be
            written to.
    """
    page = collect_profile_page(run_dir)
    text = render("profile.html.j2", page, scripts=(), styles=("page.css", "profile.css"))
    return _write(run_dir / "profile.html", text)


def _write(path: Path, text: str) -> Path:
    temporary = path.with_suffix(".html.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path


def render(
    template: str,
    page: object,
    *,
    scripts: Sequence[str],
    styles: Sequence[str] = ("page.css",),
) -> str:
    """Fill a page template; only the named scripts, allowed by their hash, will run in it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sources = [(TEMPLATES / name).read_text(encoding="utf-8") for name in scripts]
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in sources)
    return environment.get_template(template).render(
        page=page,
        # The package's own files: the only text on the page that is not escaped.
        style=Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in styles)),
        scripts=[Markup(text) for text in sources],
        script_sources=Markup(
            " ".join(f"'sha256-{value.decode()}'" for value in hashes) or "'none'"
        ),
        origin_meanings=ORIGIN_MEANINGS,
    )
