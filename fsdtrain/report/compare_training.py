"""What the page of a comparison shows of the trainings: bands, the equivalence test, the runs.

It does not know HTML, nor how the runs were trained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from fsdtrain.comparison.record import Arm, Band, CompareRecord, Curve, TrainingComparison
from fsdtrain.report.amounts import percent, plain_number
from fsdtrain.report.cards import format_value, label_of
from fsdtrain.report.charts.bands import BandSeries, make_bands
from fsdtrain.report.charts.chart import (
    Chart,
    LegendEntry,
    PlotlyPart,
    axis,
    layout,
    numbers,
    plain,
)
from fsdtrain.report.run_page import Fact
from fsdtrain.report.table import Cell, Column, Table, make_table

SOURCE = "compare.json"
MAX_SEED_POINTS = 500


@dataclass(frozen=True, kw_only=True)
class TrainingView:
    """The trainings of a comparison, ready to be set."""

    training: TrainingComparison
    loss: Chart
    gradient_norms: Chart | None
    equivalence: Chart
    figures: tuple[Fact, ...]
    origin: str
    runs: Table


def make_training_view(record: CompareRecord) -> TrainingView | None:
    """Everything on the trainings; None: none were compared."""
    training = record.training
    if training is None:
        return None
    labels = tuple(
        f"{side}: {name}, {_seeds(arm)}"
        for side, name, arm in (
            ("a", record.a_name, training.a), ("b", record.b_name, training.b),
        )
    )  # fmt: skip
    return TrainingView(
        training=training,
        loss=_loss_chart(training, labels),
        gradient_norms=_norm_chart(training, labels),
        equivalence=make_equivalence_chart(training),
        figures=_figures(training),
        origin=origin_of(training),
        runs=_runs_table(training),
    )


def _seeds(arm: Arm) -> str:
    return "1 seed" if len(arm.seeds) == 1 else f"{len(arm.seeds)} seeds"


def origin_of(training: TrainingComparison) -> str:
    """The badge of what compares both: the one whose figures are further from hardware."""
    return training.b.origin if training.a.origin == "MEASURED" else training.a.origin


def _loss_chart(training: TrainingComparison, labels: Sequence[str]) -> Chart:
    bands = (training.a_band, training.b_band)
    chart = make_bands(
        "Training loss",
        [_band_series(label, band) for label, band in zip(labels, bands, strict=True)],
        y_title="loss, smoothed", origin=origin_of(training), source=SOURCE,
        note="Line: mean over the seeds; area: 2 standard deviations around it; thin lines: the "
        "seeds themselves, as logged.",
        mark_step=training.divergence_step,
    )  # fmt: skip
    # After the bands, so that the legend's places stay.
    seeds = [
        _seed_line(curve, f"@s{place}")
        for place, arm in enumerate((training.a, training.b))
        for curve in arm.losses
    ]
    return replace(chart, figure={**chart.figure, "data": [*chart.figure["data"], *seeds]})


def _band_series(label: str, band: Band) -> BandSeries:
    return BandSeries(label=label, steps=band.steps, mean=band.mean, low=band.low, high=band.high)


def _seed_line(curve: Curve, color: str) -> PlotlyPart:
    stride = -(-len(curve.steps) // MAX_SEED_POINTS) or 1
    return {
        "type": "scatter", "mode": "lines", "x": list(curve.steps[::stride]),
        "y": numbers(curve.values[::stride]), "hoverinfo": "skip",
        "line": {"color": f"{color}/0.3", "width": 0.8},
    }  # fmt: skip


def _norm_chart(training: TrainingComparison, labels: Sequence[str]) -> Chart | None:
    """The median gradient norm of each side, by step."""
    data: list[PlotlyPart] = []
    legend = []
    for place, (label, arm) in enumerate(zip(labels, (training.a, training.b), strict=True)):
        steps, values = _median_curve(arm.gradient_norms)
        if not steps:
            continue
        color, dash = f"@s{place}", "solid" if place == 0 else "dash"
        legend.append(
            LegendEntry(
                label=label, color=color, traces=(len(data),), value=format_value(values[-1]),
                dash="solid" if place == 0 else "dash",
            )
        )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": plain(label), "x": steps,
                "y": numbers(values), "line": {"color": color, "dash": dash, "width": 1.8},
                "hovertemplate": "%{y:.4g}",
            }
        )  # fmt: skip
    if not data:
        return None
    ratio = training.gradient_norm_ratio
    said = "" if ratio is None else f"b over a, median over the steps: {ratio:.3g}."
    return Chart(
        title="Gradient norm, median of the seeds", origin=origin_of(training), source=SOURCE,
        figure={
            "data": data,
            "layout": layout(
                x=axis("optimiser step", tickformat=",d"), y=axis("norm before clipping"),
                hovermode="x unified",
            ),
        },
        summary=f"Gradient norm by optimiser step. {said}", note=said, legend=tuple(legend),
        controls=("log",), link="steps",
    )  # fmt: skip


def _median_curve(curves: Sequence[Curve]) -> tuple[list[int], list[float]]:
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in zip(curve.steps, curve.values, strict=True):
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    return steps, [median(by_step[step]) for step in steps]


def make_equivalence_chart(training: TrainingComparison) -> Chart:
    """The difference of the final metric with its 90 % interval, against the margin around 0."""
    test = training.equivalence
    has_interval = test.low is not None and test.high is not None
    low = test.difference if test.low is None else test.low
    high = test.difference if test.high is None else test.high
    reach = 1.25 * max(abs(low), abs(high), test.margin) or 1.0
    name = label_of(test.metric)
    interval = f"90 % interval {low:+.4g} to {high:+.4g}" if has_interval else "no interval"
    text = f"b minus a {test.difference:+.4g}, {interval}, margin {test.margin:.4g}"
    data: PlotlyPart = {
        "type": "scatter", "mode": "markers", "orientation": "h", "name": plain(name),
        "x": numbers([test.difference]), "y": ["b minus a"], "customdata": [plain(text)],
        "marker": {"color": "@s1", "size": 13, "symbol": "diamond"},
        "hovertemplate": "%{customdata}<extra></extra>",
    }  # fmt: skip
    if has_interval:
        data["error_x"] = {
            "type": "data", "symmetric": False, "array": numbers([high - test.difference]),
            "arrayminus": numbers([test.difference - low]), "color": "@s1", "thickness": 2.5,
            "width": 9,
        }  # fmt: skip
    shapes: list[PlotlyPart] = [
        {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "x0": -test.margin, "x1": test.margin,
         "fillcolor": "@good/0.14", "line": {"width": 0}, "layer": "below"},
        *(
            {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": at, "x1": at,
             "line": {"color": color, "width": 1.5, "dash": dash}}
            for at, color, dash in (
                (-test.margin, "@good", "dash"), (test.margin, "@good", "dash"),
                (0.0, "@soft", "dot"),
            )
        ),
    ]  # fmt: skip
    answer = {True: "Equivalent", False: "Not shown to be equivalent", None: "No verdict"}
    p_value = "" if test.p_value is None else f", p = {test.p_value:.3g} (TOST)"
    return Chart(
        title=f"Final {name}: {answer[test.is_equivalent].lower()}", origin=origin_of(training),
        source=SOURCE,
        figure={
            "data": [data],
            "layout": layout(
                x=axis(f"difference of {name}, b minus a", range=[-reach, reach]),
                y=axis(type="category", showgrid=False), hovermode="closest", shapes=shapes,
            ),
        },
        summary=f"{answer[test.is_equivalent]}: {text}{p_value}.",
        note=f"{text[:1].upper()}{text[1:]} ({test.margin_source}){p_value}. Green: within the "
        "margin. Equivalent if the whole interval is within it.",
        height_px=170,
    )  # fmt: skip


def _figures(training: TrainingComparison) -> tuple[Fact, ...]:
    ratio = training.samples_to_target_ratio
    norm = training.gradient_norm_ratio
    overhead = training.overhead_share
    divergence = training.divergence_step
    target = "" if training.target is None else f" of {training.target:.4g}"
    return (
        Fact(label="Steps with b's mean loss outside of a's band",
             value=percent(training.share_outside)),
        Fact(label="Outside for good from step",
             value="never" if divergence is None else f"{divergence:,}"),
        Fact(label=f"Samples to the loss{target}, b over a",
             value="not known" if ratio is None else f"{ratio:.3g}"),
        Fact(label="Gradient norm, b over a", value="not known" if norm is None else f"{norm:.3g}"),
        Fact(label="Cost of comparing, over the trainings themselves",
             value="not measured" if overhead is None else percent(overhead)),
    )  # fmt: skip


def _runs_table(training: TrainingComparison) -> Table:
    columns = (
        Column(heading="run", is_code=True),
        Column(heading="side", is_choice=True),
        Column(heading="seed", is_number=True),
        Column(heading=training.equivalence.metric, is_number=True),
        Column(heading="samples to target", is_number=True),
        Column(heading="last loss", is_number=True),
    )
    cells = [
        [
            Cell(folder), Cell(f"{side}, {arm.origin}"), Cell(str(seed), seed),
            Cell(format_value(final), final, is_warned=not math.isfinite(final)),
            Cell("never" if samples is None else plain_number(samples), samples),
            Cell(format_value(curve.values[-1]), curve.values[-1]) if curve.values else Cell(""),
        ]
        for side, arm in (("a", training.a), ("b", training.b))
        for folder, seed, final, samples, curve in zip(
            arm.run_dirs, arm.seeds, arm.final, arm.samples_to_target, arm.losses, strict=True
        )
    ]  # fmt: skip
    return make_table("The runs of both sides", columns, cells, source="the run folders")
