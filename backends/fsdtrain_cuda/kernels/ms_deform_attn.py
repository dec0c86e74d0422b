"""Triton kernels of `ms_deform_attn`: the launcher, the forward kernel and the registration.

Registered as fsdtrain::ms_deform_attn and fsdtrain::ms_deform_attn_backward. Autocast changes no
argument: values and weights are read in the dtype that they come in, locations in float32 or
float64, and sums are kept in float32, or in float64 where the values or locations are.

Shape letters as in fsdtrain.ops.ms_deform_attn.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain_cuda.kernels.arguments import (
    DEVICE_TYPES,
    FLOATS,
    MAX_INT32,
    check_device,
    check_dtype,
    check_shape,
)
from fsdtrain_cuda.kernels.ms_deform_attn_backward import launch_backward
from fsdtrain_cuda.kernels.ms_deform_attn_places import locate, size_of, sum_dtype
from fsdtrain_cuda.tuning import tuned

OP = "ms_deform_attn"
# TILE: channels times queries of one program; 8 a thread are 16 bytes of bfloat16. A single warp
# needs no barriers.
CONFIGS = [
    triton.Config({"TILE": tile}, num_warps=num_warps)
    for tile, num_warps in ((256, 1), (512, 2), (1024, 4), (128, 1), (512, 1), (2048, 8))
]


def ms_deform_attn(
    value_BSHC: Tensor,
    locations_BQHLP2: Tensor,
    weights_BQHLP: Tensor,
    level_sizes: Sequence[tuple[int, int]],
) -> Tensor:
    """The reference's signature and meaning; a sample of weight 0 is not read.

    Tensors may have any strides.

    Raises:
        BackendError: devices, dtypes or shapes that do not fit.
    """
    tensors = {"value": value_BSHC, "locations": locations_BQHLP2, "weights": weights_BQHLP}
    check_device(OP, **tensors)
    for name, num_dims in (("value", 4), ("locations", 6), ("weights", 5)):
        if tensors[name].ndim != num_dims:
            raise BackendError(
                f"{OP}: {name} has shape {tuple(tensors[name].shape)}; it takes {num_dims} "
                "dimensions: value [B, S, H, C], locations [B, Q, H, L, P, 2], "
                "weights [B, Q, H, L, P]"
            )
    check_dtype(OP, "value", value_BSHC, FLOATS)
    check_dtype(OP, "locations", locations_BQHLP2, (torch.float32, torch.float64))
    check_dtype(OP, "weights", weights_BQHLP, FLOATS)
    B, S, H, _ = value_BSHC.shape
    Q, P = weights_BQHLP.shape[1], weights_BQHLP.shape[4]
    check_shape(OP, "weights", weights_BQHLP, (B, Q, H, len(level_sizes), P))
    check_shape(OP, "locations", locations_BQHLP2, (B, Q, H, len(level_sizes), P, 2))
    if any(h < 1 or w < 1 for h, w in level_sizes) or sum(h * w for h, w in level_sizes) != S:
        raise BackendError(
            f"{OP}: value of shape {tuple(value_BSHC.shape)} holds {S} places, but its maps have "
            f"(rows, columns) {tuple(map(tuple, level_sizes))}; S must be the sum of their areas"
        )
    if S > MAX_INT32:
        raise BackendError(
            f"{OP}: value of shape {tuple(value_BSHC.shape)} has more places than 32 bits count; "
            "use smaller maps"
        )
    flat_sizes = [side for size in level_sizes for side in size]
    attended: Tensor = torch.ops.fsdtrain.ms_deform_attn(
        value_BSHC, locations_BQHLP2, weights_BQHLP, flat_sizes
    )
    return attended


def min_bytes(value_BSHC: Tensor, locations_BQHLP2: Tensor, weights_BQHLP: Tensor) -> int:
    """What the forward kernel moves at least: each tensor once."""
    out = weights_BQHLP[..., 0, 0].numel() * value_BSHC.shape[-1] * value_BSHC.element_size()
    return out + sum(each.nbytes for each in (value_BSHC, locations_BQHLP2, weights_BQHLP))


def min_bytes_backward(value_BSHC: Tensor, locations_BQHLP2: Tensor, weights_BQHLP: Tensor) -> int:
    """What the backward pass moves at least: the inputs, their gradients and the result's, once."""
    out = weights_BQHLP[..., 0, 0].numel() * value_BSHC.shape[-1] * value_BSHC.element_size()
    return out + 2 * sum(each.nbytes for each in (value_BSHC, locations_BQHLP2, weights_BQHLP))


def gather_bytes(value_BSHC: Tensor, weights_BQHLP: Tensor) -> int:
    """What a kernel gathers if no cache helps: four pixels of every sample with a weight.

    The backward pass gathers as much and, where it adds with atomics, adds the same number of
    values in float32.
    """
    pixel = value_BSHC.shape[-1] * value_BSHC.element_size()
    return 4 * int(torch.count_nonzero(weights_BQHLP)) * pixel


