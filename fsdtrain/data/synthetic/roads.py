"""Roads as plain data: a centre line of changing curvature, and what lies across it.

A place on a road is (s, d): metres along the centre line, and metres to the left of it. Everything
is drawn from the generator that is passed in; nothing here knows of vehicles or pixels.
"""

import math
from dataclasses import dataclass

import numpy as np

from fsdtrain.data.geometry import Array

SPACING_M = 0.5  # between samples of a centre line
MAIN_LENGTH_M = 280.0
SIDE_LENGTH_M = 110.0


@dataclass(frozen=True, kw_only=True)
class Centerline:
    """Samples SPACING_M apart; heading and curvature are linear between them (clothoids)."""

    xy_S2: Array
    heading_S: Array
    curvature_S: Array  # 1/m, positive turns left

    @property
    def length_m(self) -> float:
        """Along the line."""
        return (len(self.heading_S) - 1) * SPACING_M

    def at(self, s: Array) -> tuple[Array, Array, Array]:
        """(xy [..., 2], heading [...], curvature [...]) at distances s; the ends are held."""
        place = np.clip(np.asarray(s) / SPACING_M, 0, len(self.heading_S) - 1.000001)
        low = place.astype(np.int64)
        part = place - low

        def between(values: Array) -> Array:
            weight = part.reshape(part.shape + (1,) * (values.ndim - 1))
            return np.asarray((1 - weight) * values[low] + weight * values[low + 1])

        return between(self.xy_S2), between(self.heading_S), between(self.curvature_S)

    def pose(self, s: float, d: float = 0.0) -> tuple[float, float, float]:
        """(x, y, heading) at one place (s, d); as `at`, without arrays."""
        place = min(max(s / SPACING_M, 0.0), len(self.heading_S) - 1.000001)
        low = int(place)
        part = place - low
        (x0, y0), (x1, y1) = self.xy_S2[low], self.xy_S2[low + 1]
        heading = float((1 - part) * self.heading_S[low] + part * self.heading_S[low + 1])
        x = float((1 - part) * x0 + part * x1) - d * math.sin(heading)
        y = float((1 - part) * y0 + part * y1) + d * math.cos(heading)
        return x, y, heading

    def offset_points(self, s: Array, d: float | Array) -> Array:
        """[..., 2] world positions of places (s, d)."""
        xy, heading, _ = self.at(s)
        normal = np.stack([-np.sin(heading), np.cos(heading)], axis=-1)
        return np.asarray(xy + np.asarray(d)[..., None] * normal)


@dataclass(frozen=True, kw_only=True)
class TrafficLane:
    """One lane; direction +1 drives towards growing s."""

    offset_m: float
    width_m: float
    direction: int


@dataclass(frozen=True, kw_only=True)
class PaintedLine:
    """A mark along the road; dash_m = 0 is solid."""

    offset_m: float
    width_m: float
    dash_m: float
    gap_m: float
    is_yellow: bool
    is_edge: bool


@dataclass(frozen=True, kw_only=True)
class ParkingStrip:
    """Parked vehicles between `inner_m` and the road's edge; perpendicular or along the road."""

    inner_m: float
    outer_m: float
    is_perpendicular: bool


@dataclass(frozen=True, kw_only=True)
class Road:
    """A centre line and its cross-section; offsets are metres to the left."""

    centerline: Centerline
    lanes: tuple[TrafficLane, ...]
    lines: tuple[PaintedLine, ...]
    parking: tuple[ParkingStrip, ...]
    right_edge_m: float  # of the asphalt, negative
    left_edge_m: float
    kerb_m: float  # width, 0 = none
    right_walk_m: float  # width of the sidewalk, 0 = none
    left_walk_m: float
    begin_s_m: float = 0.0  # where it leaves another road's asphalt

    def outer_m(self, side: int) -> float:
        """Distance from the centre line to the end of asphalt, kerb and sidewalk on one side."""
        if side > 0:
            return self.left_edge_m + self.kerb_m + self.left_walk_m
        return -self.right_edge_m + self.kerb_m + self.right_walk_m


