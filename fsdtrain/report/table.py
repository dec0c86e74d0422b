"""A table of a page that sorts, filters and turns its pages by itself: rows to compact JSON.

It does not know HTML: the template makes the headings, `table.js` the rows. Columns travel apart
and every text once, so that 5,000 rows stay small and quick.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

PAGE_SIZE = 25  # rows that are shown at a time
MAX_CHOICES = 12  # of one column; more are searched for, not picked


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Args:
        heading: short.
        hint: what it means, where the heading does not say it.
        is_number: set to the right, sorted by `Cell.value`, the largest first.
        is_choice: its values become buttons that filter; there should be few.
        is_code: set in a type of equal widths.
    """

    heading: str
    hint: str = ""
    is_number: bool = False
    is_choice: bool = False
    is_code: bool = False


class Cell(NamedTuple):
    """What stands in one place of a table.

    Args:
        text: as it is read.
        value: what it is sorted by; None: it has none and comes last.
        small: lines below it, in small type.
        details: sentences that open on demand.
        tone: the colour of a chip before it, "s0"; "" for none.
        spark: a small curve, each point from 0 (bottom) to 1; None: a gap.
        is_warned: it says that something is wrong.
    """

    text: str
    value: float | None = None
    small: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    tone: str = ""
    spark: tuple[float | None, ...] = ()
    is_warned: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its headings for the template, its cells for the script.

    Args:
        caption: what it holds, for those who do not see it.
        columns: the first heads the rows.
        num_rows: of all.
        sorted_by: heading that the rows come sorted by, the largest first; "": by none.
        note: below it.
        source: of its figures: a file, or a machine.
        payload: for the script, JSON.
    """

    caption: str
    columns: tuple[Column, ...]
    num_rows: int
    sorted_by: str
    note: str
    source: str
    payload: dict[str, Any]


def make_table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    sorted_by: str = "",
    note: str = "",
    source: str = "",
    page_size: int = PAGE_SIZE,
    details_label: str = "why so",
) -> Table:
    """The rows keep their order until the reader sorts: give the worst first."""
    pool: dict[str, int] = {}

    def index_of(text: str) -> int:
        return pool.setdefault(text, len(pool))

    packed = [
        _pack(column, [row[number] for row in rows], index_of)
        for number, column in enumerate(columns)
    ]
    for column, one in zip(columns, packed, strict=True):
        one["choices"] = _choices(column, one["text"])
    payload = {
        "columns": packed, "strings": list(pool), "rows": len(rows), "page": page_size,
        "more": details_label,
    }  # fmt: skip
    return Table(
        caption=caption,
        columns=tuple(columns),
        num_rows=len(rows),
        sorted_by=sorted_by,
        note=note,
        source=source,
        payload=payload,
    )


def _pack(column: Column, cells: Sequence[Cell], index_of: Any) -> dict[str, Any]:
    """One column: texts by their place in the pool; what no cell has is left out."""
    found: dict[str, Any] = {"text": [index_of(cell.text) for cell in cells]}
    if column.is_number:
        found["value"] = [_rounded(cell.value) for cell in cells]
        found["isNumber"] = True
    if column.is_code:
        found["isCode"] = True
    if any(cell.small for cell in cells):
        found["small"] = [[index_of(line) for line in cell.small] for cell in cells]
    if any(cell.details for cell in cells):
        found["details"] = [[index_of(line) for line in cell.details] for cell in cells]
    if any(cell.tone for cell in cells):
        found["tone"] = [index_of(cell.tone) for cell in cells]
    if any(cell.spark for cell in cells):
        found["spark"] = [[_rounded(each, 3) for each in cell.spark] for cell in cells]
    if any(cell.is_warned for cell in cells):
        found["warned"] = [number for number, cell in enumerate(cells) if cell.is_warned]
    return found


def _choices(column: Column, texts: Sequence[int]) -> list[int]:
    """The distinct values of a column of choices, the most frequent first; few, or none."""
    if not column.is_choice:
        return []
    counts: dict[int, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    if not 1 < len(counts) <= MAX_CHOICES:
        return []
    return sorted(counts, key=lambda text: -counts[text])


def _rounded(value: float | None, digits: int = 7) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
