"""The LightningModule: one training step, its optimiser and its metrics.

It does not know the backend, the data set or the heads' tasks: a head brings its own metric.
"""

from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.optimizer import build_optimizer
from fsdtrain.engine.schedule import schedule_function
from fsdtrain.engine.step import StepOutput, TrainingStep
from fsdtrain.errors import UserError
from fsdtrain.heads.head import Head
from fsdtrain.settings import TrainingSettings


class DrivingModule(LightningModule):
    """Trains a `TrainingStep`; logs its losses, and in validation every head's metric."""

    def __init__(
        self, step: TrainingStep, training: TrainingSettings, *, fuses_optimizer: bool = False
    ) -> None:
        super().__init__()
        self.step = step
        self.fuses_optimizer = fuses_optimizer
        self.training_settings = training
        # Not submodules: the moving average of the weights would average the counts too.
        priors = {name: head.prior() for name, head in self.heads()}
        self.priors = {name: prior for name, prior in priors.items() if prior is not None}
        # Made anew for every validation: a metric may need what the priors hold by then.
        self.metrics = nn.ModuleDict()

    def heads(self) -> list[tuple[str, Head]]:
        """The heads by name."""
        # ModuleDict is not generic; that its values are heads is HydraBev's contract.
        return cast("list[tuple[str, Head]]", list(self.step.network.heads.items()))

    def _metrics(self) -> list[tuple[str, Metric]]:
        return cast("list[tuple[str, Metric]]", list(self.metrics.items()))

    def on_fit_start(self) -> None:
        for prior in self.priors.values():
            prior.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # So that `validate` and a resumed run have them. Under DDP these are rank 0's counts.
        checkpoint["priors"] = {name: prior.metric_state for name, prior in self.priors.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, prior in self.priors.items():
            for state_name, value in checkpoint["priors"][name].items():
                setattr(prior, state_name, value)
            # Otherwise torchmetrics takes it for one that saw nothing, and warns.
            prior._update_count = 1

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        for prior in self.priors.values():
            prior.update(batch)
        output: StepOutput = self.step(batch)
        # Lightning spends half a millisecond on each of these in every step, to drop all but those
        # of every n-th.
        if self._is_logged_step():
            self._check_finite(output)
            self.log("train/loss", output.loss, prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in output.losses.items()})
        return output.loss

    def _is_logged_step(self) -> bool:
        return (self.global_step + 1) % self.training_settings.log_every_steps == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of all gradients, summed over accumulated batches and not yet clipped."""
        if not self._is_logged_step():
            return
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        # An optimiser that takes the scale of mixed precision off by itself has not done so yet.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            norm = norm / scaler.get_scale()
        self.log("train/gradient_norm", norm)

    def _check_finite(self, output: StepOutput) -> None:
        if not torch.isfinite(output.loss):
            losses = ", ".join(f"{name} {float(value):g}" for name, value in output.losses.items())
            raise UserError(
                f"training diverged: the loss is not finite at step {self.global_step} ({losses}); "
                "lower training.learning_rate, or go on from an earlier checkpoint"
            )

    def on_validation_epoch_start(self) -> None:
        priors = {name: prior.compute() for name, prior in self.priors.items()}
        self.metrics = nn.ModuleDict(
            {name: head.metric(priors.get(name)).to(self.device) for name, head in self.heads()}
        )

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        output: StepOutput = self.step(batch)
        num_clips = batch.clip_index_B.shape[0]
        self.log("val/loss", output.loss, batch_size=num_clips, sync_dist=True)
        for name, metric in self._metrics():
            metric.update(output.outputs[name], batch)

    def on_validation_epoch_end(self) -> None:
        figures: dict[str, Tensor] = {}
        for head_name, metric in self._metrics():
            values: dict[str, Tensor] = metric.compute()
            figures |= {f"val/{head_name}_{name}": value for name, value in values.items()}
        self.log_dict(figures)
        monitor = self.training_settings.monitor
        if self.trainer.state.fn == "fit" and monitor not in self.trainer.callback_metrics:
            names = ", ".join(["val/loss", *figures])
            raise UserError(
                f"training.monitor={monitor}: validation gives no such figure, but {names}"
            )

    def configure_optimizers(self) -> Any:  # Lightning's own union of a dozen shapes
        settings = self.training_settings
        optimizer = build_optimizer(self.step, settings, is_fused=self.fuses_optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            schedule_function(
                num_steps=settings.max_steps,
                schedule=settings.schedule,
                warmup_fraction=settings.warmup_fraction,
            ),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
