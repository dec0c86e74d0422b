from io import StringIO

import pytest
from fsdtrain_dojo.machine.catalog import PRESETS, read_machine
from fsdtrain_dojo.machine.table import constants_table, scaled, totals_table
from rich.console import Console


def shown(table):
    text = StringIO()
    Console(width=200, file=text).print(table)
    return text.getvalue()


def row(text, name):
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_a_row_has_value_unit_range_mark_and_confidence():
    text = shown(constants_table(read_machine("d1_tile")))
    assert row(text, "hbm_latency_ns")[:8] == [
        "hbm_latency_ns", "1000", "ns", "500", "to", "2000", "assumed", "assumed",
    ]  # fmt: skip
    assert row(text, "hbm_gb")[:4] == ["hbm_gb", "32", "GB", "stated"]


def test_what_the_user_gave_is_marked_and_the_old_value_told():
    text = shown(constants_table(read_machine({"name": "d1_tile", "die_crossing_ns": 150})))
    assert row(text, "die_crossing_ns")[:5] == ["die_crossing_ns", "150", "ns", "given", "given"]
    assert "preset: 100 ns" in text


@pytest.mark.parametrize("name", PRESETS)
def test_every_constant_has_a_row(name):
    machine = read_machine(name)
    text = shown(constants_table(machine))
    assert all(row(text, each) for each in machine.constants)


def test_totals_say_that_they_are_modelled():
    text = shown(totals_table(read_machine("d1_tile")))
    assert "MODELLED" in text
    assert "9.062 PFLOP/s" in text
    assert "36 TB/s" in text


def test_a_hypothetical_machine_says_so():
    assert "hypothetical" in shown(constants_table(read_machine("d2_wafer")))
    assert "hypothetical" not in shown(constants_table(read_machine("d1_tile")))


@pytest.mark.parametrize(
    ("value", "text"),
    [(362.496e12, "362.5 TB"), (1e3, "1 kB"), (999.0, "999 B"), (1.0875e18, "1.087 EB")],
)
def test_scaled(value, text):
    assert scaled(value, "B") == text