def draw_centerline(
    rng: np.random.Generator,
    *,
    length_m: float,
    anchor_s_m: float,
    anchor: tuple[float, float, float],
    min_radius_m: float,
    straightness: float,
) -> Centerline:
    """A line of clothoids and arcs that passes `anchor` (x, y, heading) at `anchor_s_m`.

    Args:
        rng: where randomness comes from.
        length_m: of the whole line.
        anchor_s_m: distance along it of the anchor.
        anchor: x, y in metres and heading in radians.
        min_radius_m: the tightest bend.
        straightness: chance that a stretch of 10-32 m ends straight.
    """
    num = round(length_m / SPACING_M) + 1
    s = np.arange(num) * SPACING_M
    for _ in range(20):
        curvature = np.interp(s, *_draw_knots(rng, length_m, min_radius_m, straightness))
        steps = (curvature[1:] + curvature[:-1]) / 2 * SPACING_M
        heading = np.concatenate([[0.0], np.cumsum(steps)])
        middle = (heading[1:] + heading[:-1]) / 2
        chords = np.stack([np.cos(middle), np.sin(middle)], axis=-1) * SPACING_M
        xy = np.concatenate([np.zeros((1, 2)), np.cumsum(chords, axis=0)])
        if not _meets_itself(xy):
            break
    index = round(anchor_s_m / SPACING_M)
    turn = anchor[2] - heading[index]
    cos, sin = np.cos(turn), np.sin(turn)
    xy = (xy - xy[index]) @ np.array([[cos, sin], [-sin, cos]]) + np.array(anchor[:2])
    return Centerline(xy_S2=xy, heading_S=heading + turn, curvature_S=curvature)


def _draw_knots(
    rng: np.random.Generator, length_m: float, min_radius_m: float, straightness: float
) -> tuple[list[float], list[float]]:
    s, knots_s, knots_k, heading = 0.0, [0.0], [0.0], 0.0
    while s < length_m:
        step = rng.uniform(10.0, 32.0)
        curvature = 0.0
        if rng.random() >= straightness:
            curvature = float(np.exp(-rng.uniform(np.log(min_radius_m), np.log(180.0))))
            curvature *= rng.choice([-1.0, 1.0])
            if abs(heading) > 0.8:  # come back before the road closes a loop
                curvature = -np.sign(heading) * abs(curvature)
        heading += (knots_k[-1] + curvature) / 2 * step
        s += step
        knots_s.append(s)
        knots_k.append(curvature)
    return knots_s, knots_k


def _meets_itself(xy_S2: Array) -> bool:
    coarse = xy_S2[::8]  # 4 m apart
    gap = np.linalg.norm(coarse[:, None] - coarse[None], axis=-1)
    along = np.abs(np.subtract.outer(np.arange(len(coarse)), np.arange(len(coarse)))) * 4.0
    return bool((gap < 34.0)[along > 70.0].any())


def draw_main_road(rng: np.random.Generator, *, is_urban: bool, heading_rad: float) -> Road:
    """The road that the ego drives, through the world's origin at half its length."""
    layout = rng.choice(5, p=[0.38, 0.18, 0.16, 0.14, 0.14])
    num_right, num_left = ((1, 1), (2, 2), (2, 1), (1, 2), (2, 0))[layout]
    return _draw_road(
        rng,
        num_right=num_right,
        num_left=num_left,
        is_urban=is_urban,
        length_m=MAIN_LENGTH_M,
        anchor_s_m=MAIN_LENGTH_M / 2,
        anchor=(0.0, 0.0, heading_rad),
        straightness=float(rng.choice([0.12, 0.3, 0.8], p=[0.6, 0.25, 0.15])),
        begin_s_m=0.0,
    )


def draw_side_roads(rng: np.random.Generator, main: Road, *, is_urban: bool) -> tuple[Road, ...]:
    """Up to two roads that branch off the main one near its middle, or one that crosses it."""
    count = int(rng.choice(3, p=[0.3, 0.4, 0.3]))
    roads: list[Road] = []
    middle = main.centerline.length_m / 2
    s = middle + rng.uniform(-30.0, 45.0)
    side = int(rng.choice([-1, 1]))
    for _ in range(count):
        x, y, heading = main.centerline.pose(s)
        angle = side * rng.uniform(0.33, 0.62) * np.pi
        road = _draw_road(
            rng,
            num_right=1,
            num_left=1,
            is_urban=is_urban,
            length_m=SIDE_LENGTH_M,
            anchor_s_m=0.0,
            anchor=(x, y, heading + angle),
            straightness=0.4,
            begin_s_m=(main.outer_m(side) - main.kerb_m) / abs(np.sin(angle)) + 1.0,
        )
        if _keeps_away(road, [main, *roads]):
            roads.append(road)
        # The second one makes a crossing with the first, or leaves elsewhere.
        side = -side
        if rng.random() < 0.5:
            s = middle + rng.uniform(-35.0, 50.0)
    return tuple(roads)


