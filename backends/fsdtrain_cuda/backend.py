"""PyTorch on GPUs through CUDA, eager or compiled, with Triton kernels for `fsdtrain.ops`.

Convolution is left to cuDNN, attention to SDPA and the optimiser to torch's fused AdamW. The same
code serves AMD GPUs by way of ROCm, where it was not tried.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fsdtrain.backend import (
    Availability,
    Backend,
    BackendError,
    ModelledSubstitute,
    Tolerance,
    TrainerParts,
)
from fsdtrain.ops.table import OpTable
from fsdtrain.ops.warp_bev import warp_bev
from fsdtrain.step_graph.graph import StepGraph
from fsdtrain.step_profile import Origin, StepProfile
from fsdtrain_cuda import deterministic
from fsdtrain_cuda.device import check_devices, find_device
from fsdtrain_cuda.numerics import set_numerics

# No bf16-true: Lightning would round the calibration with the weights, and updates of less than
# 1/256 of a weight would be lost.
PRECISIONS = {"fp32": "32-true", "bf16-mixed": "bf16-mixed", "fp16-mixed": "16-mixed"}
COMPILED = ("eager", "default", "max-autotune")
# (compile, cuda_graphs) -> the mode of torch.compile.
MODES = {
    ("default", False): "default",
    ("default", True): "reduce-overhead",
    ("max-autotune", False): "max-autotune-no-cudagraphs",
    ("max-autotune", True): "max-autotune",
}


class CudaBackend(Backend):
    """Options: see configs/backend/cuda.yaml.

    Args:
        precision: fp32 | bf16-mixed | fp16-mixed.
        devices: GPUs; more than one train with DDP.
        allow_tf32: what stays FP32 may be multiplied with 10 bits of mantissa.
        compile: eager | default | max-autotune: what torch.compile makes of the step.
        cuda_graphs: a compiled step is launched as a whole.
        autotune: each kernel's launch configuration is timed once for each shape and device.
        deterministic: the same bits in every run: no atomics, no choice by timing.
    """

    name: ClassVar[str] = "cuda"
    value_origin: ClassVar[Origin] = "MEASURED"
    fuses_optimizer: ClassVar[bool] = True
    # FP32 with TF32 off; convolutions of cuDNN add in an order of their own.
    tolerance: ClassVar[Tolerance] = Tolerance(op_relative=1e-4, loss_relative_after_ten_steps=1e-3)

    def __init__(
        self,
        *,
        precision: str = "fp32",
        devices: int = 1,
        allow_tf32: bool = False,
        compile: str = "eager",
        cuda_graphs: bool = False,
        autotune: bool = True,
        deterministic: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise BackendError(
                f"backend.precision={precision!r}: cuda knows {', '.join(sorted(PRECISIONS))}"
            )
        if compile not in COMPILED:
            raise BackendError(f"backend.compile={compile!r}: must be {' or '.join(COMPILED)}")
        if cuda_graphs and compile == "eager":
            raise BackendError(
                "backend.cuda_graphs=true: only a compiled step can be captured; add "
                "backend.compile=default, or leave the graphs off"
            )
        check_devices(devices, precision=precision)
        self.precision = precision
        self.devices = devices
        self.allow_tf32 = allow_tf32
        self.compile = compile
        self.cuda_graphs = cuda_graphs
        self.autotune = autotune
        self.deterministic = deterministic

    @classmethod
    def availability(cls) -> Availability:
        return find_device()

    @classmethod
    def modelled_substitute(cls) -> ModelledSubstitute | None:
        return ModelledSubstitute(
            backend="dojo",
            options={"machine": "h100"},
            machine="an NVIDIA H100 in bf16",
            hint="For other machines: backend=dojo backend.machine=a100, h200, ...",
        )

    def device_name(self) -> str:
        return torch.cuda.get_device_name(0)

    def trainer_parts(self) -> TrainerParts:
        from fsdtrain_cuda.precision import make_precision

        self._prepare()
        return TrainerParts(
            accelerator="cuda",
            strategy="ddp" if self.devices > 1 else "auto",
            devices=self.devices,
            plugins=(make_precision(PRECISIONS[self.precision]),),
            is_deterministic=self.deterministic,
        )

    def op_table(self) -> OpTable:
        # They bring Triton, and importing a backend is cheap.
        from fsdtrain_cuda.kernels.bev_pool import bev_pool
        from fsdtrain_cuda.kernels.focal_loss import focal_loss
        from fsdtrain_cuda.kernels.ms_deform_attn import ms_deform_attn
        from fsdtrain_cuda.kernels.occupancy_loss import occupancy_loss
        from fsdtrain_cuda.kernels.project_sample import project_sample
        from fsdtrain_cuda.kernels.yuv_to_input import yuv_to_input

        self._prepare()
        return OpTable(
            bev_pool=bev_pool,
            focal_loss=focal_loss,
            ms_deform_attn=ms_deform_attn,
            occupancy_loss=occupancy_loss,
            project_sample=project_sample,
            yuv_to_input=yuv_to_input,
            warp_bev=deterministic.warp_bev if self.deterministic else warp_bev,
        )

    def compile_step(self, step: nn.Module) -> None:
        if self.compile != "eager":
            step.compile(fullgraph=True, dynamic=False, mode=MODES[self.compile, self.cuda_graphs])

    def to_device(self, value: Tensor) -> Tensor:
        return value.cuda()

    def read_memory(self) -> Mapping[str, int]:
        found = {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
        torch.cuda.reset_peak_memory_stats()
        return found

    def profile_step(self, step: nn.Module, batch: Any, optimizer: Optimizer) -> StepProfile:
        from fsdtrain_cuda.profile import profile_on_gpu

        self._prepare()
        return profile_on_gpu(
            step,
            batch,
            optimizer,
            backend=self.name,
            device=self.device_name(),
            precision=self.precision,
            is_eager=self.compile == "eager",
            autocast=self.autocast,
        )

    def step_graph(self, step: nn.Module, batch: Any) -> StepGraph:
        self._prepare()
        return super().step_graph(step, batch)

    def autocast(self) -> AbstractContextManager[Any]:
        narrow = torch.float16 if self.precision == "fp16-mixed" else torch.bfloat16
        return torch.autocast("cuda", narrow, self.precision != "fp32")

    def _prepare(self) -> None:
        from fsdtrain_cuda.tuning import switch_tuning

        set_numerics(allow_tf32=self.allow_tf32, deterministic=self.deterministic)
        # Another configuration may add in another order.
        switch_tuning(self.autotune and not self.deterministic)
