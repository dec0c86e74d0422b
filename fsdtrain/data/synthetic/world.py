"""One synthetic scene as plain data, from (seed, split, index): the recipe, from roads to trees.

`draw_scene` is the order of things. Nothing here knows cameras or pixels. Two splits never share a
scene: the split is part of the seed's key.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fsdtrain.data.synthetic.drivers import place_drivers
from fsdtrain.data.synthetic.ground_map import GroundMap, pack_ground
from fsdtrain.data.synthetic.placement import place_parked, place_pedestrians, place_strays
from fsdtrain.data.synthetic.primitives import Primitives
from fsdtrain.data.synthetic.roads import Road, draw_main_road, draw_side_roads
from fsdtrain.data.synthetic.roadside import draw_areas, place_props
from fsdtrain.data.synthetic.space import Actor, Space
from fsdtrain.data.synthetic.traffic import Motion
from fsdtrain.data.synthetic.weather import Weather, draw_ground_colors, draw_weather

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

FUTURE_S = 3.2  # how far the ego track reaches beyond the last frame
LONGEST_STEP_S = 0.1  # of the simulation; frames fall on its steps


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything about one drive. Poses are in the world frame, at moments `times_ns`."""

    split: Split
    index: int
    seed: int
    times_ns: tuple[int, ...]  # K moments from the first frame to FUTURE_S beyond the last
    frame_moments: tuple[int, ...]  # which of them are frames
    ego: Motion  # of the rear axle
    actors: tuple[Actor, ...]
    roads: tuple[Road, ...]
    ground: GroundMap
    scenery: Primitives  # what never moves and carries no box
    weather: Weather


def scene_seed(seed: int, split: Split, index: int, stream: int) -> np.random.SeedSequence:
    """The seed of one stream of randomness; distinct arguments never share numbers."""
    return np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index, stream))


def draw_scene(
    *, seed: int, split: Split, index: int, num_frames: int, frame_rate_hz: float
) -> Scene:
    """The scene with this number; the same for the same arguments, on any process."""
    # One stream an aspect, so that a change in one leaves the others as they were.
    layout, traffic, scenery, look = (
        np.random.default_rng(scene_seed(seed, split, index, stream)) for stream in range(4)
    )
    times_ns, frame_moments = _draw_times(num_frames, frame_rate_hz)
    interval_s = (times_ns[1] - times_ns[0]) / 1e9
    is_urban = bool(layout.random() < 0.6)
    main = draw_main_road(layout, is_urban=is_urban, heading_rad=layout.uniform(-np.pi, np.pi))
    roads = (main, *draw_side_roads(layout, main, is_urban=is_urban))
    colors = draw_ground_colors(look, is_urban=is_urban, num_roads=len(roads))
    bare = pack_ground(roads, (), colors)
    areas = draw_areas(layout, roads, bare, is_urban=is_urban)
    ground = pack_ground(roads, areas, colors)
    space = Space(len(times_ns))
    # Traffic first, since it has the least choice where to be; what comes later keeps clear of it.
    ego = place_drivers(traffic, roads, space, interval_s=interval_s)
    place_parked(traffic, roads, areas, space)
    place_strays(traffic, ground, space)
    place_pedestrians(traffic, roads, space, interval_s=interval_s)
    solids = place_props(scenery, roads, ground, space, is_urban=is_urban)
    return Scene(
        split=split,
        index=index,
        seed=seed,
        times_ns=times_ns,
        frame_moments=frame_moments,
        ego=ego,
        actors=tuple(space.actors),
        roads=roads,
        ground=ground,
        scenery=solids,
        weather=draw_weather(look),
    )


def _draw_times(num_frames: int, frame_rate_hz: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    interval_ns = round(1e9 / frame_rate_hz)
    steps = int(np.ceil(interval_ns / 1e9 / LONGEST_STEP_S - 1e-9))
    last = (num_frames - 1) * steps
    num = last + int(np.ceil(FUTURE_S * 1e9 / interval_ns * steps)) + 1
    times = tuple(moment * interval_ns // steps for moment in range(num))
    return times, tuple(range(0, last + 1, steps))
