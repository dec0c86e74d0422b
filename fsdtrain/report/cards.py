"""Turn final figures into cards: a value, its origin, and bars that set it beside its baselines.

It does not know HTML: every text here is plain, the template escapes it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fsdtrain.engine.run_record import Figure
from fsdtrain.step_profile import Origin

Standing = Literal["ahead", "behind", "alone"]

ORIGIN_MEANINGS: dict[Origin, str] = {
    "MEASURED": "taken from real runs: a clock, or a score on held-out data",
    "EMULATED": "computed with the number formats of the target",
    "MODELLED": "from a machine model, not from hardware",
}

# How the field writes them; any other word keeps its own form.
WORDS = {
    "iou": "IoU",
    "miou": "mIoU",
    "ade": "ADE",
    "fde": "FDE",
    "minade": "minADE",
    "minfde": "minFDE",
    "map": "mAP",
    "bce": "BCE",
    "bev": "BEV",
    "ema": "EMA",
    "lr": "Learning rate",
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a card; `percent` is its length against the longest, 0..100."""

    label: str
    value: str
    percent: float
    is_model: bool


@dataclass(frozen=True, kw_only=True)
class FigureCard:
    """One final figure, ready to be set."""

    label: str
    value: str
    unit: str
    origin: Origin
    sentence: str
    standing: Standing
    description: str
    bars: tuple[Bar, ...]


def label_of(name: str) -> str:
    """`vehicle_iou` -> "Vehicle IoU", `path/fde_2s` -> "Path FDE 2s"."""
    words = [WORDS.get(word, word) for word in name.replace("/", " ").replace("_", " ").split()]
    text = " ".join(words)
    return text[:1].upper() + text[1:] if text[:3] != "min" else text


def format_value(value: float) -> str:
    """Three decimals below ten, fewer above; powers of ten at the ends; never a bare nan."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e7:
        return f"{value:.2e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"


def make_card(figure: Figure) -> FigureCard:
    """The card of one figure."""
    sentence, standing = compare_with_baselines(figure)
    unit, factor = _readable_unit(figure)
    amounts = [("This model", figure.value, True)]
    amounts += [(label_of(name), value, False) for name, value in figure.baselines.items()]
    longest = max((value for _, value, _ in amounts if math.isfinite(value)), default=0.0)
    bars = tuple(
        Bar(
            label=label,
            value=format_value(factor * value),
            percent=_percent(value, longest),
            is_model=is_model,
        )
        for label, value, is_model in amounts
    )
    return FigureCard(
        label=label_of(figure.name),
        value=format_value(factor * figure.value),
        unit=unit,
        origin=figure.origin,
        sentence=sentence,
        standing=standing,
        description=f"{figure.description.rstrip('.')}. {figure.better.capitalize()} is better.",
        bars=bars,
    )


def _readable_unit(figure: Figure) -> tuple[str, float]:
    """(unit, factor): short times in milli- or microseconds, pure numbers bare."""
    if figure.unit == "s" and 0 < figure.value < 1:
        return ("ms", 1e3) if figure.value >= 1e-3 else ("\u00b5s", 1e6)
    # "Vehicle IoU 0.4 IoU" would say it twice.
    is_in_name = figure.unit.lower() in figure.name.lower().replace("/", "_").split("_")
    return ("" if is_in_name or figure.unit in {"1", "ratio"} else figure.unit), 1.0


def _percent(value: float, longest: float) -> float:
    if not math.isfinite(value) or value <= 0 or longest <= 0:
        return 0.0
    return round(100 * value / longest, 1)


def compare_with_baselines(figure: Figure) -> tuple[str, Standing]:
    """One clause that says how the figure stands against the strongest of its baselines."""
    known = {name: value for name, value in figure.baselines.items() if math.isfinite(value)}
    if not math.isfinite(figure.value):
        return "Not a finite number", "behind"
    if not known:
        return "", "alone"
    choose = max if figure.better == "higher" else min
    strongest = choose(known, key=lambda name: known[name])
    baseline = known[strongest]
    difference = figure.value - baseline
    is_ahead = difference > 0 if figure.better == "higher" else difference < 0
    name = strongest.replace("_", " ")
    if len(known) > 1:
        name = f"{name}, the best baseline"
    if difference == 0:
        return f"No better than {name}", "behind"
    verb = "Ahead" if is_ahead else "Behind"
    if baseline > 0 and figure.value > 0:
        text = f"{verb}: {figure.value / baseline:.2f} \u00d7 {name}"
    else:
        text = f"{verb}: {format_value(abs(difference))} from {name}"
    return text, "ahead" if is_ahead else "behind"


def summarise(figures: Sequence[Figure]) -> tuple[str, bool] | None:
    """(One sentence over all figures that have baselines, whether all are ahead), or None."""
    compared = [figure for figure in figures if figure.baselines]
    if not compared:
        return None
    behind = [
        label_of(figure.name)
        for figure in compared
        if compare_with_baselines(figure)[1] == "behind"
    ]
    if not behind:
        what = (
            "the one compared figure"
            if len(compared) == 1
            else f"all {len(compared)} compared figures"
        )
        return f"Better than every baseline on {what}.", True
    count = f"{len(compared) - len(behind)} of {len(compared)} compared figures"
    return f"Better than every baseline on {count}; not on {', '.join(behind)}.", False
