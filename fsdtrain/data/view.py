"""How a stored picture becomes one of training resolution, calibration following; pure geometry.

A view scales the stored picture, then cuts the training picture out of it. Scaling happens inside
the decoder, so a zoom costs nothing more. It knows nothing of clips, of video or of randomness.
"""

from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fsdtrain.data.geometry import project_points, resize_camera
from fsdtrain.data.schema import CameraCalibration, Pose
from fsdtrain.errors import UserError

_IDENTITY = Pose(rotation_wxyz=(1.0, 0.0, 0.0, 0.0), translation_m=(0.0, 0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class View:
    """All in pixels: the whole picture after scaling, and the rectangle of it that is kept."""

    scaled_height: int
    scaled_width: int
    top: int
    left: int
    height: int
    width: int


def fit_view(
    stored_size: tuple[int, int],
    image_size: tuple[int, int],
    *,
    crop_top: float,
    crop_bottom: float,
) -> View:
    """The smallest scale at which image_size (rows, columns) fits into what the crop leaves.

    `crop_top` and `crop_bottom` are shares of the stored height (sky, bonnet). The aspect stays;
    what is too much is cut off evenly on both sides.
    """
    if not (min(crop_top, crop_bottom) >= 0 and crop_top + crop_bottom < 1):
        raise UserError(
            f"crop_top={crop_top} and crop_bottom={crop_bottom} must be shares of the height that "
            "leave something of it"
        )
    (stored_height, stored_width), (height, width) = stored_size, image_size
    kept = 1.0 - crop_top - crop_bottom
    scale = max(height / (stored_height * kept), width / stored_width)
    scaled_height, scaled_width = round(stored_height * scale), round(stored_width * scale)
    first, last = _kept_rows(scaled_height, crop_top, crop_bottom)
    while last - first < height:  # rounding may leave a row too few
        scaled_height += 1
        first, last = _kept_rows(scaled_height, crop_top, crop_bottom)
    scaled_width = max(scaled_width, width)
    return View(
        scaled_height=scaled_height,
        scaled_width=scaled_width,
        top=first + (last - first - height) // 2,
        left=(scaled_width - width) // 2,
        height=height,
        width=width,
    )


def _kept_rows(scaled_height: int, crop_top: float, crop_bottom: float) -> tuple[int, int]:
    return round(crop_top * scaled_height), scaled_height - round(crop_bottom * scaled_height)


def zoom_view(view: View, *, zoom: float, shift_down: float, shift_right: float) -> View:
    """Enlarge by zoom >= 1 and keep a part of what `view` kept; shifts 0..1 say which part."""
    scaled_height, scaled_width = round(view.scaled_height * zoom), round(view.scaled_width * zoom)
    return View(
        scaled_height=scaled_height,
        scaled_width=scaled_width,
        top=_shifted(view.top, view.height, zoom, shift_down, scaled_height),
        left=_shifted(view.left, view.width, zoom, shift_right, scaled_width),
        height=view.height,
        width=view.width,
    )


def _shifted(start: int, length: int, zoom: float, shift: float, scaled_length: int) -> int:
    moved = round(zoom * start + shift * (zoom - 1.0) * length)
    return min(moved, scaled_length - length)


def source_window(view: View, stored_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(top, left, height, width) of what `view` keeps, in pixels of the stored picture."""
    down, right = stored_size[0] / view.scaled_height, stored_size[1] / view.scaled_width
    return view.top * down, view.left * right, view.height * down, view.width * right


def view_camera(camera: CameraCalibration, view: View) -> CameraCalibration:
    """The calibration of the training picture; its distortion stays."""
    scaled = resize_camera(camera, width=view.scaled_width, height=view.scaled_height)
    return msgspec.structs.replace(
        scaled,
        cx=scaled.cx - view.left,
        cy=scaled.cy - view.top,
        width=view.width,
        height=view.height,
    )


def cut_view(
    scaled_THWC: NDArray[np.uint8], camera: CameraCalibration, view: View
) -> NDArray[np.uint8]:
    """Cut the training pictures out of the scaled ones, as a pinhole camera would show them.

    Args:
        scaled_THWC: pictures of scaled_height x scaled_width.
        camera: calibration of the stored picture. A lens that distorts is straightened to a pinhole
            of the same fx, fy, cx, cy; pixels it never saw come out black.
        view: what to cut.
    """
    if camera.model == "pinhole":
        rows = slice(view.top, view.top + view.height)
        columns = slice(view.left, view.left + view.width)
        return scaled_THWC[:, rows, columns]
    scaled = resize_camera(camera, width=view.scaled_width, height=view.scaled_height)
    source_HW2 = _source_pixels(scaled, view_camera(camera, view))
    # align_corners=False: -1 and 1 are the outer edges, as pixel coordinates 0 and width are here.
    size = np.array([scaled.width, scaled.height], dtype=np.float64)
    grid_HW2 = torch.from_numpy((2.0 * source_HW2 / size - 1.0).astype(np.float32))
    source_TCHW = torch.from_numpy(scaled_THWC).permute(0, 3, 1, 2).float()
    straight_TCHW = torch.nn.functional.grid_sample(
        source_TCHW,
        grid_HW2.expand(len(source_TCHW), -1, -1, -1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    straight: NDArray[np.uint8] = (
        straight_TCHW.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    )
    return straight


def _source_pixels(source: CameraCalibration, target: CameraCalibration) -> NDArray[np.float64]:
    """[H, W, 2]: where the source shows what each pixel of the target, a pinhole, looks at."""
    columns, rows = np.meshgrid(np.arange(target.width) + 0.5, np.arange(target.height) + 0.5)
    rays = np.stack(
        [
            (columns - target.cx) / target.fx,
            (rows - target.cy) / target.fy,
            np.ones_like(rows),
        ],
        axis=-1,
    )
    uv, _ = project_points(msgspec.structs.replace(source, camera_to_ego=_IDENTITY), rays)
    return uv
