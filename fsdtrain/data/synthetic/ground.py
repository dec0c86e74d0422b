"""What lies on the ground at any point, and its colour: asphalt, marks, kerbs, lots, terrain.

Evaluated analytically at every ray, so that marks stay sharp at any resolution; each mark is
averaged over the patch of ground that its sample sees, so that distant lines fade, not flicker.
It knows the packed tables of `ground_map.py`, not the road objects, and nothing above the ground.
Longer than most files, since kernels that call each other live together (`compiled.py`).
"""

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic.compiled import compiled, inlined

TERRAIN_KIND, ASPHALT_KIND, WALK_KIND, KERB_KIND, LOT_KIND = 0, 1, 2, 3, 4
LOT, CROSSING = 0, 1
FAR_M = 400.0  # beyond, ground and haze are one

Table = NDArray[np.void]


@inlined
def locate(
    roads: Table,
    samples: NDArray[np.float32],
    nearest: NDArray[np.int16],
    half_m: float,
    cell_m: float,
    road: int,
    x: float,
    y: float,
    places: Array,
) -> bool:
    """Write (s, d, cos, sin of the heading) of a point to places[road]; False when far from it."""
    i, j = int((x + half_m) / cell_m), int((y + half_m) / cell_m)
    if x < -half_m or y < -half_m or i >= nearest.shape[1] or j >= nearest.shape[2]:
        return False
    index = int(nearest[road, i, j])
    if index < 0:
        return False
    last = roads[road]["num_samples"] - 1
    along, across, cos, sin = 0.0, 0.0, 1.0, 0.0
    for _ in range(3):
        dx, dy = x - samples[road, index, 0], y - samples[road, index, 1]
        cos, sin = samples[road, index, 2], samples[road, index, 3]
        along, across = dx * cos + dy * sin, dy * cos - dx * sin
        # On the inside of a bend, a step across the line is longer than the line below it.
        along /= max(1.0 - samples[road, index, 4] * across, 0.2)
        step = int(np.rint(along / 0.5))
        if step == 0 or (index + step < 0) or (index + step > last):
            break
        index += step
    places[road, 0] = index * 0.5 + along
    # The line bends away from the sample's tangent between two samples.
    places[road, 1] = across - 0.5 * samples[road, index, 4] * along * along
    places[road, 2], places[road, 3] = cos, sin
    return True


@inlined
def find_surface(
    roads: Table,
    samples: NDArray[np.float32],
    nearest: NDArray[np.int16],
    areas: Table,
    half_m: float,
    cell_m: float,
    x: float,
    y: float,
    places: Array,
) -> tuple[int, int, int]:
    """(kind, index of the road or lot, how many roads' asphalt lies here); fills places[road]."""
    kind, owner, num_asphalt = TERRAIN_KIND, -1, 0
    for a in range(len(areas)):
        area = areas[a]
        if area["kind"] == LOT:
            dx, dy = x - area["x"], y - area["y"]
            along = area["cos"] * dx + area["sin"] * dy
            across = area["cos"] * dy - area["sin"] * dx
            if abs(along) <= area["half_length"] and abs(across) <= area["half_width"]:
                kind, owner = LOT_KIND, a
    for r in range(len(roads)):
        if not locate(roads, samples, nearest, half_m, cell_m, r, x, y, places):
            continue
        road, s, d = roads[r], places[r, 0], places[r, 1]
        if s < 0.0 or s > (road["num_samples"] - 1) * 0.5:
            continue
        left, right = road["left_edge"], road["right_edge"]
        if right <= d <= left:
            num_asphalt += 1
            if num_asphalt == 1:
                kind, owner = ASPHALT_KIND, r
        elif num_asphalt == 0 and s >= road["begin"]:
            beyond = d - left if d > left else right - d
            walk = road["left_walk"] if d > left else road["right_walk"]
            if beyond <= road["kerb"]:
                kind, owner = KERB_KIND, r
            elif beyond <= road["kerb"] + walk and kind != KERB_KIND:
                kind, owner = WALK_KIND, r
    return kind, owner, num_asphalt


@compiled
def classify_points(
    roads: Table,
    samples: NDArray[np.float32],
    nearest: NDArray[np.int16],
    areas: Table,
    half_m: float,
    cell_m: float,
    points: Array,
    kinds: NDArray[np.int32],
) -> None:
    """Kinds [P] of world points [P, 2]."""
    places = np.empty((len(roads), 4))
    for p in range(len(points)):
        kinds[p] = find_surface(
            roads, samples, nearest, areas, half_m, cell_m, points[p, 0], points[p, 1], places
        )[0]


