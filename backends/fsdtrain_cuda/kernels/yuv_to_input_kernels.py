"""The Triton kernel of yuv_to_input; launched by yuv_to_input.py.

Shape letters: h w rows and columns of a tile of the result, R C those of a block of the picture.
"""

import triton
import triton.language as tl

from fsdtrain_cuda.tuning import tuned

# Filter weights meet bytes in matrix products, columns first: along a row the bytes of a product
# lie side by side. Bytes less 128 are exact in half precision, and the weights are divided by their
# rounded sum: a constant picture stays constant.
# Where a window shrinks to a third, 32 columns lie above less than 128 bytes: their weights are
# made once, and the loop over rows loads blocks without a gap.
# 128 registers a thread leave room for 16 warps on a processor, with whose loads to wait.
_CONFIGS = [
    triton.Config(
        {"BLOCK_h": tall, "BLOCK_w": wide, "BLOCK_R": rows, "BLOCK_C": columns},
        num_warps=warps,
        num_stages=stages,
        maxnreg=registers,
    )
    for tall, wide, rows, columns, warps, stages, registers in (
        (16, 32, 32, 128, 4, 4, 128),
        (16, 32, 32, 128, 4, 3, 168),
        (32, 64, 32, 128, 8, 3, 128),
        (32, 64, 32, 128, 8, 4, None),
        (32, 32, 32, 128, 4, 3, None),
        (64, 32, 32, 128, 8, 3, None),
        (32, 64, 32, 64, 4, 3, None),
        (32, 16, 32, 64, 4, 4, 128),
    )
]


@triton.jit
def weigh(place, centre, inverse_reach, num_places, PRODUCT: tl.constexpr):
    """Triangle filter: weights of the samples at `place`, of which there are `num_places`."""
    distance = tl.abs(place.to(tl.float32) + 0.5 - centre)
    weight = tl.maximum(1.0 - distance * inverse_reach, 0.0)
    return tl.where(place < num_places, weight, 0.0).to(PRODUCT)


