"""The switches of PyTorch that decide what bits a GPU's libraries give."""

import os
import warnings

import torch


def set_numerics(*, allow_tf32: bool, deterministic: bool) -> None:
    """Set them for the whole process.

    Args:
        allow_tf32: FP32 products and convolutions may round their operands to 10 bits of mantissa.
        deterministic: of several algorithms, one that gives the same bits each time; an op without
            any raises. Otherwise cuDNN times its algorithms and takes the fastest.
    """
    torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
    with warnings.catch_warnings():
        # Some releases want `cudnn.conv.fp32_precision` set instead; having that, Inductor fails
        # when it asks for this one.
        warnings.filterwarnings("ignore", message="Please use the new API")
        torch.backends.cudnn.allow_tf32 = allow_tf32
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch insists on it
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
