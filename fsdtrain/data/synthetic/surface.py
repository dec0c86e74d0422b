"""The colour of solids: paint, glass, wheels, windows, leaves, and the light on them.

It knows the geometry buffers of `raycast.py` and the materials of `primitives.py`.
"""

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic.compiled import compiled, inlined
from fsdtrain.data.synthetic.primitives import (
    CABIN,
    CARGO,
    COACH,
    ELLIPSOID,
    FACADE,
    FOLIAGE,
    FRUSTUM,
    MASONRY,
    PAINT,
    VAN_CABIN,
    Primitives,
)
from fsdtrain.data.synthetic.raycast import BOTTOM, FRONT, LEFT, REAR, RIGHT, TOP

FLOOR_M, WINDOW_M = 3.1, 2.4  # pitch of a facade's windows


@compiled
def shade_solids(
    view: Array,
    depth: NDArray[np.float32],
    solid_index: NDArray[np.int32],
    face: NDArray[np.uint8],
    solids: Primitives,
    noise: NDArray[np.float32],
    lighting: Array,
    sky: Array,
    rgb: NDArray[np.float32],
) -> None:
    """Colour the samples that show a solid.

    Args:
        view: see `raycast.cast_rays`.
        depth: [V, U] from `cast_rays`.
        solid_index: [V, U] from `cast_rays`.
        face: [V, U] from `cast_rays`.
        solids: the table that was cast.
        noise: [256, 256], about -1..1.
        lighting: see `ground.shade_ground`.
        sky: see `sky.shade_sky`.
        rgb: [V, U, 3] out, linear light.
    """
    rows, columns = depth.shape
    right, down = view[2], view[3]
    color, hit, normal = np.empty(3), np.empty(3), np.empty(3)
    for v in range(rows):
        for u in range(columns):
            if solid_index[v, u] < 0:
                continue
            solid, t = solids[solid_index[v, u]], float(depth[v, u])
            rx = view[1, 0] + (u + 0.5) * right[0] + (v + 0.5) * down[0]
            ry = view[1, 1] + (u + 0.5) * right[1] + (v + 0.5) * down[1]
            rz = view[1, 2] + (u + 0.5) * right[2] + (v + 0.5) * down[2]
            dx, dy = view[0, 0] + t * rx - solid["x"], view[0, 1] + t * ry - solid["y"]
            hit[0] = solid["cos"] * dx + solid["sin"] * dy
            hit[1] = solid["cos"] * dy - solid["sin"] * dx
            hit[2] = view[0, 2] + t * rz - solid["z"]
            entered = int(face[v, u])
            _find_normal(solid, entered, hit, normal)
            gloss = _paint_surface(solid, entered, hit, noise, color)
            # Back to the world for the light.
            nx = solid["cos"] * normal[0] - solid["sin"] * normal[1]
            ny = solid["sin"] * normal[0] + solid["cos"] * normal[1]
            facing = nx * lighting[0, 0] + ny * lighting[0, 1] + normal[2] * lighting[0, 2]
            sun = max(facing, 0.0)
            # Half of the sky is above an upright wall; the ground gives some light back.
            open_sky = 0.72 + 0.28 * normal[2]
            open_sky *= min(1.0, 0.65 + 0.5 * (hit[2] + solid["z"]))
            length = np.sqrt(rx * rx + ry * ry + rz * rz)
            mirrored = (rz - 2 * (rx * nx + ry * ny + rz * normal[2]) * normal[2]) / length
            # A flat angle mirrors more (Schlick); below the horizon it mirrors the ground.
            along = -(rx * nx + ry * ny + rz * normal[2]) / length
            level = 0.35 + 0.65 * min(max(4.0 * mirrored, 0.0), 1.0)
            level *= 1.0 + 1.5 * (1.0 - min(max(along, 0.0), 1.0)) ** 4
            haze = 1.0 - np.exp(-t * length * lighting[4, 0])
            for c in range(3):
                lit = color[c] * (lighting[1, c] * sun + lighting[2, c] * open_sky)
                above = sky[0, c] + (sky[1, c] - sky[0, c]) * max(mirrored, 0.0)
                lit += min(gloss * level, 0.8) * (above - lit)
                rgb[v, u, c] = lit + haze * (lighting[3, c] - lit)


