"""The deterministic warp against grid_sample's, values and gradients."""

import pytest
import torch
from fsdtrain_cuda.deterministic import warp_bev
from torch import Tensor

from fsdtrain.ops.warp_bev import warp_bev as reference


def motions(num_clips: int, generator: torch.Generator, *, reach_m: float) -> Tensor:
    yaw = 3 * torch.randn(num_clips, generator=generator, dtype=torch.float64)
    motion = torch.eye(4, dtype=torch.float64).repeat(num_clips, 1, 1)
    motion[:, 0, 0] = motion[:, 1, 1] = yaw.cos()
    motion[:, 1, 0], motion[:, 0, 1] = yaw.sin(), -yaw.sin()
    motion[:, :2, 3] = reach_m * torch.randn(num_clips, 2, generator=generator, dtype=torch.float64)
    return motion


@pytest.mark.parametrize("size", [(2, 3, 8, 8), (3, 5, 13, 7), (1, 1, 1, 1), (2, 4, 1, 29)])
@pytest.mark.parametrize("reach_m", [0.0, 0.7, 100.0])
def test_it_is_grid_samples_warp(
    size: tuple[int, int, int, int], reach_m: float, device: str
) -> None:
    generator = torch.Generator().manual_seed(sum(size))
    bev = torch.randn(size, generator=generator, dtype=torch.float64).to(device)
    motion = motions(size[0], generator, reach_m=reach_m).to(device)
    cotangent = torch.randn(size, generator=generator, dtype=torch.float64).to(device)
    corner = (-0.25 * size[2], -0.2 * size[3])
    results = []
    for warp in (warp_bev, reference):
        given = bev.clone().requires_grad_()
        warped = warp(given, motion, corner, 0.5)
        warped.backward(cotangent)
        results.append((warped.detach(), given.grad))
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    if 0 < reach_m < 1 and min(size[2:]) > 1:
        assert results[1][0].abs().max() > 0.1, "something was there to be warped"


def test_a_motion_that_is_no_number_reads_nothing_foreign() -> None:
    motion = torch.full((1, 4, 4), torch.nan)
    warped = warp_bev(torch.ones(1, 2, 3, 4), motion, (0.0, 0.0), 1.0)
    assert torch.equal(warped, torch.zeros(1, 2, 3, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_ten_runs_give_the_same_bits() -> None:
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(0)
    bev = torch.randn(4, 64, 100, 100, generator=generator).cuda().requires_grad_()
    motion = motions(4, generator, reach_m=1.0).float().cuda()
    gradients = [
        torch.autograd.grad(warp_bev(bev, motion, (-25.0, -25.0), 0.5).square().sum(), bev)[0]
        for _ in range(10)
    ]
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
