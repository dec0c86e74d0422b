"""What stands beside roads and never moves: buildings, houses, trees, hedges, walls, lamps, signs.

A prop stands at the origin of its own frame with x along the road it belongs to and is bounded by
a footprint rectangle; `world.py` decides where it may stand.
"""

from dataclasses import dataclass

import numpy as np

from fsdtrain.data.synthetic.primitives import (
    BUILDING,
    CYLINDER,
    ELLIPSOID,
    FACADE,
    FOLIAGE,
    MASONRY,
    PLAIN,
    POLE,
    VEGETATION,
    Color,
    Primitives,
    join,
    make_box,
    make_frustum,
    make_primitive,
    paint,
)
from fsdtrain.data.synthetic.vehicles import from_srgb

_WALLS = (
    (178, 120, 96), (206, 190, 164), (186, 188, 190), (150, 96, 78), (222, 214, 196),
    (136, 142, 150), (198, 168, 120), (170, 176, 160),
)  # fmt: skip
_ROOFS = ((132, 62, 48), (84, 84, 90), (110, 74, 58), (70, 78, 92))
_LEAVES = ((58, 104, 44), (84, 126, 52), (44, 84, 46), (112, 128, 56), (150, 110, 44))


@dataclass(frozen=True, kw_only=True)
class Prop:
    """Solids about the origin within a rectangle of half sizes (x, y)."""

    half_m: tuple[float, float]
    solids: Primitives


def _pick(rng: np.random.Generator, colors: tuple[tuple[int, int, int], ...]) -> Color:
    base = np.array(colors[rng.integers(len(colors))]) * rng.uniform(0.88, 1.08)
    return from_srgb(*np.clip(base, 0, 255))


def draw_building(rng: np.random.Generator) -> Prop:
    """A block of floors with windows."""
    half_x, half_y = rng.uniform(4.0, 9.0), rng.uniform(4.0, 7.0)
    height = rng.integers(2, 8) * 3.1 + 0.8
    block = make_box(
        x=(-half_x, half_x),
        side=half_y,
        base_m=0.0,
        height_m=height,
        material=FACADE,
        occupancy=BUILDING,
        variation=rng.random(),
    )
    return Prop(half_m=(half_x, half_y), solids=paint(block, _pick(rng, _WALLS), (0.9, 0.7, 0.35)))


def draw_house(rng: np.random.Generator) -> Prop:
    """A small house under a hipped roof."""
    half_x, half_y = rng.uniform(3.5, 6.0), rng.uniform(3.0, 4.5)
    wall_m = rng.choice([3.1, 6.2])
    walls = make_box(
        x=(-half_x, half_x),
        side=half_y,
        base_m=0.0,
        height_m=wall_m,
        material=FACADE,
        occupancy=BUILDING,
        variation=0.45 * rng.random(),
    )
    eaves = 0.4
    ridge = half_x - half_y * rng.uniform(0.3, 0.9)
    roof = make_frustum(
        low=(-half_x - eaves, half_x + eaves),
        high=(-ridge, ridge),
        sides=(half_y + eaves, 0.1),
        base_m=wall_m,
        height_m=rng.uniform(1.6, 2.8),
        material=PLAIN,
        occupancy=BUILDING,
    )
    solids = join(
        [paint(walls, _pick(rng, _WALLS), (0.9, 0.7, 0.35)), paint(roof, _pick(rng, _ROOFS))]
    )
    return Prop(half_m=(half_x + eaves, half_y + eaves), solids=solids)


