"""Sampling at coordinates, and its gradients: pieces against ATen."""

import pytest
import torch
from fsdtrain_dojo.lowering.describe.grid_sample import RULES

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
LINEAR, NEAREST, CUBIC = 0, 1, 2
PADS = {"zeros": 0, "border": 1, "reflection": 2}
SHAPES = {2: ((6, 7), (4, 5)), 3: ((3, 4, 5), (4, 2, 3))}


@pytest.mark.parametrize("is_aligned", [True, False])
@pytest.mark.parametrize("padding", PADS.values(), ids=PADS)
@pytest.mark.parametrize(
    ("num_axes", "interpolation"),
    [(2, LINEAR), (2, NEAREST), (2, CUBIC), (3, LINEAR), (3, NEAREST)],
)
def test_samples_and_their_gradients(
    num_axes: int, interpolation: int, padding: int, is_aligned: bool
):
    points, places = SHAPES[num_axes]
    data = torch.randn(2, 3, *points)
    grid = torch.rand(2, *places, num_axes) * 2.6 - 1.3
    settings = interpolation, padding, is_aligned
    forward = getattr(aten, f"grid_sampler_{num_axes}d").default
    call, tensors = make_call(forward, data, grid, *settings)
    check_kernels(RULES[call.op], call, tensors, is_exact=True)
    backward = getattr(aten, f"grid_sampler_{num_axes}d_backward").default
    gradient = torch.randn(2, 3, *places)
    call, tensors = make_call(backward, gradient, data, grid, *settings, [True, True])
    for_input, for_grid = check_kernels(RULES[call.op], call, tensors, is_exact=True)
    assert {for_input.loops[loop].name[0] for loop in for_input.reductions} == {"o"}
    assert {for_grid.loops[loop].name for loop in for_grid.reductions} == {"c"}


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_gradient_by_itself(wanted: int):
    data, grid = torch.randn(2, 3, 6, 7), torch.rand(2, 4, 5, 2) * 2 - 1
    mask = [wanted == number for number in range(2)]
    call, tensors = make_call(
        aten.grid_sampler_2d_backward.default,
        torch.randn(2, 3, 4, 5), data, grid, LINEAR, 0, False, mask, used=(wanted,),
    )  # fmt: skip
    (kernel,) = check_kernels(RULES[call.op], call, tensors, is_exact=True)
    assert kernel.name == ["op.dinput", "op.dgrid"][wanted]


def test_what_of_a_plane_is_read():
    data, grid = torch.randn(2, 3, 6, 8), torch.rand(2, 4, 5, 2)
    call, _ = make_call(aten.grid_sampler_2d.default, data, grid, LINEAR, 0, False)
    (kernel,) = RULES[call.op](call).kernels
    assert kernel.reads[0].is_gathered
    assert kernel.reads[0].gathered_share == 4 * (4 * 5) / (6 * 8)
    assert not kernel.reads[1].is_gathered
