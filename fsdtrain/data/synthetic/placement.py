"""Road users that are not in lane traffic: parked along kerbs and in lots, anywhere, on foot.

Each is proposed at random and kept if `Space` admits it.
"""

import math
from collections.abc import Sequence

import numpy as np

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic.ground import ASPHALT_KIND, KERB_KIND
from fsdtrain.data.synthetic.ground_map import (
    PARALLEL_PITCH_M,
    PERPENDICULAR_PITCH_M,
    Area,
    GroundMap,
)
from fsdtrain.data.synthetic.roads import ParkingStrip, Road
from fsdtrain.data.synthetic.space import Space
from fsdtrain.data.synthetic.traffic import Motion
from fsdtrain.data.synthetic.vehicles import draw_pedestrian, draw_vehicle

STRAY_RADIUS_M = 24.0
STRIP_REACH_M = 42.0


def place_parked(
    rng: np.random.Generator, roads: Sequence[Road], areas: Sequence[Area], space: Space
) -> None:
    """Vehicles in parking strips and lots, at a share of the stalls that differs by place."""
    for road in roads:
        for strip in road.parking:
            _fill_strip(rng, road, strip, space, share=rng.uniform(0.15, 0.85))
    for area in areas:
        if not area.is_crossing:
            _fill_lot(rng, area, space, share=rng.uniform(0.2, 0.75))


def _fill_strip(
    rng: np.random.Generator, road: Road, strip: ParkingStrip, space: Space, *, share: float
) -> None:
    center = road.centerline
    pitch = PERPENDICULAR_PITCH_M if strip.is_perpendicular else PARALLEL_PITCH_M
    longest = 5.3 if strip.is_perpendicular else 5.7
    low, high = center.length_m / 2 - STRIP_REACH_M, center.length_m / 2 + STRIP_REACH_M
    if road.begin_s_m > 0.0:
        low, high = road.begin_s_m + 2.0, road.begin_s_m + STRIP_REACH_M
    for stall in range(int(np.ceil(low / pitch)), int(high / pitch)):
        if rng.random() > share:
            continue
        model = draw_vehicle(rng, "parked")
        if model.size_m[0] > longest:
            continue
        offset = (strip.inner_m + strip.outer_m) / 2 + rng.normal(0, 0.06)
        x, y, heading = center.pose((stall + 0.5) * pitch + rng.normal(0, 0.1), offset)
        if strip.is_perpendicular:
            turn = rng.choice([-0.5, 0.5]) * np.pi
        else:
            turn = 0.0 if (strip.inner_m < 0) == (rng.random() < 0.85) else np.pi
        space.stand(model, x, y, heading + turn + rng.normal(0, 0.03))


def _fill_lot(rng: np.random.Generator, area: Area, space: Space, *, share: float) -> None:
    cos, sin = np.cos(area.yaw), np.sin(area.yaw)
    for row in (-1, 1):
        for stall in range(int(2 * area.half_length_m / area.stall_m)):
            if rng.random() > share:
                continue
            model = draw_vehicle(rng, "parked")
            if model.size_m[0] > 5.6:
                continue
            x = -area.half_length_m + (stall + 0.5) * area.stall_m + rng.normal(0, 0.08)
            y = row * (area.half_width_m - 2.6) + rng.normal(0, 0.15)
            turn = rng.choice([-0.5, 0.5]) * np.pi + rng.normal(0, 0.04)
            space.stand(
                model, area.x + cos * x - sin * y, area.y + sin * x + cos * y, area.yaw + turn
            )


def place_strays(rng: np.random.Generator, ground: GroundMap, space: Space) -> None:
    """Vehicles that stand anywhere off the road at any heading."""
    for _ in range(int(rng.choice(6, p=[0.15, 0.2, 0.25, 0.2, 0.12, 0.08]))):
        model = draw_vehicle(rng, "parked")
        length, width, _ = model.size_m
        radius = STRAY_RADIUS_M * np.sqrt(rng.uniform(0.03, 1.0))
        around, yaw = rng.uniform(-np.pi, np.pi, 2)
        x, y = radius * np.cos(around), radius * np.sin(around)
        if not _touches_road(ground, x, y, yaw, length, width):
            space.stand(model, x, y, yaw)


def _touches_road(
    ground: GroundMap, x: float, y: float, yaw: float, length: float, width: float
) -> bool:
    kinds = ground.classify(footprint_points(x, y, yaw, length / 2 + 0.3, width / 2 + 0.3))
    return bool(((kinds == ASPHALT_KIND) | (kinds == KERB_KIND)).any())


def footprint_points(x: float, y: float, yaw: float, half_x: float, half_y: float) -> Array:
    """[P, 2] points spread over a rectangle and its rim, at most 2 m apart."""
    num_x, num_y = int(np.ceil(half_x)) + 1, int(np.ceil(half_y)) + 1
    along = (np.arange(num_x + 1) * (2 / num_x) - 1.0)[:, None] * half_x
    across = (np.arange(num_y + 1) * (2 / num_y) - 1.0)[None, :] * half_y
    points = np.empty((num_x + 1, num_y + 1, 2))
    points[..., 0] = x + math.cos(yaw) * along - math.sin(yaw) * across
    points[..., 1] = y + math.sin(yaw) * along + math.cos(yaw) * across
    return points.reshape(-1, 2)


def place_pedestrians(
    rng: np.random.Generator, roads: Sequence[Road], space: Space, *, interval_s: float
) -> None:
    """People on sidewalks and verges, most of them walking along the road, some across."""
    times_K = np.arange(space.num_moments) * interval_s
    for _ in range(int(rng.integers(0, 9))):
        road = roads[int(rng.integers(len(roads)))]
        side = int(rng.choice([-1, 1]))
        near = road.begin_s_m if road.begin_s_m > 0.0 else road.centerline.length_m / 2
        s = near + rng.uniform(-4.0 if road.begin_s_m > 0.0 else -25.0, 28.0)
        walk = road.left_walk_m if side > 0 else road.right_walk_m
        edge = road.outer_m(side) - walk
        d = side * (edge + rng.uniform(0.3, max(walk - 0.2, 0.8)))
        x, y, heading = road.centerline.pose(s, d)
        yaw = heading + rng.choice([0.0, np.pi]) + rng.normal(0, 0.1)
        if rng.random() < 0.2:
            yaw += np.pi / 2
        speed = 0.0 if rng.random() < 0.3 else rng.uniform(0.8, 1.7)
        velocity = speed * np.array([np.cos(yaw), np.sin(yaw)])
        pose_K3 = np.empty((space.num_moments, 3))
        pose_K3[:, :2] = np.array([x, y]) + times_K[:, None] * velocity
        pose_K3[:, 2] = yaw
        velocity_K2 = np.tile(velocity, (space.num_moments, 1))
        space.add(draw_pedestrian(rng), Motion(pose_K3=pose_K3, velocity_K2=velocity_K2))
