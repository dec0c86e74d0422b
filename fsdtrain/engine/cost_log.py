"""Logs what a training step costs: time, the wait for its batch, and memory.

Of backends that can tell their memory: on the others it logs nothing, and equal runs have equal
files. It does not know what trains.
"""

from time import perf_counter
from typing import Any

from lightning import Callback, LightningModule, Trainer

from fsdtrain.backend import Backend


class CostLog(Callback):
    """Means over the steps since the last logged one, and the peak of the memory since then.

    `time/step_s` is of an optimiser step with its wait, by the host's clock: the loss that is
    logged with it has been waited for. `time/data_wait_s` is the part of it in which no batch was
    there. Validation counts as neither.

    Args:
        backend: whose memory is read.
        every_n_steps: how often; the trainer's own interval.
    """

    def __init__(self, backend: Backend, *, every_n_steps: int) -> None:
        self.backend, self.every_n_steps = backend, every_n_steps
        self._begin(first_step=0)

    def _begin(self, *, first_step: int) -> None:
        self.first_step = first_step
        self.busy_s = self.waited_s = 0.0
        self.last = perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.backend.read_memory()
        self._begin(first_step=trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.waited_s += self._lap()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # Lightning's own union
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.busy_s += self._lap()
        num_steps = trainer.global_step - self.first_step
        if num_steps == 0 or trainer.global_step % self.every_n_steps:
            return
        if memory := self.backend.read_memory():
            figures: dict[str, float] = {
                "time/step_s": (self.busy_s + self.waited_s) / num_steps,
                "time/data_wait_s": self.waited_s / num_steps,
            }
            figures |= {f"memory/{name}": value for name, value in memory.items()}
            pl_module.log_dict(figures)
        self._begin(first_step=trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap()

    def _lap(self) -> float:
        now = perf_counter()
        passed, self.last = now - self.last, now
        return passed
