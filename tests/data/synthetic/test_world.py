"""What must hold in every scene, checked on the plain data by slower means."""

import numpy as np
import pytest

from fsdtrain.data.geometry import Array
from fsdtrain.data.schema import VEHICLE_CLASSES
from fsdtrain.data.synthetic.drivers import EGO_LENGTH_M, EGO_REAR_M, EGO_WIDTH_M
from fsdtrain.data.synthetic.traffic import Driver, Motion, drive
from fsdtrain.data.synthetic.world import SPLITS, Scene, Split, draw_scene, scene_seed

NUM_SCENES = 14


def _scene(index: int, split: Split = "train", seed: int = 7) -> Scene:
    return draw_scene(seed=seed, split=split, index=index, num_frames=5, frame_rate_hz=5.0)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [_scene(index) for index in range(NUM_SCENES)]


def _same(first: Scene, second: Scene) -> bool:
    return (
        np.array_equal(first.ego.pose_K3, second.ego.pose_K3)
        and first.scenery.tobytes() == second.scenery.tobytes()
        and first.weather == second.weather
        and [actor.track_id for actor in first.actors] == [a.track_id for a in second.actors]
        and all(
            np.array_equal(one.motion.pose_K3, other.motion.pose_K3)
            and one.model.solids.tobytes() == other.model.solids.tobytes()
            for one, other in zip(first.actors, second.actors, strict=True)
        )
    )


def test_a_scene_is_a_function_of_seed_split_and_index(scenes: list[Scene]) -> None:
    assert _same(scenes[3], _scene(3))
    for other in (_scene(4), _scene(3, split="val"), _scene(3, seed=8)):
        assert not np.array_equal(scenes[3].ego.pose_K3, other.ego.pose_K3)


def test_no_two_scenes_share_a_stream_of_randomness() -> None:
    keys = [
        tuple(scene_seed(seed, split, index, stream).generate_state(4))
        for seed in range(3)
        for split in SPLITS
        for index in range(20)
        for stream in range(4)
    ]
    assert len(set(keys)) == len(keys)


def _outline(pose: Array, length: float, width: float, middle: float = 0.0) -> Array:
    """[P, 2] points on the rim of a rectangle, at most 0.25 m apart."""
    x = np.linspace(-length / 2, length / 2, int(length / 0.25) + 2) + middle
    y = np.linspace(-width / 2, width / 2, int(width / 0.25) + 2)
    rim = [(a, b) for a in x for b in (y[0], y[-1])] + [(a, b) for a in (x[0], x[-1]) for b in y]
    turn = np.array([[np.cos(pose[2]), -np.sin(pose[2])], [np.sin(pose[2]), np.cos(pose[2])]])
    return np.asarray(np.array(rim) @ turn.T + pose[:2])


def _is_inside(points: Array, pose: Array, length: float, width: float) -> bool:
    offset = points - pose[:2]
    along = offset @ (np.cos(pose[2]), np.sin(pose[2]))
    across = offset @ (-np.sin(pose[2]), np.cos(pose[2]))
    return bool(((np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)).any())


@pytest.mark.parametrize("index", range(NUM_SCENES))
def test_nobody_ever_touches_anybody(scenes: list[Scene], index: int) -> None:
    scene = scenes[index]
    for moment in range(0, len(scene.times_ns), 8):
        ego = scene.ego.pose_K3[moment].copy()
        ahead = EGO_LENGTH_M / 2 - EGO_REAR_M
        ego[:2] += ahead * np.array([np.cos(ego[2]), np.sin(ego[2])])
        taken = [(ego, EGO_LENGTH_M, EGO_WIDTH_M)]
        taken += [(actor.motion.pose_K3[moment], *actor.model.size_m[:2]) for actor in scene.actors]
        for number, (pose, length, width) in enumerate(taken):
            rim = _outline(pose, length, width)
            for other in taken[:number]:
                if np.hypot(*(other[0][:2] - pose[:2])) < 13.0:
                    assert not _is_inside(rim, *other)


@pytest.mark.parametrize("index", range(NUM_SCENES))
def test_the_ego_keeps_its_lane_and_a_sane_speed(scenes: list[Scene], index: int) -> None:
    scene = scenes[index]
    road = scene.roads[0]
    s = np.arange(0.0, road.centerline.length_m, 0.05)
    xy, heading, _ = road.centerline.at(s)
    lanes = [lane for lane in road.lanes if lane.direction > 0]
    offsets = []
    for x, y, yaw in scene.ego.pose_K3:
        nearest = int(np.argmin(((xy - (x, y)) ** 2).sum(-1)))
        turn = heading[nearest]
        offsets.append((y - xy[nearest, 1]) * np.cos(turn) - (x - xy[nearest, 0]) * np.sin(turn))
        assert abs(np.angle(np.exp(1j * (yaw - turn)))) < 0.1
    lane = min(lanes, key=lambda lane: abs(lane.offset_m - offsets[0]))
    # Its wheels stay on its side of the lines, but for a hand's breadth.
    assert np.abs(np.array(offsets) - lane.offset_m).max() < (lane.width_m - EGO_WIDTH_M) / 2 + 0.2
    speed = np.hypot(*scene.ego.velocity_K2.T)
    assert speed.max() < 17.0


