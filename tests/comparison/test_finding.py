"""Every clause that says what is wrong with a tensor, and which is chosen."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fsdtrain.comparison.alternatives import Context
from fsdtrain.comparison.finding import find_cause
from fsdtrain.comparison.number_formats import FLOAT32, find_format
from tests.comparison import faults


def tensor(*shape: int, mean: float = 0.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11)) + mean


CASES: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda x: 1.01 * x, "is 1.010 times the reference"),
    (lambda x: 1.0001 * x, "is 1.00010 times the reference"),
    (lambda x: 2 * x, "is 2.000 times the reference"),
    (lambda x: -x, "has the opposite sign"),
    (torch.zeros_like, "is zero"),
    (lambda x: -0.0 * x, "is zero"),
    (lambda x: x + 0.01, "is off by a constant of 0.01 of the reference's RMS"),
    (faults.in_1_5_2, "has the resolution of 2 mantissa bits (1-5-2?)"),
    (lambda x: x.bfloat16().float(), "has the resolution of 7 mantissa bits (bf16?)"),
    (faults.reordered, "holds the values of another axis order"),
    (lambda x: x.flip(0), "holds the values of another axis order"),
    (lambda x: x.clamp(-1.5, 1.5), "is saturated at 1.5 in "),
    (lambda x: x.index_fill(0, torch.tensor([1]), 0), "is zero in 70 of 560 elements, and as"),
    (lambda x: torch.where(x > 2, math.nan, x), "is NaN or infinite in "),
    (lambda x: x[:3], "has shape [3, 7, 10] where the reference has [8, 7, 10]"),
    (lambda x: x + 0.3 * x.roll(1, 0), "differs from the reference: "),
]


@pytest.mark.parametrize(("change", "clause"), CASES)
def test_a_clause_says_what_is_wrong(change: Callable[[Tensor], Tensor], clause: str) -> None:
    reference = tensor(8, 7, 10)
    reference -= reference.mean()
    reference /= reference.square().mean().sqrt()
    assert find_cause(reference.double(), change(reference), FLOAT32).startswith(clause)


def test_one_number_that_is_wrong_is_not_called_saturated() -> None:
    """The largest is 1.75 in place of 2.5; only where the format ends there, it had to be."""
    reference = torch.tensor([0.5, -2.5, 1.0, 0.125, -1.0, 0.25])
    x = reference.clamp(-1.75, 1.75)
    cause = find_cause(reference, x, find_format("bf16"))
    assert cause == "is wrong in 1 of 6 elements, and as expected elsewhere"
    cause = find_cause(reference, x, find_format("cfloat8_1_5_2"))
    assert cause == "is saturated at 1.75 in 1 of 6 elements"


def test_what_is_not_there_is_missing() -> None:
    assert find_cause(tensor(3), None, FLOAT32) == "is missing"


def test_a_scale_that_hides_in_rounding_is_told_as_the_band_found_it() -> None:
    reference = tensor(100, 100)
    x = faults.in_1_5_2(1.01 * reference)
    cause = find_cause(reference, x, find_format("cfloat8_1_5_2"), fault="scale")
    assert cause.startswith("is 1.0"), cause
    shifted = find_cause(reference, x, find_format("cfloat8_1_5_2"), fault="offset")
    assert shifted.startswith("is off by a constant"), shifted


def softmax(inputs: Sequence[Tensor]) -> tuple[Tensor]:
    return (inputs[0].double().softmax(-1),)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5, 5), (2, 3, 4, 5)])
def test_an_op_along_another_axis_is_told(shape: tuple[int, ...]) -> None:
    logits = tensor(*shape)
    context = Context(op="aten._softmax", exactly=softmax, inputs=(logits,))
    cause = find_cause(softmax([logits])[0], logits.softmax(-2), FLOAT32, context=context)
    assert cause.endswith("(the op ran along another axis)")


def test_a_sum_along_another_axis_has_another_shape() -> None:
    x = tensor(4, 6)
    context = Context(
        op="aten.sum", exactly=lambda inputs: (inputs[0].double().sum(1),), inputs=(x,)
    )
    cause = find_cause(x.sum(1), x.sum(0), FLOAT32, context=context)
    assert cause == "has shape [6] where the reference has [4]: the op ran along another axis"


@pytest.mark.parametrize(
    "op", ["aten.native_group_norm", "aten.max_pool2d_with_indices_backward", "aten.minimum"]
)
def test_ops_that_believe_their_sizes_are_not_run_on_other_shapes(op: str) -> None:
    """group_norm of a tensor with two axes swapped writes beyond its result."""

    def never(inputs: Sequence[Tensor]) -> tuple[Tensor]:
        raise AssertionError(f"{op} of {[list(each.shape) for each in inputs]}")

    context = Context(op=op, exactly=never, inputs=(tensor(2, 6, 5),))
    reference = tensor(2, 6, 5)
    cause = find_cause(reference, reference + 0.3 * reference.roll(1, 0), FLOAT32, context=context)
    assert cause.startswith("differs from the reference: ")


def test_a_stale_operand_is_named() -> None:
    x, weight, earlier = tensor(5, 6), tensor(6, 3), tensor(6, 3, mean=0.1)
    context = Context(
        op="aten.mm",
        exactly=lambda inputs: (inputs[0].double() @ inputs[1].double(),),
        inputs=(x, weight),
        earlier={"conv.weight": (1, earlier)},
    )
    cause = find_cause(x @ weight, x @ earlier, FLOAT32, context=context)
    assert cause == "reads the value of conv.weight of the step before (stale weight)"
    other = find_cause(x @ weight, x @ weight * 2, FLOAT32, context=context)
    assert other == "is 2.000 times the reference"


def test_the_value_of_the_step_before_is_told() -> None:
    now, before = tensor(50), tensor(50, mean=0.1)
    context = Context(previous=before)
    cause = find_cause(now, before.clone(), FLOAT32, context=context)
    assert cause == "equals the value of the step before"
