"""Video to network input: planar pictures as decoders make them -> RGB, resampled and normalised.

The plain-PyTorch function below is the specification; a backend's kernel is tested against it.
It knows nothing of clips, cameras or codecs: what a stream says of its colours comes as numbers.

Shape letters: K pictures, R rows of a packed picture, H W rows and columns of the stored picture,
C channels, h w rows and columns of the result, L anything that rides along.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

# How the chroma planes lie behind the H rows of brightness:
# i420: the whole of U, then the whole of V, each H/2 x W/2 without gaps; nv12: rows of U V pairs;
# H and W even. planar444: U and V are as large as Y. It also takes R, G and B as they are, with the
# identity for `to_rgb`.
YuvLayout = Literal["i420", "nv12", "planar444"]

# Share of red and of blue in the brightness (ITU-R BT.601 section 2.5.1, BT.709 section 3.2).
LUMA_SHARES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


def yuv_to_input(
    yuv_KRW: Tensor,
    window_K4: Tensor,
    chroma_site_K2: Tensor,
    to_rgb_K34: Tensor,
    colour_K34: Tensor,
    is_mirrored_K: Tensor,
    layout: YuvLayout,
    out_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Cut a window out of each picture, resample it, convert and change its colours, normalise.

    Both axes are resampled one after the other by a triangle filter as wide as an output pixel, or
    as an input pixel where the window is enlarged: what torch's `interpolate(mode="bilinear",
    antialias=True)` does. Pixels beside the window count as far as the filter reaches, those beside
    the picture do not. Chroma is resampled from its own resolution, where its samples really lie.
    Then, per pixel: RGB = to_rgb (Y, U, V, 1) clipped to 0..255; RGB = colour (R, G, B, 1)
    clipped again; mirrored if asked for; (RGB - mean) / std. Nothing is rounded in between.

    Args:
        yuv_KRW: uint8, R = H * 3/2, or H * 3 in planar444, packed as `layout` says.
        window_K4: (top, left, height, width) in pixels of the stored picture, integers at the edges
            of pixels; within the picture.
        chroma_site_K2: (down, right), where the first chroma sample lies, likewise: (1, 0.5) in
            MPEG-2 and, where nothing is said, in H.264; (1, 1) in JPEG and MPEG-1. Nothing in
            planar444, where all samples lie at the centres of pixels.
        to_rgb_K34: of bytes, see `rgb_from_yuv`.
        colour_K34: of grey levels 0..255.
        is_mirrored_K: bool, left to right.
        layout: of the chroma planes.
        out_size: (h, w).
        mean: of R, G and B in grey levels.
        std: likewise.
        dtype: of the result; computed in that of `window_K4`.

    Returns:
        [K, 3, h, w], channels_last in memory.
    """
    num_pictures, num_packed_rows, num_columns = yuv_KRW.shape
    num_rows = num_packed_rows // 3 if layout == "planar444" else num_packed_rows * 2 // 3
    half = (num_pictures, num_rows // 2, num_columns // 2)
    luma_KHCW = yuv_KRW[:, :num_rows, None]
    if layout == "planar444":
        packed = yuv_KRW[:, num_rows:].reshape(num_pictures, 2, num_rows, num_columns)
        chroma_KHCW = packed.transpose(1, 2)
    elif layout == "i420":
        packed = yuv_KRW[:, num_rows:].reshape(num_pictures, 2, *half[1:])
        chroma_KHCW = packed.transpose(1, 2)
    else:
        chroma_KHCW = yuv_KRW[:, num_rows:].reshape(*half, 2).transpose(2, 3)

    start_K2, length_K2 = window_K4[:, :2], window_K4[:, 2:]
    chroma_start_K2, chroma_length_K2 = start_K2, length_K2
    if layout != "planar444":
        # Chroma sample i has its centre at i + 0.5 of its own plane.
        chroma_start_K2 = (start_K2 - chroma_site_K2) / 2 + 0.5
        chroma_length_K2 = length_K2 / 2
    yuv_K3hw = torch.cat(
        [
            _resample(luma_KHCW, start_K2, length_K2, out_size),
            _resample(chroma_KHCW, chroma_start_K2, chroma_length_K2, out_size),
        ],
        1,
    )
    rgb_K3hw = _change_colours(to_rgb_K34, yuv_K3hw).clamp(0, 255)
    rgb_K3hw = _change_colours(colour_K34, rgb_K3hw).clamp(0, 255)
    rgb_K3hw = torch.where(is_mirrored_K[:, None, None, None], rgb_K3hw.flip(3), rgb_K3hw)
    input_K3hw = torch.stack([(rgb_K3hw[:, i] - mean[i]) / std[i] for i in range(3)], 1)
    return input_K3hw.to(dtype, memory_format=torch.channels_last)


def rgb_from_yuv(matrix: str, *, is_full_range: bool) -> tuple[tuple[float, ...], ...]:
    """[3, 4]: (Y, U, V, 1) in bytes -> R, G, B in grey levels 0..255.

    Args:
        matrix: "bt601" or "bt709".
        is_full_range: whether black and white are 0 and 255; otherwise 16 and 235, and chroma
            reaches from 16 to 240.
    """
    red, blue = LUMA_SHARES[matrix]
    green = 1 - red - blue
    luma_zero, luma_scale = (0, 1.0) if is_full_range else (16, 255 / 219)
    chroma_scale = 1.0 if is_full_range else 255 / 224
    # For U and V in -0.5..0.5: B - Y = 2 (1 - blue) U, R - Y = 2 (1 - red) V, and Y is the weighted
    # mean of the three.
    u_to_blue, v_to_red = 2 * (1 - blue) * chroma_scale, 2 * (1 - red) * chroma_scale
    u_to_green, v_to_green = -u_to_blue * blue / green, -v_to_red * red / green
    rows = ((0.0, v_to_red), (u_to_green, v_to_green), (u_to_blue, 0.0))
    return tuple((luma_scale, u, v, -luma_scale * luma_zero - 128 * (u + v)) for u, v in rows)


def _resample(
    planes_KHCW: Tensor, start_K2: Tensor, length_K2: Tensor, out_size: tuple[int, int]
) -> Tensor:
    """[K, C, h, w]: windows of [K, H, C, W], rows first."""
    K, _, C, W = planes_KHCW.shape
    h, w = out_size
    rows = _resample_rows(planes_KHCW.flatten(2), start_K2[:, 0], length_K2[:, 0], h)
    columns_KWCh = rows.reshape(K, h, C, W).permute(0, 3, 2, 1)
    columns = _resample_rows(columns_KWCh.flatten(2), start_K2[:, 1], length_K2[:, 1], w)
    return columns.reshape(K, w, C, h).permute(0, 2, 3, 1)


def _resample_rows(values_KHL: Tensor, start_K: Tensor, length_K: Tensor, num_out: int) -> Tensor:
    """[K, h, L]: each row a weighted mean of rows within the filter's reach."""
    num_pictures, num_rows, num_along = values_KHL.shape
    step_K1 = (length_K / num_out)[:, None]
    number_h = torch.arange(num_out, device=start_K.device, dtype=start_K.dtype)
    centre_Kh = start_K[:, None] + (number_h + 0.5) * step_K1
    reach_K1 = step_K1.clamp(min=1)
    first_Kh = (centre_Kh - reach_K1 + 0.5).floor()
    # The difference first: backends that round values leave places alone, but not their sums.
    from_centre_Kh = first_Kh - centre_Kh + 0.5
    first_row_K1 = torch.arange(num_pictures, device=start_K.device)[:, None] * num_rows
    rows = values_KHL.reshape(num_pictures * num_rows, num_along)
    total = torch.zeros(num_pictures, num_out, 1, device=start_K.device, dtype=start_K.dtype)
    weighted = total.expand(-1, -1, num_along)
    # No window is larger than the picture: that many rows lie within the filter's reach at most.
    for tap in range(math.ceil(2 * max(1.0, num_rows / num_out))):
        index_Kh = first_Kh + tap
        distance_Kh = (from_centre_Kh + tap).abs()
        is_inside = (index_Kh >= 0) & (index_Kh < num_rows)
        weight_Kh1 = ((1 - distance_Kh / reach_K1).clamp(min=0) * is_inside)[..., None]
        chosen = first_row_K1 + index_Kh.clamp(0, num_rows - 1).long()
        picked = rows.index_select(0, chosen.flatten()).view(num_pictures, num_out, num_along)
        weighted = weighted + weight_Kh1 * picked
        total = total + weight_Kh1
    return weighted / total


def _change_colours(change_K34: Tensor, colours_K3hw: Tensor) -> Tensor:
    # Element by element: a matrix product may run in a lower precision.
    change = change_K34[..., None, None]
    first, second, third = colours_K3hw[:, None, :].unbind(2)
    return (
        change[:, :, 0] * first
        + change[:, :, 1] * second
        + change[:, :, 2] * third
        + change[:, :, 3]
    )
