"""Triton kernels of the gradients of `ms_deform_attn`.

Gradients of locations and weights belong to their query. That of the values is a scatter: added
with float32 atomics, or, where torch is told to be deterministic, by `ms_deform_attn_scatter`.

Shape letters as in fsdtrain.ops.ms_deform_attn.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdtrain_cuda.kernels.ms_deform_attn_places import locate, size_of, sum_dtype
from fsdtrain_cuda.kernels.ms_deform_attn_scatter import new_keys, scatter_sorted
from fsdtrain_cuda.tuning import tuned

# 4 channels a thread are 16 bytes of the float32 that it adds: with more, what it reads in bfloat16
# and what it adds lie differently over the threads, and each sample is exchanged between them.
CONFIGS = [
    triton.Config({"TILE": tile}, num_warps=num_warps)
    for tile, num_warps in ((128, 1), (256, 2), (512, 4), (256, 1), (1024, 4))
]


@tuned(
    configs=CONFIGS,
    key=["num_queries", "C", "NUM_POINTS", "LEVEL_SIZES", "ADDS"],
    reset_to_zero=["grad_value_ptr"],
)
@triton.jit
def differentiate(
    grad_ptr,
    value_ptr,
    locations_ptr,
    weights_ptr,
    grad_value_ptr,
    keys_ptr,
    grad_locations_ptr,
    grad_weights_ptr,
    num_queries,
    num_heads,
    num_places,
    num_cells,
    grad_strides,
    value_strides,
    location_strides,
    weight_strides,
    LEVEL_SIZES: tl.constexpr,
    NUM_POINTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
    ADDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Of a sample with weight a at a share (x, y) between pixels v, and g the result's gradient.

    grad weight = g . bilinear(v), grad location = a (columns g . d bilinear / dx, rows g . d / dy),
    and, if ADDS, grad value of each pixel += a * its share * g; otherwise the sample's key tells
    `scatter_sorted` between which pixels it lies.

    A program owns a block of queries of one head. Maps that none of them looks into cost only the
    look at the locations.

    Pointers: grad [B, Q, H * C]; value, locations and weights as in `attend`;
    grad_value [B, S, H, C], keys [B, Q, H, L, P], grad_locations [B, Q, H, L, P, 2] and
    grad_weights [B, Q, H, L, P], contiguous, hold zeros, keys what `new_keys` fills in.
    """
    BLOCK_Q: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    NUM_LEVELS: tl.constexpr = len(LEVEL_SIZES) // 2
    head = tl.program_id(1).to(tl.int64)
    clip = tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.arange(0, BLOCK_C)[None, :]
    is_query = query < num_queries
    query = query.to(tl.int64)
    is_channel = channel < C
    value_ptr += clip * value_strides[0] + head * value_strides[2] + channel * value_strides[3]
    grad_value_ptr += (clip * num_places * num_heads + head) * C + channel
    locations = clip * location_strides[0] + head * location_strides[2]
    locations += query * location_strides[1]
    weights = clip * weight_strides[0] + head * weight_strides[2] + query * weight_strides[1]
    sample = ((clip * num_queries + query) * num_heads + head) * NUM_LEVELS * NUM_POINTS
    point = tl.arange(0, BLOCK_P)[None, :]
    is_point = is_query[:, None] & (point < NUM_POINTS)
    grad = tl.load(
        grad_ptr
        + clip * grad_strides[0]
        + (query * grad_strides[1])[:, None]
        + (head * C + channel) * grad_strides[2],
        mask=is_query[:, None] & is_channel,
        other=0.0,
    ).to(SUM_DTYPE)

    first_place = 0
    first_cell = (clip * num_heads + head) * num_cells
    for level in range(NUM_LEVELS):
        rows, columns = size_of(level, LEVEL_SIZES)
        any_row, any_column, _, _ = locate(
            locations_ptr + locations[:, None] + point * location_strides[4],
            location_strides[5],
            is_point,
            rows,
            columns,
            SUM_DTYPE,
        )
        any_seen = tl.max(is_near(any_row, any_column, rows, columns).to(tl.int32))
        if any_seen > 0:
            for p in range(NUM_POINTS):
                row, column, down, right = locate(
                    locations_ptr + locations + p * location_strides[4],
                    location_strides[5],
                    is_query,
                    rows,
                    columns,
                    SUM_DTYPE,
                )
                is_seen = is_near(row, column, rows, columns)
                weight = tl.load(
                    weights_ptr + weights + p * weight_strides[4], mask=is_seen, other=0.0
                ).to(SUM_DTYPE)
                place = (first_place + row * columns + column).to(tl.int64)
                grad_weight = tl.zeros([BLOCK_Q], SUM_DTYPE)
                grad_x = tl.zeros([BLOCK_Q], SUM_DTYPE)
                grad_y = tl.zeros([BLOCK_Q], SUM_DTYPE)
                for corner in tl.static_range(4):
                    lower = corner // 2
                    righter = corner % 2
                    is_inside = is_seen & (row + lower >= 0) & (row + lower < rows)
                    is_inside &= (column + righter >= 0) & (column + righter < columns)
                    pixel_place = place + (lower * columns + righter)
                    pixel = tl.load(
                        value_ptr + (pixel_place * value_strides[1])[:, None],
                        mask=is_inside[:, None] & is_channel,
                        other=0.0,
                    ).to(SUM_DTYPE)
                    share_y = down if lower else 1 - down
                    share_x = right if righter else 1 - right
                    product = tl.sum(pixel * grad, 1)
                    grad_weight += share_y * share_x * product
                    grad_x += (share_y if righter else -share_y) * product
                    grad_y += (share_x if lower else -share_x) * product
                    if ADDS:
                        tl.atomic_add(
                            grad_value_ptr + (pixel_place * num_heads * C)[:, None],
                            (weight * share_y * share_x)[:, None] * grad,
                            mask=(is_inside & (weight != 0))[:, None] & is_channel,
                            sem="relaxed",
                        )
                at = sample + p
                tl.store(grad_weights_ptr + at, grad_weight, mask=is_seen)
                tl.store(grad_locations_ptr + 2 * at, weight * columns * grad_x, mask=is_seen)
                tl.store(grad_locations_ptr + 2 * at + 1, weight * rows * grad_y, mask=is_seen)
                if not ADDS:
                    key = first_cell + (row + 1) * (columns + 1) + column + 1
                    tl.store(
                        keys_ptr + at,
                        key.to(keys_ptr.dtype.element_ty),
                        mask=is_seen & (weight != 0),
                    )
        first_place += rows * columns
        first_cell += (rows + 1) * (columns + 1)
        locations += location_strides[3]
        weights += weight_strides[3]
        sample += NUM_POINTS


