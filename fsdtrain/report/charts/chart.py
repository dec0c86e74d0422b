"""What every chart of a page is: a plotly figure, and the words that stand around it.

It does not know what is charted. A figure is plain JSON; its colours are names of the palette
("@s0", "@ink", with an opacity "@s0/0.2"), which `figures.js` turns into those of the theme. Text
that comes from a run goes through `plain`, for plotly reads tags in it.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from fsdtrain.report.palette import NUM_SERIES

# Plotly's own schema, as JSON: what its builders return is not worth a type each.
PlotlyPart = dict[str, Any]
Control = Literal["log", "smooth", "map"]
Dash = Literal["solid", "dash", "dot", "dashdot", "longdash"]

# Beside colour, always a second sign: by the place of a series.
DASHES: Final[tuple[Dash, ...]] = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS: Final = (
    "circle", "diamond", "square", "triangle-up", "cross", "x", "triangle-down", "star",
)  # fmt: skip
PATTERNS: Final = ("", "/", ".", "\\", "x", "-", "|", "+")
PROFILE_SOURCE: Final = "profile.json"
FONT: Final = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """One entry of the legend, a button that hides its traces.

    Args:
        label: in words.
        color: "@s0".
        traces: their places in the figure's data.
        value: beside the label, "0.371"; "" for none.
        dash: of a line.
        pattern: of a bar, one of PATTERNS; None: it is no bar.
        symbol: of markers without a line; None: they have one.
    """

    label: str
    color: str
    traces: tuple[int, ...]
    value: str = ""
    dash: Dash = "solid"
    pattern: str | None = None
    symbol: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart of a page.

    Args:
        title: the heading above it; the figure itself has none.
        figure: {"data": [...], "layout": {...}} of plotly, colours by name.
        summary: what it shows, in words, for those who do not see it.
        origin: MEASURED, EMULATED or MODELLED; of a plan also GIVEN, PUBLISHED or ASSUMED.
        source: the file or the machine that the figures are from.
        note: below it.
        legend: in the order in which it is read.
        controls: buttons that it has.
        height_px: of the plot.
        is_wide: it takes the whole width.
        link: charts of one link zoom together along x; "": alone.
        maps: of heat maps: what the controls of the maps choose from.
    """

    title: str
    figure: PlotlyPart
    summary: str
    origin: str
    source: str
    note: str = ""
    legend: tuple[LegendEntry, ...] = ()
    controls: tuple[Control, ...] = ()
    height_px: int = 260
    is_wide: bool = False
    link: str = ""
    maps: PlotlyPart = field(default_factory=dict)

    @property
    def payload(self) -> PlotlyPart:
        """What the script needs, as JSON."""
        found = {"data": self.figure["data"], "layout": self.figure["layout"]}
        return found | ({"maps": self.maps} if self.maps else {})


def plain(text: str) -> str:
    """Text that plotly shows as it is: no tags, no entities."""
    return html.escape(text, quote=False)


def series_color(place: int) -> str:
    """The colour of the series with this place; "@neutral" beyond those there are."""
    return f"@s{place}" if place < NUM_SERIES else "@neutral"


def numbers(values: Sequence[float | None]) -> list[float | None]:
    """Six significant digits; JSON has no NaN, so None stands for what is not finite."""
    return [
        None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
        for value in values
    ]


def axis(title: str = "", **changes: Any) -> PlotlyPart:
    """An axis; `title` with its unit, `changes` as plotly names them."""
    found: PlotlyPart = {
        "tickfont": {"size": 11.5, "color": "@soft"},
        "gridcolor": "@grid",
        "linecolor": "@line",
        "zerolinecolor": "@line",
        "automargin": True,
        "showline": False,
        "exponentformat": "power",
        "minexponent": 4,
    }
    if title:
        font = {"size": 12, "color": "@soft"}
        found["title"] = {"text": plain(title), "font": font, "standoff": 8}
    return found | changes


def layout(
    *, x: PlotlyPart | None = None, y: PlotlyPart | None = None, **changes: Any
) -> PlotlyPart:
    """The look that all charts share; `changes` as plotly names them."""
    found: PlotlyPart = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": "@ink"},
        "margin": {"l": 40, "r": 12, "t": 10, "b": 24},
        "hoverlabel": {
            "bgcolor": "@card",
            "bordercolor": "@line",
            "font": {"family": FONT, "size": 12.5, "color": "@ink"},
            "align": "left",
        },
        "showlegend": False,
        "xaxis": axis() if x is None else x,
        "yaxis": axis() if y is None else y,
    }
    return found | changes
