"""Pictures of driving: boxes and lines in camera images, the view from above, mosaics of cameras.

Takes images, calibrations, labels and grids; knows nothing of files, clips or reports.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fsdtrain.data.geometry import Array, BevGrid, box_corners, pose_from_matrix
from fsdtrain.data.schema import Box3d, CameraCalibration, Lane
from fsdtrain.report.canvas import (
    BACKGROUND,
    CLASS_COLORS,
    HEAT,
    LANE_COLORS,
    MUTED,
    PANEL,
    PATH_COLORS,
    RULE,
    TEXT,
    Color,
    Layer,
    LegendEntry,
    add_legend,
    font,
    heat_colors,
    legend_entries,
)
from fsdtrain.report.wireframe import (
    BOX_EDGES,
    FRONT_DIAGONALS,
    FRONT_FACE,
    visible_polygon,
    visible_segments,
)

EGO_SIZE_M = (4.8, 2.0)  # of the ego mark in the view from above
EGO_COLOR: Color = (255, 255, 255)
OUTLINE_COLOR: Color = (255, 199, 64)
RING_STEPS_M = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
FRONT_HALF_RAD = math.radians(100.0)  # a camera that looks further back stands in the rear row


@dataclass(frozen=True, kw_only=True)
class BevPath:
    """A polyline [S, 2] over ego ground; drawn in the colour of its kind, a baseline dashed."""

    points: Array
    kind: Literal["truth", "prediction", "baseline"]
    width_px: float = 2.5


def pinhole_camera(
    intrinsics_33: Array, camera_to_ego_44: Array, *, width: int, height: int
) -> CameraCalibration:
    """The calibration of an image as `ClipWindow` holds it."""
    return CameraCalibration(
        model="pinhole",
        fx=float(intrinsics_33[0, 0]),
        fy=float(intrinsics_33[1, 1]),
        cx=float(intrinsics_33[0, 2]),
        cy=float(intrinsics_33[1, 2]),
        camera_to_ego=pose_from_matrix(camera_to_ego_44),
        width=width,
        height=height,
    )


def draw_boxes(
    image: NDArray[np.uint8],
    camera: CameraCalibration,
    boxes: Sequence[Box3d],
    *,
    color: Color | None = None,
    line_px: float | None = None,
) -> NDArray[np.uint8]:
    """Wireframes over an image; the side that a box's heading points to is filled and crossed.

    Args:
        image: [H, W, 3] RGB of the size that the calibration says; not changed.
        camera: its calibration.
        boxes: in the ego frame of the image's moment.
        color: one colour for all; None colours by class.
        line_px: width of the lines; None suits the image's size.

    Returns:
        [H, W, 3] RGB.
    """
    width = line_px if line_px is not None else max(1.0, camera.width / 500)
    layer = Layer(camera.width, camera.height)
    # The far ones first, so that near ones lie over them.
    for box in sorted(boxes, key=lambda box: -math.hypot(*box.center_m)):
        corners = box_corners(box)
        ink = color or CLASS_COLORS[box.category]
        front = visible_polygon(camera, corners[list(FRONT_FACE)])
        if front is not None:
            layer.polygon(front, ink, opacity=0.25)
        for edges, share in ((FRONT_DIAGONALS, 0.5), (BOX_EDGES, 1.0)):
            ends = corners[edges]
            layer.segments(visible_segments(camera, ends[:, 0], ends[:, 1]), ink, share * width)
    return _lay_over(layer, image, camera)


def draw_polyline(
    image: NDArray[np.uint8],
    camera: CameraCalibration,
    points: Array,
    *,
    color: Color,
    line_px: float | None = None,
) -> NDArray[np.uint8]:
    """A polyline [P, 3] of the ego frame over an image [H, W, 3]; see `draw_boxes`."""
    width = line_px if line_px is not None else max(1.0, camera.width / 300)
    layer = Layer(camera.width, camera.height)
    layer.segments(visible_segments(camera, points[:-1], points[1:]), color, width)
    return _lay_over(layer, image, camera)


def _lay_over(
    layer: Layer, image: NDArray[np.uint8], camera: CameraCalibration
) -> NDArray[np.uint8]:
    expected = (camera.height, camera.width, 3)
    if image.shape != expected:
        raise ValueError(
            f"image {image.shape} must be {expected} as its calibration says; resize_camera "
            "makes the calibration follow the image"
        )
    return np.asarray(layer.over(Image.fromarray(image)))


def bev_view(
    grid: BevGrid,
    *,
    boxes: Sequence[Box3d] = (),
    lanes: Sequence[Lane] = (),
    vehicle_probability_XY: NDArray[np.floating] | None = None,
    vehicle_truth_XY: NDArray[np.bool_] | None = None,
    paths: Sequence[BevPath] = (),
    size_px: int = 480,
) -> Image.Image:
    """The ground from above, forward up and left to the left, a legend of what is drawn below.

    Args:
        grid: what to show; values per cell are of this grid.
        boxes: footprints in class colours, a line from the centre to the heading's side.
        lanes: polylines in the colours of their kinds.
        vehicle_probability_XY: [X, Y] 0..1, from dark to white.
        vehicle_truth_XY: [X, Y] bool, outlined.
        paths: of the ego.
        size_px: height of the map in pixels; the legend comes on top of that.
    """
    view = _Bev(grid, size_px)
    image = Image.new("RGB", view.size, PANEL)
    legend: list[LegendEntry] = []
    if vehicle_probability_XY is not None:
        cells = heat_colors(np.asarray(vehicle_probability_XY, dtype=np.float64)[::-1, ::-1])
        image = Image.fromarray(cells).resize(view.size, Image.Resampling.NEAREST)
        legend.append(("vehicle probability", HEAT[3]))
    image = view.with_rings(image)
    layer = Layer(*view.size)
    for lane in lanes:
        layer.line(view.pixels(np.asarray(lane.points_m)[:, :2]), LANE_COLORS[lane.kind], 2.0)
    legend += legend_entries([lane.kind for lane in lanes], LANE_COLORS)
    if vehicle_truth_XY is not None:
        layer.segments(view.pixels(_outline(grid, vehicle_truth_XY)), OUTLINE_COLOR, 1.5)
        legend.append(("vehicle truth", OUTLINE_COLOR))
    for box in boxes:
        view.draw_footprint(layer, box)
    legend += legend_entries([box.category for box in boxes], CLASS_COLORS)
    view.draw_ego(layer)
    for path in paths:
        points = view.pixels(np.asarray(path.points, dtype=np.float64)[:, :2])
        draw_line = layer.dashes if path.kind == "baseline" else layer.line
        draw_line(points, PATH_COLORS[path.kind], path.width_px)
    legend += [
        (f"{name} path", color)
        for name, color in legend_entries([path.kind for path in paths], PATH_COLORS)
    ]
    return add_legend(layer.over(image), legend)


class _Bev:
    """Where ego ground lies in the picture."""

    def __init__(self, grid: BevGrid, height_px: int) -> None:
        self._grid = grid
        self._px_per_m = height_px / (grid.x_max_m - grid.x_min_m)
        self.size = (round((grid.y_max_m - grid.y_min_m) * self._px_per_m), height_px)

    def pixels(self, points: Array) -> Array:
        """[..., 2] pixels of ego points [..., 2]."""
        corner = np.array([self._grid.y_max_m, self._grid.x_max_m])
        return (corner - points[..., ::-1]) * self._px_per_m

    def with_rings(self, image: Image.Image) -> Image.Image:
        """Circles of even distance around the ego, and their labels straight ahead."""
        grid = self._grid
        reach = max(grid.x_max_m, -grid.x_min_m)
        step = next((step for step in RING_STEPS_M if step * 4 >= reach), RING_STEPS_M[-1])
        center = self.pixels(np.zeros(2))
        layer = Layer(*self.size)
        farthest = math.hypot(reach, max(grid.y_max_m, -grid.y_min_m))
        distances = np.arange(step, farthest, step)
        for distance in distances:
            layer.ring(center, distance * self._px_per_m, RULE)
        image = layer.over(image)
        draw = ImageDraw.Draw(image)
        size = min(max(9.0, self.size[1] / 40), 14.0)
        for distance in distances:
            u, v = self.pixels(np.array([distance, 0.0]))
            if v > 0:
                draw.text(
                    (u + 3, v + 2), f"{distance:g} m", fill=MUTED, font=font(size), anchor="la"
                )
        return image

    def draw_footprint(self, layer: Layer, box: Box3d) -> None:
        corners = self.pixels(box_corners(box)[:4, :2])
        color = CLASS_COLORS[box.category]
        layer.polygon(corners, color, opacity=0.35)
        layer.line(corners[[0, 1, 2, 3, 0]], color, 1.5)
        front = (corners[0] + corners[3]) / 2
        layer.line(np.stack([corners.mean(axis=0), front]), color, 1.5)

    def draw_ego(self, layer: Layer) -> None:
        """An arrow head on the ego's place, at least large enough to be seen."""
        length, width = EGO_SIZE_M
        scale = max(1.0, self.size[1] / 40 / (length * self._px_per_m))
        shape = np.array([[0.6, 0.0], [-0.4, 0.5], [-0.25, 0.0], [-0.4, -0.5]])
        layer.polygon(self.pixels(shape * (length, width) * scale), EGO_COLOR)


