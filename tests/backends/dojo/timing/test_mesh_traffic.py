import numpy as np
import pytest
from fsdtrain_dojo.timing.box_axes import has_own, split_boxes
from fsdtrain_dojo.timing.mesh_traffic import route_boxes

from tests.backends.dojo.timing.small_boxes import boxes_of, count_traffic, draw_parts, has

WAYS = ("east", "west", "south", "north", "sent", "received")


def draw_boxes(seed, *, most_per_axis, halo):
    rng = np.random.default_rng(seed)
    grid = (int(rng.integers(1, 6)), int(rng.integers(1, 7)))
    shape = tuple(int(size) for size in rng.integers(1, 7, size=3))
    kept = draw_parts(rng, shape, grid, most_per_axis=most_per_axis)
    needed = draw_parts(rng, shape, grid, most_per_axis=most_per_axis)
    return boxes_of(shape, grid, *kept), boxes_of(shape, grid, *needed, halo=halo)


@pytest.mark.parametrize("most_per_axis", [1, 2])
@pytest.mark.parametrize("is_multicast", [True, False])
@pytest.mark.parametrize("halo", [0, 1])
def test_every_load_is_what_counting_elements_gives(most_per_axis, is_multicast, halo):
    for seed in range(40):
        kept, needed = draw_boxes(seed, most_per_axis=most_per_axis, halo=halo)
        counted = count_traffic(kept, needed, is_multicast=is_multicast)
        found = route_boxes(split_boxes(kept), split_boxes(needed), is_multicast=is_multicast)
        for way in WAYS:
            load, exact = getattr(found, way), getattr(counted, way)
            if halo and most_per_axis > 1 and is_multicast:  # halos in two dimensions at once
                assert (load >= exact).all()
                assert load.sum() <= 1.2 * exact.sum()
            else:
                assert load.tolist() == exact.tolist(), (seed, way)


def test_nodes_receive_what_they_need_and_have_not_got():
    for seed in range(40):
        kept, needed = draw_boxes(seed, most_per_axis=2, halo=1)
        traffic = route_boxes(split_boxes(kept), split_boxes(needed), is_multicast=False)
        own = sum(
            has(kept, node, element) and has(needed, node, element)
            for node in np.ndindex(kept.grid)
            for element in np.ndindex(kept.shape)
        )
        missing = needed.num_elements.sum() - own
        assert traffic.sent.sum() == traffic.received.sum() == missing
        assert has_own(kept, needed) == (missing == 0)


def test_the_nearest_of_several_copies_serves():
    """Copies at columns 0 and 4, 1 and 5, ..., of which columns 1 and 3 need what 0 and 4 keep."""
    kept = boxes_of((4,), (1, 8), [], [(-1, 2), (0, 4)])
    busy = np.zeros((1, 8), bool)
    busy[0, [1, 3]] = True
    zero, one = np.zeros((1, 1), int), np.ones((1, 1), int)
    needed = type(kept)(shape=(4,), grid=(1, 8), first=(zero,), end=(one,), busy=busy)
    found = route_boxes(split_boxes(kept), split_boxes(needed))
    assert found.east.tolist() == [[1, 0, 0, 0, 0, 0, 0]]
    assert found.west.tolist() == [[0, 0, 0, 1, 0, 0, 0]]


def test_loads_are_never_too_small_where_kept_boxes_overlap():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shape, grid = (12, 9), (3, 4)
        kept = boxes_of(shape, grid, [(0, 3)], [(1, 4)], halo=1)
        needed = boxes_of(shape, grid, *draw_parts(rng, shape, grid))
        found = route_boxes(split_boxes(kept), split_boxes(needed))
        counted = count_traffic(kept, needed)
        assert found.received.tolist() == counted.received.tolist()
        for ways in (("east", "west"), ("south", "north")):
            load, least = (
                sum(getattr(each, way).sum() for way in ways) for each in (found, counted)
            )
            assert load >= least


def test_a_dimension_that_runs_along_both_axes_is_never_needed_too_little():
    """Rows of 3 columns each, flattened: the range of a node depends on its row and its column."""
    shape, grid = (24,), (2, 3)
    kept = boxes_of(shape, grid, [(0, 2)], [(-1, 3)])
    needed = boxes_of(shape, grid, [(-1, 2)], [(0, 3)])
    first = np.array([[0, 4, 8], [12, 16, 20]])
    needed = type(needed)(
        shape=shape, grid=grid, first=(first,), end=(first + 4,), busy=needed.busy
    )
    assert has_own(kept, needed)
    turned = type(needed)(
        shape=shape, grid=grid, first=(first[::-1],), end=(first[::-1] + 4,), busy=needed.busy
    )
    found = route_boxes(split_boxes(kept), split_boxes(turned))
    counted = count_traffic(kept, turned)
    for way in ("east", "west", "south", "north"):
        assert (getattr(found, way) >= getattr(counted, way)).all()
