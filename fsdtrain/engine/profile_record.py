"""profile.json: what a run folder holds of a profile. It knows neither backends nor looks."""

from pathlib import Path
from typing import Final, Literal

import msgspec

from fsdtrain.engine.run_record import read_record
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
    return read_record(run_dir / "profile.json", ProfileRecord, remedy="profile the step again")