def _outline(grid: BevGrid, cells_XY: NDArray[np.bool_]) -> Array:
    """[S, 2, 2] ego segments between cells that are set and cells that are not."""
    padded = np.pad(np.asarray(cells_XY, dtype=bool), 1)
    segments = []
    for axis in (0, 1):
        i, j = np.nonzero(np.diff(padded.astype(np.int8), axis=axis))
        # A difference at index i lies on the near edge of cell i; the other axis is padded by one.
        start = np.stack([i, j], axis=-1).astype(np.float64)
        start[:, 1 - axis] -= 1
        end = start.copy()
        end[:, 1 - axis] += 1
        segments.append(np.stack([start, end], axis=1))
    return np.concatenate(segments) * grid.cell_m + (grid.x_min_m, grid.y_min_m)


def camera_mosaic(
    images: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
    *,
    yaws_rad: Sequence[float] | None = None,
    panel_px: int | None = None,
    gap_px: int = 6,
) -> Image.Image:
    """All cameras of one moment, named: those that look ahead in the upper row, left to right.

    Args:
        images: [H, W, 3] RGB each, of any sizes.
        names: one for each image.
        yaws_rad: where each camera looks, from `camera_yaw`; None keeps the order, in two rows
            from four cameras on.
        panel_px: width of one panel; None is the widest image's.
        gap_px: between panels.
    """
    rows = _mosaic_rows(len(images), yaws_rad)
    width = panel_px or max(image.shape[1] for image in images)
    heights = [round(width * image.shape[0] / image.shape[1]) for image in images]
    columns = max(len(row) for row in rows)
    row_heights = [max(heights[index] for index in row) for row in rows]
    sheet = Image.new(
        "RGB",
        (columns * (width + gap_px) - gap_px, sum(row_heights) + gap_px * (len(rows) - 1)),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    size = min(max(9.0, width / 32), 15.0)
    v = 0
    for row, row_height in zip(rows, row_heights, strict=True):
        u = (sheet.width - len(row) * (width + gap_px) + gap_px) // 2
        for index in row:
            panel = Image.fromarray(images[index]).resize(
                (width, heights[index]), Image.Resampling.BICUBIC
            )
            sheet.paste(panel, (u, v))
            pad = size * 0.35
            left, top, right, bottom = draw.textbbox(
                (u + 2 * pad, v + pad), names[index], font(size)
            )
            draw.rectangle((u, v, right + 2 * pad, bottom + pad), fill=BACKGROUND)
            draw.text((left, v + pad), names[index], fill=TEXT, font=font(size))
            u += width + gap_px
        v += row_height + gap_px
    return sheet


def camera_yaw(camera_to_ego_44: Array) -> float:
    """Where a camera's optical axis points, seen from above: 0 ahead, +pi/2 to the left."""
    return math.atan2(camera_to_ego_44[1, 2], camera_to_ego_44[0, 2])


def _mosaic_rows(num_images: int, yaws_rad: Sequence[float] | None) -> list[list[int]]:
    indices = list(range(num_images))
    if yaws_rad is None:
        half = math.ceil(num_images / 2) if num_images > 3 else num_images
        rows = [indices[:half], indices[half:]]
    else:
        ahead = [index for index in indices if abs(yaws_rad[index]) < FRONT_HALF_RAD]
        behind = [index for index in indices if index not in ahead]
        rows = [
            sorted(ahead, key=lambda index: -yaws_rad[index]),
            # Seen on a turned head: what is left of the vehicle stays left.
            sorted(behind, key=lambda index: yaws_rad[index] % (2 * math.pi)),
        ]
    return [row for row in rows if row]
