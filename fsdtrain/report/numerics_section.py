"""What the page says of emulated number formats: charts by role, a table by tensor, histograms.

It knows the files of numerics_record.py, not how a reading is taken, nor HTML.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fsdtrain.backend import TensorNumerics
from fsdtrain.engine.numerics_record import (
    MIN_SNR_DB,
    Reading,
    TensorKey,
    describe,
    has_lost_range,
    read_histograms,
    read_numerics,
    remedy,
    severity,
)
from fsdtrain.errors import UserError
from fsdtrain.report.cards import label_of
from fsdtrain.report.charts import ChartView, make_chart
from fsdtrain.report.curves import Curve, Role, Series, thin_indices
from fsdtrain.report.histogram import HistogramView, make_histogram

# The order of a step: forward, backward, optimiser. Roles that are not named here come behind.
ROLE_ORDER = (
    "activation", "weight", "vector", "activation_gradient", "weight_gradient", "vector_gradient",
    "master_weight", "first_moment", "second_moment",
)  # fmt: skip
NUM_OPEN_ROWS = 12  # the worst tensors; the others are folded away
SPARK_POINTS = 30
SPARK_SIZE = (72, 18)  # px
SPARK_RANGE_DB = (
    -20,
    40,
)  # 8-bit formats in range give 20 to 32; what lies beyond stays at the edge

Values = dict[int, float]  # by step


@dataclass(frozen=True, kw_only=True)
class TensorRow:
    """One tensor of the newest reading; `spark` is its signal to noise over time, as SVG points."""

    layer: str
    op: str
    role: str
    format: str
    rounding: str
    bias: str
    bias_history: str
    snr: str
    spark: str
    saturated: str
    underflowed: str
    nan: str
    largest_exponent: str
    exponents: tuple[int, int]
    is_lost: bool


@dataclass(frozen=True, kw_only=True)
class NumericsSection:
    """Everything that the section shows; the data of its charts go into the page's JSON."""

    note: str
    warning: str
    chart_groups: tuple[tuple[str, tuple[ChartView, ...]], ...]
    chart_data: tuple[dict[str, Any], ...]
    silent_note: str
    rows: tuple[TensorRow, ...]
    folded_rows: tuple[TensorRow, ...]
    spark_range_db: tuple[int, int]
    histograms: tuple[HistogramView, ...]
    histograms_note: str


def read_numerics_section(run_dir: Path, *, first_chart: int) -> NumericsSection | None:
    """The section, its charts counted from `first_chart`; None where there is no reading.

    Raises:
        UserError: numerics.csv cannot be read, or is of another version.
        DataError: a row is not one of this file.
    """
    readings = read_numerics(run_dir) if (run_dir / "numerics.csv").exists() else {}
    if not readings:
        return None
    step, newest = list(readings.items())[-1]
    groups, data, silent = _charts(readings, first_chart)
    rows = _rows(readings, newest)
    histograms, histograms_note = _histograms(run_dir)
    return NumericsSection(
        note=f"{len(newest)} tensors, {len(readings)} readings, the newest at step {step:,}",
        warning=_warning(step, newest.values()),
        chart_groups=groups,
        chart_data=data,
        silent_note=(
            f"No rounding noise and nothing out of range: {', '.join(silent)}." if silent else ""
        ),
        rows=rows[:NUM_OPEN_ROWS],
        folded_rows=rows[NUM_OPEN_ROWS:],
        spark_range_db=SPARK_RANGE_DB,
        histograms=histograms,
        histograms_note=histograms_note,
    )


def _warning(step: int, tensors: Iterable[TensorNumerics]) -> str:
    every = list(tensors)
    lost = [tensor for tensor in every if has_lost_range(tensor)]
    if not lost:
        return ""
    worst = max(lost, key=severity)
    verb = "has lost its" if len(lost) == 1 else "have lost their"
    return (
        f"Number formats: {len(lost)} of {len(every)} tensors {verb} range at step {step:,}. The "
        f"worst is the {describe(worst)}. What to do: {remedy(worst)}."
    )


def _charts(
    readings: Mapping[int, Reading], first_chart: int
) -> tuple[tuple[tuple[str, tuple[ChartView, ...]], ...], tuple[dict[str, Any], ...], list[str]]:
    """(groups of charts, their data, the roles that have nothing to show)."""
    silent = []
    noise, lost = [], []
    for role in _roles(readings):
        of_role = {
            step: [tensor for tensor in reading.values() if tensor.role == role]
            for step, reading in readings.items()
        }
        noise_series, lost_series = _noise_series(of_role), _lost_series(of_role)
        if noise_series:
            noise.append((label_of(role), noise_series))
        if lost_series:
            lost.append((label_of(role), lost_series))
        if not noise_series and not lost_series:
            silent.append(role.replace("_", " "))
    made = [
        # Decibels are a logarithm already.
        make_chart(first_chart + number, title, series, can_be_log=number >= len(noise))
        for number, (title, series) in enumerate([*noise, *lost])
    ]
    views = [view for view, _ in made]
    groups = (
        ("Signal to rounding noise against FP32, in dB", tuple(views[: len(noise)])),
        ("Out of range: share of the worst tensor's elements, in %", tuple(views[len(noise) :])),
    )
    return tuple(group for group in groups if group[1]), tuple(data for _, data in made), silent


