"""numerics.csv and the histograms beside it; when a tensor has lost its range."""

import csv
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from fsdtrain.backend import TensorNumerics
from fsdtrain.engine.numerics_record import (
    COLUMNS,
    append_reading,
    describe,
    forget_from,
    has_lost_range,
    index_reading,
    read_histograms,
    read_numerics,
    remedy,
    severity,
    worst_of_each_role,
)
from fsdtrain.errors import DataError, UserError

Make = Callable[..., TensorNumerics]


def append(run_dir: Path, step: int, *tensors: TensorNumerics) -> None:
    append_reading(run_dir, step=step, origin="EMULATED", tensors=tensors)


def test_a_row_holds_every_figure_of_its_tensor(make_tensor_numerics: Make, tmp_path: Path) -> None:
    tensor = make_tensor_numerics(
        layer="net,with \"quotes\"", op="add", role="weight_gradient", format="cfloat8_1_5_2",
        rounding="stochastic", bias=15, num_elements=123456, saturated_share=1 / 3,
        underflowed_share=0.25, nan_share=0.0, amax=1.5e-9, snr_db=-2.25,
        representable_exponents=(-16, 16),
    )  # fmt: skip
    append(tmp_path, 49, tensor)
    with (tmp_path / "numerics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {
        "step": "49", "origin": "EMULATED", "layer": "net,with \"quotes\"", "op": "add",
        "role": "weight_gradient", "format": "cfloat8_1_5_2", "rounding": "stochastic",
        "bias": "15", "num_elements": "123456", "saturated_share": "0.333333",
        "underflowed_share": "0.25", "nan_share": "0", "amax": "1.5e-09", "snr_db": "-2.25",
        "lowest_exponent": "-16", "highest_exponent": "16",
    }  # fmt: skip


def test_no_field_of_a_tensor_is_forgotten() -> None:
    fields = {field.name for field in dataclasses.fields(TensorNumerics)}
    in_other_columns = {"exponent_histogram", "representable_exponents"}
    assert fields - in_other_columns == set(COLUMNS) - {
        "step", "origin", "lowest_exponent", "highest_exponent",
    }  # fmt: skip


def test_what_is_appended_is_read_back(make_tensor_numerics: Make, tmp_path: Path) -> None:
    tensors = [
        make_tensor_numerics(),
        make_tensor_numerics(role="weight", bias=None, snr_db=None, rounding="stochastic"),
    ]
    append(tmp_path, 9, *tensors)
    append(tmp_path, 19, tensors[0])
    found = read_numerics(tmp_path)
    bare = [dataclasses.replace(tensor, exponent_histogram=()) for tensor in tensors]
    assert list(found) == [9, 19]
    assert list(found[9].values()) == bare
    assert list(found[19].values()) == bare[:1]


def test_tensors_of_one_name_are_told_apart_by_their_order(make_tensor_numerics: Make) -> None:
    reading = index_reading(
        [
            make_tensor_numerics(op="add", amax=1.0),
            make_tensor_numerics(op="mul", amax=2.0),
            make_tensor_numerics(op="add", amax=3.0),
        ]
    )
    assert [(op, number, one.amax) for (_, op, _, number), one in reading.items()] == [
        ("add", 0, 1.0), ("mul", 0, 2.0), ("add", 1, 3.0),
    ]  # fmt: skip


def test_a_resumed_run_forgets_what_it_will_read_again(
    make_tensor_numerics: Make, tmp_path: Path
) -> None:
    for step in (9, 19, 29):
        append(tmp_path, step, make_tensor_numerics(amax=float(step)))
    whole = (tmp_path / "numerics.csv").read_bytes()
    forget_from(tmp_path, 20)
    assert list(read_numerics(tmp_path)) == [9, 19]
    append(tmp_path, 29, make_tensor_numerics(amax=29.0))
    assert (tmp_path / "numerics.csv").read_bytes() == whole


def test_a_run_without_readings_has_nothing_to_forget(tmp_path: Path) -> None:
    forget_from(tmp_path, 20)
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_was_cut_off_is_left_out(make_tensor_numerics: Make, tmp_path: Path) -> None:
    append(tmp_path, 9, make_tensor_numerics())
    append(tmp_path, 19, make_tensor_numerics())
    path = tmp_path / "numerics.csv"
    path.write_bytes(path.read_bytes()[:-9])
    assert list(read_numerics(tmp_path)) == [9]
    forget_from(tmp_path, 100)
    append(tmp_path, 19, make_tensor_numerics())
    assert list(read_numerics(tmp_path)) == [9, 19]


