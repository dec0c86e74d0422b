"""The road tables against slow, plain geometry on the road objects."""

import numpy as np
import pytest

from fsdtrain.data.synthetic.ground import ASPHALT_KIND, KERB_KIND, WALK_KIND
from fsdtrain.data.synthetic.ground_map import GroundMap, pack_ground
from fsdtrain.data.synthetic.roads import SPACING_M, Centerline, Road, draw_main_road
from fsdtrain.data.synthetic.weather import draw_ground_colors


def _road(seed: int) -> tuple[Road, GroundMap]:
    rng = np.random.default_rng(seed)
    road = draw_main_road(rng, is_urban=True, heading_rad=rng.uniform(-3, 3))
    colors = draw_ground_colors(rng, is_urban=True, num_roads=1)
    return road, pack_ground((road,), (), colors)


@pytest.mark.parametrize("seed", range(6))
def test_centerline_heading_and_curvature_are_the_derivatives_of_its_points(seed: int) -> None:
    center = _road(seed)[0].centerline
    step = np.diff(center.xy_S2, axis=0)
    assert np.hypot(*step.T) == pytest.approx(SPACING_M, abs=1e-9)
    middle = (center.heading_S[1:] + center.heading_S[:-1]) / 2
    assert np.angle(np.exp(1j * (np.arctan2(*step.T[::-1]) - middle))) == pytest.approx(0, abs=1e-9)
    bend = np.diff(center.heading_S) / SPACING_M
    assert bend == pytest.approx((center.curvature_S[1:] + center.curvature_S[:-1]) / 2, abs=1e-9)
    assert np.abs(center.curvature_S).max() <= 1 / 25 + 1e-9


def test_roads_bend_enough_to_break_constant_velocity() -> None:
    bends = [np.abs(_road(seed)[0].centerline.curvature_S[240:321]).max() for seed in range(40)]
    assert np.mean(np.array(bends) > 1 / 100) > 0.5
    assert max(bends) > 1 / 35


def test_pose_is_the_scalar_form_of_at() -> None:
    center = _road(3)[0].centerline
    for s, d in ((0.0, 1.0), (17.3, -4.0), (140.25, 2.5), (279.99, 0.0)):
        x, y, heading = center.pose(s, d)
        assert center.offset_points(np.array(s), d) == pytest.approx([x, y])
        assert center.at(np.array(s))[1] == pytest.approx(heading)


def _brute_place(center: Centerline, points: np.ndarray) -> np.ndarray:
    """[P, 2] (s, d) from the nearest of very many points of the line."""
    s = np.arange(0.0, center.length_m, 0.01)
    xy, heading, _ = center.at(s)
    places = []
    for point in points:
        nearest = int(np.argmin(((xy - point) ** 2).sum(-1)))
        dx, dy = point - xy[nearest]
        turn = heading[nearest]
        places.append([s[nearest], dy * np.cos(turn) - dx * np.sin(turn)])
    return np.array(places)


@pytest.mark.parametrize("seed", [1, 4, 9])
def test_locate_undoes_offset_points(seed: int) -> None:
    road, ground = _road(seed)
    rng = np.random.default_rng(seed + 100)
    reach = max(road.outer_m(1), road.outer_m(-1))
    s, d = rng.uniform(80, 200, 60), rng.uniform(-reach, reach, 60)
    points = road.centerline.offset_points(s, d)
    found = ground.locate(0, points)
    assert found == pytest.approx(np.stack([s, d], axis=-1), abs=0.01)


@pytest.mark.parametrize("seed", [2, 5, 8])
def test_surface_kind_follows_from_the_cross_section(seed: int) -> None:
    road, ground = _road(seed)
    rng = np.random.default_rng(seed)
    reach = max(road.outer_m(1), road.outer_m(-1)) + 2.0
    points = road.centerline.offset_points(
        rng.uniform(90, 190, 120), rng.uniform(-reach, reach, 120)
    )
    kinds = ground.classify(points)
    checked = 0
    for kind, (_, d) in zip(kinds, _brute_place(road.centerline, points), strict=True):
        walk = road.left_walk_m if d > 0 else road.right_walk_m
        beyond = d - road.left_edge_m if d > 0 else road.right_edge_m - d
        borders = np.array([0.0, road.kerb_m, road.kerb_m + walk])
        if np.abs(beyond - borders).min() < 0.03:
            continue  # on a border either answer will do
        expected = (ASPHALT_KIND, KERB_KIND, WALK_KIND, 0)[int((beyond > borders).sum())]
        if walk == 0.0 and expected == WALK_KIND:
            expected = 0
        assert kind == expected
        checked += 1
    assert checked > 80
