"""Where results end up: in groups that hold parts of the same sums, and all of them."""

import random
from itertools import product as every
from math import prod

import numpy as np
import pytest
from fsdtrain_dojo.lowering.candidates import divisions
from fsdtrain_dojo.lowering.cover import corners, covers
from fsdtrain_dojo.lowering.finish import (
    divided_reductions,
    finishes,
    home_division,
    settled,
    written_division,
)
from fsdtrain_dojo.lowering.kernel import Kernel, Span, Value
from fsdtrain_dojo.lowering.mapping import (
    Axis,
    Boxes,
    Mapping,
    access_boxes,
    divided_boxes,
    node_ranges,
)
from fsdtrain_dojo.lowering.program import Pattern

from tests.backends.dojo.spatial.programs import (
    all_within,
    convolution,
    divided,
    make_kernel,
    product,
    value,
)

GRID = (4, 6)


def reducing_kernels() -> dict[str, tuple[Kernel, Value]]:
    return {
        "product": (product("c", "a", "b", 20, 30, 18), value("c", 20, 18)),
        "convolution": (convolution("y", "x", "w", 2, 8, 7, 9, 3, 1), value("y", 2, 7, 9, 9)),
        "sum of columns": (
            make_kernel({"r": 40, "c": 5}, {"x": "rc"}, {"s": "c"}, lambda x: x.sum(0)),
            value("s", 5),
        ),
        "one number": (
            make_kernel({"r": 40, "c": 5}, {"x": "rc"}, {"s": []}, lambda x: x.sum()),
            value("s"),
        ),
    }


def groups(kernel: Kernel, mapping: Mapping) -> dict[tuple, list[tuple[int, int]]]:
    """Busy nodes by the results that they hold all or parts of."""
    found: dict[tuple, list[tuple[int, int]]] = {}
    for place in every(*(range(mapping.num_used(axis)) for axis in Axis)):
        ranges = node_ranges(kernel, mapping, *place)
        results = tuple(r for loop, r in enumerate(ranges) if loop not in kernel.reductions)
        found.setdefault(results, []).append(place)
    return found


def elements(boxes: Boxes, places: list[tuple[int, int]]) -> np.ndarray:
    """How many of these nodes have each element."""
    count = np.zeros(boxes.shape, int)
    for place in places:
        if boxes.num_elements[place]:
            count[tuple(slice(*each) for each in boxes.at(*place))] += 1
    return count


@pytest.mark.parametrize("name", reducing_kernels())
def test_every_way_to_finish_covers_the_value_from_within_the_groups(name):
    kernel, result = reducing_kernels()[name]
    found = list(divisions(kernel, GRID, [1] * len(kernel.loops)))
    seen = set()
    for mapping in random.Random(1).sample(found, min(60, len(found))):
        made = access_boxes(kernel, kernel.writes[0], mapping, result.shape, GRID)
        options = list(finishes(kernel, kernel.writes[0], result, mapping, made))
        is_reduced = bool(divided_reductions(kernel, mapping))
        assert (options[0].pattern is Pattern.LOCAL) is not is_reduced
        for each in options:
            seen.add(each.pattern)
            assert covers(corners(each.boxes), result.shape)
            assert all_within(each.boxes, made)
            check_groups(kernel, mapping, made, each)
            if each.division is not None:
                same = divided_boxes(result.shape, each.division, GRID)
                assert all_within(same, each.boxes)
                assert all_within(each.boxes, same)
    assert Pattern.ALL_REDUCE in seen
    assert seen & {Pattern.REDUCE, Pattern.REDUCE_SCATTER}


def check_groups(kernel, mapping, made, finish):
    for places in groups(kernel, mapping).values():
        own = elements(made, places[:1])
        count = elements(finish.boxes, places)
        wanted = len(places) if finish.pattern is Pattern.ALL_REDUCE else 1
        assert (count == wanted * own).all(), (mapping, finish.pattern)
        if finish.pattern is Pattern.REDUCE:
            assert sum(finish.boxes.num_elements[place] > 0 for place in places) == 1


