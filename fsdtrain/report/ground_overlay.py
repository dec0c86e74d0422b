"""Lay what is known of the ground, cells and paths, over the images of pinhole cameras.

Every pixel is followed to the ground it sees, so nothing has to be cut at the camera or at the
horizon. It does not know what the cells or the paths mean.

Shape letters: H W image, X Y BEV cells, S points of a path, P places and Q some of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array, BevGrid, pose_matrix
from fsdtrain.data.schema import CameraCalibration
from fsdtrain.report.canvas import SUPERSAMPLING, Color

RIM = 0.86  # of half a band's width; outside it lies its edge
FADE_M = 60.0  # a band is half as opaque there
FAR_M = 120.0  # beyond this the ground is thinner than a pixel


@dataclass(frozen=True, kw_only=True)
class Ribbon:
    """A band on the ground around a polyline [S, 2] of ego coordinates.

    `middle` is the share of the opacity between its edges: 1 is an even band, less shows rails.
    """

    points_S2: Array
    width_m: float
    color: Color
    opacity: float
    middle: float = 1.0


def ground_seen_by(
    camera: CameraCalibration, *, scale: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(ego x and y [H * scale, W * scale, 2] of the ground z = 0 in each pixel, whether seen).

    A pixel that looks above the horizon, or farther than `FAR_M`, sees none: its place is 0.
    """
    assert camera.model == "pinhole", "images of a ClipWindow are undistorted"
    u = (np.arange(camera.width * scale) + 0.5) / scale
    v = (np.arange(camera.height * scale) + 0.5) / scale
    rays = np.ones((len(v), len(u), 3))
    rays[..., 0] = (u - camera.cx) / camera.fx
    rays[..., 1] = ((v - camera.cy) / camera.fy)[:, None]
    camera_to_ego = pose_matrix(camera.camera_to_ego)
    rays = rays @ camera_to_ego[:3, :3].T
    origin = camera_to_ego[:3, 3]
    falls = rays[..., 2] < -1e-9
    distance = np.where(falls, -origin[2] / np.where(falls, rays[..., 2], -1.0), 0.0)
    ground = origin[:2] + distance[..., None] * rays[..., :2]
    is_seen = falls & (distance > 0) & (np.hypot(ground[..., 0], ground[..., 1]) < FAR_M)
    return np.where(is_seen[..., None], ground, 0.0), is_seen


def sample_cells(values_XY: NDArray[np.floating], grid: BevGrid, places: Array) -> Array:
    """[...] bilinear values at ego places [..., 2]; outside the grid 0."""
    i = (places[..., 0] - grid.x_min_m) / grid.cell_m - 0.5
    j = (places[..., 1] - grid.y_min_m) / grid.cell_m - 0.5
    # One ring of zeros all around stands for the ground that the grid does not cover.
    padded = np.pad(np.asarray(values_XY, dtype=np.float64), 1)
    i = np.clip(i + 1, 0, padded.shape[0] - 1.000001)
    j = np.clip(j + 1, 0, padded.shape[1] - 1.000001)
    i0, j0 = i.astype(int), j.astype(int)
    a, b = i - i0, j - j0
    near = (1 - b) * padded[i0, j0] + b * padded[i0, j0 + 1]
    far = (1 - b) * padded[i0 + 1, j0] + b * padded[i0 + 1, j0 + 1]
    return np.asarray((1 - a) * near + a * far)


def distance_to_polyline(points_S2: Array, places: Array) -> Array:
    """[...] metres from places [..., 2] to the nearest point of a polyline."""
    nearest = np.full(places.shape[:-1], np.inf)
    for start, end in zip(points_S2[:-1], points_S2[1:], strict=True):
        step = end - start
        length2 = float(step @ step)
        along = (places - start) @ step / length2 if length2 > 0 else np.zeros(places.shape[:-1])
        offset = places - start - np.clip(along, 0.0, 1.0)[..., None] * step
        nearest = np.minimum(nearest, np.hypot(offset[..., 0], offset[..., 1]))
    return nearest


def draw_on_ground(
    image: NDArray[np.uint8],
    camera: CameraCalibration,
    *,
    cells_XY: NDArray[np.floating] | None = None,
    grid: BevGrid,
    color: Color,
    ribbons: Sequence[Ribbon] = (),
) -> NDArray[np.uint8]:
    """Cells above 0.5 as translucent patches in `color`, then ribbons, over an image.

    Args:
        image: [H, W, 3] RGB of the size that the calibration says; not changed.
        camera: its calibration, pinhole.
        cells_XY: [X, Y] probabilities of `grid`; between cell centres they are interpolated. The
            surer the cell, the less of the image shows through.
        grid: where the cells lie.
        color: of the patches.
        ribbons: in the order of drawing; they fade with the distance.
    """
    ground, is_seen = ground_seen_by(camera, scale=SUPERSAMPLING)
    layer = np.zeros((*is_seen.shape, 4))
    layer[is_seen] = _paint(ground[is_seen], cells_XY, grid, color, ribbons)
    height, width = image.shape[:2]
    reduced = layer.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 4).mean(axis=(1, 3))
    mixed = reduced[..., :3] + (1 - reduced[..., 3:]) * image
    return np.asarray(mixed.round().astype(np.uint8))


def _paint(
    places_P2: Array,
    cells_XY: NDArray[np.floating] | None,
    grid: BevGrid,
    color: Color,
    ribbons: Sequence[Ribbon],
) -> Array:
    """[P, 4] RGBA of ground places, premultiplied, so that edges mix rightly when reduced."""
    paint_P4 = np.zeros((len(places_P2), 4))
    if cells_XY is not None:
        value_P = sample_cells(cells_XY, grid, places_P2)
        is_patch = value_P > 0.5
        _blend(paint_P4, is_patch, color, 0.15 + 0.5 * value_P[is_patch])
    for ribbon in ribbons:
        half = ribbon.width_m / 2
        low, high = ribbon.points_S2.min(axis=0) - half, ribbon.points_S2.max(axis=0) + half
        is_near = ((places_P2 > low) & (places_P2 < high)).all(axis=1)
        near_Q2 = places_P2[is_near]
        # 0 in the middle of the band, 1 at its edge.
        across_Q = distance_to_polyline(ribbon.points_S2, near_Q2) / half
        opacity_Q = ribbon.opacity * np.where(across_Q > RIM, 1.0, ribbon.middle)
        opacity_Q /= 1 + np.hypot(near_Q2[:, 0], near_Q2[:, 1]) / FADE_M
        _blend(paint_P4, is_near, ribbon.color, np.where(across_Q < 1, opacity_Q, 0.0))
    return paint_P4


def _blend(paint_P4: Array, where_P: NDArray[np.bool_], color: Color, opacity_Q: Array) -> None:
    """Lay a colour over those premultiplied places that are chosen, in place."""
    opacity_Q1 = opacity_Q[:, None]
    paint_P4[where_P] = (1 - opacity_Q1) * paint_P4[where_P] + opacity_Q1 * (*color, 1.0)
