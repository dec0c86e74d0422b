"""Mappings that are weighed: legal ones, the even ones among them, and those after a value."""

import random
from itertools import product as every
from math import prod

import pytest
from fsdtrain_dojo.lowering.candidates import divisions, follow, largest_share
from fsdtrain_dojo.lowering.finish import home_division, written_division
from fsdtrain_dojo.lowering.kernel import Kernel, Span, Unit
from fsdtrain_dojo.lowering.mapping import Axis, Mapping, node_ranges
from fsdtrain_dojo.lowering.verify import verify_program

from tests.backends.dojo.spatial.programs import (
    convolution,
    divided,
    graph_of,
    make_kernel,
    operand,
    place_program,
    product,
    value,
)

GRIDS = [(1, 1), (1, 8), (4, 4), (3, 7), (8, 5)]


def nests() -> dict[str, tuple[Kernel, list]]:
    image = 9
    return {
        "product": (
            product("c", "a", "b", 37, 21, 50),
            [operand("a", 37, 21), operand("b", 21, 50), value("c", 37, 50, is_output=True)],
        ),
        "convolution": (
            convolution("y", "x", "w", 2, 5, 7, image, 3, 2),
            [operand("x", 2, 5, image, image), operand("w", 7, 5, 3, 3),
             value("y", 2, 7, 5, 5, is_output=True)],
        ),
        "sum": (
            make_kernel({"row": 40, "column": 3}, {"x": ["row", "column"]}, {"s": ["column"]},
                        lambda x: x.sum(0)),
            [operand("x", 40, 3), value("s", 3, is_output=True)],
        ),
        "one number": (
            make_kernel({"row": 40}, {"x": ["row"]}, {"s": []}, lambda x: x.sum()),
            [operand("x", 40), value("s", is_output=True)],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", nests())
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("grain", [1, 8])
def test_every_division_is_legal(name, grid, grain):
    kernel, values = nests()[name]
    grains = [grain] * len(kernel.loops)
    found = list(divisions(kernel, grid, grains))
    assert Mapping() in found
    assert len(set(map(repr, found))) == len(found)
    for mapping in random.Random(0).sample(found, min(len(found), 12)):
        program = place_program(graph_of(values, [kernel]), grid, [mapping])
        verify_program(program, sram_bytes=10**9)


@pytest.mark.parametrize("name", nests())
@pytest.mark.parametrize("grid", GRIDS)
def test_no_division_has_empty_parts_and_shares_are_those_of_the_fullest_node(name, grid):
    kernel, _ = nests()[name]
    for mapping in divisions(kernel, grid, [1] * len(kernel.loops)):
        used = [range(mapping.num_used(axis)) for axis in Axis]
        counts = [
            [end - first for first, end in node_ranges(kernel, mapping, *place)]
            for place in every(*used)
        ]
        assert min(map(min, counts)) > 0
        assert tuple(map(max, zip(*counts, strict=True))) == largest_share(kernel, mapping)


def test_a_product_that_divides_evenly_uses_all_nodes_in_all_known_ways():
    kernel = product("c", "a", "b", 64, 64, 64)
    found = list(divisions(kernel, (4, 8), [1, 1, 1]))
    for rows, columns in every(range(3), range(3)):
        if rows != columns:
            assert divided({rows: 4}, {columns: 8}) in found
    full = [m for m in found if prod(largest_share(kernel, m)) == 64**3 // 32]
    assert len(full) >= 6


def test_loops_that_stay_whole_are_not_divided():
    kernel, _ = nests()["product"]
    stiff = make_kernel({"m": 16, "n": 16}, {"a": "mn"}, {"y": "mn"}, lambda a: a)
    stiff = Kernel(**{**vars_of(stiff), "loops": (stiff.loops[0], rigid(stiff.loops[1]))})
    for mapping in divisions(stiff, (4, 4), [1, 1]):
        assert 1 not in {part.loop for part in (*mapping.rows, *mapping.columns)}
    assert follow(stiff, stiff.reads[0], divided(None, {1: 4})) is None
    assert follow(stiff, stiff.reads[0], divided({0: 4})) == divided({0: 4})


def vars_of(kernel: Kernel) -> dict:
    return {name: getattr(kernel, name) for name in Kernel.__dataclass_fields__}


def rigid(loop):
    return type(loop)(loop.name, loop.size, is_splittable=False)


def test_grains_are_kept_where_there_are_enough_of_them():
    kernel = product("c", "a", "b", 512, 64, 512)
    for mapping in divisions(kernel, (8, 8), [16, 16, 4]):
        for part in (*mapping.rows, *mapping.columns):
            size = kernel.loops[part.loop].size
            assert part.grain in (1, [16, 16, 4][part.loop])
            assert part.grain > 1 or size < 2 * [16, 16, 4][part.loop] * 8


@pytest.mark.parametrize("seed", range(20))
def test_following_a_value_leaves_it_where_it_lies(seed):
    """Where an operand's dimensions are loops, its nodes touch what they keep, and no more."""
    chance = random.Random(seed)
    grid = chance.choice([(4, 4), (3, 7)])
    shape = (chance.randint(1, 30), chance.randint(1, 30), chance.randint(1, 30))
    kernel = make_kernel(
        dict(zip("abc", shape, strict=True)), {"x": "abc"}, {"y": "abc"}, lambda x: x.relu(),
        unit=Unit.VECTOR,
    )  # fmt: skip
    home = home_division(shape, grid)
    mapping = follow(kernel, kernel.reads[0], home)
    assert mapping == home
    assert written_division(kernel, kernel.writes[0], mapping) == home


def test_what_is_not_along_a_loop_is_not_followed():
    kernel = make_kernel(
        {"i": 24}, {"x": [Span(((0, 1),), divide=6), Span(((0, 1),), modulo=6)]}, {"y": ["i"]},
        lambda x: x.flatten(),
    )  # fmt: skip
    assert follow(kernel, kernel.reads[0], divided({1: 3})) is None
    rows = follow(kernel, kernel.reads[0], divided({0: 4}))
    assert rows is not None
    assert [node_ranges(kernel, rows, row, 0)[0] for row in range(4)] == [
        (0, 6), (6, 12), (12, 18), (18, 24),
    ]  # fmt: skip


def test_a_value_divided_along_one_loop_twice_is_not_followed():
    kernel = make_kernel({"i": 24}, {"x": ["i", "i"]}, {"y": ["i"]}, lambda x: x.diagonal())
    assert follow(kernel, kernel.reads[0], divided({0: 3}, {1: 3})) is None