def draw_tree(rng: np.random.Generator) -> Prop:
    """A trunk under a round crown, or a conifer of stacked pyramids."""
    leaves = _pick(rng, _LEAVES)
    bark = from_srgb(92, 70, 52)
    trunk_m = rng.uniform(0.10, 0.22)
    if rng.random() < 0.3:
        height, half = rng.uniform(4.5, 9.0), rng.uniform(1.0, 1.7)
        trunk = make_primitive(CYLINDER, side_low=trunk_m, height=1.2, occupancy=VEGETATION)
        tiers = [
            make_frustum(
                low=(-half * k, half * k),
                high=(-0.05, 0.05),
                sides=(half * k, 0.05),
                base_m=0.9 + (height - 0.9) * rise,
                height_m=(height - 0.9) * 0.5,
                material=FOLIAGE,
                occupancy=VEGETATION,
                variation=rng.random(),
            )
            for k, rise in ((1.0, 0.0), (0.78, 0.26), (0.55, 0.5))
        ]
        solids = join([paint(trunk, bark), paint(join(tiers), leaves)])
        return Prop(half_m=(half, half), solids=solids)
    clear, radius = rng.uniform(1.6, 2.8), rng.uniform(1.1, 2.2)
    trunk = make_primitive(CYLINDER, side_low=trunk_m, height=clear + 0.6, occupancy=VEGETATION)
    crowns = [
        make_primitive(
            ELLIPSOID,
            x=offset[0] * radius,
            y=offset[1] * radius,
            z=clear + offset[2] * radius,
            side_low=radius * k,
            height=2 * radius * k * rng.uniform(0.85, 1.15),
            material=FOLIAGE,
            occupancy=VEGETATION,
            variation=rng.random(),
        )
        for offset, k in (
            ((0.0, 0.0, 0.0), 1.0),
            (rng.uniform([-0.5, -0.5, 0.4], [0.5, 0.5, 0.9]), 0.75),
        )
    ]
    return Prop(half_m=(0.4, 0.4), solids=join([paint(trunk, bark), paint(join(crowns), leaves)]))


def draw_bush(rng: np.random.Generator) -> Prop:
    """A knee- to head-high round bush."""
    radius = rng.uniform(0.5, 1.2)
    bush = make_primitive(
        ELLIPSOID,
        z=-0.25 * radius,
        side_low=radius,
        height=radius * rng.uniform(1.3, 1.8),
        material=FOLIAGE,
        occupancy=VEGETATION,
        variation=rng.random(),
    )
    return Prop(half_m=(radius, radius), solids=paint(bush, _pick(rng, _LEAVES)))


def draw_barrier(rng: np.random.Generator) -> Prop:
    """A hedge or a wall along the road."""
    half_x = rng.uniform(3.0, 7.0)
    is_hedge = rng.random() < 0.5
    half_y = 0.45 if is_hedge else 0.15
    wall = make_box(
        x=(-half_x, half_x),
        side=half_y,
        base_m=0.0,
        height_m=rng.uniform(0.8, 1.9),
        material=FOLIAGE if is_hedge else MASONRY,
        occupancy=VEGETATION if is_hedge else BUILDING,
        variation=rng.random(),
    )
    return Prop(
        half_m=(half_x, half_y), solids=paint(wall, _pick(rng, _LEAVES if is_hedge else _WALLS))
    )


def draw_lamp(rng: np.random.Generator) -> Prop:
    """A street lamp whose arm reaches towards its own -y (the road, when on its left side)."""
    height = rng.uniform(5.0, 8.0)
    metal = from_srgb(*(np.ones(3) * rng.uniform(70, 150)))
    mast = make_primitive(CYLINDER, side_low=0.09, height=height, material=PLAIN, occupancy=POLE)
    arm = make_box(
        x=(-0.06, 0.06), side=0.7, base_m=height - 0.1, height_m=0.1, material=PLAIN, occupancy=POLE
    )
    arm["y"] = -0.6
    return Prop(half_m=(0.15, 0.15), solids=paint(join([mast, arm]), metal))


def draw_sign(rng: np.random.Generator) -> Prop:
    """A post with a plate that faces along the road."""
    plate_m = rng.uniform(0.28, 0.45)
    color = ((200, 30, 34), (30, 80, 170), (240, 240, 236), (240, 190, 40))[rng.integers(4)]
    post = make_primitive(CYLINDER, side_low=0.05, height=2.7, material=PLAIN, occupancy=POLE)
    plate = make_box(
        x=(-0.06, -0.02),
        side=plate_m,
        base_m=2.0,
        height_m=2 * plate_m,
        material=PLAIN,
        occupancy=POLE,
    )
    solids = join([paint(post, from_srgb(150, 152, 156)), paint(plate, from_srgb(*color))])
    return Prop(half_m=(0.1, plate_m), solids=solids)
