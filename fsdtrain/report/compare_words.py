"""The words and figures of a comparison that its page, its Markdown and the terminal share.

It does not know where they are shown.
"""

import re
from collections.abc import Iterable

from fsdtrain.comparison.record import (
    CompareRecord,
    ConfigDifference,
    CostRow,
    Errors,
    NumericsComparison,
    Outcome,
    TensorComparison,
)
from fsdtrain.report.amounts import in_seconds, percent, plain_number, with_prefix

OUTCOME_WORDS: dict[Outcome, str] = {
    "same": "same",
    "different": "DIFFERENT",
    "open": "no verdict",
}
UNSET = {"(absent)", "null"}
CLAUSE_END = re.compile(r"[;,:(]")


def tensor_title(row: TensorComparison) -> str:
    """What a person would call the tensor: "network.stem.0 convolution (forward)"."""
    if row.kind in ("gradient", "update"):
        return f"{row.name} ({row.kind})"
    op = row.op.removeprefix("aten.")
    return f"{' '.join(part for part in (row.layer, op or row.name) if part)} ({row.kind})"


def decibels(errors: Errors) -> str:
    """The SNR of a pair, or why it has none."""
    if errors.is_bitwise_equal:
        return "bitwise"
    if errors.nan_share > 0:
        return f"{percent(errors.nan_share)} not finite"
    return "no signal" if errors.snr_db is None else f"{errors.snr_db:.1f} dB"


def amount(value: float | None, unit: str) -> str:
    """A value in its unit for people; "not known" where it is."""
    if value is None:
        return "not known"
    if unit == "s":
        return in_seconds(value)
    if unit in ("share", "1"):
        return percent(value)
    if unit in ("B", "J", "W", "FLOP", "FLOP/s", "B/s"):
        return with_prefix(value, unit)
    return f"{plain_number(value)} {unit}".strip()


def with_origin(row: CostRow) -> tuple[str, str]:
    """Both values of a row, each with its origin."""
    pairs = ((row.a, row.a_origin), (row.b, row.b_origin))
    first, second = (
        amount(value, row.unit) + (f" {origin}" if value is not None else "")
        for value, origin in pairs
    )
    return first, second


def ratio_text(row: CostRow) -> str:
    """Side b over side a, labelled where the origins differ; `ratio_notes` has the rest."""
    if row.ratio is None:
        return ""
    label = CLAUSE_END.split(row.ratio_note, maxsplit=1)[0]
    return f"{row.ratio:.3g} ({label})" if label else f"{row.ratio:.3g}"


def ratio_notes(rows: Iterable[CostRow]) -> list[str]:
    """What `ratio_text` has shortened: each note once."""
    return [note for note in dict.fromkeys(row.ratio_note for row in rows) if note]


def ranked_rows(numerics: NumericsComparison) -> list[TensorComparison]:
    """All tensors of both modes, the worst first; what is bitwise equal on both sides comes last.

    A tensor of zeros on all sides has no SNR, and is not bad for that.
    """
    rows = [numerics.tensors[at] for at in numerics.worst] or list(numerics.tensors)
    return sorted(rows, key=lambda row: _is_exact(row) and not row.outside)


def _is_exact(row: TensorComparison) -> bool:
    return row.a.is_bitwise_equal and row.b.is_bitwise_equal


def telling_differences(record: CompareRecord) -> list[ConfigDifference]:
    """What differs in the configurations, what is not allowed first.

    A knob that one side lacks and the other leaves open tells nothing.
    """
    found = [each for each in record.config_differences if {each.a, each.b} != UNSET]
    return sorted(found, key=lambda each: each.is_allowed)


def as_sentence(text: str) -> str:
    """A clause with its period, and with a capital where it does not start with a side's name."""
    is_side = len(text.split(maxsplit=1)[0].rstrip(":'s")) < 2 if text else True
    start = text if is_side and not text.startswith("a step") else text[:1].upper() + text[1:]
    return start if start.endswith((".", "!", "?")) or not start else f"{start}."
