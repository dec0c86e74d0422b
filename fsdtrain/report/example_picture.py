"""One picture of a clip with what the model made of it: over the cameras, and from above.

It knows arrays in ego coordinates, neither the model nor the data plane.

Shape letters: N cameras, H W image, X Y BEV cells, S future steps, K modes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fsdtrain.data.geometry import BevGrid, resize_camera
from fsdtrain.data.schema import Box3d, CameraCalibration
from fsdtrain.report.canvas import BACKGROUND, HEAT, MUTED, PATH_COLORS, TEXT, font
from fsdtrain.report.draw import (
    FRONT_HALF_RAD,
    OUTLINE_COLOR,
    BevPath,
    bev_view,
    camera_mosaic,
    camera_yaw,
    draw_boxes,
    pinhole_camera,
)
from fsdtrain.report.ground_overlay import Ribbon, draw_on_ground

# One row of cameras is low, so it may be wider: the view from above beside it stays as high.
MOSAIC_WIDTH_PX = {1: 1620, 2: 1260}
LARGEST_PANEL_PX = 760
SMALLEST_BEV_PX = 380
GAP_PX = 16
TITLE_PX = 40

VEHICLE_COLOR = HEAT[3]  # as the legend of `bev_view` shows probability
EGO_WIDTH_M = 1.9
LINE_WIDTH_M = 0.16  # of the true path, a line rather than a band
LIKELY = 0.1  # modes below this are left out


@dataclass(frozen=True, kw_only=True)
class ExampleClip:
    """The last frame of a clip, its labels and the model's outputs, all in that frame's ego frame.

    What is None is not known, or no head predicts it.
    """

    clip_id: str
    camera_names: tuple[str, ...]
    images_NHWC: NDArray[np.uint8]  # RGB
    intrinsics_N33: NDArray[np.float64]  # pinhole, pixels of images_NHWC
    camera_to_ego_N44: NDArray[np.float64]
    boxes: tuple[Box3d, ...] = ()
    grid: BevGrid
    vehicle_probability_XY: NDArray[np.float32] | None = None
    vehicle_truth_XY: NDArray[np.bool_] | None = None
    path_truth_S2: NDArray[np.float64] | None = None  # only the steps that are known
    path_prediction_KS2: NDArray[np.float64] | None = None
    path_mode_probability_K: NDArray[np.float64] | None = None
    path_constant_velocity_S2: NDArray[np.float64] | None = None


def draw_example(example: ExampleClip) -> Image.Image:
    """RGB, up to about 2100 px wide: the cameras to the left, the view from above to the right.

    Over the cameras: the true boxes within the grid, the ground predicted as vehicle (probability
    above 0.5), the likeliest path as a band as wide as the ego, and the true path as a line.
    """
    yaws = [camera_yaw(pose) for pose in example.camera_to_ego_N44]
    num_ahead = sum(abs(yaw) < FRONT_HALF_RAD for yaw in yaws)
    num_rows = 1 if num_ahead in {0, len(yaws)} else 2
    num_columns = max(num_ahead, len(yaws) - num_ahead)
    panel_px = min(LARGEST_PANEL_PX, MOSAIC_WIDTH_PX[num_rows] // num_columns)
    mosaic = camera_mosaic(
        [_draw_camera(example, index, panel_px) for index in range(len(yaws))],
        example.camera_names,
        yaws_rad=yaws,
        panel_px=panel_px,
    )
    bev = bev_view(
        example.grid,
        vehicle_probability_XY=example.vehicle_probability_XY,
        vehicle_truth_XY=example.vehicle_truth_XY,
        paths=_bev_paths(example),
        size_px=max(SMALLEST_BEV_PX, round(mosaic.height * 0.88)),
    )
    return _set_side_by_side(mosaic, bev, title=example.clip_id, note=_path_note(example))


def _draw_camera(example: ExampleClip, index: int, width: int) -> NDArray[np.uint8]:
    image, camera = _enlarge(example, index, width)
    image = draw_on_ground(
        image,
        camera,
        cells_XY=example.vehicle_probability_XY,
        grid=example.grid,
        color=VEHICLE_COLOR,
        ribbons=_ribbons(example),
    )
    boxes = [box for box in example.boxes if _is_inside(example.grid, box)]
    return draw_boxes(image, camera, boxes, color=OUTLINE_COLOR, line_px=1.2)


def _is_inside(grid: BevGrid, box: Box3d) -> bool:
    x, y, _ = box.center_m
    return grid.x_min_m <= x <= grid.x_max_m and grid.y_min_m <= y <= grid.y_max_m


def _enlarge(
    example: ExampleClip, index: int, width: int
) -> tuple[NDArray[np.uint8], CameraCalibration]:
    # Lines drawn over a training image of 48 x 96 would hide it, so the image grows first.
    image = example.images_NHWC[index]
    camera = pinhole_camera(
        example.intrinsics_N33[index],
        example.camera_to_ego_N44[index],
        width=image.shape[1],
        height=image.shape[0],
    )
    height = max(1, round(width * image.shape[0] / image.shape[1]))
    enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(enlarged), resize_camera(camera, width=width, height=height)


def _ribbons(example: ExampleClip) -> list[Ribbon]:
    ribbons = []
    if example.path_prediction_KS2 is not None:
        likeliest = example.path_prediction_KS2[_modes_by_probability(example)[-1]]
        ribbons.append(
            Ribbon(
                points_S2=_from_ego(likeliest),
                width_m=EGO_WIDTH_M,
                color=PATH_COLORS["prediction"],
                opacity=0.75,
                middle=0.55,
            )
        )
    if example.path_truth_S2 is not None:
        ribbons.append(
            Ribbon(
                points_S2=_from_ego(example.path_truth_S2),
                width_m=LINE_WIDTH_M,
                color=PATH_COLORS["truth"],
                opacity=0.95,
            )
        )
    return ribbons


def _bev_paths(example: ExampleClip) -> list[BevPath]:
    paths = []
    if example.path_constant_velocity_S2 is not None:
        points = _from_ego(example.path_constant_velocity_S2)
        paths.append(BevPath(points=points, kind="baseline"))
    if example.path_truth_S2 is not None:
        paths.append(BevPath(points=_from_ego(example.path_truth_S2), kind="truth"))
    if example.path_prediction_KS2 is not None:
        modes = _modes_by_probability(example)
        for mode in modes:
            points = _from_ego(example.path_prediction_KS2[mode])
            width_px = 3.0 if mode == modes[-1] else 1.0
            paths.append(BevPath(points=points, kind="prediction", width_px=width_px))
    return paths


def _modes_by_probability(example: ExampleClip) -> list[int]:
    """The likely modes, the likeliest last: it is drawn on top."""
    assert example.path_mode_probability_K is not None, "paths come with their probabilities"
    order = np.argsort(example.path_mode_probability_K, kind="stable")
    likely = [int(mode) for mode in order if example.path_mode_probability_K[mode] >= LIKELY]
    return likely or [int(order[-1])]


def _from_ego(path_S2: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros((1, 2)), path_S2])


def _path_note(example: ExampleClip) -> str:
    """How far the likeliest path, and constant velocity, end from the truth in this clip."""
    truth = example.path_truth_S2
    if truth is None or not len(truth) or example.path_prediction_KS2 is None:
        return ""
    likeliest = example.path_prediction_KS2[_modes_by_probability(example)[-1]]
    last = len(truth) - 1
    note = f"path ends {np.linalg.norm(likeliest[last] - truth[last]):.2f} m from the true one"
    if example.path_constant_velocity_S2 is not None:
        distance = np.linalg.norm(example.path_constant_velocity_S2[last] - truth[last])
        note += f", constant velocity {distance:.2f} m"
    return note


def _set_side_by_side(
    mosaic: Image.Image, bev: Image.Image, *, title: str, note: str
) -> Image.Image:
    width = mosaic.width + bev.width + 3 * GAP_PX
    height = max(mosaic.height, bev.height) + TITLE_PX + GAP_PX
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    sheet.paste(mosaic, (GAP_PX, TITLE_PX + (height - TITLE_PX - GAP_PX - mosaic.height) // 2))
    sheet.paste(bev, (mosaic.width + 2 * GAP_PX, TITLE_PX))
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX, TITLE_PX / 2), title, fill=TEXT, font=font(17), anchor="lm")
    draw.text((width - GAP_PX, TITLE_PX / 2), note, fill=MUTED, font=font(14), anchor="rm")
    return sheet