@compiled
def shade_ground(
    view: Array,
    samples_per_pixel: int,
    depth: NDArray[np.float32],
    solid_index: NDArray[np.int32],
    roads: Table,
    lines: Table,
    samples: NDArray[np.float32],
    nearest: NDArray[np.int16],
    areas: Table,
    colors: Array,
    noise: NDArray[np.float32],
    light: NDArray[np.uint8],
    extents: Array,
    lighting: Array,
    rgb: NDArray[np.float32],
) -> None:
    """Colour the samples that show ground; a pixel that sees one kind of surface is coloured once.

    Args:
        view: see `raycast.cast_rays`.
        samples_per_pixel: in each direction; divides V and U.
        depth: [V, U] from `cast_rays`.
        solid_index: [V, U] from `cast_rays`; only samples with -1 and finite depth are coloured.
        roads: [R] table of dtype ROAD.
        lines: [R, L] table of dtype LINE.
        samples: [R, S, 5] x, y, cos, sin, curvature of the centre lines.
        nearest: [R, G, G] index of the nearest sample per cell, -1 where far.
        areas: [A] table of dtype AREA.
        colors: [6, 3] terrain, its second colour, sidewalk, kerb, white paint, yellow paint.
        noise: [256, 256] tileable, about -1..1.
        light: [M, M, 2] from `cast_shadows`.
        extents: [4] half width and cell of `nearest`, half width and cell of `light`, metres.
        lighting: [5, 3] towards the sun, sun light, sky light, haze colour, (haze per metre, -, -).
        rgb: [V, U, 3] out, linear light.
    """
    rows, columns = depth.shape
    grid = samples_per_pixel
    places, color, lit = np.empty((len(roads), 4)), np.empty(3), np.empty(3)
    right, down = view[2], view[3]
    sample_angle = np.sqrt(right[0] ** 2 + right[1] ** 2 + right[2] ** 2)
    for top in range(0, rows, grid):
        for left in range(0, columns, grid):
            is_uniform = _is_uniform(
                view, depth, solid_index, top, left, grid,
                roads, samples, nearest, areas, extents, places,
            )  # fmt: skip
            step = grid if is_uniform else 1
            for v in range(top, top + grid, step):
                for u in range(left, left + grid, step):
                    if solid_index[v, u] >= 0 or not depth[v, u] < FAR_M:
                        continue
                    at_u, at_v = u + 0.5 * step, v + 0.5 * step
                    rx = view[1, 0] + at_u * right[0] + at_v * down[0]
                    ry = view[1, 1] + at_u * right[1] + at_v * down[1]
                    rz = view[1, 2] + at_u * right[2] + at_v * down[2]
                    t = -view[0, 2] / rz
                    x, y = view[0, 0] + t * rx, view[0, 1] + t * ry
                    distance = t * np.sqrt(rx * rx + ry * ry + rz * rz)
                    wide = step * t * sample_angle
                    _color_point(
                        x, y, rx, ry, wide, wide * distance / view[0, 2],
                        roads, lines, samples, nearest, areas, colors, noise, extents,
                        places, color,
                    )  # fmt: skip
                    _light_sample(x, y, extents, light, lighting, color, lit)
                    haze = 1.0 - np.exp(-distance * lighting[4, 0])
                    for c in range(3):
                        shown = lit[c] + haze * (lighting[3, c] - lit[c])
                        for a in range(step):
                            for b in range(step):
                                rgb[v + a, u + b, c] = shown


@inlined
def _is_uniform(
    view: Array,
    depth: NDArray[np.float32],
    solid_index: NDArray[np.int32],
    top: int,
    left: int,
    grid: int,
    roads: Table,
    samples: NDArray[np.float32],
    nearest: NDArray[np.int16],
    areas: Table,
    extents: Array,
    places: Array,
) -> bool:
    """Whether all samples of a pixel show the same kind of surface of the same road or lot."""
    first_kind, first_owner = -1, -1
    for v in range(top, top + grid):
        for u in range(left, left + grid):
            t = float(depth[v, u])
            if solid_index[v, u] >= 0 or not t < FAR_M:
                return False
            x = view[0, 0] + t * (view[1, 0] + (u + 0.5) * view[2, 0] + (v + 0.5) * view[3, 0])
            y = view[0, 1] + t * (view[1, 1] + (u + 0.5) * view[2, 1] + (v + 0.5) * view[3, 1])
            kind, owner, _ = find_surface(
                roads, samples, nearest, areas, extents[0], extents[1], x, y, places
            )
            if first_kind >= 0 and (kind != first_kind or owner != first_owner):
                return False
            first_kind, first_owner = kind, owner
    return True


