"""The ray caster against marching along each ray and asking `contains` at every step."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic.primitives import (
    CYLINDER,
    ELLIPSOID,
    FRUSTUM,
    PRIMITIVE,
    Primitives,
    contains,
    place,
)
from fsdtrain.data.synthetic.raycast import cast_rays, cast_shadows

STEP_M, RANGE_M = 0.02, 22.0
ROWS, COLUMNS = 18, 26


def _random_solids(rng: np.random.Generator, count: int) -> Primitives:
    table = np.zeros(count, PRIMITIVE)
    table["kind"] = rng.choice([FRUSTUM, FRUSTUM, CYLINDER, ELLIPSOID], count)
    table["instance"] = np.arange(count)
    table["cos"] = 1.0
    table["rear_low"], table["front_low"] = -rng.uniform(0.4, 2, count), rng.uniform(0.4, 2, count)
    table["rear_high"] = table["rear_low"] * rng.uniform(0.1, 1.2, count)
    table["front_high"] = table["front_low"] * rng.uniform(0.1, 1.2, count)
    table["side_low"] = rng.uniform(0.3, 1.5, count)
    table["side_high"] = table["side_low"] * rng.uniform(0.1, 1.2, count)
    table["height"] = rng.uniform(0.5, 3.0, count)
    table["z"] = rng.choice([0.0, 0.6], count)
    around, far = rng.uniform(-0.9, 0.9, count), rng.uniform(3.5, 14.0, count)
    yaw = rng.uniform(-np.pi, np.pi, count)
    return place(table, x=far * np.cos(around), y=far * np.sin(around), yaw=yaw)


def _view(rng: np.random.Generator) -> tuple[Array, Array]:
    """A camera near the origin, looking along x, about level; 90 degrees wide."""
    yaw, pitch = rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.15)
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pixel = 2.0 / COLUMNS
    corner = forward - right - down * ROWS / COLUMNS
    view = np.stack([rng.uniform([-1, -1, 1.2], [1, 1, 1.9]), corner, right * pixel, down * pixel])
    return view, np.linalg.inv(np.stack([corner, right * pixel, down * pixel], axis=1))


def _march(view: Array, solids: Primitives) -> tuple[Array, NDArray[np.int64], NDArray[np.bool_]]:
    """Depth [V, U], the solid met first, and [I, V, U] which solids the ray meets at all."""
    v, u = np.meshgrid(np.arange(ROWS) + 0.5, np.arange(COLUMNS) + 0.5, indexing="ij")
    rays = view[1] + u[..., None] * view[2] + v[..., None] * view[3]
    depths = np.arange(0.06, RANGE_M, STEP_M)
    depth = np.full((ROWS, COLUMNS), np.inf)
    first = np.full((ROWS, COLUMNS), -1)
    met = np.zeros((len(solids), ROWS, COLUMNS), dtype=np.bool_)
    for row in range(ROWS):
        points = view[0] + depths[:, None, None] * rays[row]
        for number, solid in enumerate(solids):
            inside = contains(solid, points)
            met[number, row] = inside.any(axis=0)
            entry = np.where(met[number, row], depths[inside.argmax(axis=0)], np.inf)
            nearer = entry < depth[row]
            depth[row][nearer], first[row][nearer] = entry[nearer], number
    return depth, first, met


@pytest.mark.parametrize("seed", range(5))
def test_depth_identity_and_visibility_match_marching(seed: int) -> None:
    rng = np.random.default_rng(seed)
    solids = _random_solids(rng, 9)
    view, to_image = _view(rng)
    depth = np.empty((ROWS, COLUMNS), np.float32)
    index, counted = np.empty((2, ROWS, COLUMNS), np.int32)
    face = np.empty((ROWS, COLUMNS), np.uint8)
    unoccluded, visible = np.zeros((2, len(solids)), np.int64)
    cast_rays(view, to_image, solids, depth, index, face, counted, unoccluded, visible)

    marched, first, met = _march(view, solids)
    slope = (view[1] + 0.5 * (view[2] + view[3]))[2] + np.arange(ROWS)[:, None] * view[3, 2]
    ground = np.where(slope < 0, -view[0, 2] / np.where(slope < 0, slope, -1), np.inf)
    first = np.where(ground < marched, -1, first)
    expected = np.minimum(marched, np.broadcast_to(ground, marched.shape))
    near = expected < RANGE_M - 1
    # A ray that grazes an edge for less than a step is met by one method only.
    same = index == first
    assert same[near].mean() > 0.98
    assert depth[near & same] == pytest.approx(expected[near & same], abs=2.5 * STEP_M)
    assert (first >= 0).sum() > 20
    grazing = 0.05 * ROWS * COLUMNS / len(solids) + 2
    assert np.abs(unoccluded - met.sum(axis=(1, 2))).max() <= grazing
    seen = np.array([(first == number).sum() for number in range(len(solids))])
    assert np.abs(visible - seen).max() <= grazing
    assert (visible <= unoccluded).all()


def test_the_solid_around_the_camera_is_not_seen() -> None:
    solids = _random_solids(np.random.default_rng(0), 1)
    solids["kind"], solids["x"], solids["y"], solids["z"] = FRUSTUM, 0.0, 0.0, 0.0
    solids["front_low"] = solids["side_low"] = solids["side_high"] = solids["height"] = 5.0
    view, to_image = _view(np.random.default_rng(1))
    depth = np.empty((ROWS, COLUMNS), np.float32)
    index, counted = np.empty((2, ROWS, COLUMNS), np.int32)
    face = np.empty((ROWS, COLUMNS), np.uint8)
    counts = np.zeros((2, 1), np.int64)
    cast_rays(view, to_image, solids, depth, index, face, counted, counts[0], counts[1])
    assert (index == -1).all()
    assert counts.sum() == 0


@pytest.mark.parametrize("seed", range(3))
def test_shadows_lie_where_the_way_to_the_sun_is_blocked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    solids = _random_solids(rng, 6)
    up, around = rng.uniform(0.5, 1.2), rng.uniform(-np.pi, np.pi)
    sun = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
    half, cell = 16.0, 0.5
    light = np.full((64, 64, 2), 255, np.uint8)
    cast_shadows(sun, solids, half, cell, light)
    grid = (np.arange(64) + 0.5) * cell - half
    points = np.stack([*np.meshgrid(grid, grid, indexing="ij"), np.zeros((64, 64))], axis=-1)
    steps = np.arange(0.05, 9.0, 0.02)
    blocked = np.zeros((64, 64), dtype=np.bool_)
    for solid in solids:
        for step in steps:
            blocked |= contains(solid, points + step * sun)
    assert ((light[..., 0] == 0) == blocked).mean() > 0.99
    assert blocked.sum() > 20
