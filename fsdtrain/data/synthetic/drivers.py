"""Fill the lanes of a scene with drivers, the ego among them, and let them drive."""

import math
from dataclasses import replace

import numpy as np

from fsdtrain.data.synthetic.roads import Road
from fsdtrain.data.synthetic.space import Space
from fsdtrain.data.synthetic.traffic import LATERAL_MPS2, Driver, Motion, drive
from fsdtrain.data.synthetic.vehicles import Model, draw_vehicle

# The ego's reference point is its rear axle.
EGO_LENGTH_M, EGO_WIDTH_M, EGO_REAR_M = 4.7, 1.9, 1.0
LANE_REACH_M = 55.0  # traffic is placed this far along a road from the ego or the junction


def place_drivers(
    rng: np.random.Generator, roads: tuple[Road, ...], space: Space, *, interval_s: float
) -> Motion:
    """Admit all lane traffic that stays clear; return the motion of the ego's rear axle."""
    is_jam = bool(rng.random() < 0.08)
    mean_gap_m = 5.0 if is_jam else float(np.exp(rng.uniform(np.log(9.0), np.log(45.0))))
    fastest_mps = rng.uniform(1.0, 3.0) if is_jam else rng.uniform(7.5, 15.0)
    ego = _draw_ego(rng, roads[0], fastest_mps)
    drivers, models = [ego], []
    for road in range(len(roads)):
        for lane in range(len(roads[road].lanes)):
            speed = fastest_mps * rng.uniform(0.7, 1.15)
            for driver, model in _fill_lane(rng, roads, road, lane, mean_gap_m, speed):
                if (road, lane) == (ego.road, ego.lane) and _is_beside(driver, ego):
                    continue
                drivers.append(driver)
                models.append(model)
    motions = drive(drivers, roads, num_moments=space.num_moments, interval_s=interval_s)
    center_K3 = motions[0].pose_K3.copy()
    ahead_m = EGO_LENGTH_M / 2 - EGO_REAR_M
    center_K3[:, 0] += ahead_m * np.cos(center_K3[:, 2])
    center_K3[:, 1] += ahead_m * np.sin(center_K3[:, 2])
    space.block(center_K3, EGO_LENGTH_M, EGO_WIDTH_M)
    for model, motion in zip(models, motions[1:], strict=True):
        space.add(model, motion)
    return motions[0]


def _draw_ego(rng: np.random.Generator, road: Road, fastest_mps: float) -> Driver:
    lanes = [number for number, lane in enumerate(road.lanes) if lane.direction > 0]
    lane = int(rng.choice(lanes))
    ego = Driver(
        road=0,
        lane=lane,
        direction=1,
        offset_m=road.lanes[lane].offset_m + rng.normal(0, 0.12),
        s_m=road.centerline.length_m / 2,
        speed_mps=0.0,
        desired_mps=max(fastest_mps * rng.uniform(0.75, 1.1), 1.0),
        front_m=EGO_LENGTH_M - EGO_REAR_M,
        rear_m=EGO_REAR_M,
        weave_m=rng.uniform(0.0, 0.22),
        weave_length_m=rng.uniform(30.0, 70.0),
        weave_phase_rad=rng.uniform(-np.pi, np.pi),
    )
    return replace(ego, speed_mps=_settled_speed(ego, road) * rng.uniform(0.6, 1.1))


def _settled_speed(driver: Driver, road: Road) -> float:
    """What it would drive here with nobody ahead."""
    bend = abs(float(road.centerline.at(np.array(driver.s_m))[2]))
    return min(driver.desired_mps, math.sqrt(LATERAL_MPS2 / max(bend, 1e-3)))


def _is_beside(driver: Driver, ego: Driver) -> bool:
    ahead = driver.s_m - ego.s_m
    return -ego.rear_m - driver.front_m - 5.0 < ahead < ego.front_m + driver.rear_m + 4.0


def _fill_lane(
    rng: np.random.Generator,
    roads: tuple[Road, ...],
    road: int,
    lane: int,
    mean_gap_m: float,
    speed_mps: float,
) -> list[tuple[Driver, Model]]:
    """Vehicles one behind the other with random gaps; an approach to a junction ends at it."""
    here, center = roads[road].lanes[lane], roads[road].centerline
    begin = roads[road].begin_s_m
    if road == 0:
        s, end = center.length_m / 2 - LANE_REACH_M, center.length_m / 2 + LANE_REACH_M
    else:
        s, end = begin + 1.5, begin + LANE_REACH_M
        mean_gap_m *= 1.5
    s += rng.exponential(mean_gap_m)
    found: list[tuple[Driver, Model]] = []
    while True:
        model = draw_vehicle(rng)
        length, width, _ = model.size_m
        s += length / 2
        if s > end:
            return found
        is_narrow = width < 1.2
        spare = max(here.width_m - width - 0.5, 0.0) / 2
        aside = rng.uniform(-spare, spare) if is_narrow else rng.normal(0, 0.12)
        desired = speed_mps * rng.uniform(0.85, 1.1)
        if model.category == "bicycle":
            desired = min(desired, rng.uniform(3.0, 6.0))
        driver = Driver(
            road=road,
            lane=lane,
            direction=here.direction,
            offset_m=here.offset_m + aside,
            s_m=s,
            speed_mps=0.0,
            desired_mps=max(desired, 0.5),
            front_m=length / 2,
            rear_m=length / 2,
            weave_m=rng.uniform(0.0, 0.15),
            weave_length_m=rng.uniform(30.0, 70.0),
            weave_phase_rad=rng.uniform(-np.pi, np.pi),
            stop_s_m=begin + 0.5 if road > 0 and here.direction < 0 else None,
        )
        speed = _settled_speed(driver, roads[road]) * rng.uniform(0.75, 1.0)
        if driver.stop_s_m is not None:
            room = max(s - length / 2 - driver.stop_s_m, 0.0)
            speed = min(speed, float(np.sqrt(2 * 1.5 * room)))
        found.append((replace(driver, speed_mps=speed), model))
        s += length / 2 + 3.0 + rng.exponential(mean_gap_m)