def _keeps_away(road: Road, others: list[Road]) -> bool:
    away = road.centerline.xy_S2[round((road.begin_s_m + 14.0) / SPACING_M) :: 4]
    reach = max(road.outer_m(1), road.outer_m(-1))
    for number, other in enumerate(others):
        gap = np.linalg.norm(away[:, None] - other.centerline.xy_S2[None, ::4], axis=-1).min()
        if gap < reach + max(other.outer_m(1), other.outer_m(-1)) - 2.0 * (number == 0):
            return False
    return True


def _draw_road(
    rng: np.random.Generator,
    *,
    num_right: int,
    num_left: int,
    is_urban: bool,
    length_m: float,
    anchor_s_m: float,
    anchor: tuple[float, float, float],
    straightness: float,
    begin_s_m: float,
) -> Road:
    width = rng.uniform(2.9, 3.7)
    lanes = [
        TrafficLane(offset_m=-(i + 0.5) * width, width_m=width, direction=1)
        for i in range(num_right)
    ] + [
        TrafficLane(offset_m=(i + 0.5) * width, width_m=width, direction=-1)
        for i in range(num_left)
    ]
    shoulder = rng.uniform(0.2, 1.5)
    edges, parking = [], []
    for side, count in ((-1, num_right), (1, num_left)):
        inner = count * width + shoulder * (0.3 if is_urban else 1.0)
        outer = inner
        kind = rng.choice(3, p=[0.4, 0.42, 0.18] if is_urban else [0.8, 0.14, 0.06])
        if kind:
            outer = inner + (rng.uniform(2.1, 2.5) if kind == 1 else rng.uniform(4.9, 5.4))
            strip = sorted([side * inner, side * outer], key=abs)
            parking.append(
                ParkingStrip(inner_m=strip[0], outer_m=strip[1], is_perpendicular=bool(kind == 2))
            )
        edges.append(side * outer)
    kerb = rng.uniform(0.15, 0.3) if is_urban or rng.random() < 0.2 else 0.0
    walks = [rng.uniform(1.3, 3.6) if kerb and rng.random() < 0.85 else 0.0 for _ in range(2)]
    reach = max(-edges[0], edges[1])
    return Road(
        centerline=draw_centerline(
            rng,
            length_m=length_m,
            anchor_s_m=anchor_s_m,
            anchor=anchor,
            min_radius_m=max(25.0, reach + 9.0),
            straightness=straightness,
        ),
        lanes=tuple(lanes),
        lines=_draw_lines(rng, num_right, num_left, width),
        parking=tuple(parking),
        right_edge_m=edges[0],
        left_edge_m=edges[1],
        kerb_m=kerb,
        right_walk_m=walks[0],
        left_walk_m=walks[1],
        begin_s_m=begin_s_m,
    )


def _draw_lines(
    rng: np.random.Generator, num_right: int, num_left: int, width_m: float
) -> tuple[PaintedLine, ...]:
    thickness = rng.uniform(0.12, 0.22)
    dash, gap = rng.choice([[3.0, 4.5], [3.0, 9.0], [2.0, 2.0], [6.0, 6.0]])
    is_yellow = bool(rng.random() < 0.4)
    lines = []

    def add(offset: float, *, dashed: bool, yellow: bool = False, edge: bool = False) -> None:
        lines.append(
            PaintedLine(
                offset_m=offset,
                width_m=thickness,
                dash_m=dash if dashed else 0.0,
                gap_m=gap if dashed else 0.0,
                is_yellow=yellow,
                is_edge=edge,
            )
        )

    if num_right and num_left:
        style = rng.choice(3)  # dashed, solid, double solid
        for offset in (0.0,) if style < 2 else (-thickness, thickness):
            add(offset, dashed=bool(style == 0), yellow=is_yellow)
    for i in range(1, num_right):
        add(-i * width_m, dashed=True)
    for i in range(1, num_left):
        add(i * width_m, dashed=True)
    if rng.random() < 0.75:
        dashed_edge = bool(rng.random() < 0.15)
        add(-num_right * width_m, dashed=dashed_edge, edge=True)
        add(num_left * width_m, dashed=dashed_edge, edge=True)
    return tuple(lines)
