"""The solids a synthetic world is built of: frusta, cylinders and ellipsoids, as one numpy table.

Everything above the ground is a few of these. The ray caster, the shadows and the occupancy labels
read the same table, so that labels are exact. It does not know what a car or a house is.

A primitive stands at (x, y, z), z being its lowest point, and is turned by (cos, sin) about z:

    FRUSTUM    a box whose front, rear and sides may lean: at the bottom x runs over
               [rear_low, front_low] and |y| <= side_low, at `height` over [rear_high, front_high]
               and |y| <= side_high, linear between
    CYLINDER   radius side_low, from z to z + height, closed
    ELLIPSOID  horizontal radius side_low, vertical radius height / 2, centre at z + height / 2
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array

FRUSTUM, CYLINDER, ELLIPSOID = 0, 1, 2

# What a surface looks like; `surface.py` paints them.
(
    PLAIN,
    PAINT,  # vehicle body: lights, grille, wheels
    CABIN,  # vehicle upper: glass all round
    VAN_CABIN,  # glass only in the front third
    COACH,  # a whole bus: window band, lights, wheels
    CARGO,  # ribbed panels and a stripe
    FACADE,  # floors of windows
    FOLIAGE,
    MASONRY,
) = range(9)

# Occupancy classes, in the order of the labels; 0 is free.
OCCUPANCY_CLASSES = (
    "vehicle",
    "pedestrian",
    "building",
    "vegetation",
    "pole",
    "road",
    "sidewalk",
    "terrain",
)
VEHICLE, PEDESTRIAN, BUILDING, VEGETATION, POLE, ROAD, SIDEWALK, TERRAIN = range(1, 9)

STATIC = -1  # `instance` of what carries no box label

PRIMITIVE = np.dtype(
    [(name, "i4") for name in ("kind", "material", "occupancy", "instance")]
    + [
        (name, "f8")
        for name in (
            *("x", "y", "z", "cos", "sin"),
            *("rear_low", "front_low", "rear_high", "front_high"),
            *("side_low", "side_high", "height"),
            *("red", "green", "blue"),  # linear light, 0..1
            *("red2", "green2", "blue2"),  # accent: trim, glass, second paint
            # Wheels are discs painted on the sides; between them, below `sill`, one sees through.
            *("wheel_radius", "wheel_front", "wheel_rear", "sill"),
            "variation",  # 0..1, makes two of a kind differ
        )
    ]
)
Primitives = NDArray[np.void]  # of dtype PRIMITIVE
Color = tuple[float, float, float]
BLACK: Color = (0.0, 0.0, 0.0)


def make_primitive(kind: int, **fields: float) -> Primitives:
    """A table of one primitive; fields not given are zero, the turn is none."""
    table = np.zeros(1, PRIMITIVE)
    table["kind"] = kind
    table["instance"] = STATIC
    table["cos"] = 1.0
    for name, value in fields.items():
        table[name] = value
    return table


def make_frustum(
    *,
    low: tuple[float, float],
    high: tuple[float, float],
    sides: tuple[float, float],
    base_m: float,
    height_m: float,
    **fields: float,
) -> Primitives:
    """A frustum from x ranges (rear, front) and half widths at its bottom and its top."""
    return make_primitive(
        FRUSTUM,
        rear_low=low[0],
        front_low=low[1],
        rear_high=high[0],
        front_high=high[1],
        side_low=sides[0],
        side_high=sides[1],
        z=base_m,
        height=height_m,
        **fields,
    )


def make_box(
    *, x: tuple[float, float], side: float, base_m: float, height_m: float, **fields: float
) -> Primitives:
    """A frustum with upright faces."""
    return make_frustum(
        low=x, high=x, sides=(side, side), base_m=base_m, height_m=height_m, **fields
    )


def paint(table: Primitives, color: Color, accent: Color = BLACK) -> Primitives:
    """The table with every primitive in `color` and `accent` (linear light)."""
    table = table.copy()
    for name, value in zip(("red", "green", "blue"), color, strict=True):
        table[name] = value
    for name, value in zip(("red2", "green2", "blue2"), accent, strict=True):
        table[name] = value
    return table


def join(tables: Sequence[Primitives]) -> Primitives:
    """One table of all rows in order; empty for no tables."""
    # np.concatenate would compare the fields of every table by name, which takes longer than this.
    joined = np.empty(sum(len(table) for table in tables), PRIMITIVE)
    begin = 0
    for table in tables:
        joined[begin : begin + len(table)] = table
        begin += len(table)
    return joined


def place(
    table: Primitives, *, x: float | Array, y: float | Array, yaw: float | Array
) -> Primitives:
    """The table moved from its own frame to a pose on the ground, one for all rows or one each."""
    moved = table.copy()
    cos, sin = np.cos(yaw), np.sin(yaw)
    moved["x"] = x + cos * table["x"] - sin * table["y"]
    moved["y"] = y + sin * table["x"] + cos * table["y"]
    moved["cos"] = cos * table["cos"] - sin * table["sin"]
    moved["sin"] = sin * table["cos"] + cos * table["sin"]
    return moved


def contains(row: np.void, points: Array, *, least_half_m: float = 0.0) -> NDArray[np.bool_]:
    """Which world points [..., 3] lie in one primitive.

    Thin solids count as at least `least_half_m` thick each way, so that a voxel grid keeps poles.
    """
    dx, dy = points[..., 0] - row["x"], points[..., 1] - row["y"]
    x = row["cos"] * dx + row["sin"] * dy
    y = row["cos"] * dy - row["sin"] * dx
    z = points[..., 2] - row["z"]
    half_height = max(row["height"] / 2, least_half_m)
    centered_z = z - row["height"] / 2
    if row["kind"] == ELLIPSOID:
        radius = max(row["side_low"], least_half_m)
        inside = (x * x + y * y) / radius**2 + (centered_z / half_height) ** 2 <= 1.0
        return np.asarray(inside, dtype=np.bool_)
    upright = np.abs(centered_z) <= half_height
    if row["kind"] == CYLINDER:
        radius = max(row["side_low"], least_half_m)
        return np.asarray(upright & (x * x + y * y <= radius**2), dtype=np.bool_)
    rise = np.clip(z / row["height"], 0.0, 1.0)
    rear = row["rear_low"] + (row["rear_high"] - row["rear_low"]) * rise
    front = row["front_low"] + (row["front_high"] - row["front_low"]) * rise
    side = row["side_low"] + (row["side_high"] - row["side_low"]) * rise
    middle, half = (rear + front) / 2, np.maximum((front - rear) / 2, least_half_m)
    inside = upright & (np.abs(x - middle) <= half) & (np.abs(y) <= np.maximum(side, least_half_m))
    return np.asarray(inside, dtype=np.bool_)


def bounding_radius(table: Primitives) -> Array:
    """[P] horizontal distance from (x, y) that encloses each primitive."""
    along = np.max(
        np.abs([table[name] for name in ("rear_low", "front_low", "rear_high", "front_high")]),
        axis=0,
    )
    across = np.maximum(table["side_low"], table["side_high"])
    return np.asarray(np.hypot(along, across), dtype=np.float64)
