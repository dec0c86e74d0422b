"""Labels against slow recomputation from the scene's own objects."""

import math

import numpy as np
import pytest

from fsdtrain.data.geometry import invert_pose, pose_matrix, rotation_matrix, transform_points
from fsdtrain.data.schema import Lane
from fsdtrain.data.synthetic.ground import ASPHALT_KIND, KERB_KIND, LOT_KIND, WALK_KIND
from fsdtrain.data.synthetic.labels import (
    LANE_REACH_M,
    VOXEL_M,
    label_boxes,
    label_lanes,
    label_occupancy,
    voxel_centers,
)
from fsdtrain.data.synthetic.primitives import (
    CYLINDER,
    ELLIPSOID,
    OCCUPANCY_CLASSES,
    ROAD,
    SIDEWALK,
    TERRAIN,
)
from fsdtrain.data.synthetic.render import Renderer
from fsdtrain.data.synthetic.rig import ego_pose
from fsdtrain.data.synthetic.world import Scene, draw_scene


def _scene(index: int) -> Scene:
    return draw_scene(seed=11, split="train", index=index, num_frames=3, frame_rate_hz=5.0)


def _counts(scene: Scene) -> np.ndarray:
    return np.ones(len(scene.actors), np.int64)


@pytest.mark.parametrize("index", range(3))
def test_boxes_in_the_world_are_where_the_actors_are(index: int) -> None:
    scene = _scene(index)
    for moment in scene.frame_moments:
        to_world = pose_matrix(ego_pose(*scene.ego.pose_K3[moment]))
        boxes = label_boxes(scene, moment, _counts(scene), 2 * _counts(scene))
        assert len(boxes) == len(scene.actors)
        for box, actor in zip(boxes, scene.actors, strict=True):
            x, y, yaw = actor.motion.pose_K3[moment]
            center = transform_points(to_world, np.array(box.center_m))
            assert center == pytest.approx([x, y, actor.model.size_m[2] / 2], abs=1e-4)
            forward = to_world[:3, :3] @ rotation_matrix(box.rotation_wxyz)[:, 0]
            assert forward == pytest.approx([np.cos(yaw), np.sin(yaw), 0.0], abs=1e-6)
            assert box.velocity_mps is not None
            velocity = to_world[:3, :3] @ box.velocity_mps
            assert velocity[:2] == pytest.approx(actor.motion.velocity_K2[moment], abs=1e-4)
            assert box.visibility == 0.5


def test_velocity_is_the_change_of_box_centres_between_frames() -> None:
    scene = _scene(0)
    worlds = [pose_matrix(ego_pose(*scene.ego.pose_K3[m])) for m in scene.frame_moments]
    frames = [label_boxes(scene, m, _counts(scene), _counts(scene)) for m in scene.frame_moments]
    fastest = 0.0
    for first, middle, last in zip(*frames, strict=True):
        assert first.track_id == middle.track_id == last.track_id
        ends = [
            transform_points(world, np.array(box.center_m))
            for world, box in ((worlds[0], first), (worlds[2], last))
        ]
        assert middle.velocity_mps is not None
        velocity = worlds[1][:3, :3] @ middle.velocity_mps
        # Braking of up to 6 m/s^2 may begin half-way: 0.2 s * 6 / 4.
        assert velocity == pytest.approx((ends[1] - ends[0]) / 0.4, abs=0.35)
        fastest = max(fastest, float(np.linalg.norm(velocity)))
    assert fastest > 3.0


def test_a_model_fits_its_label_box() -> None:
    """Every solid of every road user lies inside the label box, and touches its sides."""
    for index in range(8):
        for actor in _scene(index).actors:
            table = actor.model.solids
            is_round = (table["kind"] == CYLINDER) | (table["kind"] == ELLIPSOID)
            front = np.where(
                is_round, table["side_low"], np.maximum(table["front_low"], table["front_high"])
            )
            rear = np.where(
                is_round, -table["side_low"], np.minimum(table["rear_low"], table["rear_high"])
            )
            side = np.maximum(table["side_low"], table["side_high"])
            length, width, height = actor.model.size_m
            top = (table["z"] + table["height"]).max()
            assert (table["x"] + front).max() == pytest.approx(length / 2, abs=1e-9)
            assert (table["x"] + rear).min() == pytest.approx(-length / 2, abs=1e-9)
            assert side.max() == pytest.approx(width / 2, abs=0.01 * width)
            assert side.max() <= width / 2 + 1e-9
            assert top == pytest.approx(height, abs=0.02)
            assert top <= height + 1e-9


