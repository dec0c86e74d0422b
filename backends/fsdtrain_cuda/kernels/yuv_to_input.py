"""yuv_to_input on a GPU: window, resampling, colours and normalisation in one launch.

A program owns a tile of one picture's result. Rows, then columns are resampled as matrix products
of filter weights and bytes, on tensor cores: the filter reaches over a few dozen bytes a pixel,
more than the other units could multiply while memory delivers the next ones. Results of 16 bits are
computed with weights of half precision and sums of float32, those of float32 throughout.

Shape letters: those of fsdtrain/ops/yuv_to_input.py.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain.ops.yuv_to_input import YuvLayout
from fsdtrain_cuda.checks import check_once
from fsdtrain_cuda.kernels import yuv_to_input_kernels as kernels
from fsdtrain_cuda.kernels.arguments import (
    DEVICE_TYPES,
    MAX_INT32,
    check_device,
    check_dtype,
    check_shape,
)

OP = "yuv_to_input"
LAYOUTS = ("i420", "nv12", "planar444")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_EDGE = 2**15 - 1
SLACK = 1e-3  # of a pixel, by which a window may stick out of the picture for rounding's sake


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
    """As fsdtrain.ops.yuv_to_input, which see; pictures and their rows may have any stride.

    Raises:
        BackendError: shapes, dtypes or devices that do not fit, a window outside the picture, NaN,
            a gradient asked for.
    """
    numbers = {
        "window": (window_K4, (4,)),
        "chroma_site": (chroma_site_K2, (2,)),
        "to_rgb": (to_rgb_K34, (3, 4)),
        "colour": (colour_K34, (3, 4)),
    }
    _check_pictures(yuv_KRW, is_mirrored_K, layout)
    for name, (tensor, shape) in numbers.items():
        check_shape(OP, name, tensor, (len(yuv_KRW), *shape))
        check_dtype(OP, name, tensor, (torch.float32,))
        if tensor.requires_grad and torch.is_grad_enabled():
            raise BackendError(f"{OP}: there are no gradients, but {name} asks for one")
    tensors = {name: tensor for name, (tensor, _) in numbers.items()}
    check_device(OP, yuv=yuv_KRW, is_mirrored=is_mirrored_K, **tensors)
    _check_result(out_size, mean, std, dtype)
    size = (_num_rows(yuv_KRW, layout), yuv_KRW.shape[2])
    check_once((OP, yuv_KRW.shape, layout, yuv_KRW.device), lambda: _check_values(size, tensors))
    made: Tensor = torch.ops.fsdtrain.yuv_to_input(
        yuv_KRW, window_K4, chroma_site_K2, to_rgb_K34, colour_K34, is_mirrored_K,
        layout, *out_size, list(map(float, mean)), list(map(float, std)), dtype,
    )  # fmt: skip
    return made


def min_bytes(window_K4: Tensor, out_size: tuple[int, int], dtype: torch.dtype) -> int:
    """What must move of 4:2:0: 1.5 bytes a pixel of each window, and the result once."""
    read = 1.5 * float((window_K4[:, 2] * window_K4[:, 3]).double().sum())
    return round(read) + len(window_K4) * 3 * out_size[0] * out_size[1] * dtype.itemsize


def _num_rows(yuv: Tensor, layout: str) -> int:
    return yuv.shape[1] // 3 if layout == "planar444" else yuv.shape[1] * 2 // 3


def _check_pictures(yuv: Tensor, is_mirrored: Tensor, layout: str) -> None:
    check_dtype(OP, "yuv", yuv, (torch.uint8,))
    shape = tuple(yuv.shape)
    is_shape = yuv.ndim == 3 and 0 not in shape[1:] and shape[1] % 3 == 0
    if layout not in LAYOUTS or not is_shape or (layout != "planar444" and shape[2] % 2):
        raise BackendError(
            f"{OP}: yuv of shape {shape} in layout {layout!r} must be [pictures, 3/2 of an even "
            f"height, an even width] in one of {', '.join(LAYOUTS[:2])}, or [pictures, 3 heights, "
            f"a width] in {LAYOUTS[2]}"
        )
    if yuv.stride(2) != 1:
        raise BackendError(
            f"{OP}: the bytes of a row of yuv must lie side by side, not {yuv.stride(2)} apart "
            f"(shape {shape}, strides {yuv.stride()})"
        )
    if max(shape[1:]) > MAX_EDGE:
        raise BackendError(f"{OP}: yuv of shape {shape}: at most {MAX_EDGE} rows and columns")
    check_shape(OP, "is_mirrored", is_mirrored, shape[:1])
    check_dtype(OP, "is_mirrored", is_mirrored, (torch.bool,))


def _check_result(
    out_size: tuple[int, int], mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> None:
    is_size = (
        1 <= min(out_size) <= max(out_size) <= MAX_EDGE and 3 * math.prod(out_size) < MAX_INT32
    )
    if not is_size or len(mean) != 3 or len(std) != 3 or 0 in std or dtype not in DTYPES:
        raise BackendError(
            f"{OP}: out_size={tuple(out_size)}, mean={tuple(mean)}, std={tuple(std)}, "
            f"dtype={dtype}; allowed are 1 to {MAX_EDGE} rows and columns, less than "
            f"{MAX_INT32} values in all, three values each, none of std 0, and bfloat16, float16 "
            "or float32"
        )


def _check_values(size: tuple[int, int], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        is_bad = ~tensor.flatten(1).isfinite().all(1)
        if bool(is_bad.any()):
            (number, *_) = is_bad.nonzero().flatten().tolist()
            raise BackendError(f"{OP}: {name} of picture {number} has NaN or infinity")
    start, length = tensors["window"].double().split(2, 1)
    end = torch.tensor(size, dtype=torch.float64, device=start.device)
    is_bad = ((start < -SLACK) | (length <= 0) | (start + length > end + SLACK)).any(1)
    if bool(is_bad.any()):
        (number, *_) = is_bad.nonzero().flatten().tolist()
        window = tuple(tensors["window"][number].tolist())
        raise BackendError(
            f"{OP}: window (top, left, height, width) {window} of picture {number} is not within "
            f"its {size[0]} x {size[1]} pixels"
        )


@torch.library.custom_op("fsdtrain::yuv_to_input", mutates_args=(), device_types=DEVICE_TYPES)
def _forward(
    yuv: Tensor,
    window: Tensor,
    chroma_site: Tensor,
    to_rgb: Tensor,
    colour: Tensor,
    is_mirrored: Tensor,
    layout: str,
    out_height: int,
    out_width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    result = _empty(yuv, out_height, out_width, dtype)
    num_pictures, _, num_columns = yuv.shape
    num_rows = _num_rows(yuv, layout)
    halving = 1 if layout == "planar444" else 2
    if num_pictures == 0:
        return result

    def launch_shape(meta: dict[str, Any]) -> tuple[int]:
        tiles = triton.cdiv(out_height, meta["BLOCK_h"]) * triton.cdiv(out_width, meta["BLOCK_w"])
        if tiles * num_pictures > MAX_INT32:
            raise BackendError(
                f"{OP}: {num_pictures} results of {out_height} x {out_width} pixels are more than "
                "one launch takes; take fewer clips"
            )
        return (tiles * num_pictures,)

    is_exact = dtype == torch.float32
    kernels.sample[launch_shape](
        yuv, window.contiguous(), chroma_site.contiguous(), to_rgb.contiguous(),
        colour.contiguous(), is_mirrored.contiguous().view(torch.uint8), result,
        yuv.stride(0), yuv.stride(1),
        num_rows, num_columns, num_rows // halving, num_columns // halving,
        out_height, out_width, *mean, *(1 / value for value in std),
        LAYOUT=layout, PRODUCT=tl.float32 if is_exact else tl.float16,
        PRECISION="ieee" if is_exact else "tf32",
    )  # fmt: skip
    return result


@_forward.register_fake
def _(
    yuv: Tensor,
    window: Tensor,
    chroma_site: Tensor,
    to_rgb: Tensor,
    colour: Tensor,
    is_mirrored: Tensor,
    layout: str,
    out_height: int,
    out_width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    return _empty(yuv, out_height, out_width, dtype)


def _empty(yuv: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    result = yuv.new_empty(len(yuv), height, width, 3, dtype=dtype)
    return result.permute(0, 3, 1, 2)
