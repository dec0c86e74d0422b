"""Finds and reads finished training runs, and refuses those that cannot be compared.

A side is one run folder, or a folder of several: Hydra's multirun (0, 1, ...), or seed_0, seed_1.
What is read may have been made elsewhere: nothing in it is trusted, and nothing is executed. It
does not know what is compared. Every refusal says what was found, what is allowed, what to do.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fsdtrain.comparison.configs import config_differences, read_fields
from fsdtrain.comparison.record import ConfigDifference, Side
from fsdtrain.engine.metrics_file import Curve, read_curves
from fsdtrain.engine.run_record import (
    Manifest,
    Results,
    read_manifest,
    read_results,
)
from fsdtrain.errors import UserError

RUN_FOLDER = re.compile(r"(?:seed_)?(?P<number>\d+)")
LOSS: Final = "train/loss"
GRADIENT_NORM: Final = "train/gradient_norm"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished training run; `gradient_norms` is None of runs that did not log them."""

    folder: Path
    manifest: Manifest
    config_yaml: str
    results: Results
    losses: Curve
    gradient_norms: Curve | None
    samples_per_step: int


def find_runs(folder: Path) -> tuple[Path, ...]:
    """The run folders that a side is: `folder` itself, or those within by number.

    Raises:
        UserError: there is none.
    """
    if (folder / "manifest.json").exists():
        return (folder,)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: give the folder of a finished fit, or one that holds several "
            "of them as seed_0, seed_1, ... or 0, 1, ..."
        )
    found = sorted(
        (int(match["number"]), path)
        for path in folder.iterdir()
        if (match := RUN_FOLDER.fullmatch(path.name)) and path.is_dir() and any(path.iterdir())
    )
    if not found:
        raise UserError(
            f"{folder} holds no run: it has neither manifest.json nor folders named seed_0, "
            "seed_1, ... or 0, 1, ...; give the folder that fit has written (run_dir)"
        )
    return tuple(path for _, path in found)


def read_run(folder: Path) -> Run:
    """Read one finished run.

    Raises:
        UserError: interrupted, truncated, of another schema, changed, or its loss is not finite.
    """
    manifest = read_manifest(folder)
    config_yaml = _read_config(folder, manifest)
    if not (folder / "results.json").exists():
        raise UserError(
            f"{folder} has no results.json: the run was interrupted{_progress(folder)}; finish it "
            f"with resume=last run_dir={folder}"
        )
    fields = read_fields(config_yaml, folder / "config.yaml")
    curves = _read_curves(folder)
    losses = curves.get(LOSS)
    if losses is None:
        raise UserError(
            f"{folder}/metrics.csv has no {LOSS}: nothing was logged; train for at least "
            "training.log_every_steps steps, or log more often"
        )
    _check_losses(folder, losses, fields)
    return Run(
        folder=folder,
        manifest=manifest,
        config_yaml=config_yaml,
        results=read_results(folder),
        losses=losses,
        gradient_norms=curves.get(GRADIENT_NORM),
        samples_per_step=_number(fields, "data.batch_size")
        * _number(fields, "training.accumulate_batches")
        * _number(fields, "backend.devices"),
    )


def read_pairs(a_runs: Sequence[Path], b_runs: Sequence[Path]) -> tuple[list[Run], list[Run]]:
    """Both sides' runs by seed, the same seeds on both.

    Raises:
        UserError: other seeds or data, or what `read_run` refuses.
    """
    a, b = (
        sorted(map(read_run, runs), key=lambda run: run.manifest.seed) for runs in (a_runs, b_runs)
    )
    seeds: dict[Side, list[int]] = {
        "a": [run.manifest.seed for run in a],
        "b": [run.manifest.seed for run in b],
    }
    for side, of_side in seeds.items():
        twice = sorted({seed for seed in of_side if of_side.count(seed) > 1})
        if twice:
            raise UserError(
                f"side {side} has seed {twice[0]} more than once: give one run a seed, for two of "
                "one seed are no independent ones"
            )
    if seeds["a"] != seeds["b"]:
        raise UserError(
            f"a has seeds {_listed(seeds['a'])} and b has seeds {_listed(seeds['b'])}: runs are "
            "compared in pairs of one seed; train the missing seeds, or leave out those that only "
            "one side has"
        )
    data = {run.manifest.data_sha256: run.folder for run in (*a, *b)}
    if len(data) > 1:
        (one_hash, one), (other_hash, other) = list(data.items())[:2]
        raise UserError(
            f"{one} was trained on data {one_hash[:12]} and {other} on data {other_hash[:12]}: "
            "only runs on the same data can be compared; train both on the same data.train and "
            "data.val"
        )
    _check_lengths(a, b)
    return a, b


