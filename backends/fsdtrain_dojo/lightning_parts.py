"""What Lightning is given: accelerator, strategies and precision of an emulated Dojo.

The tensors live on the host; only their values are Dojo's.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.utilities.types import Steppable
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, CUDAAccelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch.optim import Optimizer

from fsdtrain_dojo.optimizer import OptimizerCompiler
from fsdtrain_dojo.sites import SiteTable


class DojoAccelerator(CPUAccelerator):
    """An emulated Dojo in the memory of the host's CPUs."""

    @staticmethod
    def name() -> str:
        return "dojo"


class DojoCudaAccelerator(CUDAAccelerator):
    """An emulated Dojo in the memory of the host's GPUs."""

    @staticmethod
    def name() -> str:
        return "dojo_cuda"


# By the host the emulation runs on.
ACCELERATORS: dict[str, type[Accelerator]] = {"cpu": DojoAccelerator, "cuda": DojoCudaAccelerator}


class DojoPrecision(Precision):
    """Dojo's number formats; what they remember from step to step goes into the checkpoint."""

    precision = "32-true"  # of what Lightning itself does: the recipe is in the compiled step

    def __init__(self, table: SiteTable, optimizers: OptimizerCompiler) -> None:
        super().__init__()
        self.table = table
        self.optimizers = optimizers

    def optimizer_step(  # type: ignore[override]  # as Lightning's own precisions do
        self,
        optimizer: Steppable,
        model: LightningModule,
        closure: Callable[[], Any],
        **kwargs: Any,
    ) -> Any:
        """Forward and backward pass, then the compiled update."""
        assert isinstance(optimizer, Optimizer)
        result = self._wrap_closure(model, optimizer, closure)
        # As Lightning's own: a training step that returned None is left out.
        if result is not None or not model.automatic_optimization:
            self.optimizers.step(optimizer)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Step counter, magnitudes, and PyTorch's generator, from which dropout draws."""
        return {"sites": self.table.state_dict(), "rng_state": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.table.load_state_dict(state_dict["sites"])
        torch.set_rng_state(state_dict["rng_state"])


def make_strategy(host: str, num_devices: int) -> Strategy:
    """One process, or DDP on CPUs; Lightning adds the accelerator and the precision itself."""
    if num_devices == 1:
        return SingleDeviceStrategy(device=torch.device("cuda:0" if host == "cuda" else "cpu"))
    return DDPStrategy(process_group_backend="gloo")
