"""Which solid each ray of an image meets first, and how far away: the renderer's geometry pass.

It does not know colours. Rays go through a regular grid of samples (a pixel holds several); depth
is along the optical axis. A solid is tested only inside the rectangle that its projection covers.

Pinhole cameras only: a sample's ray direction is linear in its image coordinates.
"""

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic.compiled import compiled, inlined
from fsdtrain.data.synthetic.primitives import Primitives

NEAR_M = 0.05
CONTACT_M = 0.6  # how far around its foot a solid hides the sky from the ground

# The face of a solid that a ray entered by.
FRONT, REAR, LEFT, RIGHT, TOP, BOTTOM, ROUND = 0, 1, 2, 3, 4, 5, 6

# Corners of a box as (front?, left?, top?) and the 12 edges between them.
_CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.int64)
_EDGES = np.array(
    [(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1],
    dtype=np.int64,
)


@compiled
def cast_rays(
    view: Array,
    to_image: Array,
    solids: Primitives,
    depth: NDArray[np.float32],
    solid_index: NDArray[np.int32],
    face: NDArray[np.uint8],
    counted: NDArray[np.int32],
    unoccluded: NDArray[np.int64],
    visible: NDArray[np.int64],
) -> None:
    """Fill the geometry buffers of one image.

    Args:
        view: [4, 3]: camera position, ray direction at the image's corner, its change per sample
            to the right, its change per sample down (world frame; depth along the ray is 1).
        to_image: [3, 3]: takes a world offset from the camera to depth * (1, u, v) in samples.
        solids: table of dtype PRIMITIVE; rows of one instance lie side by side.
        depth: [V, U] out: metres along the optical axis; inf where the ray meets nothing.
        solid_index: [V, U] out: row of `solids`, -1 for ground or sky.
        face: [V, U] out: by which face the ray entered.
        counted: [V, U] scratch.
        unoccluded: [I] += samples that instance i would cover alone.
        visible: [I] += samples that it does cover.
    """
    rows, columns = depth.shape
    right, down = view[2], view[3]
    for v in range(rows):
        for u in range(columns):
            slope = view[1, 2] + (u + 0.5) * right[2] + (v + 0.5) * down[2]
            depth[v, u] = -view[0, 2] / slope if slope < -1e-9 else np.inf
            solid_index[v, u] = -1
            counted[v, u] = -1
    window = np.empty(4, dtype=np.int64)
    for index in range(len(solids)):
        solid = solids[index]
        _find_window(view, to_image, solid, rows, columns, window)
        if window[0] < window[1] and window[2] < window[3]:
            _cast_solid(view, solid, index, window, depth, solid_index, face, counted, unoccluded)
    for v in range(rows):
        for u in range(columns):
            if solid_index[v, u] >= 0:
                instance = solids[solid_index[v, u]]["instance"]
                if instance >= 0:
                    visible[instance] += 1


@compiled
def cast_shadows(
    sun: Array, solids: Primitives, half_m: float, cell_m: float, light: NDArray[np.uint8]
) -> None:
    """Darken the ground where solids stand between it and the sun, and close around them.

    Args:
        sun: [3] unit vector towards the sun, sun[2] > 0.
        solids: table of dtype PRIMITIVE.
        half_m: the map covers [-half_m, half_m) in world x and y.
        cell_m: edge of one cell.
        light: [X, Y, 2] in and out: share of sunlight, share of sky light; 255 = all.
    """
    cells = light.shape[0]
    for index in range(len(solids)):
        solid = solids[index]
        cos, sin = solid["cos"], solid["sin"]
        reach = max(abs(solid["rear_low"]), abs(solid["front_low"]))
        reach = np.hypot(reach, max(solid["side_low"], solid["side_high"])) + CONTACT_M
        top = solid["z"] + solid["height"]
        shift_x, shift_y = -top * sun[0] / sun[2], -top * sun[1] / sun[2]
        i0 = int(max(0.0, (solid["x"] + min(0.0, shift_x) - reach + half_m) / cell_m))
        i1 = int(min(cells, (solid["x"] + max(0.0, shift_x) + reach + half_m) / cell_m + 1))
        j0 = int(max(0.0, (solid["y"] + min(0.0, shift_y) - reach + half_m) / cell_m))
        j1 = int(min(cells, (solid["y"] + max(0.0, shift_y) + reach + half_m) / cell_m + 1))
        rx, ry = cos * sun[0] + sin * sun[1], cos * sun[1] - sin * sun[0]
        for i in range(i0, i1):
            dx = (i + 0.5) * cell_m - half_m - solid["x"]
            for j in range(j0, j1):
                dy = (j + 0.5) * cell_m - half_m - solid["y"]
                ox, oy = cos * dx + sin * dy, cos * dy - sin * dx
                if solid["kind"] == 0:
                    t, _ = _meet_frustum(solid, ox, oy, -solid["z"], rx, ry, sun[2])
                    beside = max(solid["rear_low"] - ox, ox - solid["front_low"], 0.0)
                    beside = np.hypot(beside, max(abs(oy) - solid["side_low"], 0.0))
                elif solid["kind"] == 1:
                    t, _ = _meet_cylinder(solid, ox, oy, -solid["z"], rx, ry, sun[2])
                    beside = max(np.hypot(ox, oy) - solid["side_low"], 0.0)
                else:
                    t, _ = _meet_ellipsoid(solid, ox, oy, -solid["z"], rx, ry, sun[2])
                    beside = CONTACT_M
                if t >= 0.0 or (beside == 0.0 and solid["z"] < CONTACT_M):
                    light[i, j, 0] = 0
                if beside < CONTACT_M and solid["z"] < CONTACT_M:
                    open_sky = int(255.0 * (0.15 + 0.85 * beside / CONTACT_M))
                    light[i, j, 1] = min(light[i, j, 1], open_sky)


@inlined
def _find_window(
    view: Array,
    to_image: Array,
    solid: np.void,
    rows: int,
    columns: int,
    window: NDArray[np.int64],
) -> None:
    """Rows [0, 1) and columns [2, 3) that the solid's bounding box covers; empty when unseen."""
    window[:] = 0
    x_low = min(solid["rear_low"], solid["rear_high"])
    x_high = max(solid["front_low"], solid["front_high"])
    side = max(solid["side_low"], solid["side_high"])
    if solid["kind"] != 0:
        x_low, x_high = -side, side
    points = np.empty((8, 3))
    for c in range(8):
        x = x_high if _CORNERS[c, 0] else x_low
        y = side if _CORNERS[c, 1] else -side
        z = solid["z"] + (solid["height"] if _CORNERS[c, 2] else 0.0) - view[0, 2]
        world_x = solid["x"] + solid["cos"] * x - solid["sin"] * y - view[0, 0]
        world_y = solid["y"] + solid["sin"] * x + solid["cos"] * y - view[0, 1]
        for row in range(3):
            points[c, row] = (
                to_image[row, 0] * world_x + to_image[row, 1] * world_y + to_image[row, 2] * z
            )
    u_min, u_max, v_min, v_max = np.inf, -np.inf, np.inf, -np.inf
    for e in range(len(_EDGES)):
        # Edges are cut at the near plane: a corner behind the camera has no projection.
        a, b = points[_EDGES[e, 0]], points[_EDGES[e, 1]]
        if a[0] < NEAR_M and b[0] < NEAR_M:
            continue
        for end in range(2):
            near, far = (a, b) if end == 0 else (b, a)
            t = 0.0 if near[0] >= NEAR_M else (NEAR_M - near[0]) / (far[0] - near[0])
            distance = near[0] + t * (far[0] - near[0])
            u = (near[1] + t * (far[1] - near[1])) / distance
            v = (near[2] + t * (far[2] - near[2])) / distance
            u_min, u_max = min(u_min, u), max(u_max, u)
            v_min, v_max = min(v_min, v), max(v_max, v)
    if u_max > u_min:
        window[0] = int(max(0.0, min(np.floor(v_min), rows)))
        window[1] = int(max(0.0, min(np.ceil(v_max) + 1, rows)))
        window[2] = int(max(0.0, min(np.floor(u_min), columns)))
        window[3] = int(max(0.0, min(np.ceil(u_max) + 1, columns)))


@inlined
def _cast_solid(
    view: Array,
    solid: np.void,
    index: int,
    window: NDArray[np.int64],
    depth: NDArray[np.float32],
    solid_index: NDArray[np.int32],
    face: NDArray[np.uint8],
    counted: NDArray[np.int32],
    unoccluded: NDArray[np.int64],
) -> None:
    cos, sin = solid["cos"], solid["sin"]
    kind, instance = solid["kind"], solid["instance"]
    dx, dy = view[0, 0] - solid["x"], view[0, 1] - solid["y"]
    ox, oy, oz = cos * dx + sin * dy, cos * dy - sin * dx, view[0, 2] - solid["z"]
    turned = np.empty((3, 3))  # rows: corner, right, down of `view` in the solid's axes
    for row in range(3):
        turned[row, 0] = cos * view[row + 1, 0] + sin * view[row + 1, 1]
        turned[row, 1] = cos * view[row + 1, 1] - sin * view[row + 1, 0]
        turned[row, 2] = view[row + 1, 2]
    for v in range(window[0], window[1]):
        for u in range(window[2], window[3]):
            su, sv = u + 0.5, v + 0.5
            rx = turned[0, 0] + su * turned[1, 0] + sv * turned[2, 0]
            ry = turned[0, 1] + su * turned[1, 1] + sv * turned[2, 1]
            rz = turned[0, 2] + su * turned[1, 2] + sv * turned[2, 2]
            if kind == 0:
                t, entered = _meet_frustum(solid, ox, oy, oz, rx, ry, rz)
            elif kind == 1:
                t, entered = _meet_cylinder(solid, ox, oy, oz, rx, ry, rz)
            else:
                t, entered = _meet_ellipsoid(solid, ox, oy, oz, rx, ry, rz)
            if t < 0.0:
                continue
            if instance >= 0 and counted[v, u] != instance:
                counted[v, u] = instance
                unoccluded[instance] += 1
            if t < depth[v, u]:
                depth[v, u] = t
                solid_index[v, u] = index
                face[v, u] = entered


@inlined
def _meet_frustum(
    solid: np.void, ox: float, oy: float, oz: float, rx: float, ry: float, rz: float
) -> tuple[float, int]:
    """(depth, face) where the ray enters; depth -1 where it misses or passes under the sill."""
    height = solid["height"]
    lean_front = (solid["front_high"] - solid["front_low"]) / height
    lean_rear = (solid["rear_high"] - solid["rear_low"]) / height
    lean_side = (solid["side_high"] - solid["side_low"]) / height
    enter, leave, entered = NEAR_M, np.inf, BOTTOM
    for plane in range(6):
        # Inside means start + t * slope <= 0.
        if plane == 0:
            start, slope = ox - lean_front * oz - solid["front_low"], rx - lean_front * rz
        elif plane == 1:
            start, slope = solid["rear_low"] + lean_rear * oz - ox, lean_rear * rz - rx
        elif plane == 2:
            start, slope = oy - lean_side * oz - solid["side_low"], ry - lean_side * rz
        elif plane == 3:
            start, slope = -oy - lean_side * oz - solid["side_low"], -ry - lean_side * rz
        elif plane == 4:
            start, slope = oz - height, rz
        else:
            start, slope = -oz, -rz
        if slope == 0.0:
            if start > 0.0:
                return -1.0, 0
            continue
        t = -start / slope
        if slope < 0.0:
            if t > enter:
                enter, entered = t, plane
        elif t < leave:
            leave = t
        if enter >= leave:
            return -1.0, 0
    if enter <= NEAR_M:
        return -1.0, 0  # the camera is inside: a solid is seen from outside only
    z = oz + enter * rz
    if solid["sill"] > 0.0 and z < solid["sill"]:
        if entered <= REAR:
            # Between the tyres; the one tyre of a two-wheeler is as wide as its frame.
            if solid["side_low"] > 0.3 and abs(oy + enter * ry) < 0.6 * solid["side_low"]:
                return -1.0, 0
        else:
            x, radius = ox + enter * rx, solid["wheel_radius"]
            front, rear, rise = x - solid["wheel_front"], x - solid["wheel_rear"], z - radius
            if min(front * front, rear * rear) + rise * rise > radius * radius:
                return -1.0, 0
    return enter, entered


@inlined
def _meet_cylinder(
    solid: np.void, ox: float, oy: float, oz: float, rx: float, ry: float, rz: float
) -> tuple[float, int]:
    radius, height = solid["side_low"], solid["height"]
    a = rx * rx + ry * ry
    b = ox * rx + oy * ry
    c = ox * ox + oy * oy - radius * radius
    square = b * b - a * c
    if square <= 0.0 or a <= 0.0:
        return -1.0, 0
    root = np.sqrt(square)
    enter, leave, entered = (-b - root) / a, (-b + root) / a, ROUND
    if rz != 0.0:
        bottom, top = -oz / rz, (height - oz) / rz
        if min(bottom, top) > enter:
            enter = min(bottom, top)
            entered = BOTTOM if bottom < top else TOP
        leave = min(leave, max(bottom, top))
    elif oz < 0.0 or oz > height:
        return -1.0, 0
    if enter >= leave or enter <= NEAR_M:
        return -1.0, 0
    return enter, entered


@inlined
def _meet_ellipsoid(
    solid: np.void, ox: float, oy: float, oz: float, rx: float, ry: float, rz: float
) -> tuple[float, int]:
    radius, half = solid["side_low"], solid["height"] / 2
    oz = (oz - half) * radius / half
    rz = rz * radius / half
    a = rx * rx + ry * ry + rz * rz
    b = ox * rx + oy * ry + oz * rz
    square = b * b - a * (ox * ox + oy * oy + oz * oz - radius * radius)
    if square <= 0.0:
        return -1.0, 0
    enter = (-b - np.sqrt(square)) / a
    if enter <= NEAR_M:
        return -1.0, 0
    return enter, ROUND
