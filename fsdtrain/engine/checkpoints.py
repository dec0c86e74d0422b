"""Finding and reading checkpoints. They are untrusted: only tensors and plain values are loaded."""

import logging
import pickle
from pathlib import Path

import torch
from torch import Tensor

from fsdtrain.engine.module import DrivingModule
from fsdtrain.errors import UserError

logger = logging.getLogger(__name__)

ZIP_MAGIC = b"PK\x03\x04"
# What torch's reader raises on a broken file, found by flipping bytes and rewriting its records.
READ_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError,
    AttributeError, AssertionError,
)  # fmt: skip


def find_last_checkpoint(run_dir: Path) -> Path:
    """`run_dir`'s own last checkpoint, else the newest one of its sibling runs.

    Raises:
        UserError: there is none.
    """
    own = run_dir / "checkpoints" / "last.ckpt"
    if own.exists():
        return own
    siblings = run_dir.parent.glob("*/checkpoints/last.ckpt")
    newest = max(siblings, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UserError(
            f"resume=last: no checkpoints/last.ckpt in {run_dir} nor in any run beside it; "
            "start without resume, or name the file with ckpt_path=..."
        )
    logger.info("resuming from %s", newest)
    return newest


def check_checkpoint(path: Path) -> dict[str, object]:
    """Read a checkpoint on the CPU without unpickling objects; UserError where it is none."""
    try:
        with path.open("rb") as file:
            # torch's format before 1.6 has a reader of its own, which nothing here needs.
            if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
                raise pickle.UnpicklingError("not a zip file, or cut short")
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist") from error
    except READ_ERRORS as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not a checkpoint that can be loaded safely: {first_line}"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is not a training checkpoint: it has no state_dict")
    return checkpoint


def read_step(path: Path) -> int:
    """The number of optimiser steps that a checkpoint stands after; UserError where it is none."""
    step = check_checkpoint(path).get("global_step")
    if not isinstance(step, int):
        raise UserError(f"{path} is not a training checkpoint: it has no global_step")
    return step


def load_weights(module: DrivingModule, path: Path) -> None:
    """Put a checkpoint's (averaged) weights and priors into `module`.

    Raises:
        UserError: not a checkpoint, or one of another model.
    """
    checkpoint = check_checkpoint(path)
    try:
        module.load_state_dict(checkpoint["state_dict"])  # type: ignore[arg-type]  # checked by torch
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit this model: {str(error).splitlines()[1].strip()} "
            "Give the same model=... as the run that wrote it."
        ) from error
    if not _have_same_priors(module, checkpoint.get("priors")):
        raise UserError(
            f"{path} was not written by fsdtrain: its priors are not those of the heads"
        )
    module.on_load_checkpoint(checkpoint)


def _have_same_priors(module: DrivingModule, priors: object) -> bool:
    if not isinstance(priors, dict):
        return False
    for name, prior in module.priors.items():
        expected, found = prior.metric_state, priors.get(name)
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return False
        for state_name, value in expected.items():
            other = found[state_name]
            # A head's prior counts in tensors, so that it can be summed over ranks.
            assert isinstance(value, Tensor)
            if not isinstance(other, Tensor) or other.shape != value.shape:
                return False
    return True
