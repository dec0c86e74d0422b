"""Rounding to a number format as an op of PyTorch: `fsdtrain::round_to`, one node when compiled.

The functional form of rounding.Rounder, for tensors on the CPU and on a GPU. Its gradient is that
of the identity (straight through): what rounding loses, saturation too, is not seen by it.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain_dojo.arithmetic.flat_memory import is_dense
from fsdtrain_dojo.arithmetic.random_bits import Key
from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, Rounder, Rounding
from fsdtrain_dojo.formats import Denormals, find_format


def round_to(
    x: Tensor,
    format: str,
    *,
    rounding: str = "nearest",
    bias: int | None = None,
    denormals: str | None = None,
    key: Key = (0, 0),
    first_element: int = 0,
) -> tuple[Tensor, Tensor]:
    """The nearest or a neighbouring value of the format for each element, and what was lost.

    Args:
        x: float32, any strides, on the CPU or a GPU.
        format: name of a storage format, see formats.FORMATS.
        rounding: nearest (ties to even) or stochastic.
        bias: exponent bias; None is the format's own.
        denormals: gradual, literal or flush; None is the format's own.
        key: of the random bits, see random_bits.stream_key.
        first_element: index of the element that comes first in memory, for the random bits.

    Returns:
        (rounded like x, counts int64 [NUM_COUNTS], see rounding.Count).

    Raises:
        BackendError: no such format, rounding, bias or denormals; another dtype or device.
    """
    if x.dtype is not torch.float32 or x.device.type not in ("cpu", "cuda"):
        raise BackendError(
            f"round_to takes float32 on the CPU or a GPU, not {x.dtype} of shape "
            f"{tuple(x.shape)} on {x.device}"
        )
    known = find_format(format)
    _check_word("rounding", rounding, [each.value for each in Rounding])
    if denormals is not None:
        _check_word("denormals", denormals, [each.value for each in Denormals])
    bias = known.bias if bias is None else bias
    known.check_bias(bias)
    rounded, counts = torch.ops.fsdtrain.round_to(
        x, format, rounding, bias, denormals or known.denormals.value, *key, first_element
    )
    return rounded, counts


def _check_word(name: str, word: str, allowed: list[str]) -> None:
    if word not in allowed:
        raise BackendError(f"{name}={word!r}; allowed are {', '.join(allowed)}")


@lru_cache(maxsize=64)
def _rounder(format: str, rounding: str, denormals: str) -> Rounder:
    return Rounder(find_format(format).with_denormals(Denormals(denormals)), Rounding(rounding))


@torch.library.custom_op("fsdtrain::round_to", mutates_args=(), device_types=("cpu", "cuda"))
def _forward(
    x: Tensor,
    format: str,
    rounding: str,
    bias: int,
    denormals: str,
    key_0: int,
    key_1: int,
    first_element: int,
) -> tuple[Tensor, Tensor]:
    rounded = _empty_dense(x).copy_(x)
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64, device=x.device)
    _rounder(format, rounding, denormals)(rounded, bias, counts, (key_0, key_1), first_element)
    return rounded, counts


@_forward.register_fake
def _(
    x: Tensor,
    format: str,
    rounding: str,
    bias: int,
    denormals: str,
    key_0: int,
    key_1: int,
    first_element: int,
) -> tuple[Tensor, Tensor]:
    return _empty_dense(x), torch.empty(NUM_COUNTS, dtype=torch.int64, device=x.device)


def _empty_dense(x: Tensor) -> Tensor:
    return torch.empty_like(x) if is_dense(x) else x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
    return grad, None, None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
