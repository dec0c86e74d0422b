import numpy as np
import pytest
from fsdtrain_dojo.modelled_map_slices import TimeSlices, pack_slices

SLICES = TimeSlices(seconds=8.0, count=4)


@pytest.mark.parametrize(
    ("start_s", "end_s", "shares"),
    [
        (0.0, 2.0, {0: 1.0}),
        (1.0, 3.0, {0: 0.5, 1: 0.5}),
        (1.0, 6.0, {0: 0.2, 1: 0.4, 2: 0.4}),
        (7.0, 8.0, {3: 1.0}),
        (8.0, 8.0, {3: 1.0}),
        (3.0, 3.0, {1: 1.0}),
        (0.0, 8.0, {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}),
    ],
)
def test_what_lasts_is_shared_out_over_the_slices(start_s, end_s, shares):
    assert dict(SLICES.shares(start_s, end_s)) == pytest.approx(shares)


def test_random_times_are_shared_out_as_they_overlap():
    rng = np.random.default_rng(0)
    edges = SLICES.edges_s
    for _ in range(200):
        start_s, end_s = np.sort(rng.uniform(0, 8, 2))
        overlap = np.clip(np.minimum(end_s, edges[1:]) - np.maximum(start_s, edges[:-1]), 0, None)
        found = np.zeros(4)
        for number, share in SLICES.shares(start_s, end_s):
            found[number] = share
        assert found == pytest.approx(overlap / (end_s - start_s))


def test_maps_are_bytes_of_the_largest():
    maps = [np.array([[0.0, 0.5], [np.nan, 2.0]]), np.array([[1.0, 0.0], [np.nan, 0.0]])]
    packed = pack_slices(maps, TimeSlices(seconds=1.0, count=2))
    assert packed.top == 2.0
    assert packed.edges_s == (0.0, 0.5, 1.0)
    assert [list(each) for each in packed.cells] == [[0, 64, 255, 254], [127, 0, 255, 0]]


def test_an_idle_machine_has_a_scale():
    packed = pack_slices([np.zeros((1, 2))], TimeSlices(seconds=1.0, count=1))
    assert (packed.top, packed.cells) == (1.0, (bytes(2),))
