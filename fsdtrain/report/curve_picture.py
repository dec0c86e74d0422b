"""Draw all curves of a run into one PNG, for a README or a page without scripts.

It knows panels, not where they come from.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fsdtrain.engine.metrics_file import Curve
from fsdtrain.errors import UserError
from fsdtrain.report.cards import format_value, label_of
from fsdtrain.report.curves import (
    Panel,
    Role,
    Series,
    arrange_panels,
    smoothed_or_none,
    thin_indices,
)

Color = tuple[int, int, int]
Steps = tuple[int, int]  # first and last of the run: every panel has the same axis

# Everything is drawn this many times larger and then reduced: Pillow's lines have no smooth edge.
OVERSAMPLE = 2
WIDTH_PX = 1500
PANEL_HEIGHT_PX = 270
NUM_COLUMNS = 3
GAP_PX = 18
MARGIN_PX = (62, 44, 16, 30)  # left, top, right, bottom of the plot within its panel

PAPER: Color = (255, 255, 255)
INK: Color = (20, 25, 31)
SOFT: Color = (92, 102, 112)
GRID: Color = (231, 234, 236)
# Okabe-Ito, darkened for white paper; the same as on the page.
TONES: dict[Role, Color] = {
    "train": (10, 102, 178),
    "val": (196, 80, 10),
    "other": (0, 121, 92),
    "baseline": (140, 151, 161),
}


def curves_png(curves: Mapping[str, Curve], path: Path) -> None:
    """Write the picture of `draw_curves`; UserError where the file cannot be written."""
    try:
        draw_curves(curves).save(path, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def draw_curves(curves: Mapping[str, Curve]) -> Image.Image:
    """RGB, 1500 px wide: the total loss across the top, every other quantity in a grid below."""
    panels = arrange_panels(curves)
    wide = [panel for panel in panels if panel.quantity == "loss"]
    small = [panel for panel in panels if panel.quantity != "loss"]
    num_rows = len(wide) + -(-len(small) // NUM_COLUMNS)
    height = GAP_PX + max(num_rows, 1) * (PANEL_HEIGHT_PX + GAP_PX)
    canvas = Image.new("RGB", (WIDTH_PX * OVERSAMPLE, height * OVERSAMPLE), PAPER)
    draw = ImageDraw.Draw(canvas)
    first = min((int(curve.steps[0]) for curve in curves.values()), default=0)
    last = max((int(curve.steps[-1]) for curve in curves.values()), default=0)
    steps = (first, max(last, first + 1))
    for row, panel in enumerate(wide):
        _draw_panel(draw, panel, column=0, row=row, columns=1, steps=steps)
    for number, panel in enumerate(small):
        row, column = divmod(number, NUM_COLUMNS)
        _draw_panel(
            draw, panel, column=column, row=len(wide) + row, columns=NUM_COLUMNS, steps=steps
        )
    return canvas.resize((WIDTH_PX, height), Image.Resampling.LANCZOS)


def _draw_panel(
    draw: ImageDraw.ImageDraw, panel: Panel, *, column: int, row: int, columns: int, steps: Steps
) -> None:
    width = (WIDTH_PX - GAP_PX * (columns + 1)) // columns
    x = (GAP_PX + column * (width + GAP_PX)) * OVERSAMPLE
    y = (GAP_PX + row * (PANEL_HEIGHT_PX + GAP_PX)) * OVERSAMPLE
    left, top, right, bottom = (value * OVERSAMPLE for value in MARGIN_PX)
    plot = (
        x + left,
        y + top,
        x + width * OVERSAMPLE - right,
        y + PANEL_HEIGHT_PX * OVERSAMPLE - bottom,
    )
    _draw_heading(draw, panel, x + 4 * OVERSAMPLE, y, plot[2])
    finite = [one.curve.values[np.isfinite(one.curve.values)] for one in panel.series]
    values = np.concatenate(finite)
    if not len(values):
        draw.text((plot[0], plot[1]), "no finite value", fill=SOFT, font=_font(12))
        return
    low, high = _range(values)
    _draw_axes(draw, plot, (low, high), steps)
    for series in panel.series:
        _draw_series(draw, plot, series, (low, high), steps)


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < pad else low - pad), high + pad


def _draw_heading(draw: ImageDraw.ImageDraw, panel: Panel, x: int, y: int, right: int) -> None:
    draw.text((x, y), label_of(panel.quantity), fill=INK, font=_font(15))
    for series in reversed(panel.series):
        text = f"{series.label} {format_value(float(series.curve.values[-1]))}"
        width = round(draw.textlength(text, font=_font(12)))
        if right - width < x + draw.textlength(label_of(panel.quantity), font=_font(15)) + 30:
            return
        draw.text(
            (right - width, y + 3 * OVERSAMPLE), text, fill=TONES[series.role], font=_font(12)
        )
        right -= width + 14 * OVERSAMPLE


def _draw_axes(
    draw: ImageDraw.ImageDraw,
    plot: tuple[int, int, int, int],
    values: tuple[float, float],
    steps: Steps,
) -> None:
    left, top, right, bottom = plot
    for tick in nice_ticks(values[0], values[1], 4):
        y = bottom - (tick - values[0]) / (values[1] - values[0]) * (bottom - top)
        draw.line([(left, y), (right, y)], fill=GRID, width=OVERSAMPLE)
        draw.text((left - 8 * OVERSAMPLE, y), f"{tick:.4g}", fill=SOFT, font=_font(11), anchor="rm")
    draw.line([(left, bottom), (right, bottom)], fill=SOFT, width=OVERSAMPLE)
    for step, x, anchor in ((steps[0], left, "la"), (steps[1], right, "ra")):
        text = f"step {step:,}"
        draw.text((x, bottom + 8 * OVERSAMPLE), text, fill=SOFT, font=_font(11), anchor=anchor)


def _draw_series(
    draw: ImageDraw.ImageDraw,
    plot: tuple[int, int, int, int],
    series: Series,
    values: tuple[float, float],
    steps: Steps,
) -> None:
    left, top, right, bottom = plot
    curve = series.curve

    def points(of: NDArray[np.float64]) -> NDArray[np.float64]:
        kept = thin_indices(of, right - left)
        x = left + (curve.steps[kept] - steps[0]) / (steps[1] - steps[0]) * (right - left)
        y = bottom - (of[kept] - values[0]) / (values[1] - values[0]) * (bottom - top)
        return np.stack([x, y], axis=-1)

    tone = TONES[series.role]
    if series.role == "baseline":
        level = np.array([float(curve.values[-1])] * 2)
        if np.isfinite(level).all():
            y = bottom - (level[0] - values[0]) / (values[1] - values[0]) * (bottom - top)
            _draw_dashes(draw, left, right, y, tone)
        return
    smoothed = smoothed_or_none(curve)
    if smoothed is not None:
        pale = tuple(round(0.25 * a + 0.75 * b) for a, b in zip(tone, PAPER, strict=True))
        _draw_line(draw, points(curve.values), (pale[0], pale[1], pale[2]), OVERSAMPLE)
    _draw_line(draw, points(curve.values if smoothed is None else smoothed), tone, 2 * OVERSAMPLE)


def _draw_line(
    draw: ImageDraw.ImageDraw, points: NDArray[np.float64], tone: Color, width: int
) -> None:
    """A line that breaks where a point is not finite; a lone point becomes a dot."""
    is_finite = np.isfinite(points[:, 0] + points[:, 1])
    breaks = np.flatnonzero(np.diff(is_finite.astype(int))) + 1
    for part in np.split(np.arange(len(points)), breaks):
        if not is_finite[part[0]]:
            continue
        run = [(float(x), float(y)) for x, y in points[part]]
        if len(run) == 1:
            draw.circle(run[0], 2 * width, fill=tone)
        else:
            draw.line(run, fill=tone, width=width, joint="curve")


def _draw_dashes(draw: ImageDraw.ImageDraw, left: int, right: int, y: float, tone: Color) -> None:
    dash, gap = 7 * OVERSAMPLE, 5 * OVERSAMPLE
    for x in range(left, right, dash + gap):
        draw.line([(x, y), (min(x + dash, right), y)], fill=tone, width=2 * OVERSAMPLE)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    unit = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = int(np.ceil(low / unit - 1e-9))
    last = int(np.floor(high / unit + 1e-9))
    return [float(f"{number * unit:.12g}") for number in range(first, last + 1)]


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px * OVERSAMPLE)