@triton.jit
def is_near(row, column, rows, columns):
    """Whether one of the four pixels lies in the map."""
    return (row >= -1) & (row < rows) & (column >= -1) & (column < columns)


def launch_backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, level_sizes: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the values, locations and weights, in their shapes and dtypes, contiguous."""
    B, Q, H, L, P = weights.shape
    S, C = value.shape[1], value.shape[3]
    grad_locations = locations.new_zeros(locations.shape)
    grad_weights = weights.new_zeros(weights.shape)
    if grad.numel() == 0 or L * P == 0:
        return value.new_zeros(value.shape), grad_locations, grad_weights
    dtype = sum_dtype(value, locations)
    is_sorted = torch.are_deterministic_algorithms_enabled()
    torch_dtype = torch.float64 if dtype == tl.float64 else torch.float32
    total = value.new_zeros(0 if is_sorted else value.shape, dtype=torch_dtype)
    keys, num_cells = new_keys(weights, level_sizes, is_wanted=is_sorted)
    BLOCK_C = triton.next_power_of_2(C)

    def grid(meta: dict[str, int]) -> tuple[int, int, int]:
        return triton.cdiv(Q, max(meta["TILE"] // BLOCK_C, 1)), H, B

    differentiate[grid](
        grad, value, locations, weights, total, keys, grad_locations, grad_weights,
        Q, H, S, num_cells,
        grad.stride(), value.stride(), locations.stride(), weights.stride(),
        LEVEL_SIZES=level_sizes, NUM_POINTS=P, BLOCK_P=triton.next_power_of_2(P),
        C=C, BLOCK_C=BLOCK_C, SUM_DTYPE=dtype, ADDS=not is_sorted,
    )  # fmt: skip
    if is_sorted:
        grad_value = scatter_sorted(keys, grad, value, locations, weights, level_sizes)
    else:
        grad_value = total.to(value.dtype)
    return grad_value, grad_locations, grad_weights
