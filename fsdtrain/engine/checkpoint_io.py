"""Writes checkpoints so that the file under a name is whole, the old one or the new one.

Lightning's own writer goes through the system's temporary folder: from there to another disk is a
copy, which a full disk cuts in the middle, over the last checkpoint that was whole.
"""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, then renames."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: Any,  # Lightning's own union of strings and paths
        storage_options: Any | None = None,
    ) -> None:
        """Raises OSError when the disk is full or not ours; the old file stays."""
        target = Path(path)
        partial = target.with_name(f"{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            with partial.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
