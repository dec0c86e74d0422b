"""Write the pages of a comparison and of a plan, and the page of any finished folder.

It knows which files make which page, not what the pages show.
"""

from pathlib import Path

from fsdtrain.comparison.record import read_comparison
from fsdtrain.errors import UserError
from fsdtrain.planning.record import read_plan
from fsdtrain.report.compare_page import make_compare_page
from fsdtrain.report.compare_text import write_compare_texts
from fsdtrain.report.html import write_page, write_profile_page, write_report
from fsdtrain.report.plan_page import make_plan_page


def write_compare_page(folder: Path) -> Path:
    """Write `folder`/compare.html and return its path.

    Raises:
        UserError: there is no readable compare.json, or the folder cannot be written to.
    """
    page = make_compare_page(read_comparison(folder))
    return write_page(folder / "compare.html", "compare.html.j2", page)


def write_plan_page(folder: Path) -> Path:
    """Write `folder`/plan.html and return its path.

    Raises:
        UserError: there is no readable plan.json, or the folder cannot be written to.
    """
    return write_page(folder / "plan.html", "plan.html.j2", make_plan_page(read_plan(folder)))


def write_pages(folder: Path) -> tuple[Path, ...]:
    """Write, from its records alone, every page that a finished folder can have.

    Raises:
        UserError: there is no such folder, it holds no record, or a record cannot be read.
        DataError: metrics.csv does not hold numbers.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the one that a command has written to")
    written: list[Path] = []
    if (folder / "compare.json").exists():
        written += [
            write_compare_page(folder),
            *write_compare_texts(read_comparison(folder), folder),
        ]
    if (folder / "plan.json").exists():
        written.append(write_plan_page(folder))
    if (folder / "profile.json").exists():
        written.append(write_profile_page(folder))
    is_run = (folder / "manifest.json").exists()
    # Profiles and plans have a manifest as well, but neither curves nor final figures.
    is_trained = any((folder / name).exists() for name in ("metrics.csv", "results.json"))
    if is_run and (is_trained or not written):
        written.append(write_report(folder))
    if not written:
        raise UserError(
            f"{folder} holds none of manifest.json, profile.json, compare.json and plan.json: "
            "give the folder of a fit, profile, compare or plan"
        )
    return tuple(written)
