"""Convolutions and their gradients: pieces against ATen, and work against FlopCounterMode."""

from dataclasses import dataclass

import pytest
import torch
from fsdtrain_dojo.arithmetic.exact_ops import ExactOps
from fsdtrain_dojo.formats import FP32
from fsdtrain_dojo.lowering.describe.convolution import RULES
from fsdtrain_dojo.lowering.kernel import Unit, along
from fsdtrain_dojo.lowering.op_call import OpCall
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Case:
    """One convolution; channels are those of a group."""

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    channels: tuple[int, int] = (3, 4)
    groups: int = 1
    transposed: bool = False
    extra: tuple[int, ...] = (0,)
    num_images: int = 2

    @property
    def settings(self) -> list[object]:
        lists = [self.stride, self.padding, self.dilation]
        return [*map(list, lists), self.transposed, list(self.extra), self.groups]

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and min(self.channels) == 1

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        inputs, outputs = self.channels
        first, second = (inputs, outputs) if self.transposed else (outputs, inputs)
        return (
            torch.randn(self.num_images, inputs * self.groups, *self.size),
            torch.randn(first * self.groups, second, *self.window),
            torch.randn(outputs * self.groups),
        )


def plane(size, window, stride=1, padding=0, dilation=1, **others) -> Case:
    return Case(
        size=size, window=window, stride=(stride,) * 2, padding=(padding,) * 2,
        dilation=(dilation,) * 2, **{"extra": (0, 0)} | others,
    )  # fmt: skip


CASES = {
    "3x3": plane((9, 8), (3, 3), 1, 1),
    "strided": plane((11, 14), (3, 3), 2, 1),
    "1x1": plane((5, 6), (1, 1)),
    "a stem": plane((15, 13), (7, 7), 2, 3, channels=(3, 5)),
    "stride over the window": plane((11, 13), (2, 2), 3),
    "patches": plane((8, 12), (4, 4), 4),
    "dilated": plane((13, 11), (3, 2), 2, 3, 2),
    "two sides": Case(
        size=(9, 10), window=(3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 1), extra=(0, 0)
    ),
    "groups": plane((7, 8), (3, 3), 1, 1, channels=(2, 3), groups=3),
    "depthwise": plane((7, 8), (3, 3), 2, 1, channels=(1, 1), groups=5),
    "channel multiplier": plane((7, 8), (3, 3), 1, 1, channels=(1, 2), groups=3),
    "transposed": plane((5, 6), (4, 4), 2, 1, transposed=True),
    "transposed with gaps": plane((4, 3), (2, 2), 3, 0, transposed=True, extra=(2, 1)),
    "transposed groups": plane(
        (4, 5), (3, 3), 2, 1, transposed=True, channels=(2, 3), groups=2, extra=(1, 1)
    ),
    "transposed dilated": plane((4, 5), (3, 2), 2, 2, 2, transposed=True, extra=(1, 0)),
    "a line": Case(size=(17,), window=(5,), stride=(3,), padding=(2,), dilation=(1,)),
    "a space": Case(
        size=(5, 6, 4), window=(3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 1),
        extra=(0, 0, 0),
    ),
    "a transposed space": Case(
        size=(3, 2, 4), window=(3, 2, 3), stride=(2, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 1),
        transposed=True, extra=(0, 0, 0),
    ),
}  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def forward(case: Case, *, has_bias: bool) -> tuple[OpCall, dict[str, Tensor]]:
    data, weight, bias = case.operands()
    bias = bias if has_bias else None
    return make_call(aten.convolution.default, data, weight, bias, *case.settings)


def backward(case: Case, mask: list[bool]) -> tuple[OpCall, dict[str, Tensor]]:
    data, weight, bias = case.operands()
    out = aten.convolution.default(data, weight, None, *case.settings)
    return make_call(
        aten.convolution_backward.default,
        torch.randn_like(out), data, weight, list(bias.shape), *case.settings, mask,
        used=tuple(number for number in range(3) if mask[number]),
    )  # fmt: skip


@each_case
def test_pieces_of_the_product(case: Case):
    call, tensors = forward(case, has_bias=False)
    (kernel,) = check_kernels(RULES[call.op], call, tensors, is_exact=True)
    assert kernel.unit is (Unit.VECTOR if case.is_depthwise else Unit.MATRIX)


def test_a_bias_is_added_afterwards():
    call, tensors = forward(CASES["strided"], has_bias=True)
    product, bias = check_kernels(RULES[call.op], call, tensors)
    assert len(product.reads) == 2
    assert bias.flops == call.outputs[0].num_elements


@each_case
def test_pieces_of_the_gradients(case: Case):
    call, tensors = backward(case, [True, True, True])
    kernels = check_kernels(RULES[call.op], call, tensors, is_exact=True)
    assert [kernel.name for kernel in kernels] == ["op.dx", "op.dw", "op.db"]


@pytest.mark.parametrize("case", [CASES["strided"], CASES["transposed groups"]])
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_a_gradient_by_itself(case: Case, wanted: int):
    call, tensors = backward(case, [wanted == number for number in range(3)])
    (kernel,) = check_kernels(RULES[call.op], call, tensors, is_exact=True)
    assert kernel.name == ["op.dx", "op.dw", "op.db"][wanted]


@pytest.mark.parametrize("case", [CASES["dilated"], CASES["transposed"], CASES["depthwise"]])
def test_with_an_exact_accumulator_only_the_final_rounding_differs(case: Case):
    ops = ExactOps(FP32, 10**6).by_overload()
    for call, tensors in (forward(case, has_bias=False), backward(case, [True, True, True])):
        exact = OpCall(**{**vars(call), "function": ops[call.function]})
        check_kernels(RULES[call.op], exact, tensors, is_exact=True, tolerance=1e-6)


@each_case
def test_flops_are_those_that_torch_counts(case: Case):
    for call, tensors in (forward(case, has_bias=True), backward(case, [True, True, True])):
        with FlopCounterMode(display=False) as counter:
            call.function(*[
                tensors[each.name] if hasattr(each, "kind") else each for each in call.args
            ])  # fmt: skip
        kernels = RULES[call.op](call).kernels
        assert sum(kernel.counted_flops for kernel in kernels) == counter.get_total_flops()
        done = sum(2 * kernel.macs for kernel in kernels)
        if case.groups == 1:
            assert done == counter.get_total_flops()
        elif case.is_depthwise:
            assert done == 0


def test_the_loops_of_a_convolution_by_what_they_are():
    kernels = [
        kernel
        for call, _ in (
            forward(CASES["groups"], has_bias=False), backward(CASES["groups"], [True, True, False])
        )
        for kernel in RULES[call.op](call).kernels
    ]  # fmt: skip
    found = [
        [{kernel.loops[loop].name for loop in loops} for loops in kernel.matrix_loops()]
        for kernel in kernels
    ]
    assert found == [
        [{"g"}, {"n", "p0", "p1"}, {"k"}, {"c", "r0", "r1"}],
        [{"g"}, {"n", "q0", "q1"}, {"c"}, {"k", "r0", "r1"}],
        [{"g"}, {"k"}, {"c", "r0", "r1"}, {"n", "p0", "p1"}],
    ]


def test_a_depthwise_convolution_has_one_loop_for_its_channels():
    call, _ = forward(CASES["depthwise"], has_bias=False)
    (kernel,) = RULES[call.op](call).kernels
    assert [loop.name for loop in kernel.loops] == ["n", "g", "p0", "p1", "r0", "r1"]
    assert kernel.writes[0].spans[1] == along(1)
    assert kernel.flops == kernel.counted_flops
