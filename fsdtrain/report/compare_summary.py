"""What the terminal shows of a comparison: verdict, checks, the worst tensors, the totals.

It does not know how anything was found. The page is in `compare_page.py`.
"""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fsdtrain.comparison.record import CompareRecord, NumericsComparison, Outcome
from fsdtrain.report.compare_words import (
    OUTCOME_WORDS,
    as_sentence,
    decibels,
    ranked_rows,
    ratio_notes,
    ratio_text,
    tensor_title,
    with_origin,
)

NUM_TENSORS = 5
OUTCOME_STYLES: dict[Outcome, str] = {"same": "green", "different": "red", "open": "yellow"}


def compare_summary(record: CompareRecord) -> Group:
    """What the terminal shows: the verdict, the checks, the worst five, the totals."""
    is_same = record.verdict.exit_code == 0
    # Text, not markup: names may hold brackets.
    parts: list[Text | Table] = [
        Text(
            f"a: {record.a_name}, values {record.a_manifest.origin}    "
            f"b: {record.b_name}, values {record.b_manifest.origin}"
        ),
        Text(record.verdict.sentence, style="bold green" if is_same else "bold red"),
    ]
    checks = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for check in record.verdict.checks:
        word = Text(OUTCOME_WORDS[check.outcome], style=OUTCOME_STYLES[check.outcome])
        checks.add_row(Text(check.name), word, Text(check.sentence))
    if record.verdict.checks:
        parts.append(checks)
    if record.bisected is not None:
        parts.append(Text(f"bisect: {record.bisected.sentence}"))
    if record.tuned is not None:
        parts.append(Text(f"tune: {record.tuned.sentence}"))
        if record.tuned.overrides:
            parts.append(Text(f"take it with: {' '.join(record.tuned.overrides)}"))
    if record.numerics is not None and record.numerics.worst:
        parts.append(_worst_table(record.numerics))
    if record.performance is not None:
        table = Table("performance", "a", "b", "b over a", box=None, padding=(0, 2, 0, 0))
        for row in record.performance.totals:
            table.add_row(*map(Text, (row.name, *with_origin(row), ratio_text(row))))
        parts.append(table)
        parts += [
            Text(as_sentence(note), style="dim") for note in ratio_notes(record.performance.totals)
        ]
    return Group(*parts)


def _worst_table(numerics: NumericsComparison) -> Table:
    table = Table("worst tensors", "mode", "a", "b", "band", "", box=None, padding=(0, 2, 0, 0))
    for row in ranked_rows(numerics)[:NUM_TENSORS]:
        band = "" if row.band_snr_db is None else f"{row.band_snr_db:.0f} dB"
        mode = row.mode.replace("_", "-")
        cells = (tensor_title(row), mode, decibels(row.a), decibels(row.b), band, row.finding)
        table.add_row(*map(Text, cells))
    return table
