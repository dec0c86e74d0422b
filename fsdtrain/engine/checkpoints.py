"""Finding and reading checkpoints. They are untrusted: only tensors and plain values are loaded."""

import logging
import pickle
from pathlib import Path

import torch

from fsdtrain.engine.module import DrivingModule
from fsdtrain.errors import UserError

logger = logging.getLogger(__name__)


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
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not a checkpoint that can be loaded safely: {first_line}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a training checkpoint: it has no state_dict")
    return checkpoint


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
    if "priors" not in checkpoint:
        raise UserError(f"{path} was not written by fsdtrain: it has no priors")
    module.on_load_checkpoint(checkpoint)
