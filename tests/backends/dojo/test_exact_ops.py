"""Matrix operators with exact accumulation: each output number from its definition, and gradients.

What an operator multiplies and in which order is listed here element by element; how a list is
accumulated is a plain loop in rational numbers.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from fsdtrain_dojo.arithmetic import exact_convolution
from fsdtrain_dojo.arithmetic.exact_matmul import matmul_exact
from fsdtrain_dojo.arithmetic.exact_ops import ExactOps
from fsdtrain_dojo.formats import ACCUMULATOR_21, FP32
from torch import Tensor

from fsdtrain.backend import BackendError

aten = torch.ops.aten
K_TILE = 8
OPS = ExactOps(FP32, K_TILE)
Index = tuple[int, ...]
Pairs = list[tuple[float, float]]


@dataclass(frozen=True)
class Case:
    """One convolution; channels are those of input and output."""

    size: Index
    kernel: Index
    stride: Index
    padding: Index
    dilation: Index
    groups: int = 1
    transposed: bool = False
    output_padding: Index = (0, 0, 0)
    num_images: int = 2
    channels: tuple[int, int] = (2, 3)
    channels_last: bool = False

    @property
    def num_axes(self) -> int:
        return len(self.size)

    def operands(self) -> tuple[Tensor, Tensor]:
        """Input and weight, in BF16's values."""
        generator = torch.Generator().manual_seed(8)
        inputs, outputs = (self.groups * n for n in self.channels)
        first, second = (inputs, outputs) if self.transposed else (outputs, inputs)
        shapes = [
            (self.num_images, inputs, *self.size), (first, second // self.groups, *self.kernel)
        ]  # fmt: skip
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        input, weight = (
            torch.randn(shape, generator=generator).bfloat16().float().to(memory_format=layout)
            for shape in shapes
        )
        return input, weight

    def arguments(self) -> tuple[Any, ...]:
        """What ATen wants after input, weight and bias."""
        extra = self.output_padding[: self.num_axes]
        return self.stride, self.padding, self.dilation, self.transposed, extra, self.groups


CASES = {
    "1d": Case((9,), (3,), (2,), (1,), (1,)),
    "1d dilated": Case((11,), (3,), (1,), (2,), (2,)),
    "2d": Case((5, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    "2d channels last": Case((5, 6), (3, 3), (1, 1), (1, 1), (1, 1), channels_last=True),
    "2d pointwise": Case((4, 5), (1, 1), (1, 1), (0, 0), (1, 1)),
    "2d stride": Case((6, 7), (3, 2), (2, 3), (1, 0), (1, 2)),
    "2d rest": Case((6, 8), (2, 2), (3, 3), (0, 0), (1, 1)),  # the last row and column meet nothing
    "2d wide padding": Case((2, 3), (2, 2), (2, 2), (3, 3), (1, 1)),
    "2d groups": Case((4, 4), (3, 3), (1, 1), (1, 1), (1, 1), groups=3),
    "2d depthwise": Case((5, 5), (3, 3), (2, 2), (1, 1), (1, 1), groups=4, channels=(1, 1)),
    "2d transposed": Case((3, 4), (3, 3), (2, 2), (1, 1), (1, 1), transposed=True,
                          output_padding=(1, 0, 0)),
    "2d transposed groups": Case((3, 3), (2, 3), (1, 2), (0, 1), (2, 1), groups=2, transposed=True),
    "2d transposed gaps": Case((3, 2), (1, 2), (3, 3), (0, 0), (1, 1), transposed=True),
    "2d transposed small": Case((1, 1), (2, 2), (4, 4), (0, 0), (1, 1), transposed=True),
    "3d": Case((3, 4, 3), (2, 3, 1), (1, 2, 1), (1, 1, 0), (1, 1, 1)),
    "3d transposed": Case((2, 3, 2), (2, 2, 2), (2, 1, 2), (0, 1, 0), (1, 1, 1), transposed=True),
}  # fmt: skip
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def round_to_fp32(x: Fraction) -> Fraction:
    """Nearest-even to 24 significant bits; nothing here is near the ends of FP32's range."""
    if x == 0:
        return x
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > abs(x)
    unit = Fraction(2) ** (exponent - 23)
    return round(x / unit) * unit  # Python's round() takes ties to the even integer


def accumulate(pairs: Pairs) -> float:
    """Four at a time, pairs first, a fresh start every K_TILE: one number at a time."""
    total = Fraction(0)
    for tile in range(0, len(pairs), K_TILE):
        partial = Fraction(0)
        for k in range(tile, min(tile + K_TILE, len(pairs)), 4):
            p = [Fraction(a) * Fraction(b) for a, b in pairs[k : k + 4]]
            p += [Fraction(0)] * (4 - len(p))
            step = round_to_fp32(round_to_fp32(p[0] + p[1]) + round_to_fp32(p[2] + p[3]))
            partial = round_to_fp32(partial + step)
        total = round_to_fp32(total + partial)
    return float(total)


def at(tensor: Tensor, index: Index) -> float:
    """An element, zero beyond the ends."""
    is_inside = all(0 <= i < n for i, n in zip(index, tensor.shape, strict=True))
    return tensor[index].item() if is_inside else 0.0


def every(*sizes: int) -> Iterator[Index]:
    return itertools.product(*(range(n) for n in sizes))


def move(case: Case, position: Index, tap: Index) -> Index:
    """The input element that a tap of the kernel meets at this position."""
    return tuple(
        o * stride + k * dilation - padding
        for o, k, stride, padding, dilation in zip(
            position, tap, case.stride, case.padding, case.dilation, strict=True
        )
    )


def move_back(case: Case, element: Index, tap: Index) -> Index | None:
    """The position at which this tap meets this element; None between two positions."""
    position = []
    for i, k, stride, padding, dilation in zip(
        element, tap, case.stride, case.padding, case.dilation, strict=True
    ):
        distance = i + padding - k * dilation
        if distance % stride:
            return None
        position.append(distance // stride)
    return tuple(position)


def gather(case: Case, input: Tensor, weight: Tensor, image: int, out: int, at_: Index) -> Pairs:
    """What one output of a convolution with weight [O, C / groups, *kernel] sums."""
    per_group = weight.shape[1]
    group = out // (weight.shape[0] // case.groups)
    pairs = []
    for c, *tap in every(*weight.shape[1:]):
        met = (image, group * per_group + c, *move(case, at_, tuple(tap)))
        pairs.append((at(input, met), at(weight, (out, c, *tap))))
    return pairs


def scatter(case: Case, input: Tensor, weight: Tensor, image: int, out: int, at_: Index) -> Pairs:
    """What one output of a transposed convolution with weight [C, O / groups, *kernel] sums."""
    inputs, outputs = weight.shape[0] // case.groups, weight.shape[1]
    group, out = divmod(out, outputs)
    return [
        (at(input, (image, c, *position)), at(weight, (c, out, *tap)))
        for c in range(group * inputs, (group + 1) * inputs)
        for tap in every(*weight.shape[2:])
        if (position := move_back(case, at_, tap)) is not None
    ]


def expect(shape: Sequence[int], pairs_of: Any) -> Tensor:
    """A tensor [N, C, *spatial] of sums."""
    values = [accumulate(pairs_of(n, c, tuple(at_))) for n, c, *at_ in every(*shape)]
    return torch.tensor(values).view(*shape)


@EVERY_CASE
def test_convolution_is_its_definition_in_the_documented_order(case: Case) -> None:
    input, weight = case.operands()
    given = OPS.convolution(input, weight, None, *case.arguments())
    pairs = scatter if case.transposed else gather
    expected = expect(
        aten.convolution(input, weight, None, *case.arguments()).shape,
        lambda n, c, at_: pairs(case, input, weight, n, c, at_),
    )
    assert torch.equal(given, expected)


@EVERY_CASE
def test_gradient_of_the_input_is_its_definition_in_the_documented_order(case: Case) -> None:
    input, weight = case.operands()
    grad_output = draw_gradient(case)
    given, _, _ = backward(OPS, case, grad_output, (True, False, False))
    pairs = gather if case.transposed else scatter
    expected = expect(input.shape, lambda n, c, at_: pairs(case, grad_output, weight, n, c, at_))
    assert torch.equal(given, expected)


@EVERY_CASE
def test_gradient_of_the_weight_is_its_definition_in_the_documented_order(case: Case) -> None:
    input, weight = case.operands()
    grad_output = draw_gradient(case)
    _, given, _ = backward(OPS, case, grad_output, (False, True, False))
    placed, read = (input, grad_output) if case.transposed else (grad_output, input)
    num_placed, num_read = weight.shape[0] // case.groups, weight.shape[1]

    def pairs(first: int, second: int, tap: Index) -> Pairs:
        channel = first // num_placed * num_read + second
        return [
            (at(placed, (n, first, *o)), at(read, (n, channel, *move(case, tuple(o), tap))))
            for n, *o in every(placed.shape[0], *placed.shape[2:])
        ]

    assert torch.equal(given, expect(weight.shape, pairs))


@EVERY_CASE
def test_bias_joins_at_the_end_and_its_gradient_is_summed_in_fp32(case: Case) -> None:
    input, weight = case.operands()
    num_outputs = case.groups * case.channels[1]
    bias = torch.randn(num_outputs, generator=torch.Generator().manual_seed(9))
    without = OPS.convolution(input, weight, None, *case.arguments())
    given = OPS.convolution(input, weight, bias, *case.arguments())
    assert torch.equal(given, without + bias.view(-1, *[1] * case.num_axes))

    grad_output = draw_gradient(case)
    of_input, of_weight, of_bias = backward(
        ExactOps(ACCUMULATOR_21, K_TILE), case, grad_output, (False, False, True)
    )
    assert of_input is None
    assert of_weight is None
    columns = grad_output.transpose(0, 1).flatten(1).tolist()
    expected = [accumulate([(value, 1.0) for value in column]) for column in columns]
    assert torch.equal(of_bias, torch.tensor(expected))


@EVERY_CASE
def test_gradients_are_close_to_float64_autograd(case: Case) -> None:
    operands = [tensor.double().requires_grad_() for tensor in case.operands()]
    bias = torch.zeros(case.groups * case.channels[1], dtype=torch.float64, requires_grad=True)
    grad_output = draw_gradient(case)
    out = aten.convolution(*operands, bias, *case.arguments())
    expected = torch.autograd.grad(out, [*operands, bias], grad_output.double())
    for given, reference in zip(backward(OPS, case, grad_output), expected, strict=True):
        torch.testing.assert_close(given.double(), reference, rtol=1e-5, atol=1e-5)


@EVERY_CASE
@pytest.mark.parametrize("extra_bytes", [1, 1500])
def test_blocks_of_work_change_no_bit(
    case: Case, extra_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    input, weight = case.operands()
    grad_output = draw_gradient(case)
    whole = OPS.convolution(input, weight, None, *case.arguments())
    gradients = backward(OPS, case, grad_output)
    monkeypatch.setattr(exact_convolution, "EXTRA_BYTES", extra_bytes)
    in_parts = OPS.convolution(input, weight, None, *case.arguments())
    assert torch.equal(in_parts, whole)
    for one, other in zip(backward(OPS, case, grad_output), gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "case", [CASES[name] for name in ("2d", "2d channels last", "2d groups", "2d transposed")]
)
def test_results_have_the_layout_of_aten(case: Case) -> None:
    input, weight = case.operands()
    out = aten.convolution(input, weight, None, *case.arguments())
    assert OPS.convolution(input, weight, None, *case.arguments()).stride() == out.stride()
    mask = [True, True, False]
    gradients = aten.convolution_backward(
        torch.ones_like(out), input, weight, None, *case.arguments(), mask
    )
    given = OPS.convolution_backward(
        torch.ones_like(out), input, weight, None, *case.arguments(), mask
    )
    assert [g.stride() for g in given[:2]] == [g.stride() for g in gradients[:2]]


def draw_gradient(case: Case) -> Tensor:
    input, weight = case.operands()
    shape = aten.convolution(input, weight, None, *case.arguments()).shape
    generator = torch.Generator().manual_seed(10)
    return torch.randn(shape, generator=generator).bfloat16().float()


def backward(
    ops: ExactOps, case: Case, grad_output: Tensor, mask: Sequence[bool] = (True, True, True)
) -> tuple[Any, Any, Any]:
    input, weight = case.operands()
    num_outputs = case.groups * case.channels[1]
    return ops.convolution_backward(
        grad_output, input, weight, [num_outputs], *case.arguments(), mask
    )


def test_matrix_operators_are_products_batch_by_batch() -> None:
    generator = torch.Generator().manual_seed(11)
    a = torch.randn(3, 6, 10, generator=generator).bfloat16().float()
    b = torch.randn(3, 7, 10, generator=generator).bfloat16().float().mT
    addend = torch.randn(7, generator=generator)
    products = [matmul_exact(x, y, FP32, K_TILE) for x, y in zip(a, b, strict=True)]
    assert torch.equal(OPS.mm(a[0], b[0]), products[0])
    assert torch.equal(OPS.bmm(a, b), torch.stack(products))
    assert torch.equal(OPS.addmm(addend, a[0], b[0]), products[0] + addend)
    assert torch.equal(OPS.baddbmm(addend, a, b), torch.stack(products) + addend)
    scaled = products[0] * 0.7
    scaled = scaled + addend * -1.3  # two roundings: a fused multiply-add would give other bits
    assert torch.equal(OPS.addmm(addend, a[0], b[0], beta=-1.3, alpha=0.7), scaled)


def test_beta_of_zero_leaves_nan_out() -> None:
    nan = torch.full((4, 4), math.nan)
    ones = torch.ones(4, 4)
    assert torch.equal(OPS.addmm(nan, ones, ones, beta=0), 4 * ones)
    assert torch.equal(OPS.baddbmm(nan[None], ones[None], ones[None], beta=0), 4 * ones[None])


def test_operators_are_called_as_aten_calls_them() -> None:
    a, b = torch.eye(4), torch.arange(16.0).view(4, 4)
    input, weight = CASES["2d"].operands()
    grad_output = draw_gradient(CASES["2d"])
    arguments = CASES["2d"].arguments()
    calls: dict[Any, tuple[tuple[Any, ...], dict[str, float]]] = {
        aten.mm.default: ((a, b), {}),
        aten.addmm.default: ((a, a, b), {"beta": 2, "alpha": 3}),
        aten.bmm.default: ((a[None], b[None]), {}),
        aten.baddbmm.default: ((a[None], a[None], b[None]), {"beta": 2, "alpha": 3}),
        aten.convolution.default: ((input, weight, None, *arguments), {}),
        aten.convolution_backward.default: (
            (grad_output, input, weight, [3], *arguments, [True, True, True]),
            {},
        ),
    }
    table = OPS.by_overload()
    assert table.keys() == calls.keys()
    for overload, (positional, keywords) in calls.items():
        given, expected = (f(*positional, **keywords) for f in (table[overload], overload))
        torch.testing.assert_close(given, expected)


def test_operands_that_need_gradients_are_taken_as_they_are() -> None:
    weight = torch.eye(4, requires_grad=True)
    out = OPS.addmm(weight[0], torch.ones(2, 4), weight, beta=2)
    assert not out.requires_grad


@pytest.mark.parametrize(
    ("input_shape", "weight_shape", "groups", "message"),
    [
        ((1, 4, 5, 5), (2, 3, 3, 3), 1, r"input \[1, 4, 5, 5\] with weight \[2, 3, 3, 3\] in 1 gr"),
        ((1, 4, 5, 5), (3, 2, 3, 3), 2, "these shapes do not fit"),
        ((1, 4, 5, 5), (2, 4, 3), 1, "these shapes do not fit"),
        ((1, 4, 2, 2, 2, 2), (2, 4, 1, 1, 1, 1), 1, "batches with 1 to 3 spatial axes"),
        ((1, 4, 2, 5), (2, 4, 3, 3), 1, r"the output would have spatial size \[0, 3\]"),
    ],
)
def test_convolutions_that_do_not_fit(
    input_shape: Index, weight_shape: Index, groups: int, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        OPS.convolution(
            torch.ones(input_shape),
            torch.ones(weight_shape),
            *(None, [1], [0], [1], False, [0], groups),
        )


def test_refusals_name_operator_and_dtype() -> None:
    with pytest.raises(BackendError, match=r"bmm with accumulate=exact: .* is torch.bfloat16"):
        OPS.bmm(torch.ones(1, 2, 2).bfloat16(), torch.ones(1, 2, 2).bfloat16())
    with pytest.raises(BackendError, match=r"baddbmm of \[2, 2, 2\] and \[3, 2, 2\]"):
        OPS.baddbmm(torch.ones(2), torch.ones(2, 2, 2), torch.ones(3, 2, 2))
    half = torch.ones(1, 1, 3).half()
    with pytest.raises(BackendError, match=r"convolution with accumulate=exact: .* torch.float16"):
        OPS.convolution(half, half, None, [1], [0], [1], False, [0], 1)