def check_comparable(
    a_runs: Sequence[Path], b_runs: Sequence[Path], *, allow: Collection[str] = ()
) -> tuple[ConfigDifference, ...]:
    """The allowed differences between two sides' configurations.

    Args:
        a_runs: run folders of side a.
        b_runs: of side b.
        allow: fields, or groups of fields, that may differ: "training.learning_rate", "data".
            Those of the backend always may.

    Raises:
        UserError: they cannot be compared; see `read_pairs` and `config_differences`.
    """
    a, b = read_pairs(a_runs, b_runs)
    for side in (a, b):
        for run in side[1:]:
            _check_one_side(side[0], run)
    found: dict[str, ConfigDifference] = {}
    for one, other in zip(a, b, strict=True):
        for difference in config_differences(one.config_yaml, other.config_yaml, allow=allow):
            found.setdefault(difference.field, difference)
    return tuple(found.values())


def _check_one_side(first: Run, other: Run) -> None:
    differences = config_differences(first.config_yaml, other.config_yaml, allow=("*",))
    if differences:
        worst = differences[0]
        raise UserError(
            f"{first.folder} and {other.folder} are of one side and differ in {worst.field} "
            f"({worst.a} and {worst.b}): runs of one side may differ in their seed alone"
        )


def _check_lengths(a: Sequence[Run], b: Sequence[Run]) -> None:
    """Of configurations that stop early, each side's own end is the one that counts."""
    for one, other in zip(a, b, strict=True):
        both = [read_fields(run.config_yaml, run.folder / "config.yaml") for run in (one, other)]
        steps = [fields.get("training.max_steps") for fields in both]
        if steps[0] != steps[1]:
            raise UserError(
                f"{one.folder} was trained for {steps[0]} steps and {other.folder} for {steps[1]}: "
                "the same number is needed; train the shorter one on with resume=last and the "
                "other's training.max_steps"
            )


def _read_config(folder: Path, manifest: Manifest) -> str:
    path = folder / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}: {error}; copy the whole run folder, its configuration included"
        ) from error
    if hashlib.sha256(text.encode()).hexdigest() != manifest.config_sha256:
        raise UserError(
            f"{path} is not the configuration that {folder}/manifest.json tells of: one of them "
            "was changed after the run; put back the file that fit wrote, or train again"
        )
    return text


def _read_curves(folder: Path) -> dict[str, Curve]:
    path = folder / "metrics.csv"
    try:
        ends_whole = path.read_bytes().endswith(b"\n")
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; copy the whole run folder, or train again"
        ) from error
    if not ends_whole:
        raise UserError(
            f"{path} is truncated: its last line is cut off; copy it again from where it was "
            "made, or train again"
        )
    return read_curves(path)


def _check_losses(folder: Path, losses: Curve, fields: dict[str, object]) -> None:
    """All steps that should have been logged are there, and their losses are numbers."""
    path = folder / "metrics.csv"
    every, most = _number(fields, "training.log_every_steps"), _number(fields, "training.max_steps")
    last = int(losses.steps[-1])
    may_stop = fields.get("training.early_stop_patience") is not None
    goes_on = any(fields.get(name) is not None for name in ("ckpt_path", "resume"))
    first = int(losses.steps[0]) if goes_on else every - 1
    expected = np.arange(first, last + 1 if may_stop else most, every)
    if not np.array_equal(losses.steps, expected):
        raise UserError(
            f"{path} is truncated: it has losses of {len(losses.steps)} of {len(expected)} steps, "
            f"from {losses.steps[0]} to {last} (training.max_steps={most}, logged every {every}); "
            "copy it again from where it was made, or train again"
        )
    wrong = losses.steps[~np.isfinite(losses.values)]
    if len(wrong):
        when = "from the first logged step" if wrong[0] == losses.steps[0] else "from there"
        raise UserError(
            f"{path}: the loss is {losses.values[losses.steps == wrong[0]][0]:g} at step "
            f"{wrong[0]}: this training diverged {when}, and there is nothing to compare; lower "
            "training.learning_rate, or give the backend a wider number format"
        )


def _progress(folder: Path) -> str:
    path = folder / "metrics.csv"
    curve = read_curves(path).get(LOSS) if path.exists() else None
    return f" after step {curve.steps[-1]}" if curve is not None else " before its first loss"


def _number(fields: dict[str, object], name: str) -> int:
    value = fields.get(name, 1 if name == "backend.devices" else None)
    if not isinstance(value, int) or value < 1:
        raise UserError(
            f"config.yaml: {name} is {value!r} and must be a whole number of at least 1; give a "
            "folder that fit has written"
        )
    return value


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"
