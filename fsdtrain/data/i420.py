"""Decoded pictures as they are: 8-bit YUV 4:2:0 in planes, and what makes colours of them.

It knows neither streams nor clips.
"""

from typing import NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from fsdtrain.errors import DataError
from fsdtrain.ops.yuv_to_input import rgb_from_yuv

# What a stream says (H.264 table E-5, matrix_coefficients 1, 2: unspecified, 5, 6).
_MATRICES = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601"}


class StoredPictures(NamedTuple):
    """What a decoder makes, and what must be known to make colours of it."""

    planes_TRW: NDArray[np.uint8]  # R = H * 3/2: "i420" of fsdtrain/ops/yuv_to_input.py
    to_rgb_34: NDArray[np.float64]
    chroma_site_2: NDArray[np.float64]


def rgb_of(frame: VideoFrame, where: str) -> tuple[tuple[float, ...], ...]:
    """[3, 4], of bytes: by what the stream says of its colours, or else as swscale takes them.

    Raises:
        DataError: the pictures are not 8-bit YUV 4:2:0 in the colours of BT.601 or BT.709.
    """
    name, matrix = frame.format.name, _MATRICES.get(frame.colorspace)
    if name not in ("yuv420p", "yuvj420p") or matrix is None:
        raise DataError(
            f"{where}: pictures of format {name}, colour matrix {int(frame.colorspace)}; only "
            "data.frames=rgb can read them"
        )
    is_full_range = name == "yuvj420p" or frame.color_range == ColorRange.JPEG
    return rgb_from_yuv(matrix, is_full_range=is_full_range)


def pack_planes(frame: VideoFrame) -> NDArray[np.uint8]:
    """[H * 3/2, W]: the planes one behind the other, without the gaps that a decoder leaves."""
    parts = []
    for plane in frame.planes:
        rows: NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8)
        parts.append(rows.reshape(-1, plane.line_size)[: plane.height, : plane.width].ravel())
    return np.concatenate(parts).reshape(-1, frame.width)
