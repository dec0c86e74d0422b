"""The gradient of the values of `ms_deform_attn` without atomics: the same bits every time.

Samples are sorted by the cell they lie in: the square between four pixels of a map, of which one
with h rows and w columns has (h + 1) * (w + 1), since samples up to a pixel outside count. A cell's
run of samples is cut into pieces of at most PIECE; a program owns a piece and reads the gradient of
each of its samples once for all four pixels. Then a program owns a pixel and adds up the pieces of
the four cells around it, in order.

Shape letters as in fsdtrain.ops.ms_deform_attn.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain_cuda.kernels.arguments import MAX_INT32
from fsdtrain_cuda.kernels.ms_deform_attn_places import sum_dtype
from fsdtrain_cuda.tuning import tuned

PIECE = 64


def new_keys(
    weights_BQHLP: Tensor, level_sizes: tuple[int, ...], *, is_wanted: bool
) -> tuple[Tensor, int]:
    """(keys [B, Q, H, L, P], cells of a head): each is the number past the last cell: no cell.

    Raises:
        BackendError: more samples than can be sorted.
    """
    B, _, H, _, _ = weights_BQHLP.shape
    sides = zip(level_sizes[::2], level_sizes[1::2], strict=True)
    num_cells = sum((h + 1) * (w + 1) for h, w in sides)
    if not is_wanted:
        return weights_BQHLP.new_empty(0, dtype=torch.int32), num_cells
    if weights_BQHLP.numel() > MAX_INT32:
        raise BackendError(
            f"ms_deform_attn: its deterministic gradient sorts all samples, and weights of shape "
            f"{tuple(weights_BQHLP.shape)} are more than 32 bits count; take a smaller batch"
        )
    past_last = B * H * num_cells
    dtype = torch.int32 if past_last <= MAX_INT32 else torch.int64
    return weights_BQHLP.new_full(weights_BQHLP.shape, past_last, dtype=dtype), num_cells


def scatter_sorted(
    keys_BQHLP: Tensor,
    grad_BQE: Tensor,
    value_BSHC: Tensor,
    locations_BQHLP2: Tensor,
    weights_BQHLP: Tensor,
    level_sizes: tuple[int, ...],
) -> Tensor:
    """[B, S, H, C]: the values' gradient in their dtype.

    Args:
        keys_BQHLP: (b * H + head) * cells of a head + cell; past the last one: counts nowhere.
        grad_BQE: of the result, E = H * C.
        value_BSHC: for its shape and dtype.
        locations_BQHLP2: as `attend` takes them, and so are
        weights_BQHLP: these and
        level_sizes: these.
    """
    B, S, H, C = value_BSHC.shape
    Q, P = weights_BQHLP.shape[1], weights_BQHLP.shape[4]
    sides = zip(level_sizes[::2], level_sizes[1::2], strict=True)
    num_cells = sum((h + 1) * (w + 1) for h, w in sides)
    sorted_keys, order = torch.sort(keys_BQHLP.view(-1), stable=True)
    # Without a look at the data, the most pieces that there can be: one more in each cell.
    most_cells = min(B * H * num_cells, keys_BQHLP.numel())
    most_pieces = triton.cdiv(keys_BQHLP.numel(), PIECE) + most_cells
    cell = torch.arange(B * H * num_cells + 1, device=order.device, dtype=sorted_keys.dtype)
    firsts = torch.searchsorted(sorted_keys, cell)
    piece_ends = torch.cumsum((firsts.diff() + (PIECE - 1)) // PIECE, 0)
    piece = torch.arange(most_pieces, device=order.device)
    cell_of_piece = torch.searchsorted(piece_ends, piece, right=True)
    dtype = sum_dtype(value_BSHC, locations_BQHLP2)
    BLOCK_C = triton.next_power_of_2(C)
    parts = value_BSHC.new_empty(
        most_pieces, 4, C, dtype=torch.float64 if dtype == tl.float64 else torch.float32
    )
    sum_pieces[(most_pieces,)](
        order, firsts, piece_ends, cell_of_piece, grad_BQE, locations_BQHLP2, weights_BQHLP, parts,
        Q, H, num_cells, B * H * num_cells,
        grad_BQE.stride(), locations_BQHLP2.stride(), weights_BQHLP.stride(),
        LEVEL_SIZES=level_sizes, NUM_POINTS=P, PIECE=PIECE,
        C=C, BLOCK_C=BLOCK_C, SUM_DTYPE=dtype,
    )  # fmt: skip
    grad_value = value_BSHC.new_empty(value_BSHC.shape)
    sum_cells[(S, H, B)](
        parts, piece_ends, grad_value, S, H, num_cells,
        LEVEL_SIZES=level_sizes, C=C, BLOCK_C=BLOCK_C, SUM_DTYPE=dtype,
    )  # fmt: skip
    return grad_value


@tuned(
    configs=[
        triton.Config({"TILE": tile}, num_warps=num_warps)
        for tile, num_warps in ((512, 2), (256, 1), (1024, 4))
    ],
    key=["C", "NUM_POINTS", "LEVEL_SIZES"],
)
@triton.jit
def sum_pieces(
    order_ptr,
    firsts_ptr,
    piece_ends_ptr,
    cell_of_piece_ptr,
    grad_ptr,
    locations_ptr,
    weights_ptr,
    parts_ptr,
    num_queries,
    num_heads,
    num_cells,
    num_cells_of_all,
    grad_strides,
    location_strides,
    weight_strides,
    LEVEL_SIZES: tl.constexpr,
    NUM_POINTS: tl.constexpr,
    PIECE: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """parts[piece, corner] = sum over its samples of weight * share of the corner * grad.

    Pointers: order: sample numbers, sorted by cell; firsts [cells + 1]: where a cell's run begins
    in it; piece_ends [cells]: how many pieces the cells up to this one have; cell_of_piece;
    parts [pieces, 4, C]; the others as in `differentiate`.
    """
    ROWS: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    SAMPLES: tl.constexpr = len(LEVEL_SIZES) // 2 * NUM_POINTS
    piece = tl.program_id(0).to(tl.int64)
    cell = tl.load(cell_of_piece_ptr + piece)
    if cell < num_cells_of_all:
        end = tl.load(firsts_ptr + cell + 1)
        first = tl.load(firsts_ptr + cell)
        pieces_to_come = tl.load(piece_ends_ptr + cell) - piece
        first += ((end - first + PIECE - 1) // PIECE - pieces_to_come) * PIECE
        end = tl.minimum(end, first + PIECE)

        owner = cell // num_cells
        clip, head = owner // num_heads, owner % num_heads
        level, rows, columns, _, first_cell = find_level(cell % num_cells, LEVEL_SIZES, 1)
        place = cell % num_cells - first_cell
        top = (place // (columns + 1) - 1).to(SUM_DTYPE)
        left = (place % (columns + 1) - 1).to(SUM_DTYPE)
        channel = tl.arange(0, BLOCK_C)[None, :]
        grad_ptr += clip * grad_strides[0] + (head * C + channel) * grad_strides[2]
        locations_ptr += clip * location_strides[0] + head * location_strides[2]
        locations_ptr += level * location_strides[3]
        weights_ptr += clip * weight_strides[0] + head * weight_strides[2]
        weights_ptr += level * weight_strides[3]

        top_left = tl.zeros([ROWS, BLOCK_C], SUM_DTYPE)
        top_right = tl.zeros([ROWS, BLOCK_C], SUM_DTYPE)
        bottom_left = tl.zeros([ROWS, BLOCK_C], SUM_DTYPE)
        bottom_right = tl.zeros([ROWS, BLOCK_C], SUM_DTYPE)
        for start in range(first, end, ROWS):
            at = start + tl.arange(0, ROWS)
            is_sample = at < end
            sample = tl.load(order_ptr + at, mask=is_sample, other=0)
            query = sample // (SAMPLES * num_heads) - clip * num_queries
            point = sample % NUM_POINTS
            xy = locations_ptr + query * location_strides[1] + point * location_strides[4]
            x = tl.load(xy, mask=is_sample, other=0.0).to(SUM_DTYPE)
            y = tl.load(xy + location_strides[5], mask=is_sample, other=0.0).to(SUM_DTYPE)
            weight = tl.load(
                weights_ptr + query * weight_strides[1] + point * weight_strides[4],
                mask=is_sample,
                other=0.0,
            ).to(SUM_DTYPE)
            grad = tl.load(
                grad_ptr + (query * grad_strides[1])[:, None],
                mask=is_sample[:, None] & (channel < C),
                other=0.0,
            ).to(SUM_DTYPE)
            # From the cell and not by rounding down again: both must mean the same pixels.
            right, down = x * columns - 0.5 - left, y * rows - 0.5 - top
            upper, lower = weight * (1 - down), weight * down
            top_left += (upper * (1 - right))[:, None] * grad
            top_right += (upper * right)[:, None] * grad
            bottom_left += (lower * (1 - right))[:, None] * grad
            bottom_right += (lower * right)[:, None] * grad
        part = parts_ptr + piece * 4 * C + tl.arange(0, BLOCK_C)
        is_channel = tl.arange(0, BLOCK_C) < C
        tl.store(part, tl.sum(top_left, 0), mask=is_channel)
        tl.store(part + C, tl.sum(top_right, 0), mask=is_channel)
        tl.store(part + 2 * C, tl.sum(bottom_left, 0), mask=is_channel)
        tl.store(part + 3 * C, tl.sum(bottom_right, 0), mask=is_channel)


@triton.jit
def sum_cells(
    parts_ptr,
    piece_ends_ptr,
    grad_value_ptr,
    num_places,
    num_heads,
    num_cells,
    LEVEL_SIZES: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
):
    """grad_value[b, s, h] = the share of pixel s in the pieces of the four cells around it.

    Pointers as in `sum_pieces`; grad_value [B, S, H, C], contiguous.
    """
    PIECES: tl.constexpr = 4
    place = tl.program_id(0)
    owner = tl.program_id(2).to(tl.int64) * num_heads + tl.program_id(1)
    _, _, columns, first_place, first_cell = find_level(place, LEVEL_SIZES, 0)
    row, column = (place - first_place) // columns, (place - first_place) % columns
    channel = tl.arange(0, BLOCK_C)[None, :]
    total = tl.zeros([PIECES, BLOCK_C], SUM_DTYPE)
    for corner in tl.static_range(4):
        # The pixel is this corner of the cell, whose number counts from one row and column before.
        lower: tl.constexpr = corner // 2
        righter: tl.constexpr = corner % 2
        cell = first_cell + (row + 1 - lower) * (columns + 1) + column + 1 - righter
        cell = owner * num_cells + cell
        first = tl.load(piece_ends_ptr + cell - 1, mask=cell > 0, other=0)
        end = tl.load(piece_ends_ptr + cell)
        for start in range(first, end, PIECES):
            piece = (start + tl.arange(0, PIECES))[:, None]
            total += tl.load(
                parts_ptr + (piece * 4 + corner) * C + channel,
                mask=(piece < end) & (channel < C),
                other=0.0,
            )
    clip_head = tl.program_id(2).to(tl.int64) * num_places + place
    at = (clip_head * num_heads + tl.program_id(1)) * C + tl.arange(0, BLOCK_C)
    tl.store(grad_value_ptr + at, tl.sum(total, 0), mask=tl.arange(0, BLOCK_C) < C)


@triton.jit
def find_level(number, LEVEL_SIZES: tl.constexpr, BORDER: tl.constexpr):
    """(level, its rows, its columns, its first number, its first cell).

    `number` counts the cells of all levels where BORDER is 1, and their pixels where it is 0.
    """
    level = 0
    rows = LEVEL_SIZES[0]
    columns = LEVEL_SIZES[1]
    first = 0
    first_cell = 0
    for later in tl.static_range(1, len(LEVEL_SIZES) // 2):
        end = first + (rows + BORDER) * (columns + BORDER)
        end_cell = first_cell + (rows + 1) * (columns + 1)
        is_later = (number >= end) & (level == later - 1)
        level = tl.where(is_later, later, level)
        rows = tl.where(is_later, LEVEL_SIZES[2 * later], rows)
        columns = tl.where(is_later, LEVEL_SIZES[2 * later + 1], columns)
        first = tl.where(is_later, end, first)
        first_cell = tl.where(is_later, end_cell, first_cell)
    return level, rows, columns, first, first_cell