def test_velocities_are_the_derivatives_of_positions(scenes: list[Scene]) -> None:
    for scene in scenes:
        seconds = np.diff(np.array(scene.times_ns) / 1e9)[:, None]
        for motion in [scene.ego, *(actor.motion for actor in scene.actors)]:
            moved = np.diff(motion.pose_K3[:, :2], axis=0) / seconds
            # Acceleration is constant between two moments, so only bends are left out.
            mean = (motion.velocity_K2[1:] + motion.velocity_K2[:-1]) / 2
            assert moved == pytest.approx(mean, abs=0.05)


def test_moving_vehicles_point_where_they_go(scenes: list[Scene]) -> None:
    for scene in scenes:
        for actor in scene.actors:
            speed = np.hypot(*actor.motion.velocity_K2.T)
            way = np.arctan2(actor.motion.velocity_K2[:, 1], actor.motion.velocity_K2[:, 0])
            turn = np.angle(np.exp(1j * (way - actor.motion.pose_K3[:, 2])))
            assert np.abs(turn[speed > 0.1]).max(initial=0.0) < 1e-6


def test_the_ego_track_covers_the_future(scenes: list[Scene]) -> None:
    for scene in scenes:
        last = scene.times_ns[scene.frame_moments[-1]]
        assert scene.times_ns[0] == 0
        assert scene.times_ns[-1] - last >= 3.0e9
        assert np.diff(scene.times_ns).max() <= 0.1e9
        assert [scene.times_ns[m] for m in scene.frame_moments] == [
            k * 200_000_000 for k in range(5)
        ]


@pytest.mark.parametrize("rate_hz", [2.0, 3.0, 10.0, 12.5, 36.0])
def test_frames_fall_on_the_nominal_rate(rate_hz: float) -> None:
    scene = draw_scene(seed=0, split="val", index=0, num_frames=4, frame_rate_hz=rate_hz)
    frames = np.array([scene.times_ns[moment] for moment in scene.frame_moments])
    assert np.diff(frames) == pytest.approx(1e9 / rate_hz, abs=2)
    assert scene.times_ns[-1] - frames[-1] >= 3.0e9


def test_scenes_hold_enough_vehicles_of_many_kinds_in_many_places(scenes: list[Scene]) -> None:
    counts, kinds, turns = [], set(), []
    for scene in scenes:
        last = scene.frame_moments[-1]
        x, y, yaw = scene.ego.pose_K3[last]
        near = [
            actor
            for actor in scene.actors
            if np.abs(actor.motion.pose_K3[last, :2] - (x, y)).max() < 25.0
        ]
        vehicles = [actor for actor in near if actor.model.category in VEHICLE_CLASSES]
        counts.append(len(vehicles))
        kinds |= {actor.model.category for actor in scene.actors}
        turns += [np.sin(2 * (actor.motion.pose_K3[last, 2] - yaw)) for actor in vehicles]
    assert 8 <= np.mean(counts) <= 18
    assert {"car", "truck", "bus", "motorcycle", "bicycle", "pedestrian"} <= kinds
    assert np.mean(np.abs(turns) > 0.3) > 0.1  # neither along nor across the ego's heading


def test_a_follower_neither_hits_nor_loses_a_slower_leader(scenes: list[Scene]) -> None:
    road = scenes[0].roads[0]
    lane = road.lanes[0]

    def driver(s: float, speed: float) -> Driver:
        return Driver(
            road=0,
            lane=0,
            direction=lane.direction,
            offset_m=lane.offset_m,
            s_m=s,
            speed_mps=speed,
            desired_mps=speed,
            front_m=2.0,
            rear_m=2.0,
        )

    drivers = [driver(100.0, 6.0), driver(118.0, 3.0)]
    behind, ahead = drive(drivers, (road,), num_moments=300, interval_s=0.1)

    def gap(first: Motion, second: Motion) -> Array:
        return np.asarray(np.hypot(*(first.pose_K3 - second.pose_K3)[:, :2].T)) - 4.0

    assert gap(behind, ahead).min() > 1.5
    assert gap(behind, ahead)[-1] < 15.0
    assert np.hypot(*behind.velocity_K2[-1]) == pytest.approx(
        float(np.hypot(*ahead.velocity_K2[-1])), abs=0.3
    )
