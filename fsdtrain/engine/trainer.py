"""Builds the Lightning Trainer of a run from plain settings and a backend's parts."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    WeightAveraging,
)
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fsdtrain.backend import Backend
from fsdtrain.engine.checkpoint_io import WholeCheckpointIO
from fsdtrain.engine.cost_log import CostLog
from fsdtrain.engine.loggers import build_loggers
from fsdtrain.engine.numerics_log import NumericsLog
from fsdtrain.engine.progress import StepProgressBar
from fsdtrain.settings import TrainingSettings


def build_trainer(
    training: TrainingSettings, backend: Backend, run_dir: Path, *, first_step: int
) -> Trainer:
    """A Trainer that counts in optimiser steps, from `first_step`, and writes below `run_dir`."""
    parts = backend.trainer_parts()
    return Trainer(
        accelerator=parts.accelerator,
        strategy=parts.strategy,
        devices=parts.devices,
        precision=parts.precision,
        plugins=[*parts.plugins, WholeCheckpointIO()],
        deterministic=parts.is_deterministic,
        max_steps=training.max_steps,
        max_epochs=-1,
        val_check_interval=training.validate_every_steps * training.accumulate_batches,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=training.gradient_clip_norm,
        accumulate_grad_batches=training.accumulate_batches,
        log_every_n_steps=training.log_every_steps,
        # Our loader slices the global order by rank itself.
        use_distributed_sampler=False,
        enable_model_summary=False,
        callbacks=_callbacks(training, backend, run_dir, first_step=first_step),
        logger=build_loggers(run_dir, first_step=first_step),
        default_root_dir=run_dir,
    )


def build_evaluator(backend: Backend, run_dir: Path) -> Trainer:
    """A Trainer that only evaluates: no logs, no checkpoints."""
    parts = backend.trainer_parts()
    return Trainer(
        accelerator=parts.accelerator,
        strategy=parts.strategy,
        devices=parts.devices,
        precision=parts.precision,
        plugins=list(parts.plugins) or None,
        deterministic=parts.is_deterministic,
        use_distributed_sampler=False,
        callbacks=[StepProgressBar()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )


class SaveLast(Callback):
    """Saves the newest state, to resume from: every so many steps, and after the very last one.

    Not a ModelCheckpoint: those put their options into the checkpoint and complain when a run is
    resumed with other ones, which is how a run is made longer.
    """

    def __init__(self, path: Path, *, every_n_steps: int) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self.saved_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # Lightning's own union
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        is_due = step % self.every_n_steps == 0 or step == trainer.max_steps
        if is_due and step > self.saved_step:  # not for every batch of an accumulated step
            self.saved_step = step
            trainer.save_checkpoint(self.path)


def _callbacks(
    training: TrainingSettings, backend: Backend, run_dir: Path, *, first_step: int
) -> list[Callback]:
    callbacks: list[Callback] = [
        # Drawing costs two milliseconds, and between logged steps there is no new loss to show.
        StepProgressBar(refresh_rate=training.log_every_steps),
        LearningRateMonitor(logging_interval="step"),
        CostLog(backend, every_n_steps=training.log_every_steps),
        ModelCheckpoint(
            dirpath=run_dir / "checkpoints",
            filename="best",
            monitor=training.monitor,
            mode=training.monitor_mode,
            enable_version_counter=False,
        ),
    ]
    if backend.value_origin == "EMULATED":
        callbacks.append(NumericsLog(backend, run_dir, first_step=first_step))
    if training.ema_decay is not None:
        # All weights in one call; Lightning's EMAWeightAveraging takes them one by one.
        average = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
        callbacks.append(WeightAveraging(multi_avg_fn=average))
    # Behind the average, which is part of the state.
    callbacks.append(
        SaveLast(run_dir / "checkpoints" / "last.ckpt", every_n_steps=training.validate_every_steps)
    )
    if training.early_stop_patience is not None:
        callbacks.append(
            EarlyStopping(
                training.monitor,
                mode=training.monitor_mode,
                patience=training.early_stop_patience,
                check_finite=True,
            )
        )
    return callbacks