def _brute_class(scene: Scene, solids: np.ndarray, point: np.ndarray) -> int:
    """The class at one world point, one solid at a time, with scalars."""
    best = 0
    for solid in solids:
        dx, dy = point[0] - solid["x"], point[1] - solid["y"]
        x = solid["cos"] * dx + solid["sin"] * dy
        y = solid["cos"] * dy - solid["sin"] * dx
        half_z = max(solid["height"] / 2, VOXEL_M / 2)
        z = point[2] - solid["z"] - solid["height"] / 2
        radius = max(solid["side_low"], VOXEL_M / 2)
        if solid["kind"] == ELLIPSOID:
            inside = (x**2 + y**2) / radius**2 + (z / half_z) ** 2 <= 1
        elif solid["kind"] == CYLINDER:
            inside = math.hypot(x, y) <= radius and abs(z) <= half_z
        else:
            part = min(max((point[2] - solid["z"]) / solid["height"], 0.0), 1.0)
            rear = (1 - part) * solid["rear_low"] + part * solid["rear_high"]
            front = (1 - part) * solid["front_low"] + part * solid["front_high"]
            side = (1 - part) * solid["side_low"] + part * solid["side_high"]
            inside = (
                abs(z) <= half_z
                and abs(x - (rear + front) / 2) <= max((front - rear) / 2, VOXEL_M / 2)
                and abs(y) <= max(side, VOXEL_M / 2)
            )
        if inside and (best == 0 or solid["occupancy"] < best):
            best = int(solid["occupancy"])
    return best


@pytest.mark.parametrize("index", range(2))
def test_occupancy_is_what_each_voxel_centre_lies_in(index: int) -> None:
    scene = _scene(index)
    moment = scene.frame_moments[-1]
    solids = Renderer(scene).begin_frame(moment).solids
    label = label_occupancy(scene, moment, 2, solids)
    values = np.concatenate([np.full(length, value) for value, length in label.runs])
    grid = values.reshape(label.shape)
    assert label.classes == OCCUPANCY_CLASSES
    assert label.frame_index == 2
    centers = voxel_centers()
    assert centers[0, 0, 0] == pytest.approx(np.array(label.min_corner_m) + VOXEL_M / 2)
    to_world = pose_matrix(ego_pose(*scene.ego.pose_K3[moment]))
    rng = np.random.default_rng(index)
    occupied = np.argwhere((grid > 0) & (grid < ROAD))
    assert len(occupied) > 30
    chosen = [tuple(cell) for cell in occupied[rng.permutation(len(occupied))[:60]]]
    chosen += [tuple(rng.integers(0, label.shape)) for _ in range(120)]
    kinds = {ASPHALT_KIND: ROAD, LOT_KIND: ROAD, WALK_KIND: SIDEWALK, KERB_KIND: SIDEWALK}
    for cell in chosen:
        world = transform_points(to_world, centers[cell])
        if centers[cell][2] < 0:
            kind = int(scene.ground.classify(world[None, :2])[0])
            assert grid[cell] == kinds.get(kind, TERRAIN)
        else:
            assert grid[cell] == _brute_class(scene, solids, world)


def _of_kind(lanes: tuple[Lane, ...], kind: str) -> list[np.ndarray]:
    return [np.array(lane.points_m) for lane in lanes if lane.kind == kind]


@pytest.mark.parametrize("index", range(4))
def test_lanes_lie_around_the_ego(index: int) -> None:
    scene = _scene(index)
    moment = scene.frame_moments[-1]
    lanes = label_lanes(scene, moment)
    assert {"centerline", "boundary"} <= {lane.kind for lane in lanes}
    for lane in lanes:
        points = np.array(lane.points_m)
        assert np.linalg.norm(points, axis=-1).max() <= LANE_REACH_M + 1e-3
        assert np.linalg.norm(np.diff(points, axis=0), axis=-1).max() < 4.5
    # The ego drives along one of the lane middles, in the direction of its points.
    distances = [np.linalg.norm(points, axis=-1) for points in _of_kind(lanes, "centerline")]
    own = _of_kind(lanes, "centerline")[int(np.argmin([each.min() for each in distances]))]
    nearest = int(np.argmin(np.linalg.norm(own, axis=-1)))
    assert abs(own[nearest, 1]) < 1.0
    ahead = own[min(nearest + 1, len(own) - 1)] - own[nearest - 1]
    assert ahead[0] > 0.9 * np.linalg.norm(ahead)


def test_lane_boundaries_lie_on_the_edge_of_the_asphalt() -> None:
    scene = _scene(2)
    moment = scene.frame_moments[-1]
    to_ego = invert_pose(pose_matrix(ego_pose(*scene.ego.pose_K3[moment])))
    for points in _of_kind(label_lanes(scene, moment), "boundary"):
        world = transform_points(invert_pose(to_ego), points)[1:-1, :2]
        along = np.gradient(world, axis=0)[:, ::-1] * (-1, 1)
        normal = along / np.linalg.norm(along, axis=-1, keepdims=True)
        sides = [
            scene.ground.classify(world + sign * 0.15 * normal) == ASPHALT_KIND for sign in (-1, 1)
        ]
        assert (sides[0] ^ sides[1]).mean() > 0.9