@triton.jit
def load_block(pointers, is_inside, PRODUCT: tl.constexpr):
    """Bytes less 128; 0 beyond the plane."""
    block = tl.load(pointers, mask=is_inside, other=128)
    if PRODUCT == tl.float16:  # noqa: SIM300 - not a constant to Python
        # 1024 + byte, by its bits: units turn integers into floats at a quarter of the rate.
        return (block.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1152.0
    return block.to(PRODUCT) - 128.0


@triton.jit
def load_chroma(
    picture, row_stride, chroma_row, row_R, first_column, num_rows, num_columns,
    PLANE: tl.constexpr, PRODUCT: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Blocks [R, C] of U and V."""
    is_row = (row_R < num_rows)[:, None]
    if PLANE == "nv12":
        offset_R = (chroma_row + row_R).to(tl.int64) * row_stride
        byte = 2 * first_column + tl.arange(0, 2 * BLOCK_C)
        pairs = load_block(
            picture + offset_R[:, None] + byte[None, :],
            is_row & (byte < 2 * num_columns)[None, :],
            PRODUCT,
        )
        u, v = tl.split(pairs.reshape(pairs.shape[0], BLOCK_C, 2))
    elif PLANE == "planar444":
        column_C = first_column + tl.arange(0, BLOCK_C)
        is_inside = is_row & (column_C < num_columns)[None, :]
        u_offset_R = (chroma_row + row_R).to(tl.int64) * row_stride
        v_offset_R = (chroma_row + num_rows + row_R).to(tl.int64) * row_stride
        u = load_block(picture + u_offset_R[:, None] + column_C[None, :], is_inside, PRODUCT)
        v = load_block(picture + v_offset_R[:, None] + column_C[None, :], is_inside, PRODUCT)
    else:
        # Two rows of a plane stand in one packed row; V follows U, maybe in mid-row.
        column_C = first_column + tl.arange(0, BLOCK_C)
        is_inside = is_row & (column_C < num_columns)[None, :]
        u_offset_R = (chroma_row + row_R // 2).to(tl.int64) * row_stride
        u_offset_R += row_R % 2 * num_columns
        v_row_R = num_rows + row_R
        v_offset_R = (chroma_row + v_row_R // 2).to(tl.int64) * row_stride
        v_offset_R += v_row_R % 2 * num_columns
        u = load_block(picture + u_offset_R[:, None] + column_C[None, :], is_inside, PRODUCT)
        v = load_block(picture + v_offset_R[:, None] + column_C[None, :], is_inside, PRODUCT)
    return u, v


@triton.jit
def resample(
    picture, row_stride, num_rows, num_columns, chroma_row,
    centre_h, step_h, first_centre_h, last_centre_h,
    centre_w, step_w, first_centre_w, last_centre_w,
    PLANE: tl.constexpr, PRECISION: tl.constexpr, PRODUCT: tl.constexpr,
    BLOCK_h: tl.constexpr, BLOCK_w: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile [h, w] of the plane "luma", twice, or of both planes of chroma in a layout.

    tile = sum over blocks within reach of weights_hR (block_RC weights_Cw / sums_w), / sums_h.
    `num_rows` and `num_columns` are those of the plane, `chroma_row` is where chroma begins.
    """
    reach_h, reach_w = tl.maximum(step_h, 1.0), tl.maximum(step_w, 1.0)
    inverse_h, inverse_w = 1.0 / reach_h, 1.0 / reach_w
    low_row = tl.maximum(tl.floor(first_centre_h - reach_h).to(tl.int32), 0)
    high_row = tl.minimum(tl.floor(last_centre_h + reach_h).to(tl.int32) + 1, num_rows)
    low_column = tl.maximum(tl.floor(first_centre_w - reach_w).to(tl.int32), 0)
    low_column = low_column // 16 * 16  # 16 bytes a thread in one load
    high_column = tl.minimum(tl.floor(last_centre_w + reach_w).to(tl.int32) + 1, num_columns)

    sum_w = tl.zeros((BLOCK_w,), tl.float32)
    for first_column in range(low_column, high_column, BLOCK_C):
        column_C = first_column + tl.arange(0, BLOCK_C)
        weight_Cw = weigh(column_C[:, None], centre_w[None, :], inverse_w, num_columns, PRODUCT)
        sum_w += tl.sum(weight_Cw.to(tl.float32), 0)
    inverse_sum_w = 1.0 / sum_w[None, :]

    total_hR = tl.zeros((BLOCK_h, BLOCK_R), tl.float32)
    tile = tl.zeros((BLOCK_h, BLOCK_w), tl.float32)
    other_tile = tl.zeros((BLOCK_h, BLOCK_w), tl.float32)
    for first_column in range(low_column, high_column, BLOCK_C):
        first_column = tl.multiple_of(first_column, 16)
        column_C = first_column + tl.arange(0, BLOCK_C)
        weight_Cw = weigh(column_C[:, None], centre_w[None, :], inverse_w, num_columns, PRODUCT)
        total_hR = tl.zeros((BLOCK_h, BLOCK_R), tl.float32)
        for first_row in range(low_row, high_row, BLOCK_R):
            row_R = first_row + tl.arange(0, BLOCK_R)
            weight_hR = weigh(row_R[None, :], centre_h[:, None], inverse_h, num_rows, PRODUCT)
            total_hR += weight_hR.to(tl.float32)
            if PLANE == "luma":
                is_inside = (row_R < num_rows)[:, None] & (column_C < num_columns)[None, :]
                offset_R = row_R.to(tl.int64) * row_stride
                block = load_block(
                    picture + offset_R[:, None] + column_C[None, :], is_inside, PRODUCT
                )
            else:
                block, other_block = load_chroma(
                    picture, row_stride, chroma_row, row_R, first_column, num_rows, num_columns,
                    PLANE, PRODUCT, BLOCK_C,
                )  # fmt: skip
                other_Rw = tl.dot(other_block, weight_Cw, input_precision=PRECISION)
                other_Rw = (other_Rw * inverse_sum_w).to(PRODUCT)
                other_tile = tl.dot(weight_hR, other_Rw, other_tile, input_precision=PRECISION)
            strip_Rw = tl.dot(block, weight_Cw, input_precision=PRECISION)
            strip_Rw = (strip_Rw * inverse_sum_w).to(PRODUCT)
            tile = tl.dot(weight_hR, strip_Rw, tile, input_precision=PRECISION)
    inverse_sum_h = 1.0 / tl.sum(total_hR, 1)[:, None]
    return tile * inverse_sum_h + 128.0, other_tile * inverse_sum_h + 128.0


@triton.jit
def change(row, first, second, third):
    """One row of a [3, 4] change of colours, clipped to grey levels."""
    mixed = tl.load(row) * first + tl.load(row + 1) * second + tl.load(row + 2) * third
    return tl.minimum(tl.maximum(mixed + tl.load(row + 3), 0.0), 255.0)


@tuned(configs=_CONFIGS, key=["num_rows", "num_columns", "h", "w", "LAYOUT"])
@triton.jit
def sample(
    yuv, windows, sites, to_rgb, colours, mirrors, result,
    picture_stride, row_stride, num_rows, num_columns, chroma_rows, chroma_columns, h, w,
    mean_r, mean_g, mean_b, scale_r, scale_g, scale_b,
    LAYOUT: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_h: tl.constexpr, BLOCK_w: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile [h, w] of one picture's result, from one reading of what lies below it.

    yuv [K, R, W] bytes; windows [K, 4], sites [K, 2], to_rgb [K, 3, 4], colours [K, 3, 4] float32;
    mirrors [K] bytes; scales are 1 / std; result [K, h, w, 3]. The formula is that of
    fsdtrain/ops/yuv_to_input.py.
    """
    tiles_w, tiles_h = tl.cdiv(w, BLOCK_w), tl.cdiv(h, BLOCK_h)
    program = tl.program_id(0)
    k = (program // (tiles_w * tiles_h)).to(tl.int64)
    first_h = program // tiles_w % tiles_h * BLOCK_h
    first_w = program % tiles_w * BLOCK_w
    last_h, last_w = tl.minimum(first_h + BLOCK_h, h) - 1, tl.minimum(first_w + BLOCK_w, w) - 1
    row_h, column_w = first_h + tl.arange(0, BLOCK_h), first_w + tl.arange(0, BLOCK_w)

    top, left = tl.load(windows + k * 4), tl.load(windows + k * 4 + 1)
    step_h, step_w = tl.load(windows + k * 4 + 2) / h, tl.load(windows + k * 4 + 3) / w
    is_mirrored = tl.load(mirrors + k) != 0
    # Rows and columns beyond the result repeat its last ones, and are not stored.
    source_w = tl.minimum(column_w, w - 1)
    source_w = tl.where(is_mirrored, w - 1 - source_w, source_w)
    low_w = tl.where(is_mirrored, w - 1 - last_w, first_w)
    high_w = tl.where(is_mirrored, w - 1 - first_w, last_w)
    centre_h = top + (tl.minimum(row_h, h - 1).to(tl.float32) + 0.5) * step_h
    centre_w = left + (source_w.to(tl.float32) + 0.5) * step_w
    first_centre_h, last_centre_h = top + (first_h + 0.5) * step_h, top + (last_h + 0.5) * step_h
    first_centre_w, last_centre_w = left + (low_w + 0.5) * step_w, left + (high_w + 0.5) * step_w

    picture = yuv + k * picture_stride
    luma, _ = resample(
        picture, row_stride, num_rows, num_columns, 0,
        centre_h, step_h, first_centre_h, last_centre_h,
        centre_w, step_w, first_centre_w, last_centre_w,
        "luma", PRECISION, PRODUCT, BLOCK_h, BLOCK_w, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    if LAYOUT == "planar444":
        u, v = resample(
            picture, row_stride, chroma_rows, chroma_columns, num_rows,
            centre_h, step_h, first_centre_h, last_centre_h,
            centre_w, step_w, first_centre_w, last_centre_w,
            LAYOUT, PRECISION, PRODUCT, BLOCK_h, BLOCK_w, BLOCK_R, BLOCK_C // 2,
        )  # fmt: skip
    else:
        # Chroma sample i has its centre at i + 0.5 of its own plane.
        down = 0.5 - 0.5 * tl.load(sites + k * 2)
        right = 0.5 - 0.5 * tl.load(sites + k * 2 + 1)
        u, v = resample(
            picture, row_stride, chroma_rows, chroma_columns, num_rows,
            0.5 * centre_h + down, 0.5 * step_h,
            0.5 * first_centre_h + down, 0.5 * last_centre_h + down,
            0.5 * centre_w + right, 0.5 * step_w,
            0.5 * first_centre_w + right, 0.5 * last_centre_w + right,
            LAYOUT, PRECISION, PRODUCT, BLOCK_h, BLOCK_w, BLOCK_R, BLOCK_C // 2,
        )  # fmt: skip

    to_rgb += k * 12
    colours += k * 12
    r, g, b = (
        change(to_rgb, luma, u, v),
        change(to_rgb + 4, luma, u, v),
        change(to_rgb + 8, luma, u, v),
    )
    red = (change(colours, r, g, b) - mean_r) * scale_r
    green = (change(colours + 4, r, g, b) - mean_g) * scale_g
    blue = (change(colours + 8, r, g, b) - mean_b) * scale_b
    pixel = result + k * h * w * 3 + (row_h[:, None] * w + column_w[None, :]) * 3
    is_inside = (row_h < h)[:, None] & (column_w < w)[None, :]
    tl.store(pixel, red.to(result.dtype.element_ty), mask=is_inside)
    tl.store(pixel + 1, green.to(result.dtype.element_ty), mask=is_inside)
    tl.store(pixel + 2, blue.to(result.dtype.element_ty), mask=is_inside)
