"""Profile a step on a GPU, op by op, beside what the same GPU was just seen to reach at best."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fsdtrain.step_profile import OpProfile, Rooflines, StepProfile
from fsdtrain.torch_profile import profile_with_torch
from fsdtrain_cuda.rates import DeviceRates, measure_rates

MEMORY = "HBM"  # as reports call the memory outside of the chip
DTYPES = {"fp32": torch.float32, "bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}


def profile_on_gpu(
    step: nn.Module,
    batch: Any,
    optimizer: Optimizer,
    *,
    backend: str,
    device: str,
    precision: str,
    is_eager: bool,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> StepProfile:
    """Measure the GPU's rates, then the step; see `profile_with_torch`."""
    rates = measure_rates(DTYPES[precision])
    torch.cuda.empty_cache()  # the memory of that is not the step's
    notes = []
    if precision == "fp16-mixed":
        notes.append("Profiled without scaling the loss, which fp16-mixed does in training.")
    if not is_eager:
        notes.append("A compiled step tells neither the FLOPs nor the bytes of its kernels.")
    profile = profile_with_torch(
        step,
        batch,
        optimizer,
        backend=backend,
        device=device,
        dtype=precision,
        on_cuda=True,
        is_eager=is_eager,
        autocast=autocast,
        notes=tuple(notes),
    )
    return with_roofline(profile, rates)


def with_roofline(profile: StepProfile, rates: DeviceRates) -> StepProfile:
    """Each op beside the least time for its FLOPs and bytes at these rates.

    The bytes are an estimate, and what stays in a cache need not come from memory: where an op is
    faster than its roof, it is said to be at it.
    """
    ops = tuple(_beside_its_roof(op, rates) for op in profile.ops)
    idle_s = profile.step_time_s - profile.busy_s.get("GPU", 0.0)
    return replace(
        profile,
        ops=ops,
        peak_flops_per_s=rates.flops_per_s,
        roofline_s=sum(op.roofline_s for op in ops if op.roofline_s is not None) or None,
        rooflines=Rooflines(
            flops_per_s={_name(rates.dtype): rates.flops_per_s},
            bytes_per_s={MEMORY: rates.bytes_per_s},
        ),
        notes=(
            *profile.notes,
            f"The roofs were measured on this GPU just before: a copy moves "
            f"{rates.bytes_per_s / 1e9:.0f} GB/s, a {_name(rates.dtype)} product does "
            f"{rates.flops_per_s / 1e12:.1f} TFLOP/s. An op's bytes are estimated: its tensors, "
            "once each.",
            f"The GPU is idle for {1e3 * max(idle_s, 0.0):.2f} ms of the step: it waits for the "
            "host to launch the next kernel.",
        ),
    )


def _beside_its_roof(op: OpProfile, rates: DeviceRates) -> OpProfile:
    if not op.time_s or not (op.flops or op.num_bytes):
        return op
    multiply_s = (op.flops or 0) / rates.flops_per_s
    move_s = (op.num_bytes or 0) / rates.bytes_per_s
    return replace(
        op,
        bound_by="matrix" if multiply_s > move_s else MEMORY,
        utilisation=min(multiply_s / op.time_s, 1.0) if op.flops else None,
        roofline_s=min(max(multiply_s, move_s), op.time_s),
        bytes_by_level={MEMORY: float(op.num_bytes)} if op.num_bytes else {},
    )


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
