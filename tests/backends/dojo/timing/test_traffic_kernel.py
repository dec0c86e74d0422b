"""Loops over pairs of places against numpy and against sets, on random axes."""

import numpy as np
import pytest
from fsdtrain_dojo.timing.traffic_kernel import (
    are_apart,
    cut_to_overlap,
    find_alike,
    find_hulls,
    multiply,
)

SEEDS = range(8)


def draw_ranges(rng: np.random.Generator, length: int) -> np.ndarray:
    """Ranges within 6 elements, some empty, many alike: (2, length)."""
    return np.sort(rng.integers(0, 7, (2, length)), axis=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_products_of_sparse_matrices_with_equal_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left = rng.integers(0, 9, (5, 7)) * (rng.random((5, 7)) < 0.4)
    left = np.repeat(left, rng.integers(1, 4, 5), axis=0).astype(float)
    right = (rng.integers(0, 9, (7, 11)) * (rng.random((7, 11)) < 0.4)).astype(float)
    assert multiply(np.ascontiguousarray(left.T), right).tolist() == (left @ right).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_overlaps_count_common_elements(seed: int) -> None:
    rng = np.random.default_rng(seed)
    have, other = draw_ranges(rng, 5), draw_ranges(rng, 8)
    found = np.full((5, 8), 3.0)
    cut_to_overlap(found, have, other[0], other[1])
    common = [[len({*range(*a)} & {*range(*b)}) for b in other.T] for a in have.T]
    assert found.tolist() == (3.0 * np.array(common)).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_alike_and_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranges = np.stack([draw_ranges(rng, 9) // 4 for _ in range(2)])
    counts = rng.random(9) < 0.8
    following, preceding = find_alike(ranges, counts)
    for place in range(9):
        alike = [
            other
            for other in np.flatnonzero(counts)
            if counts[place] and (ranges[..., other] == ranges[..., place]).all()
        ]
        assert following[place] == min([each for each in alike if each > place], default=9)
        assert preceding[place] == max([each for each in alike if each < place], default=-1)
    sets = [{*range(*each)} for each in ranges[0].T[counts]]
    assert are_apart(ranges[0], counts) == all(a == b or not a & b for a in sets for b in sets)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hop_side", [0, 1, -1])
def test_hulls_lie_around_what_is_served(seed: int, hop_side: int) -> None:
    rng = np.random.default_rng(seed)
    need, is_served = draw_ranges(rng, 7), rng.random((7, 7)) < 0.2
    found = find_hulls(need, is_served, hop_side)
    for hop in range(7 - abs(hop_side)):
        near, far = range(hop + 1), range(hop + 1, 7)
        servers, places = {0: ([hop], range(7)), 1: (near, far), -1: (far, near)}[hop_side]
        elements = {
            element
            for place in places
            if is_served[list(servers), place].any()
            for element in range(*need[:, place])
        }
        hull = [min(elements, default=0), max(elements, default=-1) + 1]
        assert found[:, hop].tolist() == hull
