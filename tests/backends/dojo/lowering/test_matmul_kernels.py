"""Matrix products: pieces against ATen, and work against FlopCounterMode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fsdtrain_dojo.lowering.describe.matmul import RULES
from fsdtrain_dojo.lowering.kernel import Unit
from torch.utils.flop_counter import FlopCounterMode

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
CASES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]], dict[str, float]]] = {
    "mm": (aten.mm.default, [(7, 11), (11, 5)], {}),
    "a column": (aten.mm.default, [(7, 1), (1, 1)], {}),
    "bmm": (aten.bmm.default, [(3, 4, 9), (3, 9, 5)], {}),
    "addmm with a row": (aten.addmm.default, [(5,), (7, 11), (11, 5)], {}),
    "addmm with a column": (aten.addmm.default, [(7, 1), (7, 11), (11, 5)], {"beta": 0.5}),
    "addmm with a scalar": (aten.addmm.default, [(), (7, 11), (11, 5)], {"alpha": -2.0}),
    "addmm without addend": (aten.addmm.default, [(7, 5), (7, 11), (11, 5)], {"beta": 0}),
    "only scaled": (aten.addmm.default, [(5,), (7, 3), (3, 5)], {"beta": 0, "alpha": 3.0}),
    "baddbmm": (
        aten.baddbmm.default, [(1, 4, 5), (3, 4, 9), (3, 9, 5)], {"beta": 2.0, "alpha": 0.5}
    ),
    "addbmm": (aten.addbmm.default, [(4, 5), (3, 4, 9), (3, 9, 5)], {}),
    "mv": (aten.mv.default, [(6, 13), (13,)], {}),
    "addmv": (aten.addmv.default, [(6,), (6, 13), (13,)], {"beta": 2.0}),
    "dot": (aten.dot.default, [(17,), (17,)], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_pieces_give_what_aten_gives(case: str):
    function, shapes, scalars = CASES[case]
    call, tensors = make_call(function, *map(torch.randn, shapes), **scalars)
    is_product = len(shapes) == 2 or scalars == {"beta": 0}
    check_kernels(RULES[call.op], call, tensors, is_exact=is_product)


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_that_torch_counts(case: str):
    function, shapes, scalars = CASES[case]
    operands = list(map(torch.randn, shapes))
    with FlopCounterMode(display=False) as counter:
        function(*operands, **scalars)
    call, _ = make_call(function, *operands, **scalars)
    kernels = RULES[call.op](call).kernels
    assert sum(kernel.counted_flops for kernel in kernels) == counter.get_total_flops()
    if counter.get_total_flops():
        assert 2 * sum(kernel.macs for kernel in kernels) == counter.get_total_flops()


def test_loops_of_a_product_by_what_they_are():
    call, _ = make_call(aten.bmm.default, torch.randn(3, 4, 9), torch.randn(3, 9, 5))
    (kernel,) = RULES[call.op](call).kernels
    names = [{kernel.loops[loop].name for loop in loops} for loops in kernel.matrix_loops()]
    assert names == [{"b"}, {"m"}, {"n"}, {"k"}]
    assert kernel.unit is Unit.MATRIX
    assert kernel.num_points == kernel.macs == 3 * 4 * 9 * 5


def test_of_addbmm_the_batch_is_summed_over():
    call, _ = make_call(
        aten.addbmm.default, torch.randn(4, 5), torch.randn(3, 4, 9), torch.randn(3, 9, 5)
    )
    kernel = RULES[call.op](call).kernels[0]
    assert {kernel.loops[loop].name for loop in kernel.matrix_loops()[3]} == {"b", "k"}


def test_an_addend_that_beta_drops_is_not_read():
    nothing = torch.full((7, 5), torch.nan)
    call, tensors = make_call(
        aten.addmm.default, nothing, torch.randn(7, 3), torch.randn(3, 5), beta=0
    )
    (kernel,) = check_kernels(RULES[call.op], call, tensors, is_exact=True)
    assert len(kernel.reads) == 2


def test_pieces_of_a_bilinear_layer():
    first, weight, second = torch.randn(5, 3), torch.randn(4, 3, 6), torch.randn(5, 6)
    call, tensors = make_call(
        aten._trilinear.default, first, weight, second, [1, 3], [0], [1, 2], [2, 3]
    )
    (kernel,) = check_kernels(RULES[call.op], call, tensors)
    assert kernel.num_points == 5 * 4 * 3 * 6
