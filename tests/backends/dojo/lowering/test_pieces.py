"""The check of pieces finds what is wrong with a kernel."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from fsdtrain_dojo.lowering.describe.reductions import describe_mean
from fsdtrain_dojo.lowering.kernel import Access, Block, Combine, Kernel, along
from fsdtrain_dojo.lowering.op_call import Expansion, OpCall
from torch import Tensor

from tests.backends.dojo.lowering.pieces import check_kernels, make_call


def plain_mean(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
    return [tensors[0].mean(1)]


SPOIL: dict[str, Callable[[Kernel], Kernel]] = {
    "not the op": lambda kernel: replace(
        kernel, compute=lambda tensors, block: [tensors[0].sum(1)]
    ),
    "parts that do not add up": lambda kernel: replace(kernel, compute=plain_mean),
    "another combination": lambda kernel: replace(kernel, combine=Combine.MAX),
    "too small a box": lambda kernel: replace(
        kernel, reads=(Access("x0", (along(0), replace(along(1), high=-1))),)
    ),
    "written twice": lambda kernel: replace(
        kernel, writes=(Access("y0", (replace(along(0), low=-1),)),)
    ),
}


def test_a_right_kernel_passes() -> None:
    call, tensors = make_call(torch.ops.aten.mean.dim, torch.randn(7, 11), [1])
    check_kernels(describe_mean, call, tensors, is_exact=True)


@pytest.mark.parametrize("name", SPOIL)
def test_a_wrong_kernel_is_found(name: str) -> None:
    def describe(call: OpCall) -> Expansion:
        (kernel,) = describe_mean(call).kernels
        return Expansion(kernels=(SPOIL[name](kernel),))

    call, tensors = make_call(torch.ops.aten.mean.dim, torch.rand(7, 11), [1])
    with pytest.raises((AssertionError, RuntimeError)):
        check_kernels(describe, call, tensors)


def test_a_result_that_nobody_writes_is_found() -> None:
    call, tensors = make_call(torch.ops.aten.mean.dim, torch.rand(7, 11), [1])
    with pytest.raises(AssertionError):
        check_kernels(lambda call: Expansion(kernels=()), call, tensors)