def _roles(readings: Mapping[int, Reading]) -> list[str]:
    found = {tensor.role for reading in readings.values() for tensor in reading.values()}
    known = [role for role in ROLE_ORDER if role in found]
    return known + sorted(found - set(known))


def _noise_series(of_role: Mapping[int, list[TensorNumerics]]) -> list[Series]:
    ratios = {
        step: found
        for step, tensors in of_role.items()
        if (found := [tensor.snr_db for tensor in tensors if tensor.snr_db is not None])
    }
    if not ratios:
        return []
    middle = {step: float(median(found)) for step, found in ratios.items()}
    worst = {step: min(found) for step, found in ratios.items()}
    return [
        _series(
            "limit", "baseline", "below it a tensor has lost its range", {min(ratios): MIN_SNR_DB}
        ),
        _series("worst tensor", "val", "lowest snr_db of numerics.csv", worst),
        _series("median tensor", "train", "median snr_db of numerics.csv", middle),
    ]


def _lost_series(of_role: Mapping[int, list[TensorNumerics]]) -> list[Series]:
    def largest(share: Callable[[TensorNumerics], float]) -> Values:
        return {
            step: 100 * max(map(share, tensors)) for step, tensors in of_role.items() if tensors
        }

    kinds: tuple[tuple[str, Role, str, Values], ...] = (
        ("NaN", "other", "nan_share", largest(lambda tensor: tensor.nan_share)),
        ("underflowed", "train", "underflowed_share", largest(lambda one: one.underflowed_share)),
        ("saturated", "val", "saturated_share", largest(lambda tensor: tensor.saturated_share)),
    )
    if not any(any(values.values()) for *_, values in kinds):
        return []
    return [
        _series(label, role, f"largest {column} of numerics.csv", values)
        for label, role, column, values in kinds
        if label != "NaN" or any(values.values())
    ]


def _series(label: str, role: Role, column: str, values: Values) -> Series:
    curve = Curve(
        steps=np.array(list(values), dtype=np.int64),
        values=np.array(list(values.values()), dtype=np.float64),
    )
    return Series(label=label, role=role, column=column, curve=curve)


def _rows(readings: Mapping[int, Reading], newest: Reading) -> tuple[TensorRow, ...]:
    steps = (min(readings), max(readings))
    return tuple(
        _row(key, {step: of[key] for step, of in readings.items() if key in of}, steps)
        for key in sorted(newest, key=lambda key: -severity(newest[key]))
    )


def _row(
    key: TensorKey, history: Mapping[int, TensorNumerics], steps: tuple[int, int]
) -> TensorRow:
    tensor = history[steps[1]]
    biases = {one.bias for one in history.values() if one.bias is not None}
    is_moving = len(biases) > 1
    return TensorRow(
        layer=tensor.layer or "unnamed",
        op=tensor.op if key[3] == 0 else f"{tensor.op}, no. {key[3] + 1}",
        role=tensor.role.replace("_", " "),
        format=tensor.format,
        rounding=tensor.rounding,
        bias="" if tensor.bias is None else str(tensor.bias),
        bias_history=f"{min(biases)} to {max(biases)}" if is_moving else "",
        snr="" if tensor.snr_db is None else f"{tensor.snr_db:.1f}",
        spark=_spark(history, steps),
        saturated=_percent(tensor.saturated_share),
        underflowed=_percent(tensor.underflowed_share),
        nan=_percent(tensor.nan_share),
        largest_exponent=f"{math.log2(tensor.amax):.1f}" if tensor.amax > 0 else "",
        exponents=tensor.representable_exponents,
        is_lost=has_lost_range(tensor),
    )


def _percent(share: float) -> str:
    """Never "0" for something: a thousandth of a percent may matter."""
    if share == 0:
        return "0"
    return "< 0.01 %" if share < 1e-4 else f"{100 * share:.{2 if share < 0.1 else 1}f} %"


def _spark(history: Mapping[int, TensorNumerics], steps: tuple[int, int]) -> str:
    """Points of a polyline in a box of SPARK_SIZE, which is SPARK_RANGE_DB high."""
    points = [(step, one.snr_db) for step, one in history.items() if one.snr_db is not None]
    if len(points) < 2:
        return ""
    width, height = SPARK_SIZE
    low, high = SPARK_RANGE_DB
    kept = thin_indices(np.array([value for _, value in points]), SPARK_POINTS)
    texts = []
    for step, value in (points[index] for index in kept):
        x = 1 + (step - steps[0]) / (steps[1] - steps[0]) * (width - 2)
        share = (min(max(value, low), high) - low) / (high - low)
        y = height - 1 - share * (height - 2)
        texts.append(f"{x:.1f},{y:.1f}")
    return " ".join(texts)


def _histograms(run_dir: Path) -> tuple[tuple[HistogramView, ...], str]:
    """(each role's worst tensor, what there is to say about them)."""
    if not (run_dir / "numerics_histograms.json").exists():
        return (), "numerics_histograms.json is missing."
    try:
        found = read_histograms(run_dir)
    except UserError as error:
        # The curves and the table stand without them.
        return (), f"The histograms cannot be read. {error}"
    views = tuple(make_histogram(tensor, found.min_exponent) for tensor in found.tensors)
    note = (
        f"Each role's worst tensor at step {found.step:,}. Shaded is what its format holds; orange "
        "bars lie outside."
    )
    return views, note