@tuned(configs=CONFIGS, key=["num_queries", "C", "NUM_POINTS", "LEVEL_SIZES"])
@triton.jit
def attend(
    value_ptr,
    locations_ptr,
    weights_ptr,
    out_ptr,
    num_queries,
    num_heads,
    value_strides,
    location_strides,
    weight_strides,
    LEVEL_SIZES: tl.constexpr,
    NUM_POINTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """out[b, q, h] = sum over l, p of weights[b, q, h, l, p] * bilinear(value[b, :, h] of map l).

    A program owns the results of a block of queries of one head. Maps that none of them gives a
    weight, such as the images of cameras that do not see this part of the ground, cost only the
    look at the weights.

    Pointers: value [B, S, H, C]; locations [B, Q, H, L, P, 2]; weights [B, Q, H, L, P];
    out [B, Q, H, C], contiguous. Strides are those of the tensors' dimensions, in elements.
    """
    BLOCK_Q: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    head = tl.program_id(1).to(tl.int64)
    clip = tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.arange(0, BLOCK_C)
    is_query = query < num_queries
    query = query.to(tl.int64)
    is_channel = (channel < C)[None, :]
    value_ptr += clip * value_strides[0] + head * value_strides[2]
    value_ptr += channel[None, :] * value_strides[3]
    locations = clip * location_strides[0] + head * location_strides[2]
    locations += query * location_strides[1]
    weights = clip * weight_strides[0] + head * weight_strides[2] + query * weight_strides[1]
    point = tl.arange(0, BLOCK_P)
    is_point = is_query[:, None] & (point < NUM_POINTS)[None, :]

    total = tl.zeros([BLOCK_Q, BLOCK_C], SUM_DTYPE)
    first_place = 0
    # Not unrolled: eight cameras would be eight copies of the code.
    for level in range(len(LEVEL_SIZES) // 2):
        rows, columns = size_of(level, LEVEL_SIZES)
        of_all = weights_ptr + weights[:, None] + point[None, :] * weight_strides[4]
        weight_of_all = tl.load(of_all, mask=is_point, other=0.0).to(SUM_DTYPE)
        any_weight = tl.max((weight_of_all != 0).to(tl.int32))
        if any_weight > 0:
            for p in range(NUM_POINTS):
                weight = tl.load(weights_ptr + weights + p * weight_strides[4], mask=is_query)
                weight = weight.to(SUM_DTYPE)
                is_read = is_query & (weight != 0)
                row, column, down, right = locate(
                    locations_ptr + locations + p * location_strides[4],
                    location_strides[5],
                    is_read,
                    rows,
                    columns,
                    SUM_DTYPE,
                )
                place = (first_place + row * columns + column).to(tl.int64)
                top_left = value_ptr + (place * value_strides[1])[:, None]
                for corner in tl.static_range(4):
                    lower = corner // 2
                    righter = corner % 2
                    is_inside = is_read & (row + lower >= 0) & (row + lower < rows)
                    is_inside &= (column + righter >= 0) & (column + righter < columns)
                    ahead = (lower * columns + righter).to(tl.int64)
                    pixel = tl.load(
                        top_left + ahead * value_strides[1],
                        mask=is_inside[:, None] & is_channel,
                        other=0.0,
                    ).to(SUM_DTYPE)
                    share = (down if lower else 1 - down) * (right if righter else 1 - right)
                    total += (weight * share)[:, None] * pixel
        first_place += rows * columns
        locations += location_strides[3]
        weights += weight_strides[3]
    out = ((clip * num_queries + query) * num_heads + head)[:, None] * C + channel[None, :]
    tl.store(out_ptr + out, total, mask=is_query[:, None] & is_channel)


@torch.library.custom_op("fsdtrain::ms_deform_attn", mutates_args=(), device_types=DEVICE_TYPES)
def attend_op(value: Tensor, locations: Tensor, weights: Tensor, level_sizes: list[int]) -> Tensor:
    """`level_sizes`: rows and columns of one map after the other."""
    B, Q, H, _, P = weights.shape
    C = value.shape[-1]
    out = value.new_empty(B, Q, H * C)
    if out.numel() == 0 or P == 0 or not level_sizes:
        return out.zero_()
    BLOCK_C = triton.next_power_of_2(C)

    def grid(meta: dict[str, int]) -> tuple[int, int, int]:
        return triton.cdiv(Q, max(meta["TILE"] // BLOCK_C, 1)), H, B

    attend[grid](
        value, locations, weights, out,
        Q, H, value.stride(), locations.stride(), weights.stride(),
        LEVEL_SIZES=tuple(level_sizes), NUM_POINTS=P, BLOCK_P=triton.next_power_of_2(P),
        C=C, BLOCK_C=BLOCK_C, SUM_DTYPE=sum_dtype(value, locations),
    )  # fmt: skip
    return out


@attend_op.register_fake
def _(value: Tensor, locations: Tensor, weights: Tensor, level_sizes: list[int]) -> Tensor:
    B, Q, H, _, _ = weights.shape
    return value.new_empty(B, Q, H * value.shape[-1])


@torch.library.custom_op(
    "fsdtrain::ms_deform_attn_backward", mutates_args=(), device_types=DEVICE_TYPES
)
def attend_backward_op(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, level_sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the values, locations and weights; deterministic where torch is told to be."""
    return launch_backward(grad, value, locations, weights, tuple(level_sizes))


@attend_backward_op.register_fake
def _(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, level_sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        locations.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.level_sizes = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.fsdtrain.ms_deform_attn_backward(grad, *ctx.saved_tensors, ctx.level_sizes)
    return *grads, None


attend_op.register_autograd(_backward, setup_context=_keep_inputs)
