"""profile.json: what a run folder holds of a profile. It knows neither backends nor looks."""

from pathlib import Path
from typing import Final, Literal

import msgspec

from fsdtrain.engine.run_record import read_json
from fsdtrain.errors import UserError
from fsdtrain.step_profile import StepProfile

RECORD_VERSION: Final = 2


class ProfileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """profile.json: one profile, and what it is of."""

    schema: Literal["fsdtrain-profile"] = "fsdtrain-profile"
    version: Literal[2] = RECORD_VERSION
    num_clips: int  # of the batch
    profile: StepProfile


def read_profile(run_dir: Path) -> ProfileRecord:
    """The profile in a run folder; UserError where it is missing or of another schema."""
    path = run_dir / "profile.json"
    header = read_json(path, _Header)
    if header.version != RECORD_VERSION:
        raise UserError(
            f"{path} is version {header.version} of the record, and this fsdtrain reads version "
            f"{RECORD_VERSION}: profile the step again"
        )
    return read_json(path, ProfileRecord)


class _Header(msgspec.Struct):
    schema: Literal["fsdtrain-profile"]
    version: int
