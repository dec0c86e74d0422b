"""focal_loss as a Triton kernel that computes the gradient in the forward pass.

Logits are read once, and their gradient, still without the upstream gradient and the mean's
divisor, is written in their dtype. Backward is one product with these two scalars. Where no
gradient is asked for, none is written.

Autocast leaves the op alone: it computes in float32 (float64 for float64) from logits of any dtype.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain_cuda.kernels.arguments import (
    DEVICE_TYPES,
    FLOATS,
    check_device,
    check_dtype,
    check_shape,
)
from fsdtrain_cuda.kernels.loss_sums import MAX_PARTS, add_parts, empty_parts

OP = "focal_loss"
BLOCK = 1024  # 8 elements a thread: 16 bytes of bfloat16


def focal_loss(logits: Tensor, target: Tensor, valid: Tensor, alpha: float, gamma: float) -> Tensor:
    """As fsdtrain.ops.focal_loss, which see; what is not contiguous is copied first.

    Raises:
        BackendError: shapes, dtypes, devices or values that do not fit.
    """
    check_shape(OP, "target", target, tuple(logits.shape))
    check_shape(OP, "valid", valid, tuple(logits.shape))
    check_dtype(OP, "logits", logits, FLOATS)
    check_dtype(OP, "target", target, (torch.bool,))
    check_dtype(OP, "valid", valid, (torch.bool,))
    check_device(OP, logits=logits, target=target, valid=valid)
    if not 0 <= alpha <= 1 or not 0 <= gamma < math.inf:
        raise BackendError(
            f"{OP}: alpha={alpha}, gamma={gamma}; alpha goes from 0 to 1, gamma from 0 on"
        )
    needs_gradient = logits.requires_grad and torch.is_grad_enabled()
    loss: Tensor = torch.ops.fsdtrain.focal_loss(
        logits, target, valid, alpha, gamma, needs_gradient
    )[0]
    return loss


def min_bytes(logits: Tensor) -> int:
    """What forward and backward must move: logits read, gradient written, target and valid read."""
    return logits.numel() * (2 * logits.element_size() + 2)


@torch.library.custom_op("fsdtrain::focal_loss", mutates_args=(), device_types=DEVICE_TYPES)
def _forward(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    alpha: float,
    gamma: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient without its scale or nothing, scale)."""
    gradient = _empty_gradient(logits, needs_gradient)
    num_programs = min(triton.cdiv(logits.numel(), BLOCK), MAX_PARTS)
    parts = empty_parts(logits, num_programs)
    if num_programs == 0:
        return parts.new_zeros(()), gradient, parts.new_zeros(())
    _focal[num_programs,](
        logits.contiguous(), target.contiguous().view(torch.uint8),
        valid.contiguous().view(torch.uint8), gradient, parts,
        logits.numel(),
        ALPHA=alpha, GAMMA=gamma, NEEDS_GRADIENT=needs_gradient, BLOCK_N=BLOCK,
    )  # fmt: skip
    loss, scale = add_parts(parts)
    return loss, gradient, scale


@_forward.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    alpha: float,
    gamma: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, _empty_gradient(logits, needs_gradient), torch.empty_like(loss)


def _empty_gradient(logits: Tensor, needs_gradient: bool) -> Tensor:
    return logits.new_empty(logits.shape if needs_gradient else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gradient, scale = output
    ctx.set_materialize_grads(False)  # no zeros for the gradient's own gradient
    ctx.mark_non_differentiable(gradient, scale)
    ctx.save_for_backward(gradient, scale)


def _differentiate(
    ctx: Any, upstream: Tensor | None, *others: Tensor | None
) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return None, None, None, None, None, None
    gradient, scale = ctx.saved_tensors
    scaled = torch.ops.fsdtrain.scale_gradient(gradient, upstream, scale)
    return scaled, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@triton.jit
def _focal(
    logits_ptr,
    target_ptr,
    valid_ptr,
    gradient_ptr,
    parts_ptr,
    num_elements,
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    NEEDS_GRADIENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Blocks of elements, every num_programs-th; all but the parts are [num_elements].

    With s = logit or -logit towards the target, q = 1 - p_t = sigmoid(-s) and c = -log p_t:
    value = alpha_t q^gamma c, its derivative by s = -alpha_t q^gamma (q + gamma (1 - q) c).
    parts [2, programs], in their dtype.
    """
    accumulate = parts_ptr.dtype.element_ty
    of_true = tl.full([], ALPHA, accumulate)
    of_false = tl.full([], 1 - ALPHA, accumulate)
    values = tl.zeros([BLOCK_N], accumulate)
    weights = tl.zeros([BLOCK_N], accumulate)
    step = tl.num_programs(0).to(tl.int64) * BLOCK_N
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK_N, num_elements, step):
        element = first + tl.arange(0, BLOCK_N)
        is_element = element < num_elements
        is_valid = tl.load(valid_ptr + element, mask=is_element, other=0) != 0
        is_true = tl.load(target_ptr + element, mask=is_element, other=0) != 0
        logit = tl.load(logits_ptr + element, mask=is_element, other=0.0).to(accumulate)
        logit = tl.where(is_valid, logit, 0.0)  # not the load's mask: that keeps it narrow
        sign = tl.where(is_true, 1.0, -1.0).to(accumulate)
        towards = logit * sign
        small = tl.exp(-tl.abs(towards))
        # log(1 + small) to the last bits, where 1 + small itself has lost some.
        larger = 1 + small
        kept = larger - 1
        log1p = tl.where(
            kept == 0, small, tl.log(larger) * (small / tl.where(kept == 0, 1.0, kept))
        )
        cost = tl.maximum(-towards, 0.0) + log1p
        wrong = tl.where(towards < 0, 1.0, small) / larger
        modulation = tl.exp(-GAMMA * (tl.maximum(towards, 0.0) + log1p))
        modulation *= tl.where(is_true, of_true, of_false)
        values += tl.where(is_valid, modulation * cost, 0.0)
        weights += is_valid.to(accumulate)
        if NEEDS_GRADIENT:
            slope = -modulation * (wrong + GAMMA * (1 - wrong) * cost) * sign
            slope = tl.where(is_valid, slope, 0.0).to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + element, slope, mask=is_element)
    tl.store(parts_ptr + tl.program_id(0), tl.sum(values, 0))
    tl.store(parts_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(weights, 0))
