"""Gather what the report of a run shows from its folder, as plain text and numbers.

It knows the files of the run folder, neither how the run was trained nor how the page looks.
A run that was interrupted has only some of the files; what is missing is said, not hidden.
"""

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from fsdtrain.engine.metrics_file import Curve, read_curves
from fsdtrain.engine.run_record import (
    Manifest,
    Results,
    read_manifest,
    read_results,
)
from fsdtrain.errors import UserError
from fsdtrain.report.cards import (
    ORIGIN_MEANINGS,
    FigureCard,
    label_of,
    make_card,
    summarise,
)
from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.charts.lines import MAX_POINTS, make_lines
from fsdtrain.report.curves import SECTIONS, arrange_panels
from fsdtrain.report.numerics_section import NumericsSection, read_numerics_section
from fsdtrain.step_profile import Origin

MAX_PICTURES = 12  # keeps the file within a few megabytes
PICTURE_QUALITY = 90  # of WebP; the folder keeps the lossless PNG

# Keys and comments of YAML, for colour only.
YAML_LINE = re.compile(
    r"(?P<key>[ ]*(?:- )?[\w./-]+:(?=\s|$))?(?P<value>.*?)(?P<comment>\s+#.*|^#.*)?"
)


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One line at the head of the page."""

    tone: Literal["good", "warn"]
    text: str


@dataclass(frozen=True, kw_only=True)
class PictureView:
    """One picture, inlined."""

    title: str
    data_uri: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line of the run's facts."""

    label: str
    value: str
    is_code: bool = False


@dataclass(frozen=True, kw_only=True)
class ConfigLine:
    """One line of YAML in its parts."""

    key: str
    value: str
    comment: str


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """Everything that run.html.j2 shows."""

    title: str
    run_name: str
    manifest: Manifest
    notices: tuple[Notice, ...]
    results_note: str
    compared_cards: tuple[FigureCard, ...]
    plain_cards: tuple[FigureCard, ...]  # of figures that have no baseline
    origins: tuple[Origin, ...]
    charts: tuple[tuple[str, tuple[Chart, ...]], ...]
    is_thinned: bool
    numerics: NumericsSection | None  # None: the run emulated no number formats
    pictures: tuple[PictureView, ...]
    pictures_note: str
    facts: tuple[tuple[str, tuple[Fact, ...]], ...]
    config_lines: tuple[ConfigLine, ...]
    config_note: str


def collect_run_page(run_dir: Path) -> RunPage:
    """Read the run folder into what the page shows."""
    manifest = read_manifest(run_dir)
    results, result_notices = _read_results(run_dir)
    metrics_path = run_dir / "metrics.csv"
    curves = read_curves(metrics_path) if metrics_path.exists() else {}
    numerics = read_numerics_section(run_dir)
    cards = [make_card(figure) for figure in results.figures] if results else []
    pictures, pictures_note = _read_pictures(run_dir / "pictures")
    config_path = run_dir / "config.yaml"
    config = config_path.read_text(encoding="utf-8") if config_path.exists() else ""
    name = run_dir.resolve().name
    return RunPage(
        title=f"{name} - fsdtrain run report",
        run_name=name,
        manifest=manifest,
        notices=(*result_notices, *non_finite_notices(curves), *_numerics_notices(numerics)),
        results_note=_results_note(results),
        compared_cards=tuple(card for card in cards if card.standing != "alone"),
        plain_cards=tuple(card for card in cards if card.standing == "alone"),
        origins=_origins(results),
        charts=curve_charts(curves, manifest.origin),
        is_thinned=any(len(curve.values) > MAX_POINTS for curve in curves.values()),
        numerics=numerics,
        pictures=pictures,
        pictures_note=pictures_note,
        facts=manifest_facts(manifest),
        config_lines=tuple(_config_line(line) for line in config.splitlines()),
        config_note=f"config.yaml, {len(config.splitlines())} lines",
    )


def curve_charts(
    curves: Mapping[str, Curve], origin: Origin
) -> tuple[tuple[str, tuple[Chart, ...]], ...]:
    """By section: a chart a quantity, all over the same steps."""
    panels = arrange_panels(curves)
    first = min((int(curve.steps[0]) for curve in curves.values()), default=0)
    last = max((int(curve.steps[-1]) for curve in curves.values()), default=0)
    charts: dict[str, list[Chart]] = {section: [] for section in SECTIONS}
    for panel in panels:
        chart = make_lines(
            label_of(panel.quantity), panel.series, origin=origin, source="metrics.csv",
            steps=(first, max(last, first + 1)), is_wide=panel.quantity == "loss",
        )  # fmt: skip
        charts[panel.section].append(chart)
    return tuple((section, tuple(found)) for section, found in charts.items() if found)


