"""The Triton kernels of bev_pool.py, which says how they work together.

Shape letters: B clips, T frames, N cameras, C channels, D depths, h w rows and columns of the
feature map, X Y cells. A pixel is one of the B * N * h * w that all frames share, a point one of
the D on its ray: points of a pixel lie together. A key is a cell's number among the B * X * Y of
the batch, or that number for points in no cell.

Channels are taken in two parts, `MAIN` and `TAIL` (0: none), so that few lanes idle where C is no
power of two: 80 are 64 and 16.
"""

import triton
import triton.language as tl

from fsdtrain_cuda.tuning import tuned

POINTS_AT_ONCE = tl.constexpr(4)
PARTS_AT_ONCE = tl.constexpr(8)


@triton.jit
def sum_chunks(
    feats_ptr,
    depth_ptr,
    keys_ptr,
    order_ptr,
    starts_ptr,
    parts_ptr,
    C,
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
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
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
    first_channel = tl.program_id(2) * (MAIN + TAIL)
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
            first_pixel = clip * pixels_of_clip
            feats = feats_ptr + clip * feats_stride_b + frame * feats_stride_t
            feats += first_channel - first_pixel * feats_stride_p
            depth = depth_ptr + clip * depth_stride_b + frame * depth_stride_t
            depth -= first_pixel * depth_stride_p
            total = tl.zeros([BLOCK_P, MAIN], ACCUMULATE)
            total_tail = tl.zeros([BLOCK_P, TAIL if TAIL else 1], ACCUMULATE)
            end = tl.minimum(cell_end, last + 1)
            for start in range(tl.maximum(cell_begin, begin), end, BLOCK_P):
                position = start + tl.arange(0, BLOCK_P)
                is_here = position < end
                pixel, weight = _point(
                    order_ptr + position, depth, is_here, depth_stride_p, D, ACCUMULATE
                )
                row = feats + pixel * feats_stride_p
                total = _add(total, row, weight, is_here, C - first_channel, 0, MAIN, ACCUMULATE)
                if TAIL:
                    total_tail = _add(
                        total_tail, row, weight, is_here, C - first_channel, MAIN, TAIL, ACCUMULATE
                    )
            part = (frame * tl.num_programs(0) + tl.program_id(0)) * 2 + slot
            parts = parts_ptr + part * C + first_channel
            channel = tl.arange(0, MAIN)
            is_channel = channel < C - first_channel
            tl.store(parts + channel, tl.sum(total, 0), mask=is_channel)
            if TAIL:
                channel = MAIN + tl.arange(0, TAIL)
                is_channel = channel < C - first_channel
                tl.store(parts + channel, tl.sum(total_tail, 0), mask=is_channel)


@tuned(
    configs=[
        triton.Config({"CELLS": 8}, num_warps=1),
        triton.Config({"CELLS": 4}, num_warps=1),
        triton.Config({"CELLS": 16}, num_warps=1),
        triton.Config({"CELLS": 16}, num_warps=2),
        triton.Config({"CELLS": 32}, num_warps=4),
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
    C,
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
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    CELLS: tl.constexpr,
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
    first_channel = tl.program_id(2) * (MAIN + TAIL)
    is_cell = key < num_keys
    begin = tl.load(starts_ptr + key, mask=is_cell, other=0)
    end = tl.load(starts_ptr + key + 1, mask=is_cell, other=0)
    is_long = end - begin > CHUNK
    count = tl.where(is_long, 0, end - begin)
    clip = (key // num_cells).to(tl.int64)
    first_pixel = clip * pixels_of_clip
    feats = feats_ptr + clip * feats_stride_b + frame * feats_stride_t
    feats += first_channel - first_pixel * feats_stride_p
    depth = depth_ptr + clip * depth_stride_b + frame * depth_stride_t
    depth -= first_pixel * depth_stride_p
    total = tl.zeros([CELLS, MAIN], ACCUMULATE)
    total_tail = tl.zeros([CELLS, TAIL if TAIL else 1], ACCUMULATE)
    for first_rank in range(0, tl.max(count, 0), POINTS_AT_ONCE):
        for lane in tl.static_range(POINTS_AT_ONCE):
            rank = first_rank + lane
            is_here = rank < count
            pixel, weight = _point(
                order_ptr + begin + rank, depth, is_here, depth_stride_p, D, ACCUMULATE
            )
            row = feats + pixel * feats_stride_p
            total = _add(total, row, weight, is_here, C - first_channel, 0, MAIN, ACCUMULATE)
            if TAIL:
                total_tail = _add(
                    total_tail, row, weight, is_here, C - first_channel, MAIN, TAIL, ACCUMULATE
                )

    num_chunks = tl.cdiv(num_points, CHUNK)
    first_chunk = begin // CHUNK
    num_parts = tl.where(is_long, (end - 1) // CHUNK - first_chunk + 1, 0)
    # Only in the first chunk may another cell hold the first place.
    begins_within = (begin % CHUNK > 0).to(tl.int32)
    for first_rank in range(0, tl.max(num_parts, 0), PARTS_AT_ONCE):
        for lane in tl.static_range(PARTS_AT_ONCE):
            rank = first_rank + lane
            is_here = rank < num_parts
            slot = tl.where(rank == 0, begins_within, 0)
            part = (frame * num_chunks + first_chunk + rank) * 2 + slot
            row = parts_ptr + part * C + first_channel
            one = is_here.to(ACCUMULATE)
            total = _add(total, row, one, is_here, C - first_channel, 0, MAIN, ACCUMULATE)
            if TAIL:
                total_tail = _add(
                    total_tail, row, one, is_here, C - first_channel, MAIN, TAIL, ACCUMULATE
                )

    cell = (clip * tl.num_programs(1) + frame) * num_cells + key % num_cells
    sums = sums_ptr + cell * C + first_channel
    _store_rows(sums, total, is_cell, C - first_channel, 0, MAIN)
    if TAIL:
        _store_rows(sums, total_tail, is_cell, C - first_channel, MAIN, TAIL)


@triton.jit
def _point(order_ptr, depth, is_here, stride_p, D: tl.constexpr, ACCUMULATE: tl.constexpr):
    """(pixel int64, depth weight) of the points that stand at places of the order."""
    point = tl.load(order_ptr, mask=is_here, other=0).to(tl.int32)
    pixel = point // D
    weight_ptr = depth + pixel.to(tl.int64) * stride_p + (point - pixel * D)
    weight = tl.load(weight_ptr, mask=is_here, other=0.0).to(ACCUMULATE)
    return pixel.to(tl.int64), weight


@triton.jit
def _add(
    total,
    row_ptr,
    weight,
    is_here,
    num_channels,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Total + weight x the channels FIRST ... FIRST + WIDTH of each row."""
    values = _load_rows(row_ptr, is_here, num_channels, FIRST, WIDTH).to(ACCUMULATE)
    return total + weight[:, None] * values


@triton.jit
def _store_rows(row_ptr, values, is_row, num_channels, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    channel = FIRST + tl.arange(0, WIDTH)
    mask = is_row[:, None] & (channel < num_channels)[None, :]
    tl.store(row_ptr[:, None] + channel[None, :], values, mask=mask)


@tuned(
    configs=[
        triton.Config({"BLOCK_P": 8, "BLOCK_D": 4}, num_warps=2),
        triton.Config({"BLOCK_P": 4, "BLOCK_D": 4}, num_warps=1),
        triton.Config({"BLOCK_P": 4, "BLOCK_D": 8}, num_warps=2),
        triton.Config({"BLOCK_P": 8, "BLOCK_D": 4}, num_warps=4),
        triton.Config({"BLOCK_P": 16, "BLOCK_D": 4}, num_warps=4),
        triton.Config({"BLOCK_P": 2, "BLOCK_D": 4}, num_warps=4),
    ],
    key=["C", "D", "num_keys"],
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
    C,
    D,
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
    ACCUMULATE: tl.constexpr,
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
    block = tl.program_id(0) % num_blocks
    camera = tl.program_id(0) // num_blocks
    clip = (camera // N).to(tl.int64)
    frame = tl.program_id(1).to(tl.int64)
    place = block * BLOCK_P + tl.arange(0, BLOCK_P)
    is_pixel = place < h * w
    pixel = camera % N * h * w + place % h * w + place // h
    row = ((clip * tl.num_programs(1) + frame) * N * h * w + pixel).to(tl.int64)
    keys_row = keys_ptr + (clip * N * h * w + pixel) * D
    feats = feats_ptr + clip * feats_stride_b + frame * feats_stride_t
    feats += pixel.to(tl.int64) * feats_stride_p
    depth = depth_ptr + clip * depth_stride_b + frame * depth_stride_t
    depth += pixel.to(tl.int64) * depth_stride_p
    grad = grad_ptr + clip * grad_stride_b + frame * grad_stride_t
    grad -= clip * num_cells * grad_stride_cell

    value = _load_rows(feats, is_pixel, C, 0, MAIN).to(ACCUMULATE)[:, None, :]
    total = tl.zeros([BLOCK_P, BLOCK_D, MAIN], ACCUMULATE)
    value_tail = tl.zeros([BLOCK_P, 1, TAIL if TAIL else 1], ACCUMULATE)
    total_tail = tl.zeros([BLOCK_P, BLOCK_D, TAIL if TAIL else 1], ACCUMULATE)
    if TAIL:
        value_tail = _load_rows(feats, is_pixel, C, MAIN, TAIL).to(ACCUMULATE)[:, None, :]
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        is_point = is_pixel[:, None] & (d < D)[None, :]
        key = tl.load(keys_row[:, None] + d[None, :], mask=is_point, other=num_keys)
        is_inside = key < num_keys
        weight = tl.load(depth[:, None] + d[None, :], mask=is_inside, other=0.0).to(ACCUMULATE)
        cell = grad + key.to(tl.int64) * grad_stride_cell
        arrived = _load_points(cell, is_inside, C, 0, MAIN).to(ACCUMULATE)
        total += weight[:, :, None] * arrived
        product = tl.sum(value * arrived, 2)
        if TAIL:
            arrived_tail = _load_points(cell, is_inside, C, MAIN, TAIL).to(ACCUMULATE)
            total_tail += weight[:, :, None] * arrived_tail
            product += tl.sum(value_tail * arrived_tail, 2)
        tl.store(depth_grad_ptr + row[:, None] * D + d[None, :], product, mask=is_point)
    feats_grad = feats_grad_ptr + row * C
    _store_rows(feats_grad, tl.sum(total, 1), is_pixel, C, 0, MAIN)
    if TAIL:
        _store_rows(feats_grad, tl.sum(total_tail, 1), is_pixel, C, MAIN, TAIL)


@triton.jit
def _load_rows(row_ptr, is_row, num_channels, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    channel = FIRST + tl.arange(0, WIDTH)
    mask = is_row[:, None] & (channel < num_channels)[None, :]
    return tl.load(row_ptr[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _load_points(row_ptr, is_row, num_channels, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    channel = FIRST + tl.arange(0, WIDTH)
    mask = is_row[:, :, None] & (channel < num_channels)[None, None, :]
    return tl.load(row_ptr[:, :, None] + channel[None, None, :], mask=mask, other=0.0)
