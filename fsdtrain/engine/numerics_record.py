"""What a run writes about its number formats, and what it means for a tensor to lose its range.

    numerics.csv               every reading: a row for every tensor, all but its histogram
    numerics_histograms.json   Histograms: of the newest reading, each role's worst tensor, whole

It does not know how readings are taken, nor how they look on the report.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from fsdtrain.backend import HISTOGRAM_MIN_EXPONENT, TensorNumerics
from fsdtrain.engine.run_record import read_json, write_json
from fsdtrain.errors import DataError, UserError
from fsdtrain.step_profile import Origin

# A tensor that reaches one of these, or holds NaN, has lost its range. Clamping a hundredth of a
# tensor moves its sum by more than rounding does; small elements may well be lost, but not most of
# them; a range that fits gives 8-bit formats 20 to 32 dB, so 10 dB is no matter of rounding.
MAX_SATURATED_SHARE = 0.01
MAX_UNDERFLOWED_SHARE = 0.5
MIN_SNR_DB = 10.0

COLUMNS = (
    "step", "origin", "layer", "op", "role", "format", "rounding", "bias", "num_elements",
    "saturated_share", "underflowed_share", "nan_share", "amax", "snr_db", "lowest_exponent",
    "highest_exponent",
)  # fmt: skip

TensorKey = tuple[str, str, str, int]  # layer, op, role, and which of those in the step's order
Reading = dict[TensorKey, TensorNumerics]


class Histograms(msgspec.Struct, frozen=True, kw_only=True):
    """Each role's worst tensor; bin 0 of their histograms is the exponent `min_exponent`."""

    schema: Literal["fsdtrain-numerics-histograms"] = "fsdtrain-numerics-histograms"
    version: Literal[1] = 1
    step: int
    origin: Origin
    min_exponent: int = HISTOGRAM_MIN_EXPONENT
    tensors: tuple[TensorNumerics, ...]


def index_reading(tensors: Iterable[TensorNumerics]) -> Reading:
    """The tensors of one reading by key, in their order."""
    seen: Counter[tuple[str, str, str]] = Counter()
    reading = {}
    for tensor in tensors:
        name = (tensor.layer, tensor.op, tensor.role)
        reading[(*name, seen[name])] = tensor
        seen[name] += 1
    return reading


def severity(tensor: TensorNumerics) -> float:
    """How far a tensor is from losing its range: from 1 on it has; the worst has the most.

    For saturation and underflow it is the share over the allowed one, for rounding the amplitude of
    the noise over the allowed one; NaN is infinitely bad.
    """
    if tensor.nan_share > 0:
        return float("inf")
    noise = 0.0 if tensor.snr_db is None else 10 ** ((MIN_SNR_DB - tensor.snr_db) / 20)
    saturation = tensor.saturated_share / MAX_SATURATED_SHARE
    return max(saturation, tensor.underflowed_share / MAX_UNDERFLOWED_SHARE, noise)


def has_lost_range(tensor: TensorNumerics) -> bool:
    """Whether the format no longer holds what the tensor says."""
    return severity(tensor) >= 1


def describe(tensor: TensorNumerics) -> str:
    """One clause: which tensor, in which format, and its figures."""
    bias = "" if tensor.bias is None else f" with bias {tensor.bias}"
    shares = {
        "NaN": tensor.nan_share,
        "saturated": tensor.saturated_share,
        "underflowed to zero": tensor.underflowed_share,
    }
    figures = [f"{100 * share:.3g} % {name}" for name, share in shares.items() if share > 0]
    if tensor.snr_db is not None:
        figures.append(f"signal to noise {tensor.snr_db:.1f} dB")
    return (
        f"{tensor.role.replace('_', ' ')} of {tensor.layer or 'an unnamed layer'} ({tensor.op}) in "
        f"{tensor.format}{bias}: {', '.join(figures) or 'no rounding noise'}"
    )


def remedy(tensor: TensorNumerics) -> str:
    """What to do about a tensor that has lost its range."""
    if tensor.nan_share > 0:
        return "find the first step with NaN, and lower training.learning_rate"
    is_saturated = tensor.saturated_share >= MAX_SATURATED_SHARE
    is_underflowed = tensor.underflowed_share >= MAX_UNDERFLOWED_SHARE
    if not is_saturated and not is_underflowed:
        return "give this role a format with more mantissa bits, or another scaling"
    if is_saturated == is_underflowed or tensor.bias is None:
        return "give this role a format with a wider exponent"
    direction = "smaller" if is_saturated else "larger"
    return f"give this role a {direction} exponent bias, or a format with a wider exponent"


