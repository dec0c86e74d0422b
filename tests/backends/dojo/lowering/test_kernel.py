"""Spans against the points that they stand for, and the boxes of all nodes against single ones."""

import random
from itertools import product

import pytest
from fsdtrain_dojo.lowering.kernel import Range, Span, along, whole
from fsdtrain_dojo.lowering.mapping import Mapping, Part, divide_axis, span_boxes


def touched_by_points(span: Span, ranges: list[Range]) -> set[int]:
    """All indices that any point of these ranges touches, beside the dimension too."""
    found: set[int] = set()
    loops = [loop for loop, _ in span.terms]
    for point in product(*(range(*ranges[loop]) for loop in loops)):
        start = sum(scale * place for (_, scale), place in zip(span.terms, point, strict=True))
        first, last = (start + span.low) // span.divide, (start + span.high) // span.divide
        for index in range(first, last + 1):
            found.add(index if span.modulo is None else index % span.modulo)
    return found


def random_span(chance: random.Random, num_loops: int) -> Span:
    loops = chance.sample(range(num_loops), chance.randint(0, num_loops))
    low = chance.randint(-9, 5)
    return Span(
        tuple((loop, chance.randint(1, 5)) for loop in sorted(loops)),
        divide=chance.choice((1, 1, 2, 3, 6)),
        low=low,
        high=low + chance.randint(0, 6),
        modulo=chance.choice((None, None, 2, 5, 7)),
    )


@pytest.mark.parametrize("seed", range(300))
def test_a_span_touches_what_its_points_touch(seed):
    chance = random.Random(seed)
    sizes = [chance.randint(1, 7) for _ in range(3)]
    span, size = random_span(chance, 3), chance.randint(1, 12)
    ranges = []
    for points in sizes:
        first = chance.randint(0, points - 1)
        ranges.append((first, chance.randint(first + 1, points)))
    first, end = span.touched(ranges, size)
    assert 0 <= first <= end <= size
    points = touched_by_points(span, ranges)
    inside = {index for index in points if 0 <= index < size}
    assert inside <= set(range(first, end))
    if inside == points and span.modulo is None:
        assert (first, end) == (min(points), max(points) + 1)
    if not inside and span.modulo is None and (max(points) < 0 or min(points) >= size):
        assert first == end


@pytest.mark.parametrize("seed", range(100))
def test_boxes_of_all_nodes_are_those_of_each(seed):
    chance = random.Random(seed)
    sizes = [chance.randint(1, 9) for _ in range(4)]
    spans = [random_span(chance, 4) for _ in range(3)]
    shape = tuple(chance.randint(1, 12) for _ in spans)
    parts = [Part(loop, chance.randint(1, 3), chance.randint(1, 2)) for loop in range(4)]
    chance.shuffle(parts)
    mapping = Mapping(rows=tuple(parts[:2]), columns=tuple(parts[2:3]))
    grid = (10, 4)
    boxes = span_boxes(sizes, spans, mapping, shape, grid)
    by_row = divide_axis(sizes, mapping.rows, grid[0])
    by_column = divide_axis(sizes, mapping.columns, grid[1])
    for row, column in product(*map(range, grid)):
        if not boxes.busy[row, column]:
            assert boxes.num_elements[row, column] == 0
            continue
        ranges = [(0, size) for size in sizes]
        for loop, found in by_row.items():
            ranges[loop] = (int(found[0, row]), int(found[1, row]))
        for loop, found in by_column.items():
            ranges[loop] = (int(found[0, column]), int(found[1, column]))
        for span, size, (first, end) in zip(spans, shape, boxes.at(row, column), strict=True):
            alone = span.touched(ranges, size)
            assert alone[1] - alone[0] == end - first
            assert first == end or alone == (first, end)


def test_a_window_wholly_in_the_padding_touches_nothing():
    window = Span(((0, 1),), low=-3, high=-1)
    assert window.touched([(0, 1)], 5) == (0, 0)
    beyond = Span(((0, 2),), low=7, high=9)
    assert beyond.touched([(0, 1)], 5) == (5, 5)


def test_an_index_within_a_row_wraps():
    column = Span(((0, 1),), modulo=4)
    assert column.touched([(1, 3)], 4) == (1, 3)
    assert column.touched([(5, 7)], 4) == (1, 3)
    assert column.touched([(3, 5)], 4) == (0, 4)
    assert column.touched([(3, 5)], 3) == (0, 3)


def test_nothing_is_touched_at_no_points():
    for span in (along(0), Span(((0, 2),), low=-1, high=1), Span(((0, 1),), modulo=3)):
        first, end = span.touched([(4, 4)], 9)
        assert first == end


def test_plain_spans():
    assert along(0, 3).touched([(2, 4)], 99) == (6, 12)
    assert whole(7).touched([(2, 4)], 7) == (0, 7)
