"""The forward kernels of bev_pool.py, which says how they work together.

Shape letters: B clips, T frames, N cameras, C channels, D depths, h w rows and columns of the
feature map, X Y cells. A pixel is one of the B * N * h * w that all frames share, a point one of
the D on its ray: points of a pixel lie together. A key is a cell's number among the B * X * Y of
the batch, or that number for points in no cell. Channels lie in groups, see channel_groups.py.
"""

import triton
import triton.language as tl

from fsdtrain_cuda.kernels.channel_groups import load_rows, store_rows
from fsdtrain_cuda.tuning import tuned

PARTS_AT_ONCE = tl.constexpr(8)


@triton.jit
def sum_chunks(
    feats_ptr,
    depth_ptr,
    keys_ptr,
    order_ptr,
    starts_ptr,
    parts_ptr,
    num_points,
    num_keys,
    num_cells,
    pixels_of_clip,
    feats_stride_b,
    feats_stride_t,
    feats_stride_p,
    depth_stride_b,
    depth_stride_t,
    depth_stride_p,
    C: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    GROUP: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One frame's share that CHUNK sorted points have in cells of more than CHUNK points.

    Of those a chunk holds two at most, that of its first point and that of its last: parts
    [T, chunks, 2, C]. For the other arguments see `sum_cells`; keys int32 [B * points], sorted.
    """
    begin = tl.program_id(0) * CHUNK
    frame = tl.program_id(1).to(tl.int64)
    first_channel = tl.program_id(2) * (GROUP * (MAIN + TAIL))
    last = tl.minimum(begin + CHUNK, num_points) - 1
    first_key = tl.load(keys_ptr + begin)
    last_key = tl.load(keys_ptr + last)
    for slot in tl.static_range(2):
        key = tl.where(slot == 0, first_key, last_key)
        is_new = (slot == 0) | (first_key != last_key)
        cell = tl.minimum(key, num_keys - 1)
        cell_begin = tl.load(starts_ptr + cell)
        cell_end = tl.load(starts_ptr + cell + 1)
        if is_new & (key < num_keys) & (cell_end - cell_begin > CHUNK):
            clip = (cell // num_cells).to(tl.int64)
            feats = feats_ptr + clip * feats_stride_b + frame * feats_stride_t + first_channel
            depth = depth_ptr + clip * depth_stride_b + frame * depth_stride_t
            total = tl.zeros([MAIN, BLOCK_P, GROUP], ACCUMULATE)
            total_tail = tl.zeros([TAIL if TAIL else 1, BLOCK_P, GROUP], ACCUMULATE)
            end = tl.minimum(cell_end, last + 1)
            for start in range(tl.maximum(cell_begin, begin), end, BLOCK_P):
                position = start + tl.arange(0, BLOCK_P)
                is_here = position < end
                point = tl.load(order_ptr + position, mask=is_here, other=0).to(tl.uint32)
                pixel = point // D
                weight = depth + (pixel - clip * pixels_of_clip) * depth_stride_p + point % D
                weight = tl.load(weight, mask=is_here, other=0.0).to(ACCUMULATE)
                row = feats + (pixel - clip * pixels_of_clip) * feats_stride_p
                total = _add(total, row, weight, is_here, C - first_channel, 0, GROUP, MAIN)
                if TAIL:
                    total_tail = _add(
                        total_tail, row, weight, is_here, C - first_channel, MAIN, GROUP, TAIL
                    )
            part = (frame * tl.num_programs(0) + tl.program_id(0)) * 2 + slot
            row = parts_ptr + part * C + first_channel
            _store(row, tl.sum(total, 1), C - first_channel, 0, GROUP, MAIN)
            if TAIL:
                _store(row, tl.sum(total_tail, 1), C - first_channel, MAIN, GROUP, TAIL)


@tuned(
    configs=[
        triton.Config({"CELLS": 16, "POINTS": 4}, num_warps=1),
        triton.Config({"CELLS": 16, "POINTS": 2}, num_warps=1),
        triton.Config({"CELLS": 8, "POINTS": 4}, num_warps=1),
        triton.Config({"CELLS": 8, "POINTS": 8}, num_warps=1),
        triton.Config({"CELLS": 32, "POINTS": 4}, num_warps=2),
        triton.Config({"CELLS": 64, "POINTS": 4}, num_warps=4),
    ],
    key=["C", "D", "num_points", "num_keys"],
)
@triton.jit
def sum_cells(
    feats_ptr,
    depth_ptr,
    order_ptr,
    starts_ptr,
    parts_ptr,
    sums_ptr,
    num_points,
    num_keys,
    num_cells,
    pixels_of_clip,
    feats_stride_b,
    feats_stride_t,
    feats_stride_p,
    depth_stride_b,
    depth_stride_t,
    depth_stride_p,
    C: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_DEPTH_DENSE: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    GROUP: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    CELLS: tl.constexpr,
    POINTS: tl.constexpr,
):
    """A few cells of one frame: the sum over their points of depth weight x feature.

    feats [B, T, pixels, C] and depth [B, T, pixels, D], the last without gaps; order int64
    [B * points]: which point stands where in the order of keys; starts int32 [B * X * Y + 1] of
    each key's points in it; parts as `sum_chunks` leaves them -> sums [B, T, X * Y, C].

    A cell's points are added one after the other, whatever the configuration: so the bits do not
    depend on it.
    """
    key = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    frame = tl.program_id(1).to(tl.int64)
    # Known to be 0 where it is: then no channel needs a mask.
    first_channel = tl.program_id(2) * (GROUP * (MAIN + TAIL)) if NUM_BLOCKS > 1 else 0
    is_cell = key < num_keys
    begin = tl.load(starts_ptr + key, mask=is_cell, other=0)
    end = tl.load(starts_ptr + key + 1, mask=is_cell, other=0)
    is_long = end - begin > CHUNK
    count = tl.where(is_long, 0, end - begin)
    clip = (key // num_cells).to(tl.int64)
    # Points count through the batch, strides are those of clips.
    first_pixel = clip * pixels_of_clip
    feats = feats_ptr + clip * feats_stride_b - first_pixel * feats_stride_p
    feats += frame * feats_stride_t + first_channel
    depth = depth_ptr + clip * depth_stride_b - first_pixel * depth_stride_p
    depth += frame * depth_stride_t
    total = tl.zeros([MAIN, CELLS, GROUP], ACCUMULATE)
    total_tail = tl.zeros([TAIL if TAIL else 1, CELLS, GROUP], ACCUMULATE)
    order = order_ptr + begin
    for first_rank in range(0, tl.max(count, 0), POINTS):
        next_points = order + first_rank
        for lane in tl.static_range(POINTS):
            is_here = first_rank + lane < count
            point = tl.load(next_points + lane, mask=is_here, other=0).to(tl.uint32)
            pixel = point // D
            if IS_DEPTH_DENSE:
                weight = depth + point
            else:
                weight = depth + pixel.to(tl.int64) * depth_stride_p + point % D
            weight = tl.load(weight, mask=is_here, other=0.0).to(ACCUMULATE)
            row = feats + pixel.to(tl.int64) * feats_stride_p
            total = _add(total, row, weight, is_here, C - first_channel, 0, GROUP, MAIN)
            if TAIL:
                total_tail = _add(
                    total_tail, row, weight, is_here, C - first_channel, MAIN, GROUP, TAIL
                )

    first_chunk = begin // CHUNK
    num_parts = tl.where(is_long, (end - 1) // CHUNK - first_chunk + 1, 0)
    # Only in the first chunk may another cell hold the first place.
    begins_within = (begin % CHUNK > 0).to(tl.int32)
    chunk = frame * tl.cdiv(num_points, CHUNK) + first_chunk
    for first_rank in range(0, tl.max(num_parts, 0), PARTS_AT_ONCE):
        for lane in tl.static_range(PARTS_AT_ONCE):
            rank = first_rank + lane
            is_here = rank < num_parts
            part = (chunk + rank) * 2 + tl.where(rank == 0, begins_within, 0)
            row = parts_ptr + part * C + first_channel
            one = is_here.to(ACCUMULATE)
            total = _add(total, row, one, is_here, C - first_channel, 0, GROUP, MAIN)
            if TAIL:
                total_tail = _add(
                    total_tail, row, one, is_here, C - first_channel, MAIN, GROUP, TAIL
                )

    cell = (clip * tl.num_programs(1) + frame) * num_cells + key % num_cells
    row = sums_ptr + cell * C + first_channel
    store_rows(row, total, is_cell, C - first_channel, 0, GROUP, MAIN)
    if TAIL:
        store_rows(row, total_tail, is_cell, C - first_channel, MAIN, GROUP, TAIL)


@triton.jit
def _add(
    total,
    row_ptr,
    weight,
    is_here,
    num_channels,
    FIRST: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):
    values = load_rows(row_ptr, is_here, num_channels, FIRST, GROUP, GROUPS).to(total.dtype)
    return total + weight[None, :, None] * values


@triton.jit
def _store(
    row_ptr, values, num_channels, FIRST: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr
):
    group = FIRST + tl.arange(0, GROUPS)
    channel = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(row_ptr + channel, values, mask=channel < num_channels)
