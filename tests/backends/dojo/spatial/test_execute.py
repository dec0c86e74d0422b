"""Programs placed by hand, run node by node, against plain torch."""

from dataclasses import replace

import pytest
import torch
from fsdtrain_dojo.arithmetic.exact_matmul import MatrixUnit
from fsdtrain_dojo.formats import FP32
from fsdtrain_dojo.lowering.kernel import Phase, Span, Unit, ValueKind
from fsdtrain_dojo.lowering.mapping import divided_boxes
from fsdtrain_dojo.lowering.passes.fuse_elementwise import fuse_elementwise
from fsdtrain_dojo.lowering.program import Spill
from fsdtrain_dojo.spatial.execute import execute, run_program
from torch.nn.functional import conv2d

from tests.backends.dojo.spatial.programs import (
    AWAY,
    convolution,
    divided,
    graph_of,
    make_kernel,
    operand,
    place_program,
    product,
    random_tensors,
    softmax,
    value,
)

GRIDS = [(2, 3), (3, 5)]

PRODUCT = graph_of(
    [operand("a", 7, 13), operand("b", 13, 11), value("y", 7, 11, is_output=True)],
    [product("y", "a", "b", 7, 13, 11)],
)
# by what is divided: loops 0 m, 1 n, 2 k; dimensions of layouts likewise by number
PRODUCT_PLACINGS = {
    "one node": (AWAY, {}),
    "m over rows, n over columns": (divided({0: 2}, {1: 3}), {"a": divided({0: 2}, {1: 3})}),
    "more parts than fit evenly": (divided({0: 2}, {1: 2}), {"b": divided({1: 2}, {0: 3})}),
    "k over columns": (divided({0: 2}, {2: 3}), {"a": divided({0: 2}, {1: 3})}),
    "k over both, m within": (divided({2: 2}, {0: 3}), {"y": divided({1: 2}, {0: 3})}),
    "k and m on one axis": (divided({1: 2}, {2: 3}), {"y": AWAY}),
    "steps of m": (divided({0: 2}, {1: 3}, steps={0: 3}), {}),
    "steps of k": (divided({0: 2}, {1: 3}, steps={2: 5}), {}),
    "steps of all": (divided({0: 2}, {2: 3}, steps={0: 2, 1: 5, 2: 2}), {"a": divided({1: 2})}),
    "everywhere": (divided(is_everywhere=True), {"y": divided(is_everywhere=True)}),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", PRODUCT_PLACINGS)
def test_products(name, grid):
    mapping, layouts = PRODUCT_PLACINGS[name]
    tensors = random_tensors(PRODUCT, seed=len(name))
    program = place_program(PRODUCT, grid, [mapping], layouts)
    found = execute(program, tensors)["y"]
    assert torch.allclose(found, tensors["a"] @ tensors["b"], atol=1e-5)


def test_whole_numbers_add_up_exactly_whatever_is_divided():
    tensors = {name: each.mul(4).round() for name, each in random_tensors(PRODUCT).items()}
    for mapping, layouts in PRODUCT_PLACINGS.values():
        found = execute(place_program(PRODUCT, (3, 5), [mapping], layouts), tensors)["y"]
        assert torch.equal(found, tensors["a"] @ tensors["b"])


def test_sums_differ_from_exact_ones_by_no_more_than_their_order_can():
    """Of K products in any order: at most K eps times the sum of their magnitudes."""
    graph = graph_of(
        [operand("a", 7, 260), operand("b", 260, 11), value("y", 7, 11, is_output=True)],
        [product("y", "a", "b", 7, 260, 11)],
    )
    tensors = random_tensors(graph)
    a, b = tensors["a"].double(), tensors["b"].double()
    bound = 260 * torch.finfo(torch.float32).eps * (a.abs() @ b.abs())
    for mapping, layouts in PRODUCT_PLACINGS.values():
        found = execute(place_program(graph, (3, 5), [mapping], layouts), tensors)["y"]
        assert ((found.double() - a @ b).abs() <= bound).all()


@pytest.mark.parametrize(
    ("mapping", "is_same"),
    [
        (divided({0: 2}, {1: 3}), True),
        (divided({0: 2}, {1: 3}, steps={0: 2, 1: 2}), True),
        (divided({0: 2}, {2: 4}), True),  # K-tiles by node, added up in ascending order
        (divided({0: 2}, {1: 3}, steps={2: 4}), True),  # K-tiles one after another
        (divided({0: 2}, {2: 5}), False),
    ],
)
def test_in_dojos_order_of_sums_every_bit_is_the_same(mapping, is_same):
    unit = MatrixUnit(FP32, k_tile=16)

    def multiply(a, b):
        return unit.multiply(a[None], b[None])[0]

    graph = graph_of(
        [operand("a", 37, 64), operand("b", 64, 29), value("y", 37, 29, is_output=True)],
        [replace(product("y", "a", "b", 37, 64, 29),
                 compute=lambda tensors, block: [multiply(*tensors)])],
    )  # fmt: skip
    tensors = random_tensors(graph)
    found = execute(place_program(graph, (3, 5), [mapping]), tensors)["y"]
    assert torch.equal(found, multiply(tensors["a"], tensors["b"])) == is_same


def test_parts_of_sums_add_up_in_order():
    """1 + 2^-24 + 2^-24 is 1 from the left, more from the right."""
    graph = graph_of(
        [operand("x", 3), value("y", is_output=True)],
        [make_kernel({"k": 3}, {"x": "k"}, {"y": ""}, lambda x: x.sum())],
    )
    tiny = 2.0**-24
    for mapping in (divided({}, {0: 3}), divided({0: 3}), divided(steps={0: 3})):
        program = place_program(graph, (3, 3), [mapping], {"x": divided({}, {0: 3})})
        assert execute(program, {"x": torch.tensor([1.0, tiny, tiny])})["y"] == 1
        assert execute(program, {"x": torch.tensor([tiny, tiny, 1.0])})["y"] > 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("window", "stride"), [(3, 1), (3, 2), (5, 2), (1, 2)])
