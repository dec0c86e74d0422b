"""Plain eager PyTorch on the CPU: deterministic, one process, or several over gloo.

It supplies no ops of its own (the references serve) and compiles nothing.
"""

import platform
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from fsdtrain.backend import (
    Availability,
    Backend,
    BackendError,
    Tolerance,
    TrainerParts,
)
from fsdtrain.step_profile import Origin, StepProfile
from fsdtrain.torch_profile import profile_with_torch

PRECISIONS = {"fp32": "32-true", "bf16-mixed": "bf16-mixed"}


class CpuBackend(Backend):
    """Options: `precision` (fp32 | bf16-mixed), `devices` (processes)."""

    name: ClassVar[str] = "cpu"
    value_origin: ClassVar[Origin] = "MEASURED"
    # The references run as they are: only the order of sums may differ between thread counts.
    tolerance: ClassVar[Tolerance] = Tolerance(op_relative=1e-5, loss_relative_after_ten_steps=1e-5)

    def __init__(self, *, precision: str = "fp32", devices: int = 1) -> None:
        if precision not in PRECISIONS:
            raise BackendError(
                f"backend.precision={precision!r}: cpu knows {', '.join(sorted(PRECISIONS))}"
            )
        if devices < 1:
            raise BackendError(f"backend.devices={devices}: must be at least 1")
        self.precision = precision
        self.devices = devices

    @classmethod
    def availability(cls) -> Availability:
        return Availability(is_available=True, detail=f"{torch.get_num_threads()} threads")

    def device_name(self) -> str:
        return f"{platform.processor() or platform.machine()} CPU"

    def trainer_parts(self) -> TrainerParts:
        return TrainerParts(
            accelerator="cpu",
            strategy="ddp" if self.devices > 1 else "auto",
            devices=self.devices,
            precision=PRECISIONS[self.precision],
            is_deterministic=True,
        )

    def profile_step(self, step: nn.Module, batch: Any, optimizer: Optimizer) -> StepProfile:
        return profile_with_torch(
            step,
            batch,
            optimizer,
            backend=self.name,
            device=self.device_name(),
            dtype=self.precision,
            autocast=self.autocast,
        )

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, self.precision != "fp32")
