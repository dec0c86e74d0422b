"""Keeps a backend's readings of its number formats in the run folder, and warns once.

It does not know how a reading is taken, and has nothing to do where values are MEASURED.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from fsdtrain.backend import Backend, TensorNumerics
from fsdtrain.engine.numerics_record import (
    TensorKey,
    append_reading,
    describe,
    forget_from,
    has_lost_range,
    index_reading,
    remedy,
    severity,
)

logger = logging.getLogger(__name__)


class NumericsLog(Callback):
    """Asks the backend after every batch; rank 0 writes what it says.

    Args:
        backend: one that emulates number formats.
        run_dir: where numerics.csv and numerics_histograms.json go.
        first_step: the step a resumed run starts at; its readings from there on are taken again.
    """

    def __init__(self, backend: Backend, run_dir: Path, *, first_step: int) -> None:
        self.backend, self.run_dir, self.first_step = backend, run_dir, first_step
        self.step = first_step
        self.lost_before: set[TensorKey] = set()
        self.has_warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            forget_from(self.run_dir, self.first_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.step = trainer.global_step  # as metrics.csv counts; the batch may move it

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # Lightning's own union
        batch: Any,
        batch_idx: int,
    ) -> None:
        tensors = self.backend.read_numerics()
        if not tensors or not trainer.is_global_zero:
            return
        origin = self.backend.value_origin
        append_reading(self.run_dir, step=self.step, origin=origin, tensors=tensors)
        for sink in trainer.loggers:
            # Not metrics.csv, which would only say numerics.csv again.
            if isinstance(sink, TensorBoardLogger):
                sink.log_metrics(summarise_roles(tensors), step=self.step)
        self._warn_once(tensors)

    def _warn_once(self, tensors: Sequence[TensorNumerics]) -> None:
        lost = {key: one for key, one in index_reading(tensors).items() if has_lost_range(one)}
        # A range that follows the values may need a reading to catch up; NaN never goes away.
        lasting = [one for key, one in lost.items() if key in self.lost_before or one.nan_share > 0]
        self.lost_before = set(lost)
        if not lasting or self.has_warned:
            return
        self.has_warned = True
        worst = max(lasting, key=severity)
        others = f", and so have {len(lasting) - 1} other tensors" if len(lasting) > 1 else ""
        logger.warning(
            "step %d: a tensor has lost its range%s. The worst is the %s. What to do: %s. All "
            "tensors are in %s and in the report; this is said once.",
            self.step, others, describe(worst), remedy(worst), self.run_dir / "numerics.csv",
        )  # fmt: skip


def summarise_roles(tensors: Sequence[TensorNumerics]) -> dict[str, float]:
    """Scalars by role for a logger: the median and lowest SNR in dB, and the largest shares."""
    scalars: dict[str, float] = {}
    for role in dict.fromkeys(tensor.role for tensor in tensors):
        of_role = [tensor for tensor in tensors if tensor.role == role]
        ratios = [tensor.snr_db for tensor in of_role if tensor.snr_db is not None]
        if ratios:
            scalars[f"numerics/{role}/snr_db_median"] = median(ratios)
            scalars[f"numerics/{role}/snr_db_min"] = min(ratios)
        for name in ("saturated_share", "underflowed_share"):
            scalars[f"numerics/{role}/{name}_max"] = max(getattr(one, name) for one in of_role)
    return scalars
