"""The run folder: what a run writes about itself, so that it can be read and compared elsewhere.

    manifest.json      Manifest: versions, git, config hash, seed, data hash, device, backend
    config.yaml        the composed configuration
    metrics.csv        every logged scalar by step; curves.png shows them
    numerics.csv       what emulated number formats did to every tensor, by step; see
                       numerics_record.py, numerics_histograms.json too
    profile.json       one profiled step, see profile_record.py; profile.html shows it, and
                       trace.json its timeline
    results.json       Results: the final figures, each with its origin and its baselines
    checkpoints/       best.ckpt, last.ckpt
    tensorboard/       the same scalars for TensorBoard
    pictures/          example clips with predictions (PNG)
    report.html        all of it on one offline page

It does not know how a run is trained, nor how the report looks.
"""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import torch

from fsdtrain.errors import UserError
from fsdtrain.step_profile import Origin

StructType = TypeVar("StructType", bound=msgspec.Struct)

TRAIN_AGAIN = "read it with the fsdtrain that wrote it, or train again"
REPORTED_PACKAGES = ("fsdtrain", "torch", "lightning", "numpy", "webdataset", "av", "hydra-core")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What was run, with what, on what. Hashes are SHA-256 hex."""

    schema: Literal["fsdtrain-run"] = "fsdtrain-run"
    version: Literal[1] = 1
    command: str
    started_at: str  # ISO 8601, UTC
    seed: int
    backend: str
    device: str
    origin: Origin
    config_sha256: str
    data_sha256: str
    packages: dict[str, str]
    python: str
    platform: str
    num_threads: int
    git_revision: str | None  # None: not run from a checkout
    git_dirty: bool | None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One final figure; `baselines` are the same quantity reached by simpler means."""

    name: str
    value: float
    unit: str
    better: Literal["higher", "lower"]
    origin: Origin
    description: str
    baselines: dict[str, float] = {}


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The final evaluation of a run."""

    schema: Literal["fsdtrain-results"] = "fsdtrain-results"
    version: Literal[1] = 1
    split: str
    num_clips: int
    num_skipped_clips: int
    figures: tuple[Figure, ...]


def installed_versions() -> dict[str, str]:
    """The versions of the packages that decide a run's outcome."""
    found = {}
    for name in REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """(revision, has uncommitted changes) of the checkout around `folder`, or (None, None)."""
    try:
        revision = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
        changes = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None, None
    if revision.returncode != 0 or changes.returncode != 0:
        return None, None
    return revision.stdout.strip(), bool(changes.stdout.strip())


def make_manifest(
    *,
    command: str,
    started_at: str,
    seed: int,
    backend: str,
    device: str,
    origin: Origin,
    config_yaml: str,
    data_sha256: str,
) -> Manifest:
    """Collect what the machine and the installation say about this run."""
    revision, dirty = git_state(Path(__file__).resolve().parent)
    return Manifest(
        command=command,
        started_at=started_at,
        seed=seed,
        backend=backend,
        device=device,
        origin=origin,
        config_sha256=hashlib.sha256(config_yaml.encode()).hexdigest(),
        data_sha256=data_sha256,
        packages=installed_versions(),
        python=platform.python_version(),
        platform=platform.platform(),
        num_threads=torch.get_num_threads(),
        git_revision=revision,
        git_dirty=dirty,
    )


def prepare_run_folder(folder: Path) -> Path:
    """Create the folder and prove that it can be written to; UserError names the path otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-probe"
        probe.write_bytes(b"fsdtrain")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {folder}: {error.strerror}; "
            "choose another with run_dir=..."
        ) from error
    return folder


def write_json(path: Path, value: msgspec.Struct) -> None:
    """Write indented JSON in one step: a reader sees the old file or the new one, never half."""
    temporary = path.with_suffix(".json.partial")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(value), indent=2))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def read_manifest(run_dir: Path) -> Manifest:
    """The manifest of a finished or running run; UserError where it is none."""
    return read_record(run_dir / "manifest.json", Manifest, remedy=TRAIN_AGAIN)


def read_results(run_dir: Path) -> Results:
    """The final figures of a run; UserError where they are missing or of another schema."""
    return read_record(run_dir / "results.json", Results, remedy=TRAIN_AGAIN)


def read_record(path: Path, kind: type[StructType], *, remedy: str) -> StructType:
    """Read a record whose `schema` and `version` have to be the defaults of `kind`.

    Args:
        path: of the JSON file.
        kind: of the record.
        remedy: what to do about one of another version: "profile the step again".

    Raises:
        UserError: it is missing, damaged, or of another schema or version.
    """
    header = read_json(path, _Header)
    known = {field.name: field.default for field in msgspec.structs.fields(kind)}
    schema, version = known["schema"], known["version"]
    if (header.schema, header.version) != (schema, version):
        raise UserError(
            f"{path} is {header.schema!r} of version {header.version}, and this fsdtrain reads "
            f"{schema!r} of version {version}: {remedy}"
        )
    return read_json(path, kind)


class _Header(msgspec.Struct):
    schema: str
    version: int


def read_json(path: Path, kind: type[StructType]) -> StructType:
    """Read what `write_json` wrote; UserError where it is missing or of another schema."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: is this the folder of a finished run?") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UserError(f"{path}: {error}") from error