@inlined
def _find_normal(solid: np.void, entered: int, hit: Array, normal: Array) -> None:
    """The outward unit normal in the solid's own axes."""
    normal[:] = 0.0
    if entered in (TOP, BOTTOM):
        normal[2] = 1.0 if entered == TOP else -1.0
        return
    height = solid["height"]
    if solid["kind"] == FRUSTUM:
        if entered == FRONT:
            normal[0] = 1.0
            normal[2] = -(solid["front_high"] - solid["front_low"]) / height
        elif entered == REAR:
            normal[0] = -1.0
            normal[2] = (solid["rear_high"] - solid["rear_low"]) / height
        else:
            normal[1] = 1.0 if entered == LEFT else -1.0
            normal[2] = -(solid["side_high"] - solid["side_low"]) / height
    else:
        normal[0], normal[1] = hit[0], hit[1]
        if solid["kind"] == ELLIPSOID:
            ratio = 2 * solid["side_low"] / height
            normal[2] = (hit[2] - height / 2) * ratio * ratio
    length = np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + 1e-12
    for c in range(3):
        normal[c] /= length


@inlined
def _set(color: Array, red: float, green: float, blue: float) -> float:
    color[0], color[1], color[2] = red, green, blue
    return 0.0


@inlined
def _paint_surface(
    solid: np.void, entered: int, hit: Array, noise: NDArray[np.float32], color: Array
) -> float:
    """Write the surface's own colour; return how much of the sky it mirrors (0..1)."""
    material = solid["material"]
    _set(color, solid["red"], solid["green"], solid["blue"])
    if material == PAINT:
        return _paint_body(solid, entered, hit, color)
    if material in (CABIN, VAN_CABIN):
        return _paint_cabin(solid, entered, hit, material == VAN_CABIN, color)
    if material == COACH:
        return _paint_coach(solid, entered, hit, color)
    if material == CARGO:
        high = hit[2] / solid["height"]
        if 0.3 < high < 0.3 + 0.35 * solid["variation"] and entered != TOP:
            _set(color, solid["red2"], solid["green2"], solid["blue2"])
        elif np.floor(hit[0] / 0.35) % 2 == 0 and entered != REAR:
            _set(color, 0.9 * color[0], 0.9 * color[1], 0.9 * color[2])
    elif material == FACADE:
        return _paint_facade(solid, entered, hit, noise, color)
    elif material == FOLIAGE:
        shift = solid["variation"] * 211.0
        i, j = int(np.floor(hit[0] * 4.0 + shift)) & 255, int(np.floor(hit[1] * 4.0)) & 255
        k = int(np.floor(hit[2] * 4.0)) & 255
        leaf = 1.0 + 0.3 * (noise[i, k] + noise[k, j])
        _set(color, leaf * color[0], leaf * color[1], leaf * color[2])
    elif material == MASONRY:
        row = np.floor(hit[2] / 0.25)
        stone = np.floor((hit[0] + hit[1]) / 0.6 + 0.5 * (row % 2))
        shade = 1.0 + 0.25 * noise[int(stone * 7) & 255, int(row * 13) & 255]
        _set(color, shade * color[0], shade * color[1], shade * color[2])
    return 0.0


@inlined
def _paint_wheel(solid: np.void, hit: Array, color: Array) -> bool:
    """Tyre and hub where the hit on a side lies in a wheel's disc."""
    radius = solid["wheel_radius"]
    front, rear, rise = hit[0] - solid["wheel_front"], hit[0] - solid["wheel_rear"], hit[2] - radius
    square = min(front * front, rear * rear) + rise * rise
    if radius <= 0.0 or square > radius * radius:
        return False
    if square < 0.36 * radius * radius:
        _set(color, 0.32, 0.33, 0.35)
    else:
        _set(color, 0.012, 0.012, 0.013)
    return True


