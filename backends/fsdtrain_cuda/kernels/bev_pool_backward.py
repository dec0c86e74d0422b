"""The backward kernel of bev_pool.py; shape letters and words as in bev_pool_kernels.py."""

import triton
import triton.language as tl

from fsdtrain_cuda.kernels.channel_groups import channels, load_rows, store_rows
from fsdtrain_cuda.tuning import tuned


@tuned(
    configs=[
        triton.Config({"BLOCK_P": 4, "BLOCK_D": 4}, num_warps=1),
        triton.Config({"BLOCK_P": 8, "BLOCK_D": 2}, num_warps=1),
        triton.Config({"BLOCK_P": 2, "BLOCK_D": 8}, num_warps=1),
        triton.Config({"BLOCK_P": 8, "BLOCK_D": 4}, num_warps=2),
        triton.Config({"BLOCK_P": 8, "BLOCK_D": 8}, num_warps=4),
        triton.Config({"BLOCK_P": 2, "BLOCK_D": 4}, num_warps=4),
    ],
    key=["C", "D", "h", "w", "num_keys"],
)
@triton.jit
def send_back(
    grad_ptr,
    feats_ptr,
    depth_ptr,
    keys_ptr,
    feats_grad_ptr,
    depth_grad_ptr,
    N,
    h,
    w,
    num_keys,
    num_cells,
    grad_stride_b,
    grad_stride_t,
    grad_stride_cell,
    feats_stride_b,
    feats_stride_t,
    feats_stride_p,
    depth_stride_b,
    depth_stride_t,
    depth_stride_p,
    C: tl.constexpr,
    D: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    GROUP: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Both gradients of some pixels of one frame: each gathers from the cells of its D points.

    grad [B, T, X * Y, C]; feats, depth as for `sum_cells`; keys int32 [B, pixels, D] ->
    feats_grad [B, T, pixels, C], depth_grad [B, T, pixels, D].

    Pixels are taken down the columns: those of a column see the same places at equal depth, and
    read the same gradients.
    """
    num_blocks = tl.cdiv(h * w, BLOCK_P)
    camera = tl.program_id(0) // num_blocks
    clip = (camera // N).to(tl.int64)
    frame = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) % num_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    is_pixel = place < h * w
    pixel = (camera % N * h * w + place % h * w + place // h).to(tl.int64)
    pixels_of_clip = tl.full([], 1, tl.int64) * N * h * w
    out = (clip * tl.num_programs(1) + frame) * pixels_of_clip + pixel
    keys = keys_ptr + (clip * pixels_of_clip + pixel) * D
    feats = feats_ptr + clip * feats_stride_b + frame * feats_stride_t + pixel * feats_stride_p
    depth = depth_ptr + clip * depth_stride_b + frame * depth_stride_t + pixel * depth_stride_p
    grad = grad_ptr + clip * grad_stride_b - clip * num_cells * grad_stride_cell
    grad += frame * grad_stride_t

    value = load_rows(feats, is_pixel, C, 0, GROUP, MAIN).to(ACCUMULATE)[:, :, None, :]
    total = tl.zeros([MAIN, BLOCK_P, BLOCK_D, GROUP], ACCUMULATE)
    value_tail = tl.zeros([TAIL if TAIL else 1, BLOCK_P, 1, GROUP], ACCUMULATE)
    total_tail = tl.zeros([TAIL if TAIL else 1, BLOCK_P, BLOCK_D, GROUP], ACCUMULATE)
    if TAIL:
        value_tail = load_rows(feats, is_pixel, C, MAIN, GROUP, TAIL).to(ACCUMULATE)
        value_tail = value_tail[:, :, None, :]
    d = tl.arange(0, BLOCK_D)
    is_point = is_pixel[:, None] & (d < D)[None, :]
    key = tl.load(keys[:, None] + d[None, :], mask=is_point, other=num_keys)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        is_point = is_pixel[:, None] & (d < D)[None, :]
        is_inside = key < num_keys
        cell = grad + key.to(tl.int64) * grad_stride_cell
        # The keys of the next round arrive while this one waits for its gradients.
        is_next = is_pixel[:, None] & (d + BLOCK_D < D)[None, :]
        key = tl.load(keys[:, None] + (d + BLOCK_D)[None, :], mask=is_next, other=num_keys)
        weight = tl.load(depth[:, None] + d[None, :], mask=is_inside, other=0.0).to(ACCUMULATE)
        arrived = _load_points(cell, is_inside, C, 0, GROUP, MAIN).to(ACCUMULATE)
        total += weight[None, :, :, None] * arrived
        product = tl.sum(tl.sum(value * arrived, 0), 2)
        if TAIL:
            arrived_tail = _load_points(cell, is_inside, C, MAIN, GROUP, TAIL).to(ACCUMULATE)
            total_tail += weight[None, :, :, None] * arrived_tail
            product += tl.sum(tl.sum(value_tail * arrived_tail, 0), 2)
        tl.store(depth_grad_ptr + out[:, None] * D + d[None, :], product, mask=is_point)
    row = feats_grad_ptr + out * C
    store_rows(row, tl.sum(total, 2), is_pixel, C, 0, GROUP, MAIN)
    if TAIL:
        store_rows(row, tl.sum(total_tail, 2), is_pixel, C, MAIN, GROUP, TAIL)


@triton.jit
def _load_points(
    row_ptr, is_row, num_channels, FIRST: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr
):
    """Groups of channels of rows of rows: [GROUPS, rows, rows, GROUP]."""
    channel = channels(FIRST, GROUP, GROUPS)[:, None, :, :]
    mask = is_row[None, :, :, None] & (channel < num_channels)
    return tl.load(row_ptr[None, :, :, None] + channel, mask=mask, other=0.0)
