"""What the page says of emulated number formats: charts by role, a table by tensor, histograms.

It knows the files of numerics_record.py, not how a reading is taken, nor HTML.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from fsdtrain.backend import TensorNumerics
from fsdtrain.engine.metrics_file import Curve
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
from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.charts.histogram import make_histogram
from fsdtrain.report.charts.lines import make_lines
from fsdtrain.report.curves import Role, Series
from fsdtrain.report.table import Cell, Column, Table, make_table
from fsdtrain.step_profile import Origin

# The order of a step: forward, backward, optimiser. Roles that are not named here come behind.
ROLE_ORDER = (
    "activation", "weight", "vector", "activation_gradient", "weight_gradient", "vector_gradient",
    "master_weight", "first_moment", "second_moment",
)  # fmt: skip
ORIGIN: Origin = "EMULATED"
HISTOGRAMS = "numerics_histograms.json"
SPARK_POINTS = 30
# 8-bit formats in range give 20 to 32 dB; what lies beyond stays at the edge.
SPARK_RANGE_DB = (-20, 40)
PAGE_SIZE = 12
COLUMNS = (
    Column(heading="tensor", is_code=True),
    Column(heading="role", is_choice=True),
    Column(heading="format", is_code=True),
    Column(heading="SNR", is_number=True, hint="signal to rounding noise in dB"),
    Column(heading="over time", hint="signal to rounding noise over the run"),
    Column(heading="saturated", is_number=True, hint="share of all elements"),
    Column(heading="underflowed", is_number=True, hint="share of all elements"),
    Column(heading="NaN", is_number=True, hint="share of all elements"),
    Column(heading="largest", is_number=True, hint="the largest element"),
    Column(heading="range", hint="smallest denormal to largest power of two"),
)

Values = dict[int, float]  # by step


@dataclass(frozen=True, kw_only=True)
class NumericsSection:
    """Everything that the section shows."""

    note: str
    warning: str
    chart_groups: tuple[tuple[str, tuple[Chart, ...]], ...]
    silent_note: str
    tensors: Table
    histograms: tuple[Chart, ...]
    histograms_note: str


def read_numerics_section(run_dir: Path) -> NumericsSection | None:
    """The section; None where there is no reading.

    Raises:
        UserError: numerics.csv cannot be read, or is of another version.
        DataError: a row is not one of this file.
    """
    readings = read_numerics(run_dir) if (run_dir / "numerics.csv").exists() else {}
    if not readings:
        return None
    step, newest = list(readings.items())[-1]
    groups, silent = _charts(readings)
    histograms, histograms_note = _histograms(run_dir)
    return NumericsSection(
        note=f"{len(newest)} tensors, {len(readings)} readings, the newest at step {step:,}",
        warning=_warning(step, newest.values()),
        chart_groups=groups,
        silent_note=(
            f"No rounding noise and nothing out of range: {', '.join(silent)}." if silent else ""
        ),
        tensors=_table(readings, newest),
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
    readings: Mapping[int, Reading],
) -> tuple[tuple[tuple[str, tuple[Chart, ...]], ...], list[str]]:
    """(groups of charts, the roles that have nothing to show)."""
    silent = []
    noise: list[Chart] = []
    lost: list[Chart] = []
    steps = (min(readings), max(max(readings), min(readings) + 1))

    def chart(role: str, series: list[Series], *, can_be_log: bool) -> Chart:
        return make_lines(
            label_of(role), series, origin=ORIGIN, source="numerics.csv", steps=steps,
            can_be_log=can_be_log,
        )  # fmt: skip

    for role in _roles(readings):
        of_role = {
            step: [tensor for tensor in reading.values() if tensor.role == role]
            for step, reading in readings.items()
        }
        noise_series, lost_series = _noise_series(of_role), _lost_series(of_role)
        if noise_series:
            # Decibels are a logarithm already.
            noise.append(chart(role, noise_series, can_be_log=False))
        if lost_series:
            lost.append(chart(role, lost_series, can_be_log=True))
        if not noise_series and not lost_series:
            silent.append(role.replace("_", " "))
    groups = (
        ("Signal to rounding noise against FP32, in dB", tuple(noise)),
        ("Out of range: share of the worst tensor's elements, in %", tuple(lost)),
    )
    return tuple(group for group in groups if group[1]), silent


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


def _table(readings: Mapping[int, Reading], newest: Reading) -> Table:
    steps = (min(readings), max(readings))
    rows = [
        _row(key, {step: of[key] for step, of in readings.items() if key in of}, steps)
        for key in sorted(newest, key=lambda key: -severity(newest[key]))
    ]
    return make_table(
        "Tensors of the newest reading, the worst first", COLUMNS, rows, page_size=PAGE_SIZE,
        source="numerics.csv, which holds every reading",
        note=f"SNR: signal to noise, 10 log10 of the sum of squares over that of the rounding "
        f"errors; its small curves reach from {SPARK_RANGE_DB[0]} to {SPARK_RANGE_DB[1]} dB. "
        "Shares are of all elements. Bias in brackets: over the run.",
    )  # fmt: skip


def _row(
    key: TensorKey, history: Mapping[int, TensorNumerics], steps: tuple[int, int]
) -> tuple[Cell, ...]:
    tensor = history[steps[1]]
    biases = {one.bias for one in history.values() if one.bias is not None}
    bias = "" if tensor.bias is None else f", bias {tensor.bias}"
    if len(biases) > 1:
        bias += f" ({min(biases)} to {max(biases)})"
    op = tensor.op if key[3] == 0 else f"{tensor.op}, no. {key[3] + 1}"
    lowest, highest = tensor.representable_exponents
    largest = f"2^{math.log2(tensor.amax):.1f}" if tensor.amax > 0 else "0"
    return (
        Cell(tensor.layer or "unnamed", small=(op,), is_warned=has_lost_range(tensor)),
        Cell(tensor.role.replace("_", " ")),
        Cell(tensor.format, small=(f"{tensor.rounding}{bias}",)),
        Cell(
            "" if tensor.snr_db is None else f"{tensor.snr_db:.1f}", tensor.snr_db,
            is_warned=has_lost_range(tensor),
        ),
        Cell("", spark=_spark(history, steps)),
        Cell(_percent(tensor.saturated_share), tensor.saturated_share),
        Cell(_percent(tensor.underflowed_share), tensor.underflowed_share),
        Cell(_percent(tensor.nan_share), tensor.nan_share),
        Cell(largest, tensor.amax),
        Cell(f"2^{lowest} to 2^{highest}"),
    )  # fmt: skip


def _percent(share: float) -> str:
    """Never "0" for something: a thousandth of a percent may matter."""
    if share == 0:
        return "0"
    return "< 0.01 %" if share < 1e-4 else f"{100 * share:.{2 if share < 0.1 else 1}f} %"


def _spark(
    history: Mapping[int, TensorNumerics], steps: tuple[int, int]
) -> tuple[float | None, ...]:
    """Signal to noise over the run, evenly spaced, from 0 at the low end of SPARK_RANGE_DB to 1."""
    if steps[0] == steps[1]:
        return ()
    low, high = SPARK_RANGE_DB
    places: list[float | None] = [None] * min(SPARK_POINTS, len(history))
    if len(places) < 2:
        return ()
    for step, one in history.items():
        if one.snr_db is not None:
            at = round((step - steps[0]) / (steps[1] - steps[0]) * (len(places) - 1))
            places[at] = (min(max(one.snr_db, low), high) - low) / (high - low)
    return tuple(places)


def _histograms(run_dir: Path) -> tuple[tuple[Chart, ...], str]:
    """(each role's worst tensor, what there is to say about them)."""
    if not (run_dir / HISTOGRAMS).exists():
        return (), f"{HISTOGRAMS} is missing."
    try:
        found = read_histograms(run_dir)
    except UserError as error:
        # The curves and the table stand without them.
        return (), f"The histograms cannot be read. {error}"
    views = tuple(
        make_histogram(tensor, found.min_exponent, origin=ORIGIN, source=HISTOGRAMS)
        for tensor in found.tensors
    )
    note = (
        f"Each role's worst tensor at step {found.step:,}. Shaded is what its format holds; "
        "hatched bars lie outside."
    )
    return views, note