@inlined
def _paint_body(solid: np.void, entered: int, hit: Array, color: Array) -> float:
    if entered in (LEFT, RIGHT):
        if _paint_wheel(solid, hit, color):
            return 0.0
        if hit[2] < solid["sill"] + 0.09:
            return _set(color, 0.03, 0.03, 0.03)
        return 0.10
    if entered in (TOP, BOTTOM):
        return 0.22
    if hit[2] < solid["sill"] + 0.06:
        return _set(color, 0.012, 0.012, 0.013)
    high = hit[2] / solid["height"]
    out = abs(hit[1]) / solid["side_low"]
    if entered == FRONT:
        if 0.62 < high < 0.86 and 0.58 < out < 0.95:
            return _set(color, 0.95, 0.95, 0.88)
        if 0.42 < high < 0.8 and out < 0.52:
            return _set(color, 0.02, 0.02, 0.022)
    else:
        if 0.62 < high < 0.9 and 0.6 < out < 0.97:
            return _set(color, 0.62, 0.015, 0.015)
        if 0.45 < high < 0.62 and out < 0.28:
            return _set(color, 0.7, 0.7, 0.65)
    return 0.08


@inlined
def _glass(color: Array) -> float:
    _set(color, 0.012, 0.016, 0.022)
    return 0.16


@inlined
def _paint_cabin(solid: np.void, entered: int, hit: Array, is_van: bool, color: Array) -> float:
    """Windows with pillars between them; a van has them in front only."""
    if entered == TOP:
        return 0.22
    high = hit[2] / solid["height"]
    if not 0.10 < high < 0.88:
        return 0.08
    lean = (solid["side_high"] - solid["side_low"]) * high
    if entered in (FRONT, REAR):
        if abs(hit[1]) / (solid["side_low"] + lean) < 0.88 and not (is_van and entered == REAR):
            return _glass(color)
        return 0.08
    rear = solid["rear_low"] + (solid["rear_high"] - solid["rear_low"]) * high
    front = solid["front_low"] + (solid["front_high"] - solid["front_low"]) * high
    along = (hit[0] - rear) / (front - rear)
    if is_van:
        return _glass(color) if 0.68 < along < 0.94 else 0.08
    if 0.06 < along < 0.95 and abs(along - 0.5) > 0.03:
        return _glass(color)
    return 0.08


@inlined
def _paint_coach(solid: np.void, entered: int, hit: Array, color: Array) -> float:
    if entered == TOP:
        return 0.1
    high = hit[2] / solid["height"]
    out = abs(hit[1]) / solid["side_low"]
    if entered in (LEFT, RIGHT):
        if _paint_wheel(solid, hit, color):
            return 0.0
        if 0.42 < high < 0.8 and (hit[0] / 1.5) % 1.0 > 0.08:
            return _glass(color)
    elif entered == FRONT:
        if 0.3 < high < 0.85 and out < 0.92:
            return _glass(color)
        if 0.14 < high < 0.22 and 0.6 < out < 0.9:
            return _set(color, 0.95, 0.95, 0.88)
    else:
        if 0.5 < high < 0.8 and out < 0.8:
            return _glass(color)
        if 0.2 < high < 0.32 and 0.75 < out < 0.95:
            return _set(color, 0.62, 0.015, 0.015)
    if high < 0.3 or high > 0.88:
        _set(color, solid["red2"], solid["green2"], solid["blue2"])
    return 0.08


@inlined
def _paint_facade(
    solid: np.void, entered: int, hit: Array, noise: NDArray[np.float32], color: Array
) -> float:
    if entered == TOP:
        return _set(color, 0.6 * color[0], 0.6 * color[1], 0.6 * color[2])
    along = hit[1] if entered in (FRONT, REAR) else hit[0]
    floor, column = hit[2] / FLOOR_M, along / WINDOW_M
    rise, aside = floor - np.floor(floor), column - np.floor(column)
    is_shop = hit[2] < FLOOR_M and solid["variation"] > 0.5
    low = 0.12 if is_shop else 0.34
    inset = 0.08 if is_shop else 0.24
    if hit[2] > np.floor(solid["height"] / FLOOR_M) * FLOOR_M or not low < rise < 0.8:
        if rise < 0.06 and not is_shop:
            _set(color, 0.8 * color[0], 0.8 * color[1], 0.8 * color[2])
        return 0.0
    if not inset < aside < 1.0 - inset:
        return 0.0
    key = int(np.floor(floor)) * 31 + int(np.floor(column)) * 17 + entered * 57
    shade = noise[key & 255, int(solid["variation"] * 255) & 255]
    if shade > 0.6:
        return _set(color, solid["red2"], solid["green2"], solid["blue2"])
    bright = 0.05 * (1.2 + shade)
    _set(color, 0.75 * bright, 0.9 * bright, 1.1 * bright)
    return 0.25
