"""Source images to frames of an even, bounded size, with the calibration that follows.

Knows no source format and no video codec.
"""

import re
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fsdtrain.data.geometry import Array, resize_camera
from fsdtrain.data.schema import CameraCalibration
from fsdtrain.errors import DataError, UserError

MIN_WIDTH = 32  # px; narrower than this is a mistaken argument


def level_camera_to_ego(height_m: float) -> Array:
    """[4, 4] of a camera that looks level and straight ahead, `height_m` above the ego's origin."""
    camera_to_ego = np.eye(4)
    # Columns: the camera's right, down and forward in the ego's forward, left, up.
    camera_to_ego[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    camera_to_ego[2, 3] = height_m
    return camera_to_ego


def fit_size(width: int, height: int, *, max_width: int | None) -> tuple[int, int]:
    """(width, height) to convert to: at most `max_width` wide, the aspect kept, both even.

    Without a bound, or within it, an odd size loses its last row or column and nothing is scaled.
    """
    if max_width is not None and max_width < MIN_WIDTH:
        raise UserError(f"max_width is {max_width}, must be at least {MIN_WIDTH} pixels")
    if max_width is None or width <= max_width:
        return width // 2 * 2, height // 2 * 2
    new_width = max_width // 2 * 2
    return new_width, max(2, round(height * new_width / width / 2) * 2)


def fit_camera(camera: CameraCalibration, *, max_width: int | None) -> CameraCalibration:
    """The calibration after `fit_image`: a crop leaves it, a scaling scales it axis by axis."""
    width, height = fit_size(camera.width, camera.height, max_width=max_width)
    if max_width is not None and camera.width > max_width:
        return resize_camera(camera, width=width, height=height)
    return msgspec.structs.replace(camera, width=width, height=height)


def fit_image(image: Image.Image, *, max_width: int | None) -> NDArray[np.uint8]:
    """[height, width, 3] RGB of the size that `fit_size` names."""
    width, height = fit_size(image.width, image.height, max_width=max_width)
    image = image.convert("RGB")
    if max_width is not None and image.width > max_width:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)[:height, :width]


def read_image(path: Path, *, size: tuple[int, int], max_width: int | None) -> NDArray[np.uint8]:
    """One image file, fitted.

    Raises:
        DataError: it cannot be read or is not of `size` (width, height).
    """
    try:
        with Image.open(path) as image:
            if image.size != size:
                raise DataError(
                    f"{path}: is {image.width}x{image.height}, must be {size[0]}x{size[1]}"
                )
            return fit_image(image, max_width=max_width)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is not an image") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def clip_name(text: str) -> str:
    """`text` with every character that a clip id may not have turned into '-'."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)[:100] or "clip"
