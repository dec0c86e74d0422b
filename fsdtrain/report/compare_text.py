"""A comparison for a pull request: compare.md and compare.csv.

It does not know how anything was found. The terminal's summary is in `compare_summary.py`. Names
of layers and folders come from outside, so they are escaped for Markdown and for spreadsheets.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fsdtrain.comparison.record import (
    CompareRecord,
    Errors,
    NumericsComparison,
    StoredTensor,
)
from fsdtrain.errors import UserError
from fsdtrain.report.amounts import in_seconds, percent
from fsdtrain.report.compare_words import (
    OUTCOME_WORDS,
    as_sentence,
    decibels,
    ranked_rows,
    ratio_notes,
    ratio_text,
    telling_differences,
    tensor_title,
    with_origin,
)

NUM_MARKDOWN_TENSORS = 15
NUM_MARKDOWN_COSTS = 10
NUM_MARKDOWN_DIFFERENCES = 12
# What Markdown, its HTML or a table's columns would take for more than text.
MARKDOWN_SIGNS = re.compile(r"([\\`*_{}\[\]<>|#~!])")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
ERROR_FIELDS = (
    "is_bitwise_equal", "snr_db", "cosine", "max_over_rms", "share_within", "pearson", "scale",
    "nan_share",
)  # fmt: skip
ULP_FIELDS = ("p50", "p99", "max")
STORED_FIELDS = ("format", "saturated_share", "underflowed_share")


def compare_markdown(record: CompareRecord) -> str:
    """The comparison for a pull request: verdict, checks, worst tensors, training, costs."""
    parts = [
        f"## {_plain(record.a_name)} (a) against {_plain(record.b_name)} (b)",
        f"**{_plain(record.verdict.sentence)}**",
        *_checks(record),
        *_config_section(record),
        *_numerics_section(record),
        *_attribution_section(record),
        *_training_section(record),
        *_performance_section(record),
    ]
    return "\n\n".join(parts) + "\n"


def _checks(record: CompareRecord) -> list[str]:
    rows = [
        (check.name, OUTCOME_WORDS[check.outcome], as_sentence(check.sentence))
        for check in record.verdict.checks
    ]
    return [_table(("check", "outcome", "found"), rows)] if rows else []


def _config_section(record: CompareRecord) -> list[str]:
    differences = telling_differences(record)
    if not differences:
        return []
    rows = [
        (one.field, one.a, one.b, "" if one.is_allowed else "not allowed")
        for one in differences[:NUM_MARKDOWN_DIFFERENCES]
    ]
    left = len(differences) - len(rows)
    more = [f"And {left} more, in compare.html."] if left else []
    return ["### Configuration difference", _table(("knob", "a", "b", ""), rows), *more]


def _numerics_section(record: CompareRecord) -> list[str]:
    numerics = record.numerics
    if numerics is None:
        return ["### Numerics", "Not compared."]
    first = numerics.first_divergence
    lines = [_plain(as_sentence(numerics.sentence))]
    if first is not None:
        row = numerics.tensors[first]
        finding = f": {row.finding}" if row.finding else ""
        lines.append(f"First divergence: {_plain(tensor_title(row) + finding)}.")
    lines.append(f"The reference is {_plain(numerics.reference)}.")
    rows = [
        (
            tensor_title(row), row.mode.replace("_", "-"), row.b_stored.format, decibels(row.a),
            decibels(row.b), decibels(row.between),
            "" if row.band_snr_db is None else f"{row.band_snr_db:.0f} dB",
            row.finding or ("outside: " + ", ".join(row.outside) if row.outside else ""),
        )
        for row in ranked_rows(numerics)[:NUM_MARKDOWN_TENSORS]
    ]  # fmt: skip
    headings = ("tensor", "mode", "b's format", "a", "b", "b against a", "band", "finding")
    # The origin of b's values: those of emulated formats.
    origins = f"a: {record.a_manifest.origin}; b: {record.b_manifest.origin}"
    caption = f"The {len(rows)} worst of {len(numerics.tensors):,} tensors, SNR ({origins}):"
    return ["### Numerics", " ".join(lines), caption, _table(headings, rows)]


def _attribution_section(record: CompareRecord) -> list[str]:
    found = []
    if record.bisected is not None:
        names = ", ".join(record.bisected.names)
        found.append(f"**Bisect:** {_plain(record.bisected.sentence)} {_plain(names)}")
    if record.tuned is not None:
        found.append(f"**Tune:** {_plain(record.tuned.sentence)}")
        rows = [
            (
                step.role, step.from_format, step.to_format,
                "" if step.gradient_snr_db is None
                else f"{step.gradient_snr_db:.1f} dB {record.b_manifest.origin}",
                "not known" if step.step_time_s is None
                else f"{in_seconds(step.step_time_s)} {step.origin}",
            )
            for step in record.tuned.steps
        ]  # fmt: skip
        if rows:
            found.append(_table(("role", "from", "to", "gradients then", "step time then"), rows))
            found.append(f"Take it with: `{' '.join(record.tuned.overrides)}`")
    return ["### Attribution", *found] if found else []


def _training_section(record: CompareRecord) -> list[str]:
    training = record.training
    if training is None:
        return ["### Training", "Not compared."]
    test = training.equivalence
    interval = (
        "no interval: too few seeds"
        if test.low is None or test.high is None
        else f"{test.low:+.4g} to {test.high:+.4g}"
    )
    ratio = training.samples_to_target_ratio
    rows = [
        (f"{test.metric}, b minus a", f"{test.difference:+.4g}"),
        ("90 % confidence interval", interval),
        ("margin", f"{test.margin:.4g} ({test.margin_source})"),
        ("seeds of a, of b", f"{len(training.a.seeds)}, {len(training.b.seeds)}"),
        ("steps with b's mean loss outside of a's band", percent(training.share_outside)),
        ("samples to target, b over a", "not known" if ratio is None else f"{ratio:.3g}"),
        ("gradient norm, b over a", _ratio_or_unknown(training.gradient_norm_ratio)),
    ]
    origins = f"a: {training.a.origin}; b: {training.b.origin}."
    return ["### Training", f"{_plain(training.sentence)} {origins}", _table(("", ""), rows)]


def _ratio_or_unknown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"


def _performance_section(record: CompareRecord) -> list[str]:
    performance = record.performance
    if performance is None:
        return ["### Performance", "Not compared."]
    headings = ("", "a", "b", "b over a")
    totals = [(row.name, *with_origin(row), ratio_text(row)) for row in performance.totals]
    ops = performance.ops[:NUM_MARKDOWN_COSTS]
    rows = [(f"{row.name} {row.detail}", *with_origin(row), ratio_text(row)) for row in ops]
    found = ["### Performance", _plain(as_sentence(performance.sentence)), _table(headings, totals)]
    if rows:
        caption = f"The {len(rows)} largest differences of {len(performance.ops):,} ops:"
        found += [caption, _table(("op", "a", "b", "b over a"), rows)]
    notes = ratio_notes((*performance.totals, *ops))
    found += [_plain(as_sentence(note)) for note in notes]
    return found


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return MARKDOWN_SIGNS.sub(r"\\\1", " ".join(text.split()))


def compare_csv(numerics: NumericsComparison) -> str:
    """One row a tensor with all errors of a and b against the reference and of b against a."""
    pairs = ("a", "b", "between")
    header = ["mode", "kind", "name", "op", "layer", "line", "shape", "order"]
    header += [f"{side}_{name}" for side in ("a", "b") for name in STORED_FIELDS]
    for pair in pairs:
        header += [f"{pair}_{name}" for name in ERROR_FIELDS]
        header += [f"{pair}_ulp_{name}" for name in ULP_FIELDS]
    header += ["band_snr_db", "outside", "finding"]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in numerics.tensors:
        shape = "x".join(map(str, row.shape))
        names = (row.mode, row.kind, row.name, row.op, row.layer, row.line, shape)
        writer.writerow(
            [
                *map(_cell, names), row.order, *_stored(row.a_stored), *_stored(row.b_stored),
                *_errors(row.a), *_errors(row.b), *_errors(row.between), row.band_snr_db,
                " ".join(row.outside), _cell(row.finding),
            ]
        )  # fmt: skip
    return text.getvalue()


def _cell(text: str) -> str:
    # A spreadsheet would compute a name that starts so.
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _stored(stored: StoredTensor) -> list[object]:
    return [getattr(stored, name) for name in STORED_FIELDS]


def _errors(errors: Errors) -> list[object]:
    ulps = [None if errors.ulps is None else getattr(errors.ulps, name) for name in ULP_FIELDS]
    return [*(getattr(errors, name) for name in ERROR_FIELDS), *ulps]


def write_compare_texts(record: CompareRecord, folder: Path) -> tuple[Path, ...]:
    """Write compare.md, and compare.csv where numbers were compared; return their paths.

    Raises:
        UserError: a file cannot be written.
    """
    written = [_write(folder / "compare.md", compare_markdown(record))]
    if record.numerics is not None:
        written.append(_write(folder / "compare.csv", compare_csv(record.numerics)))
    return tuple(written)


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path
