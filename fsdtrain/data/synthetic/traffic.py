"""How lane traffic moves: car following and slowing for bends, integrated along fixed paths.

A driver keeps to one lane of one road with a gentle weave, so its path is a curve known in advance
and only its progress is simulated (intelligent driver model: Treiber, Hennecke, Helbing 2000).
Positions, headings and velocities then follow exactly from progress.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic.roads import SPACING_M, Road

ACCELERATION_MPS2 = 1.6
COMFORT_BRAKE_MPS2 = 2.2
HARDEST_BRAKE_MPS2 = 6.0
HEADWAY_S = 1.1
STANDSTILL_GAP_M = 2.5
LATERAL_MPS2 = 2.8  # sideways acceleration that a driver accepts in a bend


@dataclass(frozen=True, kw_only=True)
class Driver:
    """One vehicle in a lane. `s_m` is where its reference point starts on the road."""

    road: int
    lane: int
    direction: int
    offset_m: float  # of its lane's middle, plus its own habit
    s_m: float
    speed_mps: float
    desired_mps: float
    front_m: float  # from the reference point to the bumper, along the direction of travel
    rear_m: float
    weave_m: float = 0.0
    weave_length_m: float = 40.0
    weave_phase_rad: float = 0.0
    stop_s_m: float | None = None  # it stops with its bumper here


@dataclass(frozen=True, kw_only=True)
class Motion:
    """A path over the ground at K moments: (x, y, heading) and velocity, world frame."""

    pose_K3: Array
    velocity_K2: Array

    @staticmethod
    def standing(x: float, y: float, yaw: float, num_moments: int) -> "Motion":
        """A motion that stays where it is."""
        return Motion(
            pose_K3=np.tile([x, y, yaw], (num_moments, 1)), velocity_K2=np.zeros((num_moments, 2))
        )


def drive(
    drivers: list[Driver], roads: tuple[Road, ...], *, num_moments: int, interval_s: float
) -> list[Motion]:
    """Move all drivers together for `num_moments` moments, `interval_s` apart."""
    if not drivers:
        return []
    progress_KD, rate_KD = _simulate(drivers, roads, num_moments, interval_s)
    return [
        _trace(driver, roads[driver.road], progress_KD[:, number], rate_KD[:, number])
        for number, driver in enumerate(drivers)
    ]


def _simulate(
    drivers: list[Driver], roads: tuple[Road, ...], num_moments: int, interval_s: float
) -> tuple[Array, Array]:
    """[K, D] metres s along the road's centre line, and its rate ds/dt (both signed)."""
    longest = max(len(road.centerline.curvature_S) for road in roads)
    curvature_RS = np.zeros((len(roads), longest))
    for number, road in enumerate(roads):
        curvature_RS[number, : len(road.centerline.curvature_S)] = road.centerline.curvature_S
    road_D = np.array([driver.road for driver in drivers])
    direction_D = np.array([driver.direction for driver in drivers], dtype=np.float64)
    offset_D = np.array([driver.offset_m for driver in drivers])
    front_D = np.array([driver.front_m for driver in drivers])
    rear_D = np.array([driver.rear_m for driver in drivers])
    desired_D = np.array([driver.desired_mps for driver in drivers])
    stop_D = np.array([np.inf if d.stop_s_m is None else d.direction * d.stop_s_m for d in drivers])
    # Progress q grows in the direction of travel, whichever way s runs.
    q_D = direction_D * np.array([driver.s_m for driver in drivers])
    v_D = np.array([driver.speed_mps for driver in drivers])
    leader_D = _find_leaders(drivers, q_D)
    has_leader_D = leader_D >= 0

    def curvature(q: Array) -> Array:
        place = np.clip(direction_D * q / SPACING_M, 0, longest - 1.000001)
        low = place.astype(np.int64)
        part = place - low
        ends = curvature_RS[road_D, low], curvature_RS[road_D, low + 1]
        return np.asarray((1 - part) * ends[0] + part * ends[1])

    progress, rate = [], []
    for _ in range(num_moments):
        bend_D = np.maximum(np.abs(curvature(q_D + 0.4 * v_D)), np.abs(curvature(q_D + 1.2 * v_D)))
        limit_D = np.minimum(desired_D, np.sqrt(LATERAL_MPS2 / np.maximum(bend_D, 1e-3)))
        gap_D = np.where(has_leader_D, (q_D - rear_D)[leader_D] - q_D - front_D, 1e3)
        ahead_D = np.where(has_leader_D, v_D[leader_D], v_D)
        stop_gap_D = stop_D - q_D - front_D
        is_stop = stop_gap_D < gap_D
        gap_D = np.maximum(np.where(is_stop, stop_gap_D + STANDSTILL_GAP_M, gap_D), 0.3)
        closing_D = v_D - np.where(is_stop, 0.0, ahead_D)
        brake = 2 * np.sqrt(ACCELERATION_MPS2 * COMFORT_BRAKE_MPS2)
        wish_D = STANDSTILL_GAP_M + np.maximum(0, v_D * HEADWAY_S + v_D * closing_D / brake)
        free_D = (v_D / np.maximum(limit_D, 0.1)) ** 4
        gain_D = ACCELERATION_MPS2 * (1 - free_D - (wish_D / gap_D) ** 2)
        gain_D = np.clip(gain_D, -HARDEST_BRAKE_MPS2, ACCELERATION_MPS2)
        # Metres of centre line for each metre driven: more outside of a bend, fewer inside.
        scale_D = 1 - curvature(q_D) * offset_D
        progress.append(direction_D * q_D)
        rate.append(direction_D * v_D / scale_D)
        next_D = np.maximum(v_D + gain_D * interval_s, 0.0)
        step_D = (v_D + next_D) / 2 * interval_s
        q_D = q_D + step_D / (1 - curvature(q_D + step_D / scale_D / 2) * offset_D)
        v_D = next_D
    return np.array(progress), np.array(rate)