@inlined
def _color_point(
    x: float,
    y: float,
    rx: float,
    ry: float,
    wide: float,
    long: float,
    roads: Table,
    lines: Table,
    samples: NDArray[np.float32],
    nearest: NDArray[np.int16],
    areas: Table,
    colors: Array,
    noise: NDArray[np.float32],
    extents: Array,
    places: Array,
    color: Array,
) -> None:
    """The ground's own colour, averaged over a patch `wide` across and `long` along the ray."""
    flat = np.sqrt(rx * rx + ry * ry) + 1e-9
    look_x, look_y = rx / flat, ry / flat
    kind, owner, num_asphalt = find_surface(
        roads, samples, nearest, areas, extents[0], extents[1], x, y, places
    )
    broad = _sample_noise(noise, x * 1.7, y * 1.7)
    fine = _sample_noise(noise, x * 14.0, y * 14.0) if long < 0.5 else 0.0
    _base_color(kind, owner, roads, areas, colors, broad, fine, color)
    if kind == ASPHALT_KIND:
        _add_crossings(areas, x, y, look_x, look_y, wide, long, colors, color)
        if num_asphalt == 1:
            wear = 0.85 + 0.15 * fine
            _add_lines(roads, lines, owner, places, look_x, look_y, wide, long, wear, color)
    elif kind == LOT_KIND:
        _add_stalls(areas[owner], x, y, wide + 0.5 * long, colors, color)


@inlined
def _sample_noise(noise: NDArray[np.float32], x: float, y: float) -> float:
    floor_x, floor_y = np.floor(x), np.floor(y)
    part_x, part_y = x - floor_x, y - floor_y
    i, j = int(floor_x) & 255, int(floor_y) & 255
    k, m = (i + 1) & 255, (j + 1) & 255
    low = noise[i, j] * (1 - part_y) + noise[i, m] * part_y
    high = noise[k, j] * (1 - part_y) + noise[k, m] * part_y
    return float(low * (1 - part_x) + high * part_x)


@inlined
def _base_color(
    kind: int,
    owner: int,
    roads: Table,
    areas: Table,
    colors: Array,
    broad: float,
    fine: float,
    color: Array,
) -> None:
    if kind == TERRAIN_KIND:
        mix = min(max(0.5 + 0.8 * broad, 0.0), 1.0)
        for c in range(3):
            color[c] = (colors[0, c] * (1 - mix) + colors[1, c] * mix) * (1.0 + 0.25 * fine)
        return
    grain = 1.0 + 0.10 * broad + 0.14 * fine
    if kind == ASPHALT_KIND:
        color[0], color[1], color[2] = (
            roads[owner]["red"],
            roads[owner]["green"],
            roads[owner]["blue"],
        )
    elif kind == LOT_KIND:
        color[0], color[1], color[2] = (
            areas[owner]["red"],
            areas[owner]["green"],
            areas[owner]["blue"],
        )
    else:
        row = 2 if kind == WALK_KIND else 3
        color[0], color[1], color[2] = colors[row, 0], colors[row, 1], colors[row, 2]
        grain = 1.0 + 0.06 * broad + 0.06 * fine
    for c in range(3):
        color[c] *= grain


@inlined
def _covered(center: float, footprint: float, low: float, high: float) -> float:
    """Share of [center - footprint / 2, center + footprint / 2] inside [low, high]."""
    overlap = min(center + footprint / 2, high) - max(center - footprint / 2, low)
    return max(overlap, 0.0) / footprint


@inlined
def _striped(center: float, footprint: float, stripe: float, period: float) -> float:
    """Share of the footprint covered by stripes [k period, k period + stripe]."""
    total = 0.0
    for sign in (-1.0, 1.0):
        place = center + sign * footprint / 2
        whole = np.floor(place / period)
        total += sign * (whole * stripe + min(place - whole * period, stripe))
    return total / footprint


@inlined
def _blend(color: Array, share: float, red: float, green: float, blue: float) -> None:
    color[0] += share * (red - color[0])
    color[1] += share * (green - color[1])
    color[2] += share * (blue - color[2])


