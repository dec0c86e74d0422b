"""The progress bar of training, which counts in steps; it knows nothing of what is trained."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Lightning's bar over the batches of an epoch, with the step and the steps of the run."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, Any]:  # Lightning's union of numbers and text
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # a version number, of which our run folders have none
        return {"step": f"{trainer.global_step}/{trainer.max_steps}", **metrics}

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning's own adds "/-2": a run of so many steps has no number of epochs.
        return f"Epoch {current_epoch}"