@pytest.mark.parametrize(
    ("before", "after"),
    [("0.25", "much"), ("\n9,", "\nnine,"), ("1000", ""), (",-11,6\n", ",-11\n"), ("31.5", "loud")],
)
def test_a_broken_row_is_a_data_error_that_names_the_line(
    make_tensor_numerics: Make, tmp_path: Path, before: str, after: str
) -> None:
    append(tmp_path, 9, make_tensor_numerics())
    path = tmp_path / "numerics.csv"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(DataError, match=r"numerics\.csv:2: "):
        read_numerics(tmp_path)


def test_other_columns_are_another_version(make_tensor_numerics: Make, tmp_path: Path) -> None:
    append(tmp_path, 9, make_tensor_numerics())
    path = tmp_path / "numerics.csv"
    path.write_text(path.read_text().replace("layer", "module", 1))
    for call in (lambda: read_numerics(tmp_path), lambda: forget_from(tmp_path, 3)):
        with pytest.raises(UserError, match="another version"):
            call()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"snr_db": None}, 0.0),
        ({"snr_db": 30.0}, 0.1),  # noise of a tenth of the allowed amplitude
        ({"snr_db": 10.0}, 1.0),
        ({"snr_db": -10.0}, 10.0),
        ({"saturated_share": 0.005}, 0.5),
        ({"saturated_share": 0.01}, 1.0),
        ({"underflowed_share": 0.25}, 0.5),
        ({"underflowed_share": 0.5}, 1.0),
        ({"underflowed_share": 0.5, "saturated_share": 0.03}, 3.0),
        ({"nan_share": 1e-9}, math.inf),
    ],
)
def test_a_tensor_has_lost_its_range_from_one_on(
    make_tensor_numerics: Make, changes: dict[str, float | None], expected: float
) -> None:
    tensor = make_tensor_numerics(**({"snr_db": 100.0} | changes))
    assert severity(tensor) == pytest.approx(expected, abs=1e-4)
    assert has_lost_range(tensor) == (expected >= 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"saturated_share": 0.02}, "smaller exponent bias"),
        ({"underflowed_share": 0.9}, "larger exponent bias"),
        ({"underflowed_share": 0.9, "bias": None}, "format with a wider exponent"),
        ({"underflowed_share": 0.9, "saturated_share": 0.02}, "format with a wider exponent"),
        ({"snr_db": 4.0}, "more mantissa bits"),
        ({"nan_share": 0.1, "saturated_share": 0.9}, "learning_rate"),
    ],
)
def test_the_remedy_fits_the_loss(
    make_tensor_numerics: Make, changes: dict[str, float | None], expected: str
) -> None:
    assert expected in remedy(make_tensor_numerics(**changes))


def test_the_description_names_tensor_format_and_figures(make_tensor_numerics: Make) -> None:
    tensor = make_tensor_numerics(
        role="activation_gradient", saturated_share=0.123, underflowed_share=0.5, snr_db=3.21
    )
    assert describe(tensor) == (
        "activation gradient of network.backbone.stem.0 (convolution) in cfloat8_1_4_3 with bias "
        "9: 12.3 % saturated, 50 % underflowed to zero, signal to noise 3.2 dB"
    )
    plain = make_tensor_numerics(layer="", bias=None, nan_share=1.0, snr_db=None)
    assert describe(plain) == (
        "activation of an unnamed layer (convolution) in cfloat8_1_4_3: 100 % NaN"
    )
    exact = make_tensor_numerics(role="weight", format="fp32", bias=None, snr_db=None)
    assert describe(exact).endswith("in fp32: no rounding noise")


def test_histograms_are_of_the_worst_of_each_role_in_the_newest_reading(
    make_tensor_numerics: Make, tmp_path: Path
) -> None:
    worst_weight = make_tensor_numerics(role="weight", layer="b", snr_db=12.0)
    worst_vector = make_tensor_numerics(role="vector", layer="c", saturated_share=0.5)
    append(tmp_path, 9, make_tensor_numerics(nan_share=0.5))
    append(
        tmp_path, 19,
        make_tensor_numerics(role="weight", layer="a"), worst_weight,
        make_tensor_numerics(role="vector", layer="d"), worst_vector,
    )  # fmt: skip
    found = read_histograms(tmp_path)
    assert (found.step, found.origin, found.min_exponent) == (19, "EMULATED", -64)
    assert found.tensors == (worst_vector, worst_weight)
    assert worst_of_each_role(()) == ()


def test_histograms_of_another_schema_are_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "numerics_histograms.json").write_text('{"schema": "other"}')
    with pytest.raises(UserError, match="numerics_histograms"):
        read_histograms(tmp_path)