def _find_leaders(drivers: list[Driver], q_D: Array) -> NDArray[np.int64]:
    """[D] index of the next driver ahead in the same lane, -1 for none; nobody overtakes."""
    leaders = np.full(len(drivers), -1)
    lanes: dict[tuple[int, int], list[int]] = {}
    for number, driver in enumerate(drivers):
        lanes.setdefault((driver.road, driver.lane), []).append(number)
    for members in lanes.values():
        members.sort(key=lambda number: q_D[number])
        for behind, ahead in zip(members, members[1:], strict=False):
            leaders[behind] = ahead
    return leaders


def _trace(driver: Driver, road: Road, s_K: Array, rate_K: Array) -> Motion:
    xy_K2, heading_K, curvature_K = road.centerline.at(s_K)
    wave = 2 * np.pi / driver.weave_length_m
    phase_K = wave * s_K + driver.weave_phase_rad
    offset_K = driver.offset_m + driver.weave_m * np.sin(phase_K)
    along_K = 1 - curvature_K * offset_K  # path length per metre of centre line, by direction
    across_K = driver.weave_m * wave * np.cos(phase_K)
    tangent_K2 = np.stack([np.cos(heading_K), np.sin(heading_K)], axis=-1)
    normal_K2 = np.stack([-tangent_K2[:, 1], tangent_K2[:, 0]], axis=-1)
    path_K2 = along_K[:, None] * tangent_K2 + across_K[:, None] * normal_K2
    facing_K2 = driver.direction * path_K2
    yaw_K = np.unwrap(np.arctan2(facing_K2[:, 1], facing_K2[:, 0]))
    position_K2 = xy_K2 + offset_K[:, None] * normal_K2
    return Motion(
        pose_K3=np.concatenate([position_K2, yaw_K[:, None]], axis=-1),
        velocity_K2=rate_K[:, None] * path_K2,
    )
