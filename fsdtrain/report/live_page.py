"""The page of a run that is still going on: what is in its folder now, read when it has changed.

It does not know HTTP: `live_server.py` serves what this gives. It reads only the files that it
names here.
"""

import hashlib
import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fsdtrain.engine.metrics_file import Curve, read_curves
from fsdtrain.engine.run_record import Manifest, read_manifest
from fsdtrain.errors import DataError, UserError
from fsdtrain.report.amounts import in_seconds
from fsdtrain.report.cards import format_value, label_of
from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.html import render
from fsdtrain.report.live_server import Answer, Route
from fsdtrain.report.plan_words import duration
from fsdtrain.report.run_page import Notice, curve_charts, non_finite_notices
from fsdtrain.step_profile import Origin

WATCHED = ("manifest.json", "config.yaml", "metrics.csv", "results.json", "report.html")
HTML = "text/html; charset=utf-8"
MAX_STEPS = re.compile(r"^\s+max_steps:\s*(\d+)", re.MULTILINE)
SCRIPT_SOURCES = re.compile(r"script-src ([^;\"]*)")
# The last values that stand above the curves, where they are logged.
SHOWN = ("train/loss", "val/loss", "samples_per_second", "train/gradient_norm")


@dataclass(frozen=True, kw_only=True)
class LiveFigure:
    """A last value."""

    label: str
    value: str
    note: str
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class LivePage:
    """Everything that live.html.j2 shows; `manifest` is None before the run has begun."""

    title: str
    run_name: str
    manifest: Manifest | None
    sentence: str
    is_finished: bool
    has_report: bool
    written_at: str  # ISO 8601, UTC; "" if nothing was
    step: int | None
    max_steps: int | None
    figures: tuple[LiveFigure, ...]
    notices: tuple[Notice, ...]
    charts: tuple[tuple[str, tuple[Chart, ...]], ...]


def collect_live_page(run_dir: Path) -> LivePage:
    """Read what is there; what is not there yet, or cannot be read, is said."""
    name = run_dir.resolve().name
    manifest, curves, notices = None, {}, []
    sentence = f"Waiting for the run: there is no manifest.json in {run_dir} yet."
    if (run_dir / "manifest.json").exists():
        sentence = "The run has begun; nothing has been logged yet."
        try:
            manifest = read_manifest(run_dir)
            curves = _read_curves(run_dir)
        except (UserError, DataError) as error:
            notices.append(Notice(tone="warn", text=f"{error}"))
    is_finished = manifest is not None and (run_dir / "results.json").exists()
    step = max((int(curve.steps[-1]) + 1 for curve in curves.values()), default=None)
    max_steps = _read_max_steps(run_dir)
    written_at = _written_at(run_dir / "metrics.csv") if curves else None
    if is_finished:
        sentence = "The run has finished."
    elif step is not None:
        sentence = f"Running: {step:,}{f' of {max_steps:,}' if max_steps else ''} steps."
    notices += non_finite_notices(curves)
    return LivePage(
        title=f"{name} - fsdtrain live",
        run_name=name,
        manifest=manifest,
        sentence=sentence,
        is_finished=is_finished,
        has_report=(run_dir / "report.html").exists(),
        written_at="" if written_at is None else written_at.isoformat(),
        step=step,
        max_steps=max_steps,
        figures=_figures(manifest, curves, step, max_steps, written_at) if manifest else (),
        notices=tuple(notices),
        charts=curve_charts(curves, manifest.origin) if manifest and curves else (),
    )


def _read_curves(run_dir: Path) -> dict[str, Curve]:
    path = run_dir / "metrics.csv"
    return read_curves(path) if path.exists() else {}


def _read_max_steps(run_dir: Path) -> int | None:
    path = run_dir / "config.yaml"
    found = MAX_STEPS.search(path.read_text(encoding="utf-8")) if path.exists() else None
    return int(found[1]) if found else None


def _written_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0)


def _figures(
    manifest: Manifest,
    curves: dict[str, Curve],
    step: int | None,
    max_steps: int | None,
    written_at: datetime | None,
) -> tuple[LiveFigure, ...]:
    found = []
    if step is not None and written_at is not None:
        # The start is that of the command: reading data is in it.
        seconds = (written_at - datetime.fromisoformat(manifest.started_at)).total_seconds()
        note = ""
        if max_steps and 0 < step < max_steps and seconds > 0:
            note = f"about {duration(seconds * (max_steps - step) / step)} left at this rate"
        if seconds > 0:
            text = in_seconds(seconds) if seconds < 60 else duration(seconds)
            found.append(
                LiveFigure(label="Since its start", value=text, note=note, origin="MEASURED")
            )
    for column in SHOWN:
        if column in curves:
            curve = curves[column]
            found.append(
                LiveFigure(
                    label=label_of(column), value=format_value(float(curve.values[-1])),
                    note=f"at step {int(curve.steps[-1]):,}", origin=manifest.origin,
                )
            )  # fmt: skip
    return tuple(found)


class LiveRun:
    """The routes of a run's live page; files are read again only when they have changed."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.lock = threading.Lock()
        self.stamps: tuple[object, ...] = ()
        self.part = Answer(body=b"", content_type=HTML)

    def routes(self) -> dict[str, Route]:
        """The page, the part of it that changes, and the report once it is written."""
        return {"/": self.give_page, "/part": self.give_part, "/report.html": self.give_report}

    def give_page(self) -> Answer:
        """The whole page."""
        page = collect_live_page(self.run_dir)
        text = render("live.html.j2", page, live_script="live.js")
        sources = SCRIPT_SOURCES.search(text)
        assert sources is not None, "every page has a policy"
        policy = (
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; connect-src 'self'; "
            f"script-src {sources[1]}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return Answer(body=text.encode(), content_type=HTML, content_security_policy=policy)

    def give_part(self) -> Answer:
        """What changes, with a tag of its contents."""
        with self.lock:
            stamps = tuple(_stamp(self.run_dir / name) for name in WATCHED)
            if stamps != self.stamps or not self.part.body:
                body = render("live_part.html.j2", collect_live_page(self.run_dir)).encode()
                tag = hashlib.sha256(body).hexdigest()[:24]
                self.part = Answer(body=body, content_type=HTML, tag=tag)
                self.stamps = stamps
            return self.part

    def give_report(self) -> Answer | None:
        """The finished report; None while there is none."""
        try:
            body = (self.run_dir / "report.html").read_bytes()
        except OSError:
            return None
        # The file has a policy of its own, by the hashes of its scripts.
        return Answer(
            body=body, content_type=HTML, content_security_policy="frame-ancestors 'none'"
        )


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
