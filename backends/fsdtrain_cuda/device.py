"""Whether a GPU is here that this backend can use, and if not, why and what to do.

Looking initialises no device; checking does.
"""

import importlib.util
import warnings

import torch

from fsdtrain.backend import Availability, BackendError

MIN_CAPABILITY = (7, 0)  # what Triton compiles for
MIN_BF16_CAPABILITY = (8, 0)  # below, bf16 is computed step by step in float32


def find_device() -> Availability:
    """Look whether torch, the driver, a GPU and Triton are there."""
    if torch.version.cuda is None and torch.version.hip is None:
        return _no("no GPU: this torch is a CPU build; install the CUDA build of torch to use one")
    built_for = "ROCm" if torch.version.hip is not None else f"CUDA {torch.version.cuda}"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if not is_available:
        why = "none is present, or its driver is missing or too old"
        if told:  # torch's own words, once in a process
            why = str(told[-1].message).partition("\n")[0]
        return _no(f"torch for {built_for} sees no GPU: {why}; compare with nvidia-smi")
    if importlib.util.find_spec("triton") is None:
        return _no("its kernels need Triton, which is not installed: pip install triton")
    num_gpus = torch.cuda.device_count()
    detail = f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}, {built_for}"
    if torch.version.hip is not None:
        detail += "; AMD GPUs were not tried"
    return Availability(is_available=True, detail=detail)


def _no(why: str) -> Availability:
    return Availability(is_available=False, detail=why)


def check_devices(num_wanted: int, *, precision: str) -> None:
    """Refuse what the GPUs here cannot do.

    Raises:
        BackendError: not so many GPUs, one that is too old, or a Triton that cannot be imported.
    """
    num_gpus = torch.cuda.device_count()
    if not 1 <= num_wanted <= num_gpus:
        raise BackendError(f"backend.devices={num_wanted}: this machine has {num_gpus} GPUs")
    try:
        import triton  # noqa: F401 - the kernels will
    except ImportError as error:
        raise BackendError(
            f"backend cuda: Triton cannot be imported ({error}); reinstall the triton that this "
            "torch came with"
        ) from error
    if torch.version.hip is not None:
        return  # AMD counts otherwise
    for index in range(num_wanted):
        capability = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)} has compute capability "
        name += ".".join(map(str, capability))
        if capability < MIN_CAPABILITY:
            raise BackendError(f"backend cuda: {name}, and Triton needs 7.0; use backend=cpu")
        if precision == "bf16-mixed" and capability < MIN_BF16_CAPABILITY:
            raise BackendError(
                f"backend.precision=bf16-mixed: {name}, and bf16 needs 8.0; use "
                "backend.precision=fp16-mixed"
            )
