"""Exact labels of a synthetic scene, from the same objects that are rendered: boxes, lanes, voxels.

Everything leaves in the ego frame of the labelled moment, rounded to what a shard needs (0.01 mm).
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array, pose_matrix, transform_points
from fsdtrain.data.schema import Box3d, Lane, LaneKind, Occupancy
from fsdtrain.data.synthetic.ground import ASPHALT_KIND, KERB_KIND, LOT_KIND, WALK_KIND
from fsdtrain.data.synthetic.primitives import (
    OCCUPANCY_CLASSES,
    ROAD,
    SIDEWALK,
    TERRAIN,
    Primitives,
    bounding_radius,
    contains,
)
from fsdtrain.data.synthetic.rig import ego_pose
from fsdtrain.data.synthetic.roads import Road
from fsdtrain.data.synthetic.world import Scene

LANE_REACH_M = 45.0  # lanes are given this far from the ego
LANE_STEP_M = 2.0  # between the points of a polyline

# The voxel grid: the tiny preset's BEV square, one layer of ground, air up to the top of a truck.
VOXEL_M = 0.8
VOXEL_MIN_CORNER_M = (-19.2, -19.2, -0.8)
VOXEL_SHAPE = (48, 48, 5)


def rounded(*values: float) -> tuple[float, ...]:
    """Floats short enough for JSON: 0.01 mm."""
    return tuple([round(value, 5) for value in values])


def label_boxes(
    scene: Scene, moment: int, visible: NDArray[np.int64], unoccluded: NDArray[np.int64]
) -> tuple[Box3d, ...]:
    """All road users at one moment.

    Args:
        scene: the scene.
        moment: which of its moments.
        visible: [actors] samples covered in all cameras.
        unoccluded: [actors] samples that would be covered with nothing in front.
    """
    ego_x, ego_y, ego_yaw = scene.ego.pose_K3[moment].tolist()
    cos, sin = math.cos(ego_yaw), math.sin(ego_yaw)
    shares = (visible / np.maximum(unoccluded, 1)).tolist()
    boxes = []
    for actor, share in zip(scene.actors, shares, strict=True):
        x, y, yaw = actor.motion.pose_K3[moment].tolist()
        vx, vy = actor.motion.velocity_K2[moment].tolist()
        dx, dy = x - ego_x, y - ego_y
        turn = (yaw - ego_yaw) / 2
        length, width, height = actor.model.size_m
        center_x, center_y = rounded(cos * dx + sin * dy, cos * dy - sin * dx)
        speed_x, speed_y = rounded(cos * vx + sin * vy, cos * vy - sin * vx)
        boxes.append(
            Box3d(
                category=actor.model.category,
                track_id=actor.track_id,
                center_m=(center_x, center_y, round(height / 2, 5)),
                size_m=(round(length, 5), round(width, 5), round(height, 5)),
                rotation_wxyz=(round(math.cos(turn), 9), 0.0, 0.0, round(math.sin(turn), 9)),
                velocity_mps=(speed_x, speed_y, 0.0),
                visibility=round(share, 4),
            )
        )
    return tuple(boxes)


def label_lanes(scene: Scene, moment: int) -> tuple[Lane, ...]:
    """Lane middles (in driving order), dividers and road edges near the ego."""
    lanes = []
    for kind, points in _trace_lanes(scene):
        for part in _cut(scene, moment, points):
            lanes.append(
                Lane(
                    kind=kind,
                    points_m=tuple((round(x, 3), round(y, 3), 0.0) for x, y in part.tolist()),
                )
            )
    return tuple(lanes)


def _trace_lanes(scene: Scene) -> Iterator[tuple[LaneKind, Array]]:
    """World polylines [P, 2]; NaN where another road's asphalt interrupts them."""
    for road in scene.roads:
        s = np.arange(road.begin_s_m, road.centerline.length_m, LANE_STEP_M)
        for lane in road.lanes:
            yield "centerline", road.centerline.offset_points(s, lane.offset_m)[:: lane.direction]
        for offset in sorted(_divider_offsets(road)):
            yield "divider", road.centerline.offset_points(s, offset)
        for edge in (road.right_edge_m, road.left_edge_m):
            points = road.centerline.offset_points(s, edge)
            beyond = road.centerline.offset_points(s, edge + 0.3 * np.sign(edge))
            points[scene.ground.classify(beyond) == ASPHALT_KIND] = np.nan
            yield "boundary", points