def _read_results(run_dir: Path) -> tuple[Results | None, list[Notice]]:
    if not (run_dir / "results.json").exists():
        text = "No final figures: this run was interrupted, or it is still going on."
        return None, [Notice(tone="warn", text=text)]
    try:
        results = read_results(run_dir)
    except UserError as error:
        # A run whose figures are not numbers still deserves its curves.
        text = f"The final figures cannot be read, so they are not shown. {error}"
        return None, [Notice(tone="warn", text=text)]
    summary = summarise(results.figures)
    if summary is None:
        return results, []
    return results, [Notice(tone="good" if summary[1] else "warn", text=summary[0])]


def _results_note(results: Results | None) -> str:
    if results is None:
        return ""
    skipped = f", {results.num_skipped_clips} skipped" if results.num_skipped_clips else ""
    return f"{results.split} split, {results.num_clips} clips{skipped}"


def _origins(results: Results | None) -> tuple[Origin, ...]:
    used = {figure.origin for figure in results.figures} if results else set()
    return tuple(origin for origin in ORIGIN_MEANINGS if origin in used)


def non_finite_notices(curves: Mapping[str, Curve]) -> list[Notice]:
    """One for each curve that holds NaN or an infinity."""
    notices = []
    for column, curve in curves.items():
        is_bad = ~np.isfinite(curve.values)
        if is_bad.any():
            step = int(curve.steps[int(np.argmax(is_bad))])
            count = int(is_bad.sum())
            text = (
                f"{column} is not finite at {count} of {len(is_bad)} points, first at step {step}."
            )
            notices.append(Notice(tone="warn", text=text))
    return notices


def _numerics_notices(numerics: NumericsSection | None) -> list[Notice]:
    if numerics is None or not numerics.warning:
        return []
    return [Notice(tone="warn", text=numerics.warning)]


def _read_pictures(folder: Path) -> tuple[tuple[PictureView, ...], str]:
    paths = sorted(folder.glob("*.png"))
    views, notes = [], []
    for path in paths[:MAX_PICTURES]:
        try:
            with Image.open(path) as image:
                picture = image.convert("RGB")
        except (OSError, UnidentifiedImageError):
            notes.append(f"{path.name} cannot be read")
            continue
        packed = io.BytesIO()
        picture.save(packed, "WEBP", quality=PICTURE_QUALITY, method=4)
        views.append(
            PictureView(
                title=path.stem,
                data_uri=_data_uri(packed.getvalue(), "webp"),
                width=picture.width,
                height=picture.height,
            )
        )
    if len(paths) > MAX_PICTURES:
        notes.append(f"the first {MAX_PICTURES} of {len(paths)}; all are in pictures/")
    return tuple(views), "; ".join(notes)


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def manifest_facts(manifest: Manifest) -> tuple[tuple[str, tuple[Fact, ...]], ...]:
    """What is needed to repeat a run, by topic."""
    revision = manifest.git_revision or "not run from a checkout"
    if manifest.git_dirty:
        revision += " (with uncommitted changes)"
    return (
        (
            "Where and how",
            (
                Fact(label="Command", value=manifest.command, is_code=True),
                Fact(label="Backend", value=manifest.backend),
                Fact(label="Device", value=manifest.device),
                Fact(label="Threads", value=str(manifest.num_threads)),
                Fact(label="Seed", value=str(manifest.seed)),
                Fact(label="Started", value=manifest.started_at),
                Fact(label="Platform", value=manifest.platform),
            ),
        ),
        (
            "Identity",
            (
                Fact(label="Git revision", value=revision, is_code=True),
                Fact(label="Config SHA-256", value=manifest.config_sha256, is_code=True),
                Fact(label="Data SHA-256", value=manifest.data_sha256, is_code=True),
            ),
        ),
        (
            "Versions",
            (
                Fact(label="python", value=manifest.python),
                *(Fact(label=name, value=text) for name, text in manifest.packages.items()),
            ),
        ),
    )


def _config_line(line: str) -> ConfigLine:
    match = YAML_LINE.fullmatch(line)
    assert match is not None, "every part of the pattern is optional"
    return ConfigLine(
        key=match["key"] or "", value=match["value"] or "", comment=match["comment"] or ""
    )
