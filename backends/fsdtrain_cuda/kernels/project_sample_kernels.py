"""The Triton kernels of project_sample.py, which says how they work together.

Shape letters: B clips, T frames, N cameras, C channels, h w rows and columns of the feature map,
P points, V views of a point that count.
"""

import triton
import triton.language as tl

from fsdtrain.ops.project_sample import MIN_DEPTH_M
from fsdtrain_cuda.tuning import tuned

NEAREST_M = tl.constexpr(MIN_DEPTH_M)
# A view's pixel in one word: camera, row and column. Negative: no view.
CAMERA_SHIFT = tl.constexpr(24)
ROW_SHIFT = tl.constexpr(12)
LOW_BITS = tl.constexpr(0xFFF)


@triton.jit
def locate(
    points_ptr,
    intrinsics_ptr,
    poses_ptr,
    views_ptr,
    fractions_ptr,
    counts_ptr,
    P,
    N,
    h,
    w,
    image_height,
    image_width,
    V: tl.constexpr,
    IS_KEY: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The first V cameras that see a point, and where; the formulas of the reference's `project`.

    points [P, 3]; intrinsics [B, N, 3, 3]; poses [B, N, 4, 4] -> views int32 [B, P, V] of the
    feature pixel whose centre is the nearest above and to the left: packed, or -1 where there is
    none; as a key for sorting its index among all pixels of the batch, or their number;
    fractions [2, B, P, V] of the way to the next column and row; counts int32 [B, P].
    """
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    clip = tl.program_id(1)
    is_point = point < P
    x_ego = tl.load(points_ptr + point * 3, mask=is_point, other=0.0)
    y_ego = tl.load(points_ptr + point * 3 + 1, mask=is_point, other=0.0)
    z_ego = tl.load(points_ptr + point * 3 + 2, mask=is_point, other=0.0)
    first_slot = (clip * P + point) * V
    num_slots = tl.num_programs(1).to(tl.int64) * P * V
    count = tl.zeros([BLOCK_P], tl.int32)
    for n in range(N):
        camera = clip * N + n
        pose = poses_ptr + camera * 16
        lens = intrinsics_ptr + camera * 9
        dx = x_ego - tl.load(pose + 3)
        dy = y_ego - tl.load(pose + 7)
        dz = z_ego - tl.load(pose + 11)
        x = tl.load(pose) * dx + tl.load(pose + 4) * dy + tl.load(pose + 8) * dz
        y = tl.load(pose + 1) * dx + tl.load(pose + 5) * dy + tl.load(pose + 9) * dz
        depth = tl.load(pose + 2) * dx + tl.load(pose + 6) * dy + tl.load(pose + 10) * dz
        is_ahead = depth >= NEAREST_M
        scale = 1 / tl.where(is_ahead, depth, 1.0)
        u = (tl.load(lens) * x + tl.load(lens + 1) * y) * scale + tl.load(lens + 2)
        v = tl.load(lens + 4) * y * scale + tl.load(lens + 5)
        u = u / image_width
        v = v / image_height
        is_seen = is_point & is_ahead & (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
        # Half a pixel less than in the reference: from centres, not from edges.
        column = tl.minimum(tl.maximum(tl.where(is_seen, u, 0.0) * w - 0.5, 0.0), w - 1.0)
        row = tl.minimum(tl.maximum(tl.where(is_seen, v, 0.0) * h - 0.5, 0.0), h - 1.0)
        left = column.to(tl.int32)
        above = row.to(tl.int32)
        if IS_KEY:
            view = (camera * h + above) * w + left
        else:
            view = ((camera - clip * N) << CAMERA_SHIFT) | (above << ROW_SHIFT) | left
        counts_here = is_seen & (count < V)
        tl.store(views_ptr + first_slot + count, view, mask=counts_here)
        slot = fractions_ptr + first_slot + count
        tl.store(slot, column - left, mask=counts_here)
        tl.store(slot + num_slots, row - above, mask=counts_here)
        count += counts_here.to(tl.int32)
    nothing = -1
    if IS_KEY:
        nothing = tl.num_programs(1) * N * h * w
    for rank in tl.static_range(V):
        tl.store(views_ptr + first_slot + rank, nothing, mask=is_point & (count <= rank))
    tl.store(counts_ptr + clip * P + point, count, mask=is_point)


@tuned(
    configs=[
        triton.Config({"BLOCK_P": 64}, num_warps=8),
        triton.Config({"BLOCK_P": 32}, num_warps=4),
        triton.Config({"BLOCK_P": 64}, num_warps=4),
        triton.Config({"BLOCK_P": 128}, num_warps=8),
    ],
    key=["C", "P", "V"],
)
@triton.jit
def sample(
    feats_ptr,
    pixels_ptr,
    fractions_ptr,
    counts_ptr,
    sampled_ptr,
    T,
    C,
    P,
    h,
    w,
    stride_b,
    stride_t,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    V: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """A block of points of one frame: the mean over a point's views, [P, C] at a time.

    feats [B, T, N, C, h, w], any strides; pixels, fractions, counts as `locate` leaves them ->
    sampled [B, T, C, P]. Loads run along the channels, stores along the points.
    """
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    frame = tl.program_id(1).to(tl.int64)
    clip = frame // T
    is_point = point < P
    num_slots = tl.num_programs(1).to(tl.int64) // T * P * V
    first_slot = (clip * P + point) * V
    count = tl.load(counts_ptr + clip * P + point, mask=is_point, other=0)
    most_views = tl.max(count, 0)
    share = 1.0 / tl.maximum(count, 1).to(ACCUMULATE)
    frame_ptr = feats_ptr + clip * stride_b + frame % T * stride_t
    for first_channel in range(0, C, BLOCK_C):
        channel = first_channel + tl.arange(0, BLOCK_C)
        is_channel = (channel < C)[None, :]
        channel_ptr = frame_ptr + channel.to(tl.int64)[None, :] * stride_c
        total = tl.zeros([BLOCK_P, BLOCK_C], ACCUMULATE)
        for rank in range(most_views):
            is_view = rank < count
            pixel = tl.load(pixels_ptr + first_slot + rank, mask=is_view, other=0)
            right = tl.load(fractions_ptr + first_slot + rank, mask=is_view, other=0.0)
            down = tl.load(fractions_ptr + num_slots + first_slot + rank, mask=is_view, other=0.0)
            right = right.to(ACCUMULATE)
            down = down.to(ACCUMULATE)
            camera = pixel >> CAMERA_SHIFT
            row = (pixel >> ROW_SHIFT) & LOW_BITS
            column = pixel & LOW_BITS
            offset = camera.to(tl.int64) * stride_n + row.to(tl.int64) * stride_h
            offset += column.to(tl.int64) * stride_w
            for is_down in tl.static_range(2):
                for is_right in tl.static_range(2):
                    weight = (down if is_down else 1 - down) * (right if is_right else 1 - right)
                    is_inside = is_view & (row + is_down < h) & (column + is_right < w)
                    corner = offset + is_down * stride_h + is_right * stride_w
                    values = tl.load(
                        channel_ptr + corner[:, None],
                        mask=is_inside[:, None] & is_channel,
                        other=0.0,
                    ).to(ACCUMULATE)
                    total += weight[:, None] * values
        mean = total * share[:, None]
        target = sampled_ptr + (frame * C + channel)[None, :] * P + point[:, None]
        stored = mean.to(sampled_ptr.dtype.element_ty)
        tl.store(target, stored, mask=is_point[:, None] & is_channel)


@triton.jit
def turn(
    source_ptr,
    turned_ptr,
    T,
    C,
    P,
    stride_b,
    stride_t,
    stride_c,
    stride_p,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Source [B, T, C, P] of any strides -> turned [B, T, P, C]."""
    point = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    frame = tl.program_id(2).to(tl.int64)
    mask = (point < P)[:, None] & (channel < C)[None, :]
    source = source_ptr + frame // T * stride_b + frame % T * stride_t
    values = tl.load(
        source + point[:, None] * stride_p + channel[None, :] * stride_c, mask=mask, other=0.0
    )
    tl.store(turned_ptr + (frame * P + point)[:, None] * C + channel[None, :], values, mask=mask)


@tuned(
    configs=[
        triton.Config({"BLOCK_E": 32}, num_warps=4),
        triton.Config({"BLOCK_E": 16}, num_warps=2),
        triton.Config({"BLOCK_E": 32}, num_warps=2),
        triton.Config({"BLOCK_E": 64}, num_warps=4),
    ],
    key=["C", "P", "V"],
)
@triton.jit
def gather(
    grad_ptr,
    order_ptr,
    starts_ptr,
    fractions_ptr,
    counts_ptr,
    feats_grad_ptr,
    N,
    C,
    P,
    h,
    w,
    grad_stride_b,
    grad_stride_t,
    grad_stride_c,
    grad_stride_p,
    stride_b,
    stride_t,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    V: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One feature pixel of one frame: the sum over the views that read it.

    grad [B, T, C, P]; order int64, the slots of [B, P, V] sorted by pixel; starts int32, of each
    pixel's run in it; fractions [2, B, P, V]; counts [B, P] -> feats_grad [B, T, N, C, h, w].
    A pixel is read from its own run, as the upper left corner, and from those to the left of it
    and above. Runs of neighbours in a row lie together in the order.
    """
    pixel = tl.program_id(0)
    frame = tl.program_id(1).to(tl.int64)
    column = pixel % w
    row = pixel // w % h
    camera = pixel // (w * h)
    clip = camera // N
    num_slots = tl.num_programs(0).to(tl.int64) // (N * h * w) * P * V
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < C
    grad_ptr += clip.to(tl.int64) * grad_stride_b + frame * grad_stride_t
    channel_ptr = grad_ptr + channel.to(tl.int64)[None, :] * grad_stride_c
    total = tl.zeros([BLOCK_E, BLOCK_C], ACCUMULATE)
    for above in tl.static_range(2):
        own = tl.maximum(pixel - above * w, 0)
        left = tl.where(column > 0, own - 1, own)
        begin = tl.load(starts_ptr + left)
        middle = tl.load(starts_ptr + own)
        end = tl.load(starts_ptr + own + 1)
        if above:
            end = tl.where(row > 0, end, begin)
        for first_entry in range(begin, end, BLOCK_E):
            entry = first_entry + tl.arange(0, BLOCK_E)
            is_entry = entry < end
            slot = tl.load(order_ptr + entry, mask=is_entry, other=0).to(tl.int32)
            point = slot // V
            right = tl.load(fractions_ptr + slot, mask=is_entry, other=0.0).to(ACCUMULATE)
            down = tl.load(fractions_ptr + num_slots + slot, mask=is_entry, other=0.0)
            down = down.to(ACCUMULATE)
            count = tl.load(counts_ptr + point, mask=is_entry, other=1)
            weight = tl.where(entry < middle, right, 1 - right) * (down if above else 1 - down)
            weight = weight / count.to(ACCUMULATE)
            values = tl.load(
                channel_ptr + (point - clip * P).to(tl.int64)[:, None] * grad_stride_p,
                mask=is_entry[:, None] & is_channel[None, :],
                other=0.0,
            ).to(ACCUMULATE)
            total += weight[:, None] * values
    target = feats_grad_ptr + clip.to(tl.int64) * stride_b + frame * stride_t
    target += (camera - clip * N).to(tl.int64) * stride_n + row.to(tl.int64) * stride_h
    target += column.to(tl.int64) * stride_w
    summed = tl.sum(total, 0).to(feats_grad_ptr.dtype.element_ty)
    tl.store(target + channel.to(tl.int64) * stride_c, summed, mask=is_channel)
