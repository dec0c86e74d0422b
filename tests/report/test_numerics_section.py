"""What the page says of number formats: the worst first, by role, over time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fsdtrain.backend import TensorNumerics
from fsdtrain.engine.numerics_record import append_reading
from fsdtrain.errors import DataError
from fsdtrain.report.numerics_section import (
    COLUMNS,
    SPARK_RANGE_DB,
    NumericsSection,
    read_numerics_section,
)

Make = Callable[..., TensorNumerics]


def section_of(run_dir: Path, *readings: tuple[int, list[TensorNumerics]]) -> NumericsSection:
    for step, tensors in readings:
        append_reading(run_dir, step=step, origin="EMULATED", tensors=tensors)
    section = read_numerics_section(run_dir)
    assert section is not None
    return section


def cell(section: NumericsSection, row: int, heading: str) -> tuple[str, list[str]]:
    """(text, small lines) of one place of the table."""
    payload = section.tensors.payload
    number = [column.heading for column in COLUMNS].index(heading)
    column, strings = payload["columns"][number], payload["strings"]
    small = column["small"][row] if "small" in column else []
    return strings[column["text"][row]], [strings[each] for each in small]


def sparks(section: NumericsSection) -> list[list[float | None]]:
    (found,) = [one["spark"] for one in section.tensors.payload["columns"] if "spark" in one]
    return list(found)


def test_no_reading_is_no_section(make_tensor_numerics: Make, tmp_path: Path) -> None:
    assert read_numerics_section(tmp_path) is None
    section_of(tmp_path, (9, [make_tensor_numerics()]))
    path = tmp_path / "numerics.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert read_numerics_section(tmp_path) is None


def test_rows_are_sorted_and_written_out(make_tensor_numerics: Make, tmp_path: Path) -> None:
    section = section_of(
        tmp_path,
        (9, [
            make_tensor_numerics(op="add"),
            make_tensor_numerics(op="add", layer="", saturated_share=0.07, amax=0.0, snr_db=None),
            make_tensor_numerics(op="add", nan_share=0.123, underflowed_share=1e-6, bias=None),
        ]),
    )  # fmt: skip
    assert cell(section, 0, "tensor")[1] == ["add, no. 2"]
    assert cell(section, 0, "NaN")[0] == "12.3 %"
    assert cell(section, 0, "underflowed")[0] == "< 0.01 %"
    assert "bias" not in cell(section, 0, "format")[1][0]
    assert cell(section, 1, "tensor")[0] == "unnamed"
    assert cell(section, 1, "saturated")[0] == "7.00 %"
    assert (cell(section, 1, "SNR")[0], cell(section, 1, "largest")[0]) == ("", "0")
    assert (cell(section, 2, "SNR")[0], cell(section, 2, "largest")[0]) == ("31.5", "2^-2.0")
    assert cell(section, 2, "range")[0] == "2^-11 to 2^6"
    assert section.tensors.payload["columns"][0]["warned"] == [0, 1]
    assert section.warning.startswith("Number formats: 2 of 3 tensors have lost their range")


def test_roles_come_in_the_order_of_a_step(make_tensor_numerics: Make, tmp_path: Path) -> None:
    roles = ["second_moment", "own_role", "weight", "activation_gradient", "activation"]
    section = section_of(tmp_path, (9, [make_tensor_numerics(role=role) for role in roles]))
    ((_, charts),) = section.chart_groups
    assert [chart.title for chart in charts] == [
        "Activation", "Weight", "Activation gradient", "Second moment", "Own role",
    ]  # fmt: skip
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
    values = {one["name"]: one["y"] for one in chart.figure["data"]}
    assert values == {"NaN": [0, 50], "saturated": [0.1, 0], "underflowed": [0, 0]}


def test_the_small_curve_is_to_scale(make_tensor_numerics: Make, tmp_path: Path) -> None:
    low, high = SPARK_RANGE_DB
    ratios = [low, (low + high) / 2, high, high + 30, None]
    section = section_of(
        tmp_path,
        *((10 * number, [make_tensor_numerics(snr_db=snr)]) for number, snr in enumerate(ratios)),
    )
    assert sparks(section)[0] == pytest.approx([0, 0.5, 1, 1, None])


def test_a_tensor_that_comes_late_has_a_short_history(
    make_tensor_numerics: Make, tmp_path: Path
) -> None:
    late = make_tensor_numerics(layer="late", bias=3)
    section = section_of(
        tmp_path, (9, [make_tensor_numerics()]), (19, [make_tensor_numerics(bias=4), late])
    )
    tensors = [cell(section, row, "tensor")[0] for row in range(2)]
    late_row = tensors.index("late")
    assert sparks(section)[late_row] == []
    assert "(" not in cell(section, late_row, "format")[1][0]
    assert cell(section, 1 - late_row, "format")[1][0].endswith("bias 4 (4 to 9)")


def test_a_broken_file_is_a_data_error(make_tensor_numerics: Make, tmp_path: Path) -> None:
    section_of(tmp_path, (9, [make_tensor_numerics()]))
    path = tmp_path / "numerics.csv"
    path.write_text(path.read_text().replace("31.5", "loud"))
    with pytest.raises(DataError, match=r"numerics\.csv:2"):
        read_numerics_section(tmp_path)
