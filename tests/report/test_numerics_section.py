"""What the page says of number formats: the worst first, by role, over time."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fsdtrain.backend import TensorNumerics
from fsdtrain.engine.numerics_record import append_reading
from fsdtrain.errors import DataError
from fsdtrain.report.numerics_section import (
    SPARK_RANGE_DB,
    SPARK_SIZE,
    NumericsSection,
    read_numerics_section,
)

Make = Callable[..., TensorNumerics]


def section_of(run_dir: Path, *readings: tuple[int, list[TensorNumerics]]) -> NumericsSection:
    for step, tensors in readings:
        append_reading(run_dir, step=step, origin="EMULATED", tensors=tensors)
    section = read_numerics_section(run_dir, first_chart=5)
    assert section is not None
    return section


def test_no_reading_is_no_section(make_tensor_numerics: Make, tmp_path: Path) -> None:
    assert read_numerics_section(tmp_path, first_chart=0) is None
    section_of(tmp_path, (9, [make_tensor_numerics()]))
    path = tmp_path / "numerics.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert read_numerics_section(tmp_path, first_chart=0) is None


def test_rows_are_sorted_and_written_out(make_tensor_numerics: Make, tmp_path: Path) -> None:
    section = section_of(
        tmp_path,
        (9, [
            make_tensor_numerics(op="add"),
            make_tensor_numerics(op="add", layer="", saturated_share=0.07, amax=0.0, snr_db=None),
            make_tensor_numerics(op="add", nan_share=0.123, underflowed_share=1e-6, bias=None),
        ]),
    )  # fmt: skip
    worst, second, third = section.rows
    assert (worst.op, worst.nan, worst.underflowed, worst.bias) == (
        "add, no. 2", "12.3 %", "< 0.01 %", "",
    )  # fmt: skip
    assert (second.layer, second.saturated, second.snr) == ("unnamed", "7.00 %", "")
    assert second.largest_exponent == ""
    assert (third.snr, third.largest_exponent, third.exponents) == ("31.5", "-2.0", (-11, 6))
    assert [row.is_lost for row in section.rows] == [True, True, False]
    assert section.warning.startswith("Number formats: 2 of 3 tensors have lost their range")


def test_roles_come_in_the_order_of_a_step(make_tensor_numerics: Make, tmp_path: Path) -> None:
    roles = ["second_moment", "own_role", "weight", "activation_gradient", "activation"]
    section = section_of(tmp_path, (9, [make_tensor_numerics(role=role) for role in roles]))
    ((_, charts),) = section.chart_groups
    assert [chart.title for chart in charts] == [
        "Activation", "Weight", "Activation gradient", "Second moment", "Own role",
    ]  # fmt: skip
    assert [chart.index for chart in charts] == [5, 6, 7, 8, 9]
    assert section.warning == ""


def test_nan_has_a_curve_only_where_there_is_one(
    make_tensor_numerics: Make, tmp_path: Path
) -> None:
    section = section_of(
        tmp_path,
        (9, [make_tensor_numerics(saturated_share=0.001, snr_db=None)]),
        (19, [make_tensor_numerics(nan_share=0.5, snr_db=None)]),
    )
    ((_, (chart,)),) = section.chart_groups
    assert {entry.label for entry in chart.legend} == {"NaN", "saturated", "underflowed"}
    values = {one["label"]: one["values"] for one in section.chart_data[0]["series"]}
    assert values == {"NaN": [0, 50], "saturated": [0.1, 0], "underflowed": [0, 0]}


def test_the_small_curve_is_to_scale(make_tensor_numerics: Make, tmp_path: Path) -> None:
    low, high = SPARK_RANGE_DB
    ratios = [low, (low + high) / 2, high, high + 30, None]
    section = section_of(
        tmp_path,
        *((10 * number, [make_tensor_numerics(snr_db=snr)]) for number, snr in enumerate(ratios)),
    )
    numbers = [float(text) for text in re.split("[ ,]", section.rows[0].spark)]
    width, height = SPARK_SIZE
    assert numbers[0::2] == pytest.approx([1, 18.5, 36, 53.5], abs=0.06)
    assert width == 72
    assert numbers[1::2] == pytest.approx([height - 1, height / 2, 1, 1], abs=0.06)


def test_a_tensor_that_comes_late_has_a_short_history(
    make_tensor_numerics: Make, tmp_path: Path
) -> None:
    late = make_tensor_numerics(layer="late", bias=3)
    section = section_of(
        tmp_path, (9, [make_tensor_numerics()]), (19, [make_tensor_numerics(bias=4), late])
    )
    rows = {row.layer: row for row in section.rows}
    assert (rows["late"].spark, rows["late"].bias_history) == ("", "")
    assert rows["network.backbone.stem.0"].bias_history == "4 to 9"


def test_a_broken_file_is_a_data_error(make_tensor_numerics: Make, tmp_path: Path) -> None:
    section_of(tmp_path, (9, [make_tensor_numerics()]))
    path = tmp_path / "numerics.csv"
    path.write_text(path.read_text().replace("31.5", "loud"))
    with pytest.raises(DataError, match=r"numerics\.csv:2"):
        read_numerics_section(tmp_path, first_chart=0)