def worst_of_each_role(tensors: Iterable[TensorNumerics]) -> tuple[TensorNumerics, ...]:
    """The worst tensor of every role, the very worst first."""
    worst: dict[str, TensorNumerics] = {}
    for tensor in tensors:
        if tensor.role not in worst or severity(tensor) > severity(worst[tensor.role]):
            worst[tensor.role] = tensor
    return tuple(sorted(worst.values(), key=severity, reverse=True))


def append_reading(
    run_dir: Path, *, step: int, origin: Origin, tensors: Sequence[TensorNumerics]
) -> None:
    """Add the rows of one reading to numerics.csv, and replace the histograms."""
    path = run_dir / "numerics.csv"
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerows((step, origin, *_cells(tensor)) for tensor in tensors)
    histograms = Histograms(step=step, origin=origin, tensors=worst_of_each_role(tensors))
    write_json(run_dir / "numerics_histograms.json", histograms)


def _cells(tensor: TensorNumerics) -> list[object]:
    texts: list[object] = []
    for name in COLUMNS[2:-2]:
        value = getattr(tensor, name)
        texts.append(f"{value:.6g}" if isinstance(value, float) else value)
    return [*texts, *tensor.representable_exponents]


def forget_from(run_dir: Path, first_step: int) -> None:
    """Drop the rows from `first_step` on: a resumed run takes those readings again.

    Raises:
        UserError: numerics.csv cannot be read, or is not of this version.
        DataError: a row is not one of this file.
    """
    path = run_dir / "numerics.csv"
    if not path.exists():
        return
    kept = [row for step, row in _rows(path) if step < first_step]
    temporary = path.with_suffix(".csv.partial")
    with temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *kept])
    temporary.replace(path)


def read_numerics(run_dir: Path) -> dict[int, Reading]:
    """The readings of numerics.csv by step, in rising order; their histograms are empty.

    Raises:
        UserError: the file cannot be read, or is not of this version.
        DataError: a cell is not what its column holds; names the line.
    """
    path = run_dir / "numerics.csv"
    found: dict[int, list[TensorNumerics]] = {}
    for line, (step, row) in enumerate(_rows(path), start=2):
        try:
            found.setdefault(step, []).append(_tensor(dict(zip(COLUMNS, row, strict=True))))
        except ValueError as error:
            raise DataError(f"{path}:{line}: {error}") from error
    return {step: index_reading(found[step]) for step in sorted(found)}


def read_histograms(run_dir: Path) -> Histograms:
    """The worst tensors of the newest reading; UserError where the file is missing or broken."""
    return read_json(run_dir / "numerics_histograms.json", Histograms)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(step, cells) of every row; a last line without its newline was cut off, and is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    header, *rows = [*csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))] or [[]]
    if tuple(header) != COLUMNS:
        raise UserError(
            f"{path} is of another version: its columns are not {', '.join(COLUMNS)}; move it "
            "away, or choose another run_dir"
        )
    steps = []
    for line, row in enumerate(rows, start=2):
        if not row or not row[0].isdecimal():
            raise DataError(f"{path}:{line}: no whole number in the column step")
        steps.append(int(row[0]))
    return list(zip(steps, rows, strict=True))


def _tensor(cells: dict[str, str]) -> TensorNumerics:
    return TensorNumerics(
        layer=cells["layer"],
        op=cells["op"],
        role=cells["role"],
        format=cells["format"],
        rounding=cells["rounding"],
        bias=int(cells["bias"]) if cells["bias"] else None,
        num_elements=int(cells["num_elements"]),
        saturated_share=float(cells["saturated_share"]),
        underflowed_share=float(cells["underflowed_share"]),
        nan_share=float(cells["nan_share"]),
        amax=float(cells["amax"]),
        snr_db=float(cells["snr_db"]) if cells["snr_db"] else None,
        exponent_histogram=(),
        representable_exponents=(int(cells["lowest_exponent"]), int(cells["highest_exponent"])),
    )
