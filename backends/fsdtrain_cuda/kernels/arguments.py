"""What every launcher asks of its tensors, and on which devices the ops are registered.

It knows no op; shapes are the launchers' own business.
"""

from collections.abc import Collection

import torch
import triton
from torch import Tensor

from fsdtrain.backend import BackendError

IS_INTERPRETED: bool = triton.knobs.runtime.interpret
DEVICE_TYPES: tuple[str, ...] = ("cuda", "cpu") if IS_INTERPRETED else ("cuda",)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_INT32 = 2**31 - 1


def check_device(op: str, **tensors: Tensor) -> None:
    """Tensors lie together on a device that the op has a kernel for.

    Raises:
        BackendError: they do not.
    """
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        placed = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise BackendError(f"{op}: all tensors must be on one device, not {placed}")
    (device,) = devices
    if device.type not in DEVICE_TYPES:
        raise BackendError(
            f"{op}: its Triton kernel runs on CUDA tensors, not on {device}; move the tensors to "
            "the GPU or take backend=cpu"
        )


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Collection[torch.dtype]) -> None:
    """The dtype is one of those allowed.

    Raises:
        BackendError: it is another.
    """
    if tensor.dtype not in allowed:
        words = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise BackendError(
            f"{op}: {name} of shape {tuple(tensor.shape)} is {tensor.dtype}; allowed are {words}"
        )


def check_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """The shape is the one that other arguments imply.

    Raises:
        BackendError: it is another.
    """
    if tuple(tensor.shape) != shape:
        raise BackendError(
            f"{op}: {name} has shape {tuple(tensor.shape)}, where the other arguments ask for "
            f"{shape}"
        )
