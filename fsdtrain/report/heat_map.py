"""Turn a quantity over a machine's grid into a small picture, a pixel a place, and its scale.

It does not know HTML, nor what is mapped.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fsdtrain.report.amounts import percent, with_prefix
from fsdtrain.step_profile import HeatMap

# From low to high; every colour can be seen on a light page and on a dark one.
SCALE = ((59, 76, 122), (49, 120, 158), (62, 163, 140), (150, 196, 92), (244, 214, 80))
MIN_SIDE = 12  # a machine of fewer rows is drawn with tall ones


@dataclass(frozen=True, kw_only=True)
class HeatMapView:
    """One map: a picture of columns x rows pixels, drawn in a box of `width` x `height`."""

    title: str
    data_uri: str
    width: float
    height: float
    row_lines: tuple[float, ...]  # between groups, in the units of the box
    column_lines: tuple[float, ...]
    low: str
    high: str
    summary: str
    gradient: str  # CSS


def make_heat_map(found: HeatMap) -> HeatMapView | None:
    """The map, or None where it has no value, or one that has nothing beside it."""
    values = np.array(
        [[np.nan if value is None else value for value in row] for row in found.rows],
        dtype=np.float64,
    )
    is_there = np.isfinite(values)
    if values.ndim != 2 or values.size < 2 or not is_there.any():
        return None
    top = float(values[is_there].max())
    shares = np.where(is_there, values, 0.0) / (top or 1.0)
    at = np.linspace(0.0, 1.0, len(SCALE))
    channels = [np.interp(shares, at, channel) for channel in np.array(SCALE).T]
    pixels = np.stack([*channels, np.where(is_there, 255.0, 0.0)], axis=-1).round()
    packed = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8), "RGBA").save(packed, "PNG", optimize=True)
    rows, columns = values.shape
    tall = max(1.0, min(MIN_SIDE, columns / 4) / rows)
    group = found.group or (rows, columns)
    mean = float(values[is_there].mean())
    num_idle = int((values[is_there] == 0).sum())
    idle = f"; {num_idle:,} of {int(is_there.sum()):,} idle" if num_idle else ""
    return HeatMapView(
        title=found.title,
        data_uri=f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}",
        width=columns,
        height=rows * tall,
        row_lines=tuple(row * tall for row in range(group[0], rows, group[0])),
        column_lines=tuple(float(column) for column in range(group[1], columns, group[1])),
        low=_amount(0.0, found.unit),
        high=_amount(top, found.unit),
        summary=f"mean {_amount(mean, found.unit)}, largest {_amount(top, found.unit)}{idle}",
        gradient=", ".join(f"rgb({red} {green} {blue})" for red, green, blue in SCALE),
    )


def _amount(value: float, unit: str) -> str:
    return percent(value) if unit == "share" else with_prefix(value, unit)
