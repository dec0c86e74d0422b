"""compare.md, compare.csv and the terminal's summary of a comparison."""

import csv
import io
import re
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from sample_compare import make_compare_record, make_numerics, make_training

from fsdtrain.comparison.record import CompareRecord, ConfigDifference, CostRow, Errors
from fsdtrain.errors import UserError
from fsdtrain.report.compare_summary import compare_summary
from fsdtrain.report.compare_text import compare_csv, compare_markdown, write_compare_texts
from fsdtrain.report.compare_words import (
    amount,
    decibels,
    ranked_rows,
    ratio_text,
    telling_differences,
    tensor_title,
)

FAULT = "b is 1.010 times the reference"


def table_after(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after `heading`, its own headings first."""
    lines = text.split(heading, 1)[1].splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return [rows[0], *rows[2:]]


def test_markdown_says_verdict_checks_and_the_worst_tensor_first() -> None:
    record = make_compare_record()
    text = compare_markdown(record)
    assert f"**{record.verdict.sentence}**" in text
    checks = table_after(text, "## cpu (a)")
    assert [row[:2] for row in checks[1:]] == [
        ["numerics", "DIFFERENT"], ["training", "same"], ["performance", "no verdict"],
    ]  # fmt: skip
    worst = table_after(text, "### Numerics")
    assert 10 <= len(worst) - 1 <= 20
    assert worst[1][0].endswith("convolution (forward)")
    assert worst[1][1] == "teacher-forced"
    assert worst[1][-1] == FAULT
    assert "(a: MEASURED; b: EMULATED)" in text


def test_markdown_marks_each_figure_of_a_cost_with_its_origin() -> None:
    rows = table_after(compare_markdown(make_compare_record()), "### Performance")
    by_name = {row[0]: row[1:] for row in rows[1:]}
    assert by_name["step time"][:2] == ["412 ms MEASURED", "930 \u00b5s MODELLED"]
    assert by_name["step time"][2] == "0.00226 (measured against modelled)"
    assert by_name["energy of a step"] == ["not known", "4.1 J MODELLED", ""]


def test_the_note_of_a_ratio_is_said_once_in_full() -> None:
    text = compare_markdown(make_compare_record())
    assert text.count("the model is within 25 % of published times") == 1


def test_one_seed_has_no_interval() -> None:
    record = make_compare_record(training=make_training(num_seeds=1))
    text = compare_markdown(record)
    assert "One seed: no verdict." in text
    assert "no interval: too few seeds" in text


def test_what_was_not_compared_is_said() -> None:
    record = make_compare_record(numerics=None, training=None, performance=None)
    assert compare_markdown(record).count("Not compared.") == 3


@pytest.mark.parametrize(
    "attack", ["a|b", "<img src=x>", "[x](http://y)", "**bold**", "line\nbreak"]
)
def test_names_do_not_become_markdown(attack: str) -> None:
    record = make_compare_record(a_name=attack)
    assert record.numerics is not None
    row = record.numerics.tensors[0]
    numerics = msgspec.structs.replace(
        record.numerics,
        tensors=(msgspec.structs.replace(row, layer=attack),),
        worst=(0,),
        first_divergence=None,
    )
    text = compare_markdown(msgspec.structs.replace(record, numerics=numerics))
    for raw in ("a|b", "<img", "[x](", "**bold", "line\nbreak"):
        assert re.search(rf"(?<!\\){re.escape(raw)}", text) is None
    widths = {len(cells) for cells in table_after(text, "### Numerics")}
    assert widths == {8}


def test_csv_has_a_row_a_tensor_and_all_its_errors() -> None:
    numerics = make_numerics(30, FAULT)
    rows = list(csv.DictReader(io.StringIO(compare_csv(numerics))))
    assert len(rows) == len(numerics.tensors)
    for row, tensor in zip(rows, numerics.tensors, strict=True):
        assert row["name"] == tensor.name
        assert float(row["b_snr_db"]) == tensor.b.snr_db
        assert float(row["between_scale"]) == tensor.between.scale
        assert row["a_ulp_p99"] == ("" if tensor.a.ulps is None else str(tensor.a.ulps.p99))
        assert row["outside"].split() == list(tensor.outside)
        assert row["finding"] == tensor.finding
    assert sum(bool(row["finding"]) for row in rows) == 2


def test_a_spreadsheet_computes_no_name() -> None:
    numerics = make_numerics(1, "")
    row = msgspec.structs.replace(numerics.tensors[0], name="=1+2", layer="@x")
    text = compare_csv(msgspec.structs.replace(numerics, tensors=(row,)))
    (found,) = csv.DictReader(io.StringIO(text))
    assert (found["name"], found["layer"]) == ("'=1+2", "'@x")


def summary(record: CompareRecord) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(compare_summary(record))
    return console.export_text()


def test_the_terminal_shows_verdict_checks_five_tensors_and_totals() -> None:
    text = summary(make_compare_record(b_name="dojo [cfp8]"))
    assert "b: dojo [cfp8]" in text
    assert text.count("-running") + text.count("-forced") == 5
    assert FAULT in text
    assert "412 ms MEASURED" in text
    assert "0.00226 (measured against modelled)" in text


def test_decibels_say_why_there_are_none() -> None:
    assert decibels(Errors(is_bitwise_equal=True)) == "bitwise"
    assert decibels(Errors(is_bitwise_equal=False, nan_share=0.5)) == "50.0% not finite"
    assert decibels(Errors(is_bitwise_equal=False, snr_db=31.24)) == "31.2 dB"
    assert decibels(Errors(is_bitwise_equal=False)) == "no signal"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.412, "s", "412 ms"), (None, "J", "not known"), (0.25, "1", "25.0%"), (12, "1/s", "12 1/s")],
)
def test_amounts_have_their_units(value: float | None, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_no_ratio_where_a_value_is_missing() -> None:
    row = CostRow(
        name="energy", unit="J", a=None, b=1.0, a_origin="MEASURED", b_origin="MODELLED",
        ratio=None,
    )  # fmt: skip
    assert ratio_text(row) == ""


def test_parameters_are_called_by_their_names() -> None:
    titles = {tensor_title(row) for row in make_numerics(30, "").tensors}
    assert "network.backbone.stem.0.0.weight (gradient)" in titles
    assert "network.backbone.stem.0.0 convolution (forward)" in titles


def test_files_are_written_and_failures_are_sentences(tmp_path: Path) -> None:
    record = make_compare_record()
    names = [path.name for path in write_compare_texts(record, tmp_path)]
    assert names == ["compare.md", "compare.csv"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "compare.md").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*compare\.md"):
        write_compare_texts(record, tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["compare.md"]


def test_what_is_bitwise_equal_is_not_among_the_worst() -> None:
    numerics = make_numerics(30, FAULT)
    exact = Errors(is_bitwise_equal=True)
    first, *rest = numerics.tensors
    zeros = msgspec.structs.replace(first, a=exact, b=exact, between=exact)
    order = (0, *(at for at in numerics.worst if at != 0))
    changed = msgspec.structs.replace(numerics, tensors=(zeros, *rest), worst=order)
    ranked = ranked_rows(changed)
    assert ranked[0].finding == FAULT
    assert ranked[-1] == zeros
    assert len(ranked) == len(numerics.tensors)


def test_knobs_that_say_nothing_are_left_out_and_the_forbidden_come_first() -> None:
    def difference(field: str, a: str, b: str, *, is_allowed: bool = True) -> ConfigDifference:
        return ConfigDifference(field=field, a=a, b=b, is_allowed=is_allowed)

    record = make_compare_record(
        config_differences=(
            difference("backend.machine.hbm_gb", "(absent)", "null"),
            difference("backend.name", "cpu", "dojo"),
            difference("seed", "1", "null", is_allowed=False),
        )
    )
    assert [one.field for one in telling_differences(record)] == ["seed", "backend.name"]
    assert "hbm" not in compare_markdown(record).split("### Numerics")[0]
