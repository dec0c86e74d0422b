"""Bytes and FLOPs of ops, counted by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from fsdtrain.op_work import WorkCounter, describe_shapes

A, B = torch.ones(4, 16), torch.ones(16, 32)
HALF = torch.ones(3, 5, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("run", "name", "shapes", "num_bytes"),
    [
        (lambda: A @ B, "aten::mm", "4x16, 16x32", 4 * (64 + 512 + 128)),
        (lambda: HALF + HALF, "aten::add", "3x5, 3x5", 2 * 3 * 15),
        (lambda: A.clone().add_(A), "aten::add_", "4x16, 4x16", 4 * 3 * 64),
        (lambda: torch.empty(3, 5).copy_(HALF), "aten::copy_", "3x5, 3x5", 15 * (4 + 2)),
        (lambda: torch.empty(7).zero_(), "aten::zero_", "7", 4 * 7),
        (lambda: A.t(), "aten::t", "4x16", 0),
        (lambda: torch.empty_like(A), "aten::empty_like", "4x16", 0),
        # One row that is read for each of a thousand: it lies in memory once.
        (lambda: B[:1].expand(1000, 32).exp(), "aten::exp", "1000x32", 4 * (32 + 32_000)),
        (lambda: A[:, 3].neg(), "aten::neg", "4", 4 * (4 + 4)),
        (lambda: torch.cat([A, A]), "aten::cat", "", 4 * (64 + 64 + 128)),
    ],
)
def test_inputs_and_outputs_count_once(
    run: Callable[[], Tensor], name: str, shapes: str, num_bytes: int
) -> None:
    with WorkCounter(flop_registry) as counter:
        run()
    assert counter.work[name, shapes].num_bytes == num_bytes


def test_the_backward_pass_and_custom_ops_are_counted() -> None:
    @torch.library.custom_op("fsdtrain_testing::twice", mutates_args=())
    def twice(value: Tensor) -> Tensor:
        return value * 2

    twice.register_autograd(lambda context, gradient: twice(gradient))
    value = torch.ones(6, requires_grad=True)
    with WorkCounter(flop_registry) as counter:
        twice(value).sum().backward()
    # Forward 6 and 6; backward the gradient is one number, expanded, and 6 are written.
    assert counter.work["fsdtrain_testing::twice", "6"].num_bytes == (4 * 12 + 4 * 7) / 2


def test_flops_of_products_and_convolutions_both_ways() -> None:
    images, weight = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3, requires_grad=True)
    with WorkCounter(flop_registry) as counter:
        A @ B
        torch.conv2d(images, weight).sum().backward()
    flops = {name: work.flops for (name, _), work in counter.work.items() if work.flops}
    forward = 2 * 2 * 4 * 6 * 6 * 3 * 3 * 3
    # The pictures have no gradient.
    assert flops == {
        "aten::mm": 2 * 4 * 16 * 32, "aten::convolution": forward,
        "aten::convolution_backward": forward,
    }  # fmt: skip


def test_shapes_are_those_of_tensors_that_have_some() -> None:
    assert describe_shapes([[4, 24], [], [[2, 3], [4]], [7]]) == "4x24, 7"
