"""PyTorch on NVIDIA GPUs, eager, with an explicit TF32 policy.

It has no kernels of its own yet: the references of `fsdtrain.ops` run on the GPU.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
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

PRECISIONS = {"fp32": "32-true", "bf16-mixed": "bf16-mixed", "fp16-mixed": "16-mixed"}


class CudaBackend(Backend):
    """Options: `precision` (fp32 | bf16-mixed | fp16-mixed), `devices`, `allow_tf32`."""

    name: ClassVar[str] = "cuda"
    value_origin: ClassVar[Origin] = "MEASURED"
    # FP32 with TF32 off; grid_sample's backward adds with atomics, so sums vary in order.
    tolerance: ClassVar[Tolerance] = Tolerance(op_relative=1e-4, loss_relative_after_ten_steps=1e-3)

    def __init__(
        self, *, precision: str = "fp32", devices: int = 1, allow_tf32: bool = False
    ) -> None:
        if precision not in PRECISIONS:
            raise BackendError(
                f"backend.precision={precision!r}: cuda knows {', '.join(sorted(PRECISIONS))}"
            )
        num_gpus = torch.cuda.device_count()
        if not 1 <= devices <= num_gpus:
            raise BackendError(f"backend.devices={devices}: this machine has {num_gpus} GPUs")
        self.precision = precision
        self.devices = devices
        self.allow_tf32 = allow_tf32

    @classmethod
    def availability(cls) -> Availability:
        if torch.version.hip is not None:
            return Availability(
                is_available=False, detail="this torch is built for AMD ROCm, which was not tried"
            )
        if torch.version.cuda is None:
            return Availability(
                is_available=False,
                detail="this torch is a CPU build; install the CUDA build of torch to use a GPU",
            )
        if not torch.cuda.is_available():
            return Availability(
                is_available=False,
                detail="torch sees no NVIDIA GPU: none is present, or its driver is too old for "
                f"CUDA {torch.version.cuda} (compare with nvidia-smi)",
            )
        return Availability(
            is_available=True,
            detail=f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, "
            f"CUDA {torch.version.cuda}; eager, no own kernels yet",
        )

    def device_name(self) -> str:
        return torch.cuda.get_device_name(0)

    def trainer_parts(self) -> TrainerParts:
        self._set_tf32()
        return TrainerParts(
            accelerator="cuda",
            strategy="ddp" if self.devices > 1 else "auto",
            devices=self.devices,
            precision=PRECISIONS[self.precision],
        )

    def _set_tf32(self) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self.allow_tf32
        torch.backends.cudnn.allow_tf32 = self.allow_tf32

    def to_device(self, value: Tensor) -> Tensor:
        return value.cuda()

    def profile_step(self, step: nn.Module, batch: Any, optimizer: Optimizer) -> StepProfile:
        self._set_tf32()
        narrow = torch.float16 if self.precision == "fp16-mixed" else torch.bfloat16
        return profile_with_torch(
            step,
            batch,
            optimizer,
            backend=self.name,
            device=self.device_name(),
            dtype=self.precision,
            on_cuda=True,
            autocast=partial(torch.autocast, "cuda", narrow, self.precision != "fp32"),
            notes=("Profiled without scaling the loss, which fp16-mixed does in training.",)
            if self.precision == "fp16-mixed"
            else (),
        )
