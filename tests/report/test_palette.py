"""The palette for those who see fewer colours, and for everybody's contrast."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import fsdtrain.report
from fsdtrain.report.palette import NUM_HEAT, NUM_SERIES, TONES, css, heat_scale, rgb

# Machado, Oliveira and Fernandes 2009, table 1, severity 1.0; on linear RGB.
SEEN = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip


def linear(name: str, *, is_dark: bool) -> np.ndarray:
    values = np.array(rgb(name, is_dark=is_dark)) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(color: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear RGB, D65."""
    x, y, z = XYZ @ color / np.array([0.95047, 1.0, 1.08883])
    f = [np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str, *, is_dark: bool) -> float:
    """WCAG 2.2: relative luminance."""
    light = sorted(XYZ[1] @ linear(name, is_dark=is_dark) for name in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("eyes", SEEN)
def test_series_stay_apart(eyes: str, is_dark: bool) -> None:
    colors = {}
    for place in range(NUM_SERIES):
        seen = SEEN[eyes] @ linear(f"s{place}", is_dark=is_dark)
        colors[place] = lab(np.clip(seen, 0, 1))
    for one, other in itertools.combinations(colors, 2):
        distance = np.linalg.norm(colors[one] - colors[other])
        # About 2.3 is the least that is noticed; the two sides of a comparison are far apart.
        least = 28 if (one, other) == (0, 1) else 11
        assert distance > least, f"s{one} and s{other} for {eyes}: {distance:.1f}"


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_and_lines_can_be_read(is_dark: bool) -> None:
    for back in ("page", "card"):
        for text in ("ink", "soft", "faint", "accent", "measured", "emulated", "modelled", "warn"):
            assert contrast(text, back, is_dark=is_dark) >= 4.5, (text, back)
    for tone in ("good", "warn", "bad"):
        assert contrast(tone, f"{tone}-back", is_dark=is_dark) >= 4.5, tone
    for series in (*(f"s{place}" for place in range(NUM_SERIES)), "neutral"):
        assert contrast(series, "card", is_dark=is_dark) >= 3, series


@pytest.mark.parametrize("is_dark", [False, True])
def test_the_heat_scale_rises_in_lightness_for_everybody(is_dark: bool) -> None:
    for eyes in SEEN.values():
        lightness = [
            lab(np.clip(eyes @ linear(f"heat{number}", is_dark=is_dark), 0, 1))[0]
            for number in range(NUM_HEAT)
        ]
        assert np.diff(lightness).min() > 8
    assert heat_scale()[0] == [0.0, "@heat0"]
    assert heat_scale()[-1] == [1.0, "@heat4"]


def test_every_theme_has_every_colour() -> None:
    blocks = re.findall(r"\{color-scheme:(\w+);([^}]*)\}", css())
    assert [name for name, _ in blocks] == ["light", "dark", "dark"]
    for name, block in blocks:
        found = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6});", block))
        assert found == {tone: both[name == "dark"] for tone, both in TONES.items()}


def test_pages_name_no_colour_that_is_not_there() -> None:
    folder = Path(fsdtrain.report.__file__).parent
    own = {"shadow", "mono", "share", "tone", "ratio"}
    for path in (*folder.glob("templates/*.css"), *folder.glob("templates/*.j2")):
        names = set(re.findall(r"var\(--([\w-]+)\)", path.read_text()))
        unknown = names - set(TONES) - own
        assert unknown <= set(re.findall(r"--([\w-]+):", path.read_text())), (path.name, unknown)
    for path in (*folder.glob("charts/*.py"), *folder.glob("*_page.py")):
        for name in re.findall(r"[\"']@([a-z][\w-]*)", path.read_text()):
            assert name in TONES or name == "s", (path.name, name)
