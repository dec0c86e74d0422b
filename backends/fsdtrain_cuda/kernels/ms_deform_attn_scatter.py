"""The gradient of the values of `ms_deform_attn` without atomics: the same bits every time.

Samples are sorted by the cell they lie in: the square between four pixels of a map, of which one
with h rows and w columns has (h + 1) * (w + 1), since samples up to a pixel outside count. A cell's
run of samples is cut into pieces of at most PIECE, so that crowded cells keep no one waiting; a
program owns some pieces and reads the gradient of each of their samples once for all four pixels.
Then a program owns some pixels and adds up the pieces of the four cells around each, in order.

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

PIECE = 128
CONFIGS = [
    triton.Config({"TILE": tile}, num_warps=num_warps)
    for tile, num_warps in ((256, 1), (512, 2), (1024, 4), (128, 1))
]


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

    def grid_of_pieces(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(most_pieces, max(meta["TILE"] // BLOCK_C, 1)),)

    sum_pieces[grid_of_pieces](
        order, firsts, piece_ends, cell_of_piece, grad_BQE, locations_BQHLP2, weights_BQHLP, parts,
        Q, H, num_cells, B * H * num_cells, most_pieces,
        grad_BQE.stride(), locations_BQHLP2.stride(), weights_BQHLP.stride(),
        LEVEL_SIZES=level_sizes, NUM_POINTS=P, PIECE=PIECE,
        C=C, BLOCK_C=BLOCK_C, SUM_DTYPE=dtype,
    )  # fmt: skip
    grad_value = value_BSHC.new_empty(value_BSHC.shape)

    def grid_of_places(meta: dict[str, int]) -> tuple[int, int, int]:
        return triton.cdiv(S, max(meta["TILE"] // BLOCK_C, 1)), H, B

    sum_cells[grid_of_places](
        parts, piece_ends, grad_value, S, H, num_cells,
        LEVEL_SIZES=level_sizes, C=C, BLOCK_C=BLOCK_C, SUM_DTYPE=dtype,
    )  # fmt: skip
    return grad_value


@tuned(configs=CONFIGS, key=["num_cells_of_all", "C", "NUM_POINTS", "LEVEL_SIZES"])
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
    most_pieces,
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
    in it; piece_ends [cells]: how many pieces the cells up to this one have; cell_of_piece
    [most pieces]; parts [most pieces, 4, C]; the others as in `differentiate`.
    """
    ROWS: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    SAMPLES: tl.constexpr = len(LEVEL_SIZES) // 2 * NUM_POINTS
    piece = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cell = tl.load(cell_of_piece_ptr + piece, mask=piece < most_pieces, other=num_cells_of_all)
    is_piece = cell < num_cells_of_all
    first = tl.load(firsts_ptr + cell, mask=is_piece, other=0)
    end = tl.load(firsts_ptr + cell + 1, mask=is_piece, other=0)
    num_later = tl.load(piece_ends_ptr + cell, mask=is_piece, other=0) - piece
    first += ((end - first + PIECE - 1) // PIECE - num_later) * PIECE
    num_samples = tl.where(is_piece, tl.minimum(end - first, PIECE), 0)

    owner = cell // num_cells
    clip, head = owner // num_heads, owner % num_heads
    level, rows, columns, _, first_cell = find_level(cell % num_cells, LEVEL_SIZES, 1)
    cell_of_level = cell % num_cells - first_cell
    top = (cell_of_level // (columns + 1) - 1).to(SUM_DTYPE)
    left = (cell_of_level % (columns + 1) - 1).to(SUM_DTYPE)
    channel = tl.arange(0, BLOCK_C)[None, :]
    is_channel = channel < C
    grads = (clip * grad_strides[0] + head * C * grad_strides[2])[:, None]
    grads += channel * grad_strides[2]
    locations = clip * location_strides[0] + head * location_strides[2]
    locations += level * location_strides[3]
    weights = clip * weight_strides[0] + head * weight_strides[2] + level * weight_strides[3]

    top_left = tl.zeros([ROWS, BLOCK_C], SUM_DTYPE)
    top_right = tl.zeros([ROWS, BLOCK_C], SUM_DTYPE)
    bottom_left = tl.zeros([ROWS, BLOCK_C], SUM_DTYPE)
    bottom_right = tl.zeros([ROWS, BLOCK_C], SUM_DTYPE)
    for nth in range(tl.max(num_samples).to(tl.int32)):
        is_sample = nth < num_samples
        sample = tl.load(order_ptr + first + nth, mask=is_sample, other=0)
        query = sample // (SAMPLES * num_heads) - clip * num_queries
        point = sample % NUM_POINTS
        xy = locations_ptr + locations + query * location_strides[1] + point * location_strides[4]
        x = tl.load(xy, mask=is_sample, other=0.0).to(SUM_DTYPE)
        y = tl.load(xy + location_strides[5], mask=is_sample, other=0.0).to(SUM_DTYPE)
        weight = tl.load(
            weights_ptr + weights + query * weight_strides[1] + point * weight_strides[4],
            mask=is_sample,
            other=0.0,
        ).to(SUM_DTYPE)
        grad = tl.load(
            grad_ptr + grads + (query * grad_strides[1])[:, None],
            mask=is_sample[:, None] & is_channel,
            other=0.0,
        ).to(SUM_DTYPE)
        # From the cell and not by rounding down again: both must mean the same pixels.
        right, down = x * columns - 0.5 - left, y * rows - 0.5 - top
        upper, lower = weight * (1 - down), weight * down
        top_left += (upper * (1 - right))[:, None] * grad
        top_right += (upper * right)[:, None] * grad
        bottom_left += (lower * (1 - right))[:, None] * grad
        bottom_right += (lower * right)[:, None] * grad
    part = parts_ptr + (piece * 4 * C)[:, None] + channel
    is_part = is_piece[:, None] & is_channel
    tl.store(part, top_left, mask=is_part)
    tl.store(part + C, top_right, mask=is_part)
    tl.store(part + 2 * C, bottom_left, mask=is_part)
    tl.store(part + 3 * C, bottom_right, mask=is_part)


@tuned(configs=CONFIGS, key=["num_places", "C", "LEVEL_SIZES"])
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
    TILE: tl.constexpr,
):
    """grad_value[b, s, h] = the share of pixel s in the pieces of the four cells around it.

    Pointers as in `sum_pieces`; grad_value [B, S, H, C], contiguous.
    """
    ROWS: tl.constexpr = TILE // BLOCK_C if TILE > BLOCK_C else 1
    clip, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_place = place < num_places
    _, _, columns, first_place, first_cell = find_level(place, LEVEL_SIZES, 0)
    row, column = (place - first_place) // columns, (place - first_place) % columns
    channel = tl.arange(0, BLOCK_C)[None, :]
    is_channel = channel < C
    total = tl.zeros([ROWS, BLOCK_C], SUM_DTYPE)
    for corner in tl.static_range(4):
        # The pixel is this corner of the cell, whose number counts from one row and column before.
        lower = corner // 2
        righter = corner % 2
        cell = first_cell + (row + 1 - lower) * (columns + 1) + column + 1 - righter
        cell = (clip * num_heads + head) * num_cells + cell
        first = tl.load(piece_ends_ptr + cell - 1, mask=is_place & (cell > 0), other=0)
        num_pieces = tl.load(piece_ends_ptr + cell, mask=is_place, other=0) - first
        for nth in range(tl.max(num_pieces).to(tl.int32)):
            total += tl.load(
                parts_ptr + (((first + nth) * 4 + corner) * C)[:, None] + channel,
                mask=(nth < num_pieces)[:, None] & is_channel,
                other=0.0,
            )
    at = ((clip * num_places + place) * num_heads + head) * C
    tl.store(grad_value_ptr + at[:, None] + channel, total, mask=is_place[:, None] & is_channel)


@triton.jit
def find_level(number, LEVEL_SIZES: tl.constexpr, BORDER: tl.constexpr):
    """(level, its rows, its columns, its first number, its first cell), of many numbers.

    `number` counts the cells of all levels where BORDER is 1, and their pixels where it is 0.
    """
    level = tl.zeros_like(number).to(tl.int32)
    rows = level + LEVEL_SIZES[0]
    columns = level + LEVEL_SIZES[1]
    first = level
    first_cell = level
    end = (LEVEL_SIZES[0] + BORDER) * (LEVEL_SIZES[1] + BORDER)
    end_cell = (LEVEL_SIZES[0] + 1) * (LEVEL_SIZES[1] + 1)
    for later in tl.static_range(1, len(LEVEL_SIZES) // 2):
        is_later = number >= end
        level = tl.where(is_later, later, level)
        rows = tl.where(is_later, LEVEL_SIZES[2 * later], rows)
        columns = tl.where(is_later, LEVEL_SIZES[2 * later + 1], columns)
        first = tl.where(is_later, end, first)
        first_cell = tl.where(is_later, end_cell, first_cell)
        end += (LEVEL_SIZES[2 * later] + BORDER) * (LEVEL_SIZES[2 * later + 1] + BORDER)
        end_cell += (LEVEL_SIZES[2 * later] + 1) * (LEVEL_SIZES[2 * later + 1] + 1)
    return level, rows, columns, first, first_cell