def _divider_offsets(road: Road) -> set[float]:
    """Where two lanes of a road meet, painted or not."""
    sides = [lane.offset_m + sign * lane.width_m / 2 for lane in road.lanes for sign in (-1, 1)]
    rounded_sides = [round(side, 6) + 0.0 for side in sides]
    return {side for side in rounded_sides if rounded_sides.count(side) == 2}


def _cut(scene: Scene, moment: int, points_P2: Array) -> Iterator[Array]:
    """The parts [Q, 2], in the ego frame, of a world polyline that lie within reach."""
    x, y, yaw = scene.ego.pose_K3[moment]
    cos, sin = np.cos(yaw), np.sin(yaw)
    ego_P2 = (points_P2 - (x, y)) @ np.array([[cos, -sin], [sin, cos]])
    is_near = np.hypot(ego_P2[:, 0], ego_P2[:, 1]) <= LANE_REACH_M  # False for NaN
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_near.astype(np.int8), [0]])))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if end - begin >= 2:
            yield ego_P2[begin:end]


def voxel_centers() -> Array:
    """[X, Y, Z, 3] ego coordinates of the centres of the grid."""
    axes = [
        low + (np.arange(num) + 0.5) * VOXEL_M
        for low, num in zip(VOXEL_MIN_CORNER_M, VOXEL_SHAPE, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def label_occupancy(scene: Scene, moment: int, frame_index: int, solids: Primitives) -> Occupancy:
    """The voxel grid at one moment: what the centre of each voxel lies in.

    Solids thinner than a voxel count as half a voxel thick to each side, so that poles and people
    are not lost. Where solids overlap, the later class of `OCCUPANCY_CLASSES` gives way.
    """
    centers = voxel_centers()
    world = transform_points(pose_matrix(ego_pose(*scene.ego.pose_K3[moment])), centers)
    grid = np.zeros(VOXEL_SHAPE, np.int64)
    is_ground = centers[0, 0, :, 2] < 0
    kinds = scene.ground.classify(world[:, :, 0, :2].reshape(-1, 2)).reshape(VOXEL_SHAPE[:2])
    surface = np.full(VOXEL_SHAPE[:2], TERRAIN)
    surface[np.isin(kinds, (ASPHALT_KIND, LOT_KIND))] = ROAD
    surface[np.isin(kinds, (WALK_KIND, KERB_KIND))] = SIDEWALK
    grid[:, :, is_ground] = surface[:, :, None]
    _fill_solids(scene, moment, solids, world, ~is_ground, grid)
    flat = grid.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.concatenate([starts, [len(flat)]]))
    return Occupancy(
        frame_index=frame_index,
        classes=OCCUPANCY_CLASSES,
        min_corner_m=VOXEL_MIN_CORNER_M,
        voxel_size_m=VOXEL_M,
        shape=VOXEL_SHAPE,
        runs=tuple(zip(flat[starts].tolist(), lengths.tolist(), strict=True)),
    )


def _fill_solids(
    scene: Scene,
    moment: int,
    solids: Primitives,
    world: Array,
    is_air: NDArray[np.bool_],
    grid: NDArray[np.int64],
) -> None:
    """Write the class of each solid into the voxels near it that it contains."""
    x, y, yaw = scene.ego.pose_K3[moment]
    cos, sin = np.cos(yaw), np.sin(yaw)
    dx, dy = solids["x"] - x, solids["y"] - y
    place = np.stack([cos * dx + sin * dy, cos * dy - sin * dx], axis=-1)
    reach = np.maximum(bounding_radius(solids), VOXEL_M)[:, None] + VOXEL_M
    low = np.floor((place - reach - VOXEL_MIN_CORNER_M[:2]) / VOXEL_M).astype(np.int64)
    high = np.ceil((place + reach - VOXEL_MIN_CORNER_M[:2]) / VOXEL_M).astype(np.int64)
    low, high = np.clip(low, 0, VOXEL_SHAPE[:2]), np.clip(high, 0, VOXEL_SHAPE[:2])
    first_air = int(np.argmax(is_air))
    # From the last class to the first, so that the first is written over the others.
    for number in np.argsort(-solids["occupancy"], kind="stable"):
        (i0, j0), (i1, j1) = low[number], high[number]
        if i0 < i1 and j0 < j1:
            inside = contains(
                solids[number], world[i0:i1, j0:j1, first_air:], least_half_m=VOXEL_M / 2
            )
            grid[i0:i1, j0:j1, first_air:][inside] = solids[number]["occupancy"]
