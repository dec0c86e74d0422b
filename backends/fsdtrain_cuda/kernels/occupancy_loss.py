"""occupancy_loss as a Triton kernel that computes the gradient in the forward pass.

Logits are read once, and their gradient, still without the upstream gradient and the mean's
divisor, is written in their dtype. Backward is one product with these two scalars. Where no
gradient is asked for, none is written.

Autocast leaves the op alone: it computes in float32 (float64 for float64) from logits of any dtype.

Shape letters: B clips, X Y Z voxels, M = X * Y * Z, K classes.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain_cuda.checks import check_once
from fsdtrain_cuda.kernels.arguments import (
    DEVICE_TYPES,
    FLOATS,
    check_device,
    check_dtype,
    check_shape,
)
from fsdtrain_cuda.kernels.loss_sums import MAX_PARTS, add_parts, empty_parts
from fsdtrain_cuda.tuning import tuned

OP = "occupancy_loss"


def occupancy_loss(
    logits_BXYZK: Tensor, target_BXYZ: Tensor, valid_BXYZ: Tensor, class_weights_K: Tensor
) -> Tensor:
    """As fsdtrain.ops.occupancy_loss, which see; fastest where the classes lie together.

    A valid target that is no class makes the loss NaN where its value was not checked: on a GPU
    that is after the first call with these shapes.

    Raises:
        BackendError: shapes, dtypes, devices or values that do not fit, a gradient asked for of the
            class weights.
    """
    _check(logits_BXYZK, target_BXYZ, valid_BXYZ, class_weights_K)
    needs_gradient = logits_BXYZK.requires_grad and torch.is_grad_enabled()
    loss: Tensor = torch.ops.fsdtrain.occupancy_loss(
        logits_BXYZK, target_BXYZ, valid_BXYZ, class_weights_K, needs_gradient
    )[0]
    return loss


def min_bytes(logits_BXYZK: Tensor) -> int:
    """What forward and backward must move: logits read, gradient written, target and valid read."""
    num_voxels = logits_BXYZK.numel() // logits_BXYZK.shape[-1]
    return 2 * logits_BXYZK.numel() * logits_BXYZK.element_size() + 9 * num_voxels


def _check(logits: Tensor, target: Tensor, valid: Tensor, weights: Tensor) -> None:
    if logits.ndim != 5 or logits.shape[-1] < 1:
        raise BackendError(
            f"{OP}: logits must be [B, X, Y, Z, K] with at least one class, not "
            f"{tuple(logits.shape)}"
        )
    check_shape(OP, "target", target, tuple(logits.shape[:-1]))
    check_shape(OP, "valid", valid, tuple(logits.shape[:-1]))
    check_shape(OP, "class_weights", weights, (logits.shape[-1],))
    check_dtype(OP, "logits", logits, FLOATS)
    check_dtype(OP, "target", target, (torch.int64,))
    check_dtype(OP, "valid", valid, (torch.bool,))
    check_dtype(OP, "class_weights", weights, FLOATS)
    check_device(OP, logits=logits, target=target, valid=valid, class_weights=weights)
    if weights.requires_grad and torch.is_grad_enabled():
        raise BackendError(f"{OP}: gradients go to the logits only, but class_weights asks for one")
    check_once((OP, logits.shape, logits.device), lambda: _check_values(target, valid, weights))


def _check_values(target: Tensor, valid: Tensor, weights: Tensor) -> None:
    is_bad = valid & ((target < 0) | (target >= len(weights)))
    if bool(is_bad.any()):
        raise BackendError(
            f"{OP}: target {int(target[is_bad][0])} of a valid voxel at "
            f"{tuple(is_bad.nonzero()[0].tolist())}; classes are 0 to {len(weights) - 1}, what has "
            "none must be invalid"
        )
    if not bool(((weights >= 0) & weights.isfinite()).all()):
        raise BackendError(f"{OP}: class_weights must be finite and not negative, not {weights}")


@torch.library.custom_op("fsdtrain::occupancy_loss", mutates_args=(), device_types=DEVICE_TYPES)
def _forward(
    logits: Tensor, target: Tensor, valid: Tensor, weights: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient without its scale or nothing, scale)."""
    logits_BMK = logits.flatten(1, 3)
    gradient = torch.empty_like(logits_BMK) if needs_gradient else logits.new_empty(0)
    B, M, K = logits_BMK.shape
    if logits.numel() == 0:
        zero = empty_parts(logits, 0).new_zeros(())
        return zero, gradient.view(logits.shape) if needs_gradient else gradient, zero.clone()
    block_k = max(4, triton.next_power_of_2(K))
    block_m = max(1, min(128, 4096 // block_k))
    strides = logits_BMK.stride()
    gradient_strides = gradient.stride() if needs_gradient else (0, 0, 0)
    num_programs = min(triton.cdiv(M, block_m), max(1, MAX_PARTS // B))
    parts = empty_parts(logits, num_programs * B)
    _cross_entropy[num_programs, B](
        logits_BMK, target.contiguous(), valid.contiguous().view(torch.uint8),
        weights.to(parts.dtype).contiguous(), gradient, parts,
        M, strides[0], gradient_strides[0],
        STRIDE_M=strides[1], STRIDE_K=strides[2],
        GRADIENT_STRIDE_M=gradient_strides[1], GRADIENT_STRIDE_K=gradient_strides[2],
        K=K, NEEDS_GRADIENT=needs_gradient, BLOCK_K=block_k, BLOCK_M=block_m,
    )  # fmt: skip
    loss, scale = add_parts(parts)
    return loss, gradient.unflatten(1, logits.shape[1:4]) if needs_gradient else gradient, scale


@_forward.register_fake
def _(
    logits: Tensor, target: Tensor, valid: Tensor, weights: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if needs_gradient:
        gradient = torch.empty_like(logits.flatten(1, 3)).unflatten(1, logits.shape[1:4])
    else:
        gradient = logits.new_empty(0)
    loss = logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, gradient, torch.empty_like(loss)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gradient, scale = output
    ctx.set_materialize_grads(False)  # no zeros for the gradient's own gradient
    ctx.mark_non_differentiable(gradient, scale)
    ctx.save_for_backward(gradient, scale)


def _differentiate(
    ctx: Any, upstream: Tensor | None, *others: Tensor | None
) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return None, None, None, None, None
    gradient, scale = ctx.saved_tensors
    scaled = torch.ops.fsdtrain.scale_gradient(gradient, upstream, scale)
    return scaled, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@tuned(
    configs=[triton.Config({}, num_warps=num_warps) for num_warps in (4, 8, 2)],
    key=["K", "M"],
)
@triton.jit
def _cross_entropy(
    logits_ptr,
    target_ptr,
    valid_ptr,
    weights_ptr,
    gradient_ptr,
    parts_ptr,
    M,
    stride_b,
    gradient_stride_b,
    STRIDE_M: tl.constexpr,
    STRIDE_K: tl.constexpr,
    GRADIENT_STRIDE_M: tl.constexpr,
    GRADIENT_STRIDE_K: tl.constexpr,
    K: tl.constexpr,
    NEEDS_GRADIENT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Blocks of voxels of one clip, every num_programs-th.

    logits [B, M, K], any strides; target int64 and valid uint8 [B, M]; weights [K] ->
    gradient [B, M, K] = weight (softmax - one hot), any strides; parts [2, programs], in their
    dtype. What is invalid is not read. Strides are constants, so that the compiler sees which
    loads may be wide.
    """
    accumulate = parts_ptr.dtype.element_ty
    clip = tl.program_id(1).to(tl.int64)
    class_K = tl.arange(0, BLOCK_K)
    is_class = (class_K < K)[None, :]
    quad = tl.arange(0, BLOCK_K // 4)[None, :] * 4
    logits_ptr += clip * stride_b
    gradient_ptr += clip * gradient_stride_b
    losses = tl.zeros([BLOCK_M], accumulate)
    weight_sums = tl.zeros([BLOCK_M], accumulate)
    step = tl.num_programs(0).to(tl.int64) * BLOCK_M
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK_M, M, step):
        voxel = first + tl.arange(0, BLOCK_M)
        is_voxel = voxel < M
        is_valid = tl.load(valid_ptr + clip * M + voxel, mask=is_voxel, other=0) != 0
        target = tl.load(target_ptr + clip * M + voxel, mask=is_valid, other=0)
        is_known = (target >= 0) & (target < K)
        weight = tl.load(weights_ptr + target, mask=is_valid & is_known, other=0.0)
        weight = tl.where(is_known, weight, float("nan"))
        place = voxel * STRIDE_M + target * STRIDE_K
        of_target = tl.load(logits_ptr + place, mask=is_valid & is_known, other=0.0).to(accumulate)
        logits = tl.load(
            logits_ptr + voxel[:, None] * STRIDE_M + class_K[None, :] * STRIDE_K,
            mask=is_valid[:, None] & is_class,
            other=0.0,
        )
        a, b, c, d = _quarters(logits)
        a = tl.where(quad < K, a.to(accumulate), float("-inf"))
        b = tl.where(quad + 1 < K, b.to(accumulate), float("-inf"))
        c = tl.where(quad + 2 < K, c.to(accumulate), float("-inf"))
        d = tl.where(quad + 3 < K, d.to(accumulate), float("-inf"))
        peak = tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 1)
        a = tl.exp(a - peak[:, None])
        b = tl.exp(b - peak[:, None])
        c = tl.exp(c - peak[:, None])
        d = tl.exp(d - peak[:, None])
        total = tl.sum((a + b) + (c + d), 1)
        losses += tl.where(is_valid, weight * (tl.log(total) + (peak - of_target)), 0.0)
        weight_sums += tl.where(is_valid, weight, 0.0)
        if NEEDS_GRADIENT:
            narrow = gradient_ptr.dtype.element_ty
            share = (weight / total)[:, None]
            a = a * share - tl.where(target[:, None] == quad, weight[:, None], 0.0)
            b = b * share - tl.where(target[:, None] == quad + 1, weight[:, None], 0.0)
            c = c * share - tl.where(target[:, None] == quad + 2, weight[:, None], 0.0)
            d = d * share - tl.where(target[:, None] == quad + 3, weight[:, None], 0.0)
            tl.store(
                gradient_ptr
                + voxel[:, None] * GRADIENT_STRIDE_M
                + class_K[None, :] * GRADIENT_STRIDE_K,
                _whole(a.to(narrow), b.to(narrow), c.to(narrow), d.to(narrow)),
                mask=is_voxel[:, None] & is_class,
            )
    part = clip * tl.num_programs(0) + tl.program_id(0)
    num_parts = tl.num_programs(0) * tl.num_programs(1)
    tl.store(parts_ptr + part, tl.sum(losses, 0))
    tl.store(parts_ptr + num_parts + part, tl.sum(weight_sums, 0))


@triton.jit
def _quarters(tile):
    """[M, 4 Q] -> four of [M, Q]: classes 4 q, 4 q + 1, 4 q + 2, 4 q + 3.

    As loaded, the classes of a voxel lie in neighbouring threads, and each sum over them costs
    shuffles; so split, a thread holds four of them.
    """
    M: tl.constexpr = tile.shape[0]
    Q: tl.constexpr = tile.shape[1] // 4
    even, odd = tl.split(tl.reshape(tile, [M, Q, 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def _whole(a, b, c, d):
    """The inverse of `_quarters`."""
    M: tl.constexpr = a.shape[0]
    K: tl.constexpr = a.shape[1] * 4
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [M, K])
