"""Road users as solids: cars, vans, trucks, buses, two-wheelers and pedestrians of many sizes.

A model stands at the origin of its own frame, x forward; its label box is its tight bounding box,
centred over the origin. Where it stands and how it moves is not known here.
"""

from dataclasses import dataclass

import numpy as np

from fsdtrain.data.schema import ObjectClass
from fsdtrain.data.synthetic.primitives import (
    CABIN,
    CARGO,
    COACH,
    CYLINDER,
    ELLIPSOID,
    PAINT,
    PEDESTRIAN,
    PLAIN,
    VAN_CABIN,
    VEHICLE,
    Color,
    Primitives,
    join,
    make_box,
    make_frustum,
    make_primitive,
    paint,
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What one road user looks like; size is (length, width, height)."""

    category: ObjectClass
    size_m: tuple[float, float, float]
    solids: Primitives


def from_srgb(*channels: float) -> Color:
    """Linear light of a display colour given in 0..255."""
    red, green, blue = (float((channel / 255.0) ** 2.2) for channel in channels)
    return red, green, blue


# Display colours of paint and how often they are seen; strong colours a little more than in life.
_PAINTS: tuple[tuple[tuple[int, int, int], float], ...] = (
    ((238, 238, 236), 0.18),
    ((196, 200, 204), 0.11),
    ((120, 124, 130), 0.07),
    ((28, 29, 32), 0.12),
    ((170, 24, 28), 0.11),
    ((110, 16, 26), 0.04),
    ((28, 74, 160), 0.11),
    ((70, 140, 200), 0.06),
    ((24, 36, 78), 0.04),
    ((28, 92, 60), 0.04),
    ((236, 186, 32), 0.05),
    ((214, 98, 30), 0.04),
    ((190, 176, 146), 0.03),
)
_CLOTHES = (
    (196, 40, 44),
    (40, 70, 150),
    (230, 226, 214),
    (40, 42, 46),
    (60, 120, 80),
    (222, 160, 40),
)
_SKINS = ((236, 196, 168), (198, 146, 112), (124, 84, 62), (84, 56, 42))
_DARK = from_srgb(44, 46, 50)


def draw_color(rng: np.random.Generator) -> Color:
    """A vehicle's paint, linear light."""
    weights = np.array([weight for _, weight in _PAINTS])
    base = np.array(_PAINTS[rng.choice(len(_PAINTS), p=weights / weights.sum())][0])
    return from_srgb(*np.clip(base * rng.uniform(0.88, 1.06), 0, 255))


def draw_vehicle(rng: np.random.Generator, kinds: str = "any") -> Model:
    """A random vehicle. `kinds`: "any", or "parked" without buses and bicycles."""
    share = (
        [0.66, 0.10, 0.07, 0.05, 0.06, 0.06] if kinds == "any" else [0.8, 0.12, 0.05, 0, 0.03, 0]
    )
    maker = (_car, _van, _truck, _bus, _motorcycle, _bicycle)[rng.choice(6, p=share)]
    return maker(rng)


def _wheels(radius: float, front: float, rear: float, sill: float) -> dict[str, float]:
    return {"wheel_radius": radius, "wheel_front": front, "wheel_rear": rear, "sill": sill}


def _car(rng: np.random.Generator) -> Model:
    style = rng.choice(["sedan", "hatchback", "suv", "pickup"], p=[0.36, 0.3, 0.26, 0.08])
    long, tall = {
        "sedan": ((4.4, 5.0), (1.40, 1.50)),
        "hatchback": ((3.6, 4.3), (1.44, 1.56)),
        "suv": ((4.3, 4.9), (1.62, 1.82)),
        "pickup": ((5.0, 5.6), (1.75, 1.9)),
    }[style]
    length, height = rng.uniform(*long), rng.uniform(*tall)
    width = rng.uniform(1.70, 1.86) + (0.1 if style in ("suv", "pickup") else 0.0)
    half = length / 2
    belt = height * (0.58 if style != "sedan" else 0.6)
    rear_low, rear_high, front_high, front_low = {
        "sedan": (-0.41, -0.25, 0.03, 0.23),
        "hatchback": (-0.49, -0.40, 0.07, 0.27),
        "suv": (-0.49, -0.44, 0.08, 0.24),
        "pickup": (-0.10, -0.07, 0.10, 0.24),
    }[style]
    radius = 0.33 if style in ("sedan", "hatchback") else 0.38
    body = make_frustum(
        low=(-half, half),
        high=(-half * 0.97, half * 0.93),
        sides=(width / 2, width / 2 * 0.97),
        base_m=0.0,
        height_m=belt,
        material=PAINT,
        occupancy=VEHICLE,
        **_wheels(radius, 0.31 * length, -0.29 * length, 0.19),
    )
    cabin = make_frustum(
        low=(rear_low * length, front_low * length),
        high=(rear_high * length, front_high * length),
        sides=(width / 2 * 0.965, width / 2 * 0.76),
        base_m=belt,
        height_m=height - belt,
        material=CABIN,
        occupancy=VEHICLE,
    )
    solids = paint(join([body, cabin]), draw_color(rng), _DARK)
    return Model(category="car", size_m=(length, width, height), solids=solids)


def _van(rng: np.random.Generator) -> Model:
    length, width, height = rng.uniform(4.7, 5.9), rng.uniform(1.9, 2.05), rng.uniform(1.95, 2.5)
    half, belt = length / 2, height * 0.46
    body = make_frustum(
        low=(-half, half),
        high=(-half, half * 0.96),
        sides=(width / 2, width / 2),
        base_m=0.0,
        height_m=belt,
        material=PAINT,
        occupancy=VEHICLE,
        **_wheels(0.36, 0.33 * length, -0.3 * length, 0.2),
    )
    upper = make_frustum(
        low=(-half, half * 0.80),
        high=(-half * 0.98, half * 0.45),
        sides=(width / 2 * 0.998, width / 2 * 0.88),
        base_m=belt,
        height_m=height - belt,
        material=VAN_CABIN if rng.random() < 0.7 else CABIN,
        occupancy=VEHICLE,
    )
    color = draw_color(rng) if rng.random() < 0.5 else from_srgb(236, 236, 234)
    solids = paint(join([body, upper]), color, _DARK)
    return Model(category="car", size_m=(length, width, height), solids=solids)


def _truck(rng: np.random.Generator) -> Model:
    length, width, height = rng.uniform(6.0, 9.0), rng.uniform(2.2, 2.5), rng.uniform(2.8, 3.6)
    half, cab = length / 2, rng.uniform(1.7, 2.1)
    chassis = paint(
        make_box(
            x=(-half, half),
            side=width / 2 * 0.96,
            base_m=0.0,
            height_m=0.95,
            material=PAINT,
            occupancy=VEHICLE,
            **_wheels(0.47, half - 1.0, -half + 1.6, 0.5),
        ),
        from_srgb(62, 64, 68),
    )
    color = draw_color(rng)
    cabin = make_frustum(
        low=(half - cab, half),
        high=(half - cab, half - 0.3),
        sides=(width / 2 * 0.96, width / 2 * 0.9),
        base_m=0.95,
        height_m=min(height * 0.82, 2.6) - 0.95,
        material=CABIN,
        occupancy=VEHICLE,
    )
    cargo = make_box(
        x=(-half, half - cab - 0.25),
        side=width / 2,
        base_m=0.95,
        height_m=height - 0.95,
        material=CARGO,
        occupancy=VEHICLE,
        variation=rng.random(),
    )
    box_color = from_srgb(230, 230, 226) if rng.random() < 0.6 else draw_color(rng)
    solids = join([chassis, paint(cabin, color, _DARK), paint(cargo, box_color, color)])
    return Model(category="truck", size_m=(length, width, height), solids=solids)


def _bus(rng: np.random.Generator) -> Model:
    length, width, height = rng.uniform(9.0, 12.0), rng.uniform(2.45, 2.55), rng.uniform(2.9, 3.3)
    half = length / 2
    coach = make_box(
        x=(-half, half),
        side=width / 2,
        base_m=0.0,
        height_m=height,
        material=COACH,
        occupancy=VEHICLE,
        **_wheels(0.48, half - 2.4, -half + 2.8, 0.32),
    )
    solids = paint(coach, draw_color(rng), draw_color(rng))
    return Model(category="bus", size_m=(length, width, height), solids=solids)


def _rider(rng: np.random.Generator, *, seat_m: float, helmet: Color) -> Primitives:
    """A torso that leans forward, thighs and a head; seated over x = 0."""
    clothes = from_srgb(*_CLOTHES[rng.integers(len(_CLOTHES))])
    torso = make_frustum(
        low=(-0.32, -0.04),
        high=(-0.12, 0.16),
        sides=(0.17, 0.21),
        base_m=seat_m,
        height_m=0.58,
        material=PLAIN,
        occupancy=VEHICLE,
    )
    legs = make_box(
        x=(-0.22, 0.18),
        side=0.15,
        base_m=0.35,
        height_m=seat_m - 0.35,
        material=PLAIN,
        occupancy=VEHICLE,
    )
    head = make_primitive(
        ELLIPSOID, x=0.06, z=seat_m + 0.56, side_low=0.12, height=0.27, occupancy=VEHICLE
    )
    return join([paint(torso, clothes), paint(legs, _DARK), paint(head, helmet)])


def _two_wheeler(
    rng: np.random.Generator,
    *,
    length: float,
    width: float,
    side: float,
    radius: float,
    **body: float,
) -> Primitives:
    frame = make_box(
        x=(-length / 2, length / 2),
        side=side,
        base_m=0.0,
        height_m=body["height_m"],
        material=PAINT,
        occupancy=VEHICLE,
        **_wheels(radius, length / 2 - radius, radius - length / 2, body["sill"]),
    )
    bar = make_box(
        x=(0.22 * length, 0.22 * length + 0.07),
        side=width / 2,
        base_m=body["bar_m"],
        height_m=0.07,
        material=PLAIN,
        occupancy=VEHICLE,
    )
    return join([paint(frame, draw_color(rng)), paint(bar, _DARK)])


def _motorcycle(rng: np.random.Generator) -> Model:
    length, width = rng.uniform(1.95, 2.25), rng.uniform(0.7, 0.85)
    machine = _two_wheeler(
        rng, length=length, width=width, side=0.14, radius=0.32, height_m=0.8, sill=0.5, bar_m=0.96
    )
    rider = _rider(rng, seat_m=0.78, helmet=draw_color(rng))
    return Model(category="motorcycle", size_m=(length, width, 1.61), solids=join([machine, rider]))


def _bicycle(rng: np.random.Generator) -> Model:
    length, width = rng.uniform(1.65, 1.85), rng.uniform(0.55, 0.65)
    machine = _two_wheeler(
        rng, length=length, width=width, side=0.05, radius=0.34, height_m=0.72, sill=0.6, bar_m=0.98
    )
    rider = _rider(rng, seat_m=0.9, helmet=from_srgb(*_SKINS[rng.integers(len(_SKINS))]))
    return Model(category="bicycle", size_m=(length, width, 1.73), solids=join([machine, rider]))


def draw_pedestrian(rng: np.random.Generator) -> Model:
    """A standing or walking person."""
    scale = rng.uniform(0.88, 1.08)
    legs = make_primitive(
        CYLINDER, side_low=0.15, height=0.82 * scale, material=PLAIN, occupancy=PEDESTRIAN
    )
    torso = make_frustum(
        low=(-0.13, 0.13),
        high=(-0.12, 0.12),
        sides=(0.19, 0.26),
        base_m=0.8 * scale,
        height_m=0.66 * scale,
        material=PLAIN,
        occupancy=PEDESTRIAN,
    )
    head = make_primitive(
        ELLIPSOID, z=1.44 * scale, side_low=0.11, height=0.28 * scale, occupancy=PEDESTRIAN
    )
    trousers = from_srgb(*rng.integers(30, 110, 3))
    clothes = from_srgb(*_CLOTHES[rng.integers(len(_CLOTHES))])
    skin = from_srgb(*_SKINS[rng.integers(len(_SKINS))])
    solids = join([paint(legs, trousers), paint(torso, clothes), paint(head, skin)])
    return Model(category="pedestrian", size_m=(0.30, 0.52, 1.72 * scale), solids=solids)
