"""Roads, parking lots and crossings packed into the tables that the ground kernels read.

The tables follow from the plain road objects; nothing is drawn at random here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic import ground
from fsdtrain.data.synthetic.compiled import compiled
from fsdtrain.data.synthetic.primitives import Color
from fsdtrain.data.synthetic.roads import Road

HALF_M = 100.0  # the map covers [-HALF_M, HALF_M) in world x and y
CELL_M = 2.0
PARALLEL_PITCH_M = 6.0  # from one parking stall to the next
PERPENDICULAR_PITCH_M = 2.75

ROAD = np.dtype(
    [("num_samples", "i4"), ("num_lines", "i4")]
    + [
        (name, "f8")
        for name in (
            *("right_edge", "left_edge", "kerb", "right_walk", "left_walk", "begin"),
            *("right_strip", "right_pitch", "left_strip", "left_pitch"),
            *("red", "green", "blue"),
        )
    ]
)
LINE = np.dtype(
    [(name, "f8") for name in ("offset", "half_width", "dash", "period", "red", "green", "blue")]
)
AREA = np.dtype(
    [("kind", "i4")]
    + [
        (name, "f8")
        for name in (
            *("x", "y", "cos", "sin", "half_length", "half_width", "stall"),
            *("red", "green", "blue"),
        )
    ]
)


@dataclass(frozen=True, kw_only=True)
class Area:
    """A rectangle on the ground: a parking lot, or a zebra crossing whose x runs along the road."""

    is_crossing: bool
    x: float
    y: float
    yaw: float
    half_length_m: float
    half_width_m: float
    stall_m: float = 0.0  # pitch of a lot's stalls along its x


@dataclass(frozen=True, kw_only=True)
class GroundColors:
    """Linear light."""

    terrain: Color
    terrain_accent: Color
    sidewalk: Color
    kerb: Color
    white: Color
    yellow: Color
    asphalt: tuple[Color, ...]  # one a road
    lot: Color


@dataclass(frozen=True, kw_only=True)
class GroundMap:
    """What `ground.py` reads; shapes and meanings are told there."""

    roads: NDArray[np.void]
    lines: NDArray[np.void]
    samples: NDArray[np.float32]
    nearest: NDArray[np.int16]
    areas: NDArray[np.void]
    colors: Array

    def locate(self, road: int, points: Array) -> Array:
        """[P, 2] places (s, d) of world points [P, 2] on one road; NaN where it is far."""
        found = np.full((len(points), 2), np.nan)
        places = np.zeros((len(self.roads), 4))
        for number, (x, y) in enumerate(points):
            if ground.locate(
                self.roads, self.samples, self.nearest, HALF_M, CELL_M, road, x, y, places
            ):
                found[number] = places[road, :2]
        return found

    def classify(self, points: Array) -> NDArray[np.int32]:
        """[P] kinds (`ground.ASPHALT_KIND`, ...) of world points [P, 2]."""
        kinds = np.zeros(len(points), np.int32)
        ground.classify_points(
            self.roads,
            self.samples,
            self.nearest,
            self.areas,
            HALF_M,
            CELL_M,
            np.ascontiguousarray(points, dtype=np.float64),
            kinds,
        )
        return kinds


def pack_ground(roads: Sequence[Road], areas: Sequence[Area], colors: GroundColors) -> GroundMap:
    """The tables of one scene. Crossings lie above roads, lots below them."""
    table = np.zeros(len(roads), ROAD)
    lines = np.zeros((len(roads), max(1, max(len(road.lines) for road in roads))), LINE)
    most = max(len(road.centerline.heading_S) for road in roads)
    samples = np.zeros((len(roads), most, 5), np.float32)
    cells = round(2 * HALF_M / CELL_M)
    nearest = np.full((len(roads), cells, cells), -1, np.int16)
    distance = np.empty((cells, cells), np.float32)
    for r, road in enumerate(roads):
        center = road.centerline
        num = len(center.heading_S)
        samples[r, :num, :2] = center.xy_S2
        samples[r, :num, 2] = np.cos(center.heading_S)
        samples[r, :num, 3] = np.sin(center.heading_S)
        samples[r, :num, 4] = center.curvature_S
        table[r] = _pack_road(road, colors.asphalt[r])
        for number, line in enumerate(road.lines):
            lines[r, number] = (
                line.offset_m,
                line.width_m / 2,
                line.dash_m,
                line.dash_m + line.gap_m,
                *(colors.yellow if line.is_yellow else colors.white),
            )
        reach = max(road.outer_m(1), road.outer_m(-1)) + 1.5 * CELL_M
        _find_nearest(samples[r, :num], reach, HALF_M, CELL_M, distance, nearest[r])
    return GroundMap(
        roads=table,
        lines=lines,
        samples=samples,
        nearest=nearest,
        areas=_pack_areas(areas, colors),
        colors=np.array(
            [
                colors.terrain,
                colors.terrain_accent,
                colors.sidewalk,
                colors.kerb,
                colors.white,
                colors.yellow,
            ]
        ),
    )


def _pack_road(road: Road, asphalt: Color) -> tuple[float, ...]:
    strips = {-1: (0.0, 0.0), 1: (0.0, 0.0)}
    for strip in road.parking:
        pitch = PERPENDICULAR_PITCH_M if strip.is_perpendicular else PARALLEL_PITCH_M
        strips[int(np.sign(strip.inner_m))] = (strip.inner_m, pitch)
    return (
        len(road.centerline.heading_S),
        len(road.lines),
        road.right_edge_m,
        road.left_edge_m,
        road.kerb_m,
        road.right_walk_m,
        road.left_walk_m,
        road.begin_s_m,
        *strips[-1],
        *strips[1],
        *asphalt,
    )


def _pack_areas(areas: Sequence[Area], colors: GroundColors) -> NDArray[np.void]:
    table = np.zeros(len(areas), AREA)
    for number, area in enumerate(areas):
        table[number] = (
            ground.CROSSING if area.is_crossing else ground.LOT,
            area.x,
            area.y,
            np.cos(area.yaw),
            np.sin(area.yaw),
            area.half_length_m,
            area.half_width_m,
            area.stall_m,
            *colors.lot,
        )
    return table


@compiled
def _find_nearest(
    samples: NDArray[np.float32],
    reach_m: float,
    half_m: float,
    cell_m: float,
    distance: NDArray[np.float32],
    nearest: NDArray[np.int16],
) -> None:
    """Nearest [G, G]: index of the sample closest to each cell's centre, if within reach."""
    cells = nearest.shape[0]
    distance[:] = reach_m * reach_m
    for index in range(len(samples)):
        x, y = samples[index, 0] + half_m, samples[index, 1] + half_m
        i0, i1 = int(max(0, (x - reach_m) / cell_m)), int(min(cells, (x + reach_m) / cell_m + 1))
        j0, j1 = int(max(0, (y - reach_m) / cell_m)), int(min(cells, (y + reach_m) / cell_m + 1))
        for i in range(i0, i1):
            for j in range(j0, j1):
                dx, dy = (i + 0.5) * cell_m - x, (j + 0.5) * cell_m - y
                square = dx * dx + dy * dy
                if square < distance[i, j]:
                    distance[i, j] = square
                    nearest[i, j] = index


@cache
def texture_noise() -> NDArray[np.float32]:
    """[256, 256] tileable noise, about -1..1, with a little of every size; always the same."""
    white = np.random.default_rng(0).standard_normal((256, 256))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(white) / frequency**0.7
    field = np.fft.ifft2(spectrum).real
    return np.asarray(np.clip(field / (2 * field.std()), -1, 1), dtype=np.float32)