def test_pieces_of_a_sum_are_as_even_as_they_can_be():
    kernel, result = reducing_kernels()["product"]
    mapping = divided({2: 4}, {0: 5})
    made = access_boxes(kernel, kernel.writes[0], mapping, result.shape, GRID)
    scattered = next(
        each
        for each in finishes(kernel, kernel.writes[0], result, mapping, made)
        if each.pattern is Pattern.REDUCE_SCATTER
    )
    assert set(scattered.boxes.num_elements[:, :5].ravel().tolist()) == {4 * 4, 4 * 5}


def test_a_sum_over_all_nodes_is_scattered_as_a_weight_lies():
    """So that a gradient ends up where its weight is."""
    kernel, result = reducing_kernels()["product"]
    nest = make_kernel(
        {"m": 18, "n": 20, "k": 24, "l": 24}, {"a": "mkl", "b": "nkl"}, {"c": "mn"},
        lambda a, b: a,
    )  # fmt: skip
    result = value("c", 18, 20)
    mapping = divided({2: 4}, {3: 6})
    made = access_boxes(nest, nest.writes[0], mapping, result.shape, GRID)
    found = {each.pattern: each for each in finishes(nest, nest.writes[0], result, mapping, made)}
    assert found[Pattern.REDUCE_SCATTER].division == home_division(result.shape, GRID)


@pytest.mark.parametrize("shape", [(64, 64), (3, 100, 7), (1, 50), (2,), (1, 1), ()])
@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (1, 5), (1, 1)])
def test_home_is_as_wide_as_the_two_largest_dimensions_allow(shape, grid):
    division = home_division(shape, grid)
    boxes = divided_boxes(shape, division, grid)
    assert covers(corners(boxes), shape)
    held = [int(n) for n in boxes.num_elements.ravel() if n]
    assert sum(held) == prod(shape)
    large = sorted((size for size in shape if size > 1), reverse=True)[:2]
    by_length = sorted(grid, reverse=True)
    used = prod(min(size, length) for size, length in zip(large, by_length, strict=False))
    assert len(held) == used
    if len(large) == 2 and min(grid) > 1:
        assert division.rows
        assert division.columns


def test_weights_gradients_and_moments_lie_alike():
    assert home_division((16, 8, 3, 3), GRID) == home_division((16, 8, 3, 3), GRID)
    assert home_division((8, 16), GRID) == divided({0: 4}, {1: 6})


def test_written_divisions_are_of_dimensions():
    kernel = make_kernel(
        {"n": 4, "m": 6, "k": 5}, {"x": "nmk"}, {"y": [Span(((1, 2),), high=1), "n"]},
        lambda x: x,
    )  # fmt: skip
    write = kernel.writes[0]
    assert written_division(kernel, write, divided({0: 2}, {1: 3})) == Mapping(
        rows=divided({1: 2}).rows, columns=tuple(_scaled(part) for part in divided({0: 3}).rows)
    )
    assert written_division(kernel, write, divided({2: 5}, {0: 2})) == divided({}, {1: 2})


def _scaled(part):
    return type(part)(part.loop, part.count, 2)


def test_what_is_not_plainly_divided_has_no_division():
    kernel = make_kernel({"i": 12}, {"x": ["i"]}, {"y": [Span(((0, 1),), divide=4),
                         Span(((0, 1),), modulo=4)]}, lambda x: x.view(3, 4))  # fmt: skip
    assert written_division(kernel, kernel.writes[0], divided({0: 3})) is None


def test_hidden_sums_are_settled_before_an_epilogue():
    main = product("c", "a", "b", 8, 8, 8)
    after = make_kernel({"m": 8, "n": 8, "k": 8}, {"c": "mn"}, {"d": "mn"}, lambda c: c)
    fused = Kernel(
        **{name: getattr(main, name) for name in Kernel.__dataclass_fields__}
        | {"epilogue": (after,), "hidden": frozenset({"c"})}
    )
    assert [each.value for each in settled(fused, divided({0: 2}))] == ["d"]
    assert [each.value for each in settled(fused, divided({2: 2}))] == ["c", "d"]
    made = access_boxes(fused, fused.writes[0], divided({2: 2}), (8, 8), GRID)
    options = list(finishes(fused, fused.writes[0], value("c", 8, 8), divided({2: 2}), made))
    assert [each.pattern for each in options] == [Pattern.ALL_REDUCE]
