"""The colours of every page, light and dark, by what they are for.

Series stay apart for colour-blind readers (tests/report/test_palette.py simulates what they see),
and lines, bars and markers differ in dashes, patterns and symbols as well. It does not know pages:
`css` gives variables, charts name colours "@s0".
"""

from typing import Final

NUM_SERIES: Final = 8

# name: (light, dark). Series s0 and s1 are the two sides of a comparison.
TONES: Final[dict[str, tuple[str, str]]] = {
    "s0": ("#034284", "#54a5ef"),
    "s1": ("#af3f00", "#f0954f"),
    "s2": ("#019772", "#3fc4a0"),
    "s3": ("#b14390", "#dd7fc0"),
    "s4": ("#a8890c", "#e8d44d"),
    "s5": ("#2d9dd3", "#a8dcf8"),
    "s6": ("#614eb4", "#7a7df1"),
    "s7": ("#7d2020", "#c95a5a"),
    "neutral": ("#7d8893", "#7c8893"),
    "page": ("#f6f7f8", "#0d1115"),
    "card": ("#ffffff", "#151a20"),
    "ink": ("#14191f", "#e8edf1"),
    "soft": ("#4b5660", "#aeb8c1"),
    "faint": ("#5f6a75", "#939fa9"),
    "line": ("#dce0e4", "#2b333b"),
    "grid": ("#e9ecee", "#232a31"),
    "track": ("#e9edf0", "#252d34"),
    "accent": ("#0a5fa8", "#6cb4f5"),
    "good": ("#0b6b4f", "#5fd3ab"),
    "good-back": ("#e3f3ec", "#10291f"),
    "warn": ("#854800", "#f2b45c"),
    "warn-back": ("#fcf0de", "#33250f"),
    "bad": ("#a31919", "#ff9089"),
    "bad-back": ("#fcebea", "#3a1614"),
    "measured": ("#0b6b4f", "#5fd3ab"),
    "emulated": ("#6a3fa0", "#c3a2f0"),
    "modelled": ("#854800", "#f2b45c"),
    # From nothing to the most; lightness rises all the way, so that it needs no hue.
    "heat0": ("#2b3560", "#2b3560"),
    "heat1": ("#2f6690", "#2f6690"),
    "heat2": ("#3b968a", "#3b968a"),
    "heat3": ("#93c15b", "#93c15b"),
    "heat4": ("#f6e04f", "#f6e04f"),
}
NUM_HEAT: Final = 5


def css() -> str:
    """Variables of both themes: the reader's system decides, `data-theme` on the root overrules."""
    light = "".join(f"--{name}:{tones[0]};" for name, tones in TONES.items())
    dark = "".join(f"--{name}:{tones[1]};" for name, tones in TONES.items())
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
    )


def heat_scale() -> list[list[float | str]]:
    """Plotly's colour scale from `heat0` to `heat4`."""
    return [[number / (NUM_HEAT - 1), f"@heat{number}"] for number in range(NUM_HEAT)]


def rgb(name: str, *, is_dark: bool = False) -> tuple[int, int, int]:
    """A colour of the light theme, or of the dark one, in 0 to 255."""
    text = TONES[name][is_dark]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
