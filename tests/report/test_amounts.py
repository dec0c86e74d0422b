"""Amounts as people read them."""

import pytest

from fsdtrain.report.amounts import in_seconds, percent, plain_number, with_prefix


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 ns"), (3e-10, "0.3 ns"), (4.25e-6, "4.25 \u00b5s"), (0.0123, "12.3 ms"),
        (0.9999, "1 s"), (61.7, "61.7 s"), (12345.0, "12,345 s"),
    ],
)  # fmt: skip
def test_times_are_readable(seconds: float, expected: str) -> None:
    assert in_seconds(seconds) == expected


def test_amounts_are_readable() -> None:
    assert with_prefix(3.62e14, "FLOP/s") == "362 TFLOP/s"
    assert with_prefix(12.0, "B") == "12 B"
    assert with_prefix(0.0151, "J") == "15.1 mJ"
    assert with_prefix(0.0, "J") == "0 J"


def test_shares_are_readable() -> None:
    assert percent(0.12345) == "12.3%"
    assert percent(0.0) == "0.0%"
    assert percent(0.0004) == "<0.1%"
    assert percent(0.0006) == "0.1%"


def test_numbers_are_readable() -> None:
    assert [plain_number(value) for value in (0.0, 3.14159, 999.4, 41234.5, 1.5e6)] == [
        "0", "3.142", "999.4", "41,234", "1,500,000",
    ]  # fmt: skip
