"""Views and what else only moves, piece by piece, bit for bit; and how tight the boxes are."""

from math import prod
from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe import by_row, joining, movement, rearranging
from fsdtrain_dojo.lowering.kernel import Kernel, Unit, Value
from fsdtrain_dojo.lowering.mapping import node_block

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
RULES = {**movement.RULES, **joining.RULES, **rearranging.RULES, **by_row.RULES}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


X = normal(4, 6, 5)
PICTURES = normal(2, 3, 5, 7)
VIEWS: dict[str, tuple[Any, ...]] = {
    "merge": (aten.view.default, X, [24, 5]),
    "split": (aten.view.default, X, [4, 2, 3, 5]),
    "merge and split": (aten.view.default, X, [8, 15]),
    "inferred": (aten._unsafe_view.default, X, [-1]),
    "to a scalar": (aten.view.default, normal(1, 1), []),
    "from a scalar": (aten.view.default, normal(), [1, 1]),
    "unsqueeze": (aten.unsqueeze.default, X, 1),
    "squeeze": (aten.squeeze.dims, normal(1, 6, 1, 5), [0, 2]),
    "permute": (aten.permute.default, X, [2, 0, -2]),
    "transpose": (aten.transpose.int, X, 0, -1),
    "t": (aten.t.default, normal(4, 6)),
    "expand": (aten.expand.default, normal(4, 1, 5), [3, 4, 6, -1]),
    "slice": (aten.slice.Tensor, X, 1, 1, -1),
    "slice of two steps": (aten.slice.Tensor, X, 1, 1, 9223372036854775807, 2),
    "select": (aten.select.int, X, 1, -2),
    "unfold": (aten.unfold.default, X, 1, 3, 2),
    "diagonal": (aten.diagonal.default, X, 1, 0, 2),
    "diagonal below": (aten.diagonal.default, X, -2),
    "flip": (aten.flip.default, X, [0, 2]),
    "roll": (aten.roll.default, X, [2, -1], [0, 2]),
    "roll of everything": (aten.roll.default, X, [7]),
    "repeat": (aten.repeat.default, X, [2, 1, 3, 1]),
    "as_strided": (aten.as_strided.default, X, [3, 2], [5, 2], 4),
    "diag_embed": (aten.diag_embed.default, normal(3, 4)),
    "pixel_shuffle": (aten.pixel_shuffle.default, normal(2, 8, 3, 5), 2),
    "pixel_unshuffle": (aten.pixel_unshuffle.default, normal(2, 2, 6, 4), 2),
    "channel_shuffle": (aten.channel_shuffle.default, normal(2, 6, 3, 5), 3),
}
JOINS: dict[str, tuple[Any, ...]] = {
    "cat": (aten.cat.default, [normal(4, 2, 5), X, normal(4, 1, 5)], 1),
    "cat of one tensor twice": (aten.cat.default, [X, X], -1),
    "cat with nothing": (aten.cat.default, [normal(0), X]),
    "stack": (aten.stack.default, [X, normal(4, 6, 5)], 2),
    "stack of scalars": (aten.stack.default, [normal(), normal(), normal()]),
    "pad": (aten.constant_pad_nd.default, X, [1, 2, 0, 3], 0.5),
    "cut": (aten.constant_pad_nd.default, X, [-1, 2, 1, -2]),
    "slice_backward": (aten.slice_backward.default, normal(4, 2, 5), [4, 6, 5], 1, 1, 6, 3),
    "select_backward": (aten.select_backward.default, normal(4, 5), [4, 6, 5], 1, -2),
    "slice_scatter": (aten.slice_scatter.default, X, normal(4, 2, 5), 1, 2, 4),
    "select_scatter": (aten.select_scatter.default, X, normal(4, 5), 1, 3),
    "reflection_pad": (aten.reflection_pad2d.default, PICTURES, [2, 1, 1, 0]),
    "replication_pad": (aten.replication_pad1d.default, normal(2, 3, 5), [2, 1]),
}  # fmt: skip
SUMS: dict[str, tuple[Any, ...]] = {
    "reflection": (aten.reflection_pad2d_backward.default, normal(2, 3, 6, 10), PICTURES,
                   [2, 1, 1, 0]),
    "replication": (aten.replication_pad1d_backward.default, normal(2, 3, 8), normal(2, 3, 5),
                    [2, 1]),
    "unfold": (aten.unfold_backward.default, normal(4, 2, 5, 3), [4, 6, 5], 1, 3, 2),
    "glu": (aten.glu.default, X, 1),
    "glu_backward": (aten.glu_backward.default, normal(4, 3, 5), X, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", [*VIEWS, *JOINS])
def test_pieces_make_up_the_op(name: str) -> None:
    arguments = {**VIEWS, **JOINS}[name]
    if name == "unsqueeze":  # integers and truths are moved as well
        arguments = (arguments[0], arguments[1] > 0, *arguments[2:])
    call, tensors = make_call(*arguments)
    for kernel in check_kernels(RULES[call.op], call, tensors, is_exact=True, tolerance=0):
        assert kernel.unit is Unit.MOVE
        assert kernel.flops == 0


@pytest.mark.parametrize("name", SUMS)
def test_what_adds_up_where_it_was_moved(name: str) -> None:
    call, tensors = make_call(*SUMS[name])
    check_kernels(RULES[call.op], call, tensors, is_exact=True)


@pytest.mark.parametrize("used", [None, (1,)])
@pytest.mark.parametrize(
    "arguments",
    [
        (aten.split.Tensor, X, 4, 1),
        (aten.split_with_sizes.default, X, [1, 2, 3], 1),
        (aten.unbind.int, X, 1),
        (aten.unsafe_split.Tensor, X, 2),
    ],
)
def test_every_part_that_is_read_is_a_kernel(
    arguments: tuple[Any, ...], used: tuple[int, ...] | None
) -> None:
    call, tensors = make_call(*arguments, used=used)
    kernels = check_kernels(RULES[call.op], call, tensors, is_exact=True, tolerance=0)
    assert len(kernels) == (len(call.outputs) if used is None else 1)


def elements_read(arguments: tuple[Any, ...], ranges: list[tuple[int, int]]) -> int:
    """Of the operand, for these ranges of the loops."""
    call, _ = make_call(*arguments)
    (kernel,) = RULES[call.op](call).kernels
    return _box_of_first_read(kernel, call.args[0], call.outputs[0], ranges)


def _box_of_first_read(
    kernel: Kernel, source: Value, result: Value | None, ranges: list[tuple[int, int]]
) -> int:
    assert result is not None
    shapes = {source.name: source.shape, result.name: result.shape}
    box = node_block(kernel, ranges, shapes).boxes[0]
    return prod(end - first for first, end in box)


@pytest.mark.parametrize(
    ("arguments", "ranges", "read"),
    [
        ((aten.permute.default, X, [2, 0, 1]), [(1, 3), (0, 2), (2, 5)], 12),
        ((aten.slice.Tensor, X, 1, 1, 5), [(0, 2), (1, 3), (0, 5)], 20),
        ((aten.expand.default, normal(4, 1), [4, 9]), [(1, 2), (3, 8)], 1),
        # An outer dimension that is merged or split stays where it is.
        ((aten.view.default, X, [24, 5]), [(6, 18), (0, 2)], 24),
        ((aten.view.default, X, [4, 30]), [(1, 3), (0, 30)], 60),
        ((aten.view.default, normal(24, 5), [4, 6, 5]), [(1, 3), (0, 6), (0, 5)], 60),
        ((aten.view.default, normal(24, 5), [4, 6, 5]), [(2, 3), (1, 4), (0, 5)], 15),
    ],
)
def test_no_more_is_read_than_is_needed(
    arguments: tuple[Any, ...], ranges: list[tuple[int, int]], read: int
) -> None:
    assert elements_read(arguments, ranges) == read


def test_of_joined_tensors_only_those_in_reach_are_read() -> None:
    call, _ = make_call(aten.cat.default, [normal(3, 2), normal(4, 2)])
    (kernel,) = RULES[call.op](call).kernels
    shapes = {"x0": (3, 2), "x1": (4, 2), "y0": (7, 2)}
    first, second, _ = node_block(kernel, [(4, 6), (0, 2)], shapes).boxes
    assert first[0][0] >= first[0][1]
    assert second[0] == (1, 3)
