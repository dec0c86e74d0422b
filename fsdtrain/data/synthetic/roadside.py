"""What lies and stands beside the roads of a scene: lots, crossings, buildings, trees, lamps."""

from collections.abc import Callable, Sequence

import numpy as np

from fsdtrain.data.synthetic.ground import TERRAIN_KIND, WALK_KIND
from fsdtrain.data.synthetic.ground_map import PERPENDICULAR_PITCH_M, Area, GroundMap
from fsdtrain.data.synthetic.placement import footprint_points
from fsdtrain.data.synthetic.primitives import Primitives, join, place
from fsdtrain.data.synthetic.roads import Road
from fsdtrain.data.synthetic.scenery import (
    Prop,
    draw_barrier,
    draw_building,
    draw_bush,
    draw_house,
    draw_lamp,
    draw_sign,
    draw_tree,
)
from fsdtrain.data.synthetic.space import Space
from fsdtrain.data.synthetic.traffic import Motion

REACH_M = 70.0  # props stand this far along a road from the ego or the junction


def draw_areas(
    rng: np.random.Generator, roads: Sequence[Road], ground: GroundMap, *, is_urban: bool
) -> tuple[Area, ...]:
    """Parking lots beside the main road, and zebra crossings."""
    lots = [_draw_lot(rng, roads[0]) for _ in range(int(rng.choice(3, p=[0.25, 0.5, 0.25])))]
    areas = []
    for lot in lots:
        points = footprint_points(lot.x, lot.y, lot.yaw, lot.half_length_m, lot.half_width_m)
        if (ground.classify(points) == TERRAIN_KIND).all():
            areas.append(lot)
    for road in roads:
        if rng.random() < (0.45 if is_urban else 0.12):
            s = road.begin_s_m + 3.0
            if road.begin_s_m == 0.0:
                s = road.centerline.length_m / 2 + rng.uniform(-25.0, 35.0)
            middle = (road.left_edge_m + road.right_edge_m) / 2
            x, y, yaw = road.centerline.pose(s, middle)
            areas.append(
                Area(
                    is_crossing=True,
                    x=x,
                    y=y,
                    yaw=yaw,
                    half_length_m=rng.uniform(1.2, 2.0),
                    half_width_m=(road.left_edge_m - road.right_edge_m) / 2 - 0.2,
                )
            )
    return tuple(areas)


def _draw_lot(rng: np.random.Generator, road: Road) -> Area:
    side = int(rng.choice([-1, 1]))
    s = road.centerline.length_m / 2 + rng.uniform(-22.0, 26.0)
    half_length, half_width = rng.uniform(5.5, 11.0), rng.uniform(7.6, 9.0)
    is_across = bool(rng.random() < 0.5)
    reach = half_length if is_across else half_width
    d = side * (road.outer_m(side) + rng.uniform(0.8, 4.0) + reach)
    x, y, heading = road.centerline.pose(s, d)
    return Area(
        is_crossing=False,
        x=x,
        y=y,
        yaw=heading + np.pi / 2 * is_across + rng.normal(0, 0.1),
        half_length_m=half_length,
        half_width_m=half_width,
        stall_m=PERPENDICULAR_PITCH_M,
    )


def place_props(
    rng: np.random.Generator,
    roads: Sequence[Road],
    ground: GroundMap,
    space: Space,
    *,
    is_urban: bool,
) -> Primitives:
    """The solids of all scenery that stands clear of roads, lots, road users and itself."""
    placed: list[Primitives] = []
    density = rng.uniform(0.5, 1.0)
    # (what, metres along the road from one to the next, gap to the road's outer edge, may it
    # stand on the sidewalk); the large ones first, since they are the hardest to place.
    kinds: list[tuple[Callable[[np.random.Generator], Prop], float, tuple[float, float], bool]]
    if is_urban:
        kinds = [
            (draw_building, 20.0, (0.5, 7.0), False),
            (draw_barrier, 30.0, (0.3, 2.0), False),
            (draw_tree, 16.0, (-0.9, 4.0), True),
            (draw_lamp, 24.0, (-0.6, -0.3), True),
            (draw_sign, 40.0, (-0.5, 0.2), True),
            (draw_bush, 34.0, (0.5, 5.0), False),
        ]
    else:
        kinds = [
            (draw_house, 34.0, (4.0, 14.0), False),
            (draw_barrier, 40.0, (0.8, 3.0), False),
            (draw_tree, 10.0, (0.8, 18.0), False),
            (draw_lamp, 45.0, (0.4, 0.9), True),
            (draw_sign, 45.0, (0.4, 1.0), True),
            (draw_bush, 14.0, (0.6, 14.0), False),
        ]
    for draw, pitch, setback, on_walk in kinds:
        for road in roads:
            for side in (-1, 1):
                middle = road.centerline.length_m / 2
                low, high = middle - REACH_M, middle + REACH_M
                if road.begin_s_m > 0.0:
                    low, high = road.begin_s_m + 3.0, road.begin_s_m + REACH_M
                s = low + rng.uniform(0, pitch)
                while s < high:
                    if rng.random() < density:
                        solids = _try_prop(
                            rng, draw(rng), road, side, s, setback, ground, space, on_walk=on_walk
                        )
                        placed += [] if solids is None else [solids]
                    s += pitch * rng.uniform(0.7, 1.3)
    return join(placed)


def _try_prop(
    rng: np.random.Generator,
    prop: Prop,
    road: Road,
    side: int,
    s: float,
    setback: tuple[float, float],
    ground: GroundMap,
    space: Space,
    *,
    on_walk: bool,
) -> Primitives | None:
    half_x, half_y = prop.half_m
    d = side * (road.outer_m(side) + rng.uniform(*setback) + half_y)
    x, y, yaw = road.centerline.pose(s, d)
    # Props face the road: their -y points at it from the left side.
    yaw += (0.0 if side > 0 else np.pi) + rng.normal(0, 0.03)
    motion = Motion.standing(x, y, yaw, space.num_moments)
    if not space.is_free(motion.pose_K3, 2 * half_x, 2 * half_y):
        return None
    kinds = ground.classify(footprint_points(x, y, yaw, half_x, half_y))
    allowed = (kinds == TERRAIN_KIND) | (on_walk & (kinds == WALK_KIND))
    if not allowed.all():
        return None
    space.block(motion.pose_K3, 2 * half_x, 2 * half_y)
    return place(prop.solids, x=x, y=y, yaw=yaw)