def test_convolutions_exchange_borders(grid, window, stride):
    size = 11
    out = (size + 2 * (window // 2) - window) // stride + 1
    graph = graph_of(
        [operand("x", 2, 3, size, size), operand("w", 5, 3, window, window),
         value("y", 2, 5, out, out, is_output=True)],
        [convolution("y", "x", "w", 2, 3, 5, size, window, stride)],
    )  # fmt: skip
    tensors = random_tensors(graph, seed=window)
    expected = conv2d(tensors["x"], tensors["w"], stride=stride, padding=window // 2)
    spread = {"x": divided({2: grid[0]}, {3: grid[1]}), "w": divided({}, {0: 2})}
    for mapping in (
        divided({2: grid[0]}, {3: grid[1]}),
        divided({2: grid[0]}, {3: grid[1]}, steps={2: 2, 1: 2}),
        divided({1: grid[0]}, {2: grid[1]}),
        divided({2: 2}, {4: 3}, steps={3: 2}),
    ):
        program = place_program(graph, grid, [mapping], spread)
        assert torch.allclose(execute(program, tensors)["y"], expected, atol=1e-5)


def test_a_shared_border_moves_once_to_each_side():
    """A window of 3 and 2 parts: a row of 11 x 3 channels goes each way, for two images."""
    graph = graph_of(
        [operand("x", 2, 3, 11, 11), operand("w", 5, 3, 3, 3),
         value("y", 2, 5, 11, 11, is_output=True)],
        [convolution("y", "x", "w", 2, 3, 5, 11, 3, 1)],
    )  # fmt: skip
    layouts = {"x": divided({2: 2}), "w": divided(is_everywhere=True)}
    program = place_program(graph, (2, 1), [divided({2: 2})], layouts)
    image, weight, result = run_program(program, random_tensors(graph)).copies
    assert image.moved_bytes == 2 * (2 * 3 * 11) * 4
    assert image.delivered_bytes == (2 * 3 * 11 * 11) * 4 + image.moved_bytes
    assert weight.moved_bytes == result.moved_bytes == 0


@pytest.mark.parametrize("grid", GRIDS)
def test_softmax_in_two_levels(grid):
    values, kernels = softmax(5, 17)
    graph = graph_of([operand("x", 5, 17), *values], kernels)
    tensors = random_tensors(graph)
    mapping = divided({0: grid[0]}, {1: grid[1]})
    program = place_program(graph, grid, [mapping] * 3, {"x": mapping, "y": mapping})
    run = run_program(program, tensors)
    assert torch.allclose(run.outputs["y"], tensors["x"].softmax(1), atol=1e-6)
    assert run.combined_bytes == (4 * 5 * (grid[1] - 1), 4 * 5 * (grid[1] - 1), 0)
    assert sum(each.moved_bytes for each in run.copies) == 0


def test_a_sum_of_all():
    graph = graph_of(
        [operand("x", 7, 5), value("total"), value("mean", is_output=True)],
        [
            make_kernel({"i": 7, "j": 5}, {"x": "ij"}, {"total": ""}, lambda x: x.sum()),
            make_kernel({}, {"total": ""}, {"mean": ""}, lambda total: total / 35),
        ],
    )
    tensors = random_tensors(graph)
    expected = tensors["x"].mean()
    for number, given in enumerate((graph, fuse_elementwise(graph))):
        program = place_program(
            given, (3, 5), [divided({0: 3}, {1: 5}), AWAY][: 2 - number],
            {"x": divided({1: 3}, {0: 5}), "mean": divided(is_everywhere=True)},
        )  # fmt: skip
        assert torch.allclose(execute(program, tensors)["mean"], expected, atol=1e-6)


def test_permuted_copies():
    graph = graph_of(
        [operand("x", 5, 7, 3), value("y", 3, 5, 7, is_output=True)],
        [
            make_kernel(
                {"i": 3, "j": 5, "k": 7}, {"x": "jki"}, {"y": "ijk"},
                lambda x: x.permute(2, 0, 1), unit=Unit.MOVE,
            )
        ],
    )  # fmt: skip
    tensors = random_tensors(graph)
    layouts = {"x": divided({0: 3}, {1: 5}), "y": divided({2: 3}, {0: 2})}
    program = place_program(graph, (3, 5), [divided({0: 3}, {2: 5})], layouts)
    run = run_program(program, tensors)
    assert torch.equal(run.outputs["y"], tensors["x"].permute(2, 0, 1))
    assert all(each.delivered_bytes == 4 * 105 for each in run.copies)
    assert all(0 < each.moved_bytes < 4 * 105 for each in run.copies)


def fused_layer():
    """relu(a b + bias), fused, with a relu that is a result as well."""
    graph = graph_of(
        [operand("a", 7, 13), operand("b", 13, 11), operand("bias", 11),
         value("y", 7, 11), value("z", 7, 11, is_output=True), value("r", 7, 11, is_output=True)],
        [product("y", "a", "b", 7, 13, 11),
         make_kernel({"i": 7, "j": 11}, {"y": "ij", "bias": "j"}, {"z": "ij"}, torch_add),
         make_kernel({"i": 7, "j": 11}, {"z": "ij"}, {"r": "ij"}, lambda z: z.relu())],
    )  # fmt: skip
    return fuse_elementwise(graph)


def torch_add(one, other):
    return one + other


@pytest.mark.parametrize(
    "mapping",
    [
        divided({0: 3}, {1: 5}),
        divided({0: 3}, {2: 5}),
        divided({2: 2}, {1: 3}, steps={0: 3}),
        divided({0: 3}, {1: 2}, steps={2: 3, 1: 2}),
    ],
)
def test_epilogues_see_complete_sums(mapping):
    graph = fused_layer()
    assert len(graph.kernels) == 1
    tensors = random_tensors(graph)
    layouts = {"bias": divided({}, {0: 5}), "r": divided({1: 3}, {0: 5})}
    found = execute(place_program(graph, (3, 5), [mapping], layouts), tensors)
    expected = tensors["a"] @ tensors["b"] + tensors["bias"]
    assert torch.allclose(found["z"], expected, atol=1e-5)
    assert torch.equal(found["r"], found["z"].relu())


def test_values_are_rounded_where_they_are_made():
    graph = fused_layer()
    tensors = random_tensors(graph)
    program = place_program(graph, (3, 5), [divided({0: 3}, {2: 5})])
    exact = execute(program, tensors)
    rounding = {"z": lambda piece: piece.copy_(piece.bfloat16())}
    found = execute(program, tensors, stores=rounding)
    assert torch.equal(found["z"], exact["z"].bfloat16().float())
    assert torch.equal(found["r"], found["z"].relu())


def test_random_values_are_taken_as_given():
    graph = graph_of(
        [operand("x", 5, 7), value("mask", 5, 7), value("y", 5, 7, is_output=True)],
        [
            make_kernel({"i": 5, "j": 7}, {"x": "ij"}, {"mask": "ij"},
                        lambda x: torch.full_like(x, torch.nan), is_random=True),
            make_kernel({"i": 5, "j": 7}, {"x": "ij", "mask": "ij"}, {"y": "ij"},
                        lambda x, mask: x * mask),
        ],
    )  # fmt: skip
    tensors = random_tensors(graph)
    mask = (torch.rand(5, 7) < 0.5).float()
    for given in (graph, fuse_elementwise(graph)):
        mappings = [divided({0: 2}, {1: 3}), divided({1: 2}, {0: 3})][: len(given.kernels)]
        program = place_program(given, (2, 3), mappings)
        found = execute(program, tensors, given={"mask": mask})
        assert torch.equal(found["y"], tensors["x"] * mask)


def test_the_new_weight_takes_the_place_of_the_old():
    old = value("w", 5, 7, kind=ValueKind.WEIGHT)
    new = value("new", 5, 7, kind=ValueKind.WEIGHT, is_output=True)
    graph = graph_of(
        [old, operand("g", 5, 7), new],
        [make_kernel({"i": 5, "j": 7}, {"w": "ij", "g": "ij"}, {"new": "ij"},
                     lambda w, g: w - g, phase=Phase.OPTIMIZER)],
        renews={"new": "w"},
    )  # fmt: skip
    tensors = {"w": torch.rand(5, 7), "g": torch.rand(5, 7)}
    home = divided({0: 2}, {1: 3})
    program = place_program(graph, (2, 3), [divided({1: 2}, {0: 3})], {"w": home, "new": home})
    assert torch.equal(execute(program, tensors)["new"], tensors["w"] - tensors["g"])


def chain(num_kernels: int):
    """y0 = -x, y1 = -y0, ..."""
    names = ["x", *(f"y{each}" for each in range(num_kernels))]
    values = [operand("x", 5, 7)]
    values += [value(name, 5, 7, is_output=name == names[-1]) for name in names[1:]]
    kernels = [
        make_kernel({"i": 5, "j": 7}, {old: "ij"}, {new: "ij"}, lambda x: -x)
        for old, new in zip(names, names[1:], strict=False)
    ]
    return graph_of(values, kernels)


@pytest.mark.parametrize("back_before", [None, 2])
def test_spilled_values_are_read_from_outside(back_before):
    graph = chain(3)
    graph = replace(graph, kernels=(*graph.kernels[:2], make_kernel(
        {"i": 5, "j": 7}, {"y0": "ij", "y1": "ij"}, {"y2": "ij"}, lambda a, b: a * b
    )))  # fmt: skip
    spill = Spill(value="y0", num_bytes=140, out_before=1, back_before=back_before)
    mapping = divided({0: 2}, {1: 3})
    program = place_program(graph, (2, 3), [mapping] * 3, spills=(spill,))
    tensors = random_tensors(graph)
    run = run_program(program, tensors)
    assert torch.equal(run.outputs["y2"], -tensors["x"] * tensors["x"])
    moved = {(each.step, each.value): each.moved_bytes for each in run.copies if not each.is_store}
    assert moved[1, "y0"] == 140
    assert moved[2, "y0"] == (140 if back_before is None else 0)


def test_nodes_see_their_own_memory_only():
    """Each node adds up what it was given: its own box, whatever the tensors behind it hold."""
    seen = []

    def look(x):
        seen.append((x.storage_offset(), x.untyped_storage().nbytes(), x.clone()))
        return x

    graph = graph_of(
        [operand("x", 6, 6), value("y", 6, 6, is_output=True)],
        [make_kernel({"i": 6, "j": 6}, {"x": "ij"}, {"y": "ij"}, look)],
    )
    mapping = divided({0: 2}, {1: 3})
    tensors = random_tensors(graph)
    execute(place_program(graph, (2, 3), [mapping], {"x": divided({0: 2})}), tensors)
    first, *nodes = seen  # the first one is looked at once more, before
    assert [(offset, size) for offset, size, _ in nodes] == [(0, 3 * 2 * 4)] * 6
    assert torch.equal(first[2], tensors["x"][:3, :2])
    assert torch.equal(nodes[0][2], tensors["x"][:3, :2])
    assert torch.equal(nodes[5][2], tensors["x"][3:, 4:])


def test_what_a_node_holds_reaches_no_other():
    """A NaN at one node stays there, though all are computed together."""
    calls = []

    def spread(x):
        calls.append(x.shape)
        return x * 2 + x.mean() + x.sort(1).values

    graph = graph_of(
        [operand("x", 6, 6), value("y", 6, 6, is_output=True)],
        [make_kernel({"i": 6, "j": 6}, {"x": "ij"}, {"y": "ij"}, spread)],
    )
    tensors = random_tensors(graph)
    tensors["x"][4, 1] = torch.nan
    found = execute(place_program(graph, (2, 3), [divided({0: 2}, {1: 3})]), tensors)["y"]
    assert len(calls) == 2  # one node to look at, then all
    is_there = torch.zeros(6, 6, dtype=torch.bool)
    is_there[3:, :2] = True
    assert torch.equal(found.isnan(), is_there)


def test_a_load_that_is_too_small_is_noticed():
    mapping = divided({0: 2}, {1: 3})
    program = place_program(PRODUCT, (2, 3), [mapping])
    (step,) = program.steps
    short = replace(step.loads[0], boxes=divided_boxes((7, 13), divided({0: 2}, {1: 3}), (2, 3)))
    broken = replace(program, steps=(replace(step, loads=(short, step.loads[1])),))
    with pytest.raises(AssertionError, match="is read"):
        execute(broken, random_tensors(PRODUCT))


def test_a_value_that_lies_nowhere_is_noticed():
    hole = divided_boxes((7, 13), divided({0: 2}, {1: 3}), (2, 3))
    hole = replace(hole, busy=hole.busy & ~torch.eye(2, 3).bool().numpy())
    program = place_program(PRODUCT, (2, 3), [divided({0: 2}, {1: 3})], {"a": divided({0: 2})})
    layout = replace(program.initial["a"], boxes=hole)
    broken = replace(program, initial={**program.initial, "a": layout})
    with pytest.raises(AssertionError, match="are nowhere"):
        execute(broken, random_tensors(PRODUCT))


def test_copies_that_differ_are_noticed():
    """A value that every node makes for itself must come out the same everywhere."""
    calls = iter(range(6))
    graph = graph_of(
        [operand("x", 3), value("y", 3, is_output=True)],
        [make_kernel({"i": 3}, {"x": "i"}, {"y": "i"}, lambda x: -x)],
    )
    everywhere = divided(is_everywhere=True)
    program = place_program(graph, (2, 3), [everywhere], {"y": everywhere})
    with pytest.raises(AssertionError, match="another copy"):
        execute(program, random_tensors(graph), stores={"y": lambda piece: piece.add_(next(calls))})


def test_windows_beside_the_value_are_empty():
    """A gradient's window that no output reaches: the node gets nothing and makes zeros."""
    graph = graph_of(
        [operand("x", 2), value("y", 6, is_output=True)],
        [
            make_kernel(
                {"i": 6}, {"x": [Span(((0, 1),))]}, {"y": "i"},
                lambda x, block: torch.nn.functional.pad(
                    x, (0, block.ranges[0][1] - block.ranges[0][0] - len(x))
                ),
            )
        ],
    )  # fmt: skip
    tensors = random_tensors(graph)
    found = execute(place_program(graph, (1, 3), [divided({}, {0: 3})]), tensors)["y"]
    assert torch.equal(found, torch.cat([tensors["x"], torch.zeros(4)]))
