"""Rows to compact JSON: order, values, what is left out."""

import math

from fsdtrain.report.table import MAX_CHOICES, Cell, Column, make_table

COLUMNS = (
    Column(heading="op", is_code=True),
    Column(heading="phase", is_choice=True),
    Column(heading="time", is_number=True),
)


def text_at(payload: dict[str, list[dict[str, list[int]]]], column: int, row: int) -> str:
    return str(payload["strings"][payload["columns"][column]["text"][row]])


def test_rows_keep_their_order_and_texts_are_kept_once() -> None:
    rows = [[Cell(f"op{n}"), Cell("forward"), Cell(f"{n} s", float(n))] for n in (3, 1, 2)]
    table = make_table("Ops", COLUMNS, rows, sorted_by="time")
    payload = table.payload
    assert [text_at(payload, 0, row) for row in range(3)] == ["op3", "op1", "op2"]
    assert payload["columns"][2]["value"] == [3.0, 1.0, 2.0]
    assert payload["strings"].count("forward") == 1
    assert (table.num_rows, payload["rows"]) == (3, 3)


def test_what_no_cell_has_is_left_out() -> None:
    plain = make_table("Ops", COLUMNS, [[Cell("a"), Cell("b"), Cell("1", 1.0)]])
    assert set(plain.payload["columns"][0]) == {"text", "isCode", "choices"}
    rich = Cell("a", small=("net.0",), details=("why",), tone="s3", spark=(0.0, None, 1.0),
                is_warned=True)  # fmt: skip
    full = make_table("Ops", COLUMNS, [[rich, Cell("b"), Cell("1")]]).payload
    column, strings = full["columns"][0], full["strings"]
    assert [strings[each] for each in column["small"][0]] == ["net.0"]
    assert [strings[each] for each in column["details"][0]] == ["why"]
    assert strings[column["tone"][0]] == "s3"
    assert column["spark"] == [[0.0, None, 1.0]]
    assert column["warned"] == [0]


def test_a_value_that_is_not_finite_is_none() -> None:
    rows = [[Cell("a"), Cell("b"), Cell("x", value)] for value in (math.nan, math.inf, None, 1.0)]
    assert make_table("Ops", COLUMNS, rows).payload["columns"][2]["value"] == [
        None, None, None, 1.0,
    ]  # fmt: skip


def test_choices_are_few_and_the_frequent_first() -> None:
    def choices(phases: list[str]) -> list[str]:
        rows = [[Cell("a"), Cell(phase), Cell("1", 1.0)] for phase in phases]
        payload = make_table("Ops", COLUMNS, rows).payload
        return [payload["strings"][each] for each in payload["columns"][1]["choices"]]

    assert choices(["x", "y", "y"]) == ["y", "x"]
    assert choices(["x", "x"]) == [], "nothing to choose"
    assert choices([str(n) for n in range(MAX_CHOICES + 1)]) == [], "too many to pick from"


def test_no_rows_make_a_table() -> None:
    table = make_table("Ops", COLUMNS, [])
    assert table.num_rows == 0
    assert table.payload["columns"][0]["text"] == []
