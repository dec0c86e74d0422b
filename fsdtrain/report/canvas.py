"""The look of every picture: colours, type, and a smooth layer to draw lines and areas on.

Colours suit a dark page. Knows nothing of what is drawn.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fsdtrain.data.geometry import Array

Color = tuple[int, int, int]
LegendEntry = tuple[str, Color]

BACKGROUND: Color = (14, 17, 23)
PANEL: Color = (24, 29, 38)
RULE: Color = (56, 65, 81)
MUTED: Color = (138, 149, 166)
TEXT: Color = (222, 227, 235)

CLASS_COLORS: dict[str, Color] = {
    "car": (66, 190, 255),
    "truck": (255, 160, 48),
    "bus": (255, 215, 70),
    "trailer": (178, 132, 255),
    "motorcycle": (255, 120, 190),
    "bicycle": (70, 225, 165),
    "pedestrian": (255, 88, 88),
    "train": (140, 150, 255),
    "other": (190, 198, 208),
}
LANE_COLORS: dict[str, Color] = {
    "divider": (236, 236, 236),
    "boundary": (226, 130, 98),
    "centerline": (104, 118, 142),
}
PATH_COLORS: dict[str, Color] = {
    "truth": (96, 230, 128),
    "prediction": (255, 92, 205),
    "baseline": (158, 168, 184),
}
# Vehicle probability 0 .. 1, evenly spaced.
HEAT: tuple[Color, ...] = (PANEL, (34, 60, 110), (52, 120, 190), (120, 205, 240), (250, 253, 255))

SUPERSAMPLING = 2


def font(size_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font, so that pictures look the same on every machine."""
    return ImageFont.load_default(size=size_px)


def heat_colors(values: Array) -> NDArray[np.uint8]:
    """[..., 3] colours of values 0..1; what lies outside takes the end colours."""
    scale = np.linspace(0.0, 1.0, len(HEAT))
    channels = [np.interp(values, scale, channel) for channel in np.array(HEAT).T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


class Layer:
    """A transparent layer, drawn at SUPERSAMPLING times its size; coordinates are final pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._image = Image.new("RGBA", (width * SUPERSAMPLING, height * SUPERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)

    def segments(self, segments: Array, color: Color, width_px: float) -> None:
        """Separate lines [S, 2, 2]."""
        for segment in segments:
            self.line(segment, color, width_px)

    def line(self, points: Array, color: Color, width_px: float) -> None:
        """One line with round joints through [P, 2]."""
        self._draw.line(
            _flat(points),
            fill=(*color, 255),
            width=max(1, round(width_px * SUPERSAMPLING)),
            joint="curve",
        )

    def dashes(self, points: Array, color: Color, width_px: float) -> None:
        """A dashed line through [P, 2], the dashes of even length along it."""
        steps = np.hypot(*np.diff(points, axis=0).T)
        along = np.concatenate([[0.0], np.cumsum(steps)])
        dash = 4 * width_px
        for begin in np.arange(0.0, along[-1], 2 * dash):
            at = np.array([begin, min(begin + dash, along[-1])])
            ends = np.stack([np.interp(at, along, points[:, axis]) for axis in (0, 1)], axis=-1)
            self.line(ends, color, width_px)

    def polygon(self, points: Array, color: Color, *, opacity: float = 1.0) -> None:
        """A filled polygon [P, 2]."""
        self._draw.polygon(_flat(points), fill=(*color, round(255 * opacity)))

    def disc(self, center: Array, radius: float, color: Color) -> None:
        """A filled circle."""
        (point,) = _flat(center[None])
        self._draw.circle(point, radius * SUPERSAMPLING, fill=(*color, 255))

    def ring(self, center: Array, radius: float, color: Color) -> None:
        """A circle, one pixel wide."""
        (point,) = _flat(center[None])
        self._draw.circle(point, radius * SUPERSAMPLING, outline=(*color, 255), width=SUPERSAMPLING)

    def over(self, image: Image.Image) -> Image.Image:
        """An RGB image of the final size with the layer over it."""
        layer = self._image.resize(self._size, Image.Resampling.BOX)
        return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def legend_entries(names: Sequence[str], colors: dict[str, Color]) -> list[LegendEntry]:
    """What of `colors` is in the picture, in their order."""
    return [(name, color) for name, color in colors.items() if name in names]


def add_legend(image: Image.Image, entries: Sequence[LegendEntry]) -> Image.Image:
    """The image above lines of coloured discs with their names."""
    if not entries:
        return image
    size = min(max(10.0, image.height / 36), 15.0)
    row_px, gap_px = 1.7 * size, 0.9 * size
    places = []
    u, row = gap_px / 2, 0
    for name, _ in entries:
        advance = 1.2 * size + font(size).getlength(name) + gap_px
        if u + advance > image.width and u > gap_px:
            u, row = gap_px / 2, row + 1
        places.append((u, image.height + (row + 0.75) * row_px))
        u += advance
    sheet = Image.new("RGB", (image.width, image.height + round((row + 1.5) * row_px)), BACKGROUND)
    sheet.paste(image)
    layer = Layer(*sheet.size)
    for (u, v), (_, color) in zip(places, entries, strict=True):
        layer.disc(np.array([u + size / 2, v]), size * 0.35, color)
    sheet = layer.over(sheet)
    draw = ImageDraw.Draw(sheet)
    for (u, v), (name, _) in zip(places, entries, strict=True):
        draw.text((u + 1.2 * size, v), name, fill=TEXT, font=font(size), anchor="lm")
    return sheet


def _flat(points: Array) -> list[tuple[float, float]]:
    return [(float(u), float(v)) for u, v in points * SUPERSAMPLING]