@inlined
def _add_lines(
    roads: Table,
    lines: Table,
    owner: int,
    places: Array,
    look_x: float,
    look_y: float,
    wide: float,
    long: float,
    wear: float,
    color: Array,
) -> None:
    road = roads[owner]
    s, d, cos, sin = places[owner, 0], places[owner, 1], places[owner, 2], places[owner, 3]
    if s < road["begin"]:
        return
    parallel = abs(look_x * cos + look_y * sin)
    across = wide + long * abs(look_x * sin - look_y * cos)
    along = wide + long * parallel
    for index in range(road["num_lines"]):
        line = lines[owner, index]
        half = line["half_width"]
        share = _covered(d, across, line["offset"] - half, line["offset"] + half)
        if share > 0.0:
            if line["dash"] > 0.0:
                share *= _striped(s, along, line["dash"], line["period"])
            _blend(color, share * wear, line["red"], line["green"], line["blue"])
    for side in range(2):
        inner = road["left_strip"] if side == 0 else road["right_strip"]
        pitch = road["left_pitch"] if side == 0 else road["right_pitch"]
        outer = road["left_edge"] if side == 0 else road["right_edge"]
        if pitch > 0.0 and min(inner, outer) <= d <= max(inner, outer):
            _blend(color, 0.12, 0.0, 0.0, 0.0)
            _blend(color, 0.8 * wear * _striped(s, along, 0.12, pitch), 0.7, 0.7, 0.7)


@inlined
def _add_crossings(
    areas: Table,
    x: float,
    y: float,
    look_x: float,
    look_y: float,
    wide: float,
    long: float,
    colors: Array,
    color: Array,
) -> None:
    """Zebra stripes lie along the road (x of the area), one metre apart across it."""
    for a in range(len(areas)):
        area = areas[a]
        if area["kind"] != CROSSING:
            continue
        dx, dy = x - area["x"], y - area["y"]
        s = area["cos"] * dx + area["sin"] * dy
        d = area["cos"] * dy - area["sin"] * dx
        if abs(s) > area["half_length"] + long or abs(d) > area["half_width"]:
            continue
        sideways = abs(look_y * area["cos"] - look_x * area["sin"])
        ahead = abs(look_x * area["cos"] + look_y * area["sin"])
        share = _striped(d, wide + long * sideways, 0.5, 1.0)
        share *= _covered(s, wide + long * ahead, -area["half_length"], area["half_length"])
        _blend(color, 0.85 * share, colors[4, 0], colors[4, 1], colors[4, 2])


@inlined
def _add_stalls(
    area: np.void, x: float, y: float, footprint: float, colors: Array, color: Array
) -> None:
    """Parking stalls along both long sides of a lot."""
    dx, dy = x - area["x"], y - area["y"]
    s = area["cos"] * dx + area["sin"] * dy + area["half_length"]
    d = abs(area["cos"] * dy - area["sin"] * dx)
    if d >= area["half_width"] - 5.0:
        share = 0.8 * _striped(s, footprint, 0.12, area["stall"])
        _blend(color, share, colors[4, 0], colors[4, 1], colors[4, 2])


@inlined
def _light_sample(
    x: float,
    y: float,
    extents: Array,
    light: NDArray[np.uint8],
    lighting: Array,
    color: Array,
    lit: Array,
) -> None:
    sun, sky = 1.0, 1.0
    place_x, place_y = (x + extents[2]) / extents[3] - 0.5, (y + extents[2]) / extents[3] - 0.5
    i, j = int(np.floor(place_x)), int(np.floor(place_y))
    if 0 <= i < light.shape[0] - 1 and 0 <= j < light.shape[1] - 1:
        far_x, far_y = place_x - i, place_y - j
        near_x, near_y = (1.0 - far_x) / 255.0, 1.0 - far_y
        far_x /= 255.0
        sun = near_x * (near_y * light[i, j, 0] + far_y * light[i, j + 1, 0])
        sun += far_x * (near_y * light[i + 1, j, 0] + far_y * light[i + 1, j + 1, 0])
        sky = near_x * (near_y * light[i, j, 1] + far_y * light[i, j + 1, 1])
        sky += far_x * (near_y * light[i + 1, j, 1] + far_y * light[i + 1, j + 1, 1])
    for c in range(3):
        lit[c] = color[c] * (lighting[1, c] * lighting[0, 2] * sun * sky + lighting[2, c] * sky)
