"""Delta debugging on plain lists, against all subsets tried one by one."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fsdtrain.comparison.minimise import minimise


def always() -> bool:
    return True


@given(st.integers(1, 40), st.data())
def test_a_planted_set_is_found(num_items: int, data: st.DataObject) -> None:
    planted = data.draw(st.sets(st.integers(0, num_items - 1), min_size=1, max_size=4))
    found = minimise(
        range(num_items), lambda part: planted <= set(part), may_go_on=always, max_size=12
    )
    assert found.items == tuple(sorted(planted))
    assert found.is_minimal
    assert not found.is_large


@given(st.integers(2, 7), st.data())
def test_without_any_one_item_the_property_is_lost(num_items: int, data: st.DataObject) -> None:
    """Of any property, monotone or not, that the whole list has."""
    subsets = [
        part
        for size in range(1, num_items)
        for part in itertools.combinations(range(num_items), size)
    ]
    having = data.draw(st.sets(st.sampled_from(subsets)))
    whole = tuple(range(num_items))
    found = minimise(
        whole, lambda part: part == whole or part in having, may_go_on=always, max_size=12
    )
    assert found.items == whole or found.items in having
    for left_out in found.items:
        if len(found.items) > 1:
            assert tuple(each for each in found.items if each != left_out) not in having


def test_where_many_are_needed_it_gives_up() -> None:
    tested = []

    def has_nine_tenths(part: tuple[int, ...]) -> bool:
        tested.append(part)
        return len(part) >= 270

    found = minimise(range(300), has_nine_tenths, may_go_on=always, max_size=12)
    assert found.is_large
    assert not found.is_minimal
    assert len(found.items) >= 270
    assert len(tested) < 120


def test_it_stops_when_it_may_not_go_on() -> None:
    tested = []

    def has_both_ends(part: tuple[int, ...]) -> bool:
        tested.append(part)
        return {0, 99} <= set(part)

    found = minimise(range(100), has_both_ends, may_go_on=lambda: len(tested) < 8, max_size=12)
    assert len(tested) == 8
    assert not found.is_minimal
    assert {0, 99} <= set(found.items)
