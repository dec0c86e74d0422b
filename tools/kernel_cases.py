"""The kernels that tools/bench_kernels.py measures, at the sizes of real models.

A case makes its inputs on a device and says how many bytes must be moved; it does not run anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import pi
from typing import Any

import torch
from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, Rounding, make_rounder
from fsdtrain_dojo.formats import find_format
from torch import Tensor

from fsdtrain.ops.bev_pool import bev_pool, find_cells
from fsdtrain.ops.ms_deform_attn import ms_deform_attn
from fsdtrain.ops.occupancy_loss import occupancy_loss
from fsdtrain.ops.project_sample import project, project_sample
from fsdtrain.ops.yuv_to_input import rgb_from_yuv, yuv_to_input

BF16 = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is run, on inputs that are there.

    Args:
        kernel: one run of it.
        plain: the same in eager PyTorch.
        plain_before: what `plain` does besides, to be subtracted: forward of forward and backward.
        min_bytes: that must cross the device's memory.
        gather_bytes: that must cross its cache in small pieces; 0: none.
    """

    kernel: Callable[[], object]
    plain: Callable[[], object]
    plain_before: Callable[[], object] | None = None
    min_bytes: int
    gather_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row.

    Args:
        name: of the op and the direction.
        sizes: in words.
        goal: time over its limit that is wanted.
        plain_goal: how much faster than eager PyTorch it should be, if so much is wanted.
        make: on a device.
    """

    name: str
    sizes: str
    goal: float
    plain_goal: float | None = None
    make: Callable[[str], Bench]


def ring_of_cameras(
    num_clips: int, num_cameras: int, image_size: tuple[int, int], device: str
) -> tuple[Tensor, Tensor]:
    """Intrinsics [B, N, 3, 3] and poses [B, N, 4, 4]: all round, 1.5 m up, 70 degrees wide."""
    height, width = image_size
    intrinsics = torch.zeros(num_clips, num_cameras, 3, 3, device=device)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = 0.714 * width
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = width / 2, height / 2
    intrinsics[..., 2, 2] = 1.0
    yaw = torch.arange(num_cameras, device=device) * (2 * pi / num_cameras)
    turn = torch.zeros(num_cameras, 3, 3, device=device)
    turn[:, 0, 0] = turn[:, 1, 1] = yaw.cos()
    turn[:, 1, 0], turn[:, 0, 1], turn[:, 2, 2] = yaw.sin(), -yaw.sin(), 1.0
    forward = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], device=device)
    poses = torch.eye(4, device=device).repeat(num_clips, num_cameras, 1, 1)
    poses[..., :3, :3] = turn @ forward
    poses[..., 2, 3] = 1.5
    return intrinsics, poses


def bev_pool_case(
    *, batch: int, cameras: int, depths: int, channels: int, cells: int, is_backward: bool
) -> Case:
    """Features of 16 x 44 for a picture of 256 x 704, a grid of 102.4 m."""

    def make(device: str) -> Bench:
        from fsdtrain_cuda.kernels import bev_pool as kernels

        feats = torch.randn(batch, 1, cameras, 16, 44, channels, device=device, dtype=BF16)
        depth = torch.randn(batch, 1, cameras, 16, 44, depths, device=device).softmax(-1).to(BF16)
        # Channels, and depths, side by side: as convolutions in channels_last leave them.
        feats, depth = feats.movedim(-1, 3), depth.movedim(-1, 3)
        depths_m = torch.linspace(1.0, 60.0, depths, device=device)
        intrinsics, poses = ring_of_cameras(batch, cameras, (256, 704), device)
        grid: tuple[Any, ...] = (
            (256, 704), (-51.2, -51.2), 102.4 / cells, (cells, cells), (-10.0, 10.0),
        )  # fmt: skip
        inputs = (feats, depth, depths_m, intrinsics, poses, *grid)
        found = find_cells(depths_m, intrinsics, poses, (16, 44), *grid)
        share_inside = (found >= 0).double().mean().item()
        gathered = kernels.gather_bytes(feats, depth, share_inside)
        if not is_backward:
            return Bench(
                kernel=lambda: kernels.bev_pool(*inputs),
                plain=lambda: bev_pool(*inputs),
                min_bytes=kernels.min_bytes(feats, depth, grid[3]),
                gather_bytes=gathered,
            )
        grad = torch.randn(batch, 1, cells, cells, channels, device=device, dtype=BF16)
        grad = grad.permute(0, 1, 4, 2, 3)
        flat = (*grid[0], *grid[1], grid[2], *grid[3], *grid[4])
        # The forward pass leaves its index behind.
        keys = cache(lambda: torch.ops.fsdtrain.bev_pool(*inputs[:5], *flat)[1])
        learnt = [each.detach().requires_grad_() for each in (feats, depth)]
        return Bench(
            kernel=lambda: torch.ops.fsdtrain.bev_pool_backward(grad, feats, depth, keys()),
            plain=lambda: torch.autograd.grad(bev_pool(*learnt, *inputs[2:]), learnt, grad),
            plain_before=lambda: bev_pool(*learnt, *inputs[2:]),
            min_bytes=kernels.min_bytes_backward(feats, depth, grid[3]),
            gather_bytes=gathered,
        )

    direction = "backward" if is_backward else "forward"
    return Case(
        name=f"bev_pool {direction}",
        sizes=f"batch {batch}, {cameras} cameras, D {depths}, C {channels}, {cells}^2, bf16",
        goal=1.5 if is_backward else 1.25,
        make=make,
    )


def ms_deform_attn_case(
    *,
    is_backward: bool,
    cameras: int = 6,
    queries: int = 9664,
    levels: tuple[tuple[int, int], ...] = ((116, 200), (58, 100), (29, 50), (15, 25)),
) -> Case:
    """The spatial attention of BEVFormer-base (arXiv 2203.17270): 6 cameras of 900 x 1600."""
    num_levels = len(levels)

    def make(device: str) -> Bench:
        from fsdtrain_cuda.kernels import ms_deform_attn as kernels

        num_pixels = sum(height * width for height, width in levels)
        value = torch.randn(cameras, num_pixels, 8, 32, device=device, dtype=BF16)
        # Eight points around each query's own place, as far as offsets reach in training.
        around = 0.05 * torch.randn(cameras, queries, 8, num_levels, 8, 2, device=device)
        locations = torch.rand(cameras, queries, 1, 1, 1, 2, device=device) + around
        weights = torch.randn(cameras, queries, 8, num_levels * 8, device=device).softmax(-1)
        weights = weights.unflatten(-1, (num_levels, 8)).to(BF16)
        inputs = (value, locations, weights)
        gathered = kernels.gather_bytes(value, weights)
        if not is_backward:
            return Bench(
                kernel=lambda: kernels.ms_deform_attn(*inputs, levels),
                plain=lambda: ms_deform_attn(*inputs, levels),
                min_bytes=kernels.min_bytes(*inputs),
                gather_bytes=gathered,
            )
        grad = torch.randn(cameras, queries, 256, device=device, dtype=BF16)
        flat = [size for level in levels for size in level]
        learnt = [each.detach().requires_grad_() for each in inputs]
        return Bench(
            kernel=lambda: torch.ops.fsdtrain.ms_deform_attn_backward(grad, *inputs, flat),
            plain=lambda: torch.autograd.grad(ms_deform_attn(*learnt, levels), learnt, grad),
            plain_before=lambda: ms_deform_attn(*learnt, levels),
            min_bytes=kernels.min_bytes_backward(*inputs),
            gather_bytes=gathered,
        )

    direction = "backward" if is_backward else "forward"
    return Case(
        name=f"ms_deform_attn {direction}",
        sizes=f"{cameras} cameras, {queries} queries, 8 heads x 32, {num_levels} levels of "
        "900x1600, 8 points, bf16",
        goal=1.5,
        make=make,
    )


def yuv_to_input_case(
    *,
    num_pictures: int = 8,
    stored: tuple[int, int] = (1080, 1920),
    size: tuple[int, int] = (256, 704),
) -> Case:
    """Eight pictures of 1920 x 1080, whole, to 256 rows and 704 columns."""

    def make(device: str) -> Bench:
        from fsdtrain_cuda.kernels import yuv_to_input as kernels

        rows, columns = stored
        window = torch.tensor([[0.0, 0.0, rows, columns]]).repeat(num_pictures, 1)
        site = torch.tensor([[1.0, 0.5]]).repeat(num_pictures, 1)
        to_rgb = torch.tensor(rgb_from_yuv("bt709", is_full_range=False)).repeat(num_pictures, 1, 1)
        colour = torch.eye(3, 4).repeat(num_pictures, 1, 1)
        mirrored = torch.arange(num_pictures) % 2 == 0
        numbers = [each.to(device) for each in (window, site, to_rgb, colour, mirrored)]
        shape = (num_pictures, rows * 3 // 2, columns)
        pictures = torch.randint(256, shape, device=device, dtype=torch.uint8)
        how: tuple[Any, ...] = ("i420", size, (123.7, 116.3, 103.5), (58.4, 57.1, 57.4), BF16)
        return Bench(
            kernel=lambda: kernels.yuv_to_input(pictures, *numbers, *how),
            plain=lambda: yuv_to_input(pictures, *numbers, *how),
            min_bytes=kernels.min_bytes(window, size, BF16),
        )

    return Case(
        name="yuv_to_input",
        sizes="8 cameras 1080p to 704x256, bf16",
        goal=1.25,
        plain_goal=10.0,
        make=make,
    )


def project_sample_case(
    *, is_backward: bool, batch: int = 4, channels: int = 64, cells: int = 128, num_z: int = 8
) -> Case:
    """Six cameras, features of 16 x 44 for a picture of 256 x 704, a grid of 102.4 m."""
    max_views = 3

    def make(device: str) -> Bench:
        from fsdtrain_cuda.kernels import project_sample as kernels

        feats = torch.randn(batch, 1, 6, 16, 44, channels, device=device, dtype=BF16)
        feats = feats.movedim(-1, 3).requires_grad_(is_backward)
        place = (torch.arange(cells, device=device) + 0.5) * (102.4 / cells) - 51.2
        height = torch.linspace(-1.0, 2.5, num_z, device=device)
        z, x, y = torch.meshgrid(height, place, place, indexing="ij")
        points = torch.stack([x, y, z], -1)
        intrinsics, poses = ring_of_cameras(batch, 6, (256, 704), device)
        rest = (points, intrinsics, poses, (256, 704), max_views)
        is_seen = project(points, intrinsics, poses, (256, 704))[2]
        num_views = int(is_seen.sum(1).clamp(max=max_views).sum())
        grad = torch.randn(batch, 1, channels, num_z, cells, cells, device=device, dtype=BF16)
        sampled = cache(lambda: kernels.project_sample(feats, *rest))

        def differentiate() -> object:
            return torch.autograd.grad(sampled(), feats, grad, retain_graph=True)

        return Bench(
            kernel=differentiate if is_backward else lambda: kernels.project_sample(feats, *rest),
            plain=(lambda: torch.autograd.grad(project_sample(feats, *rest), feats, grad))
            if is_backward
            else lambda: project_sample(feats, *rest),
            plain_before=(lambda: project_sample(feats, *rest)) if is_backward else None,
            min_bytes=kernels.min_bytes(feats, points.numel() // 3),
            # Four corners for each view of a point.
            gather_bytes=num_views * 4 * channels * feats.element_size(),
        )

    return Case(
        name=f"project_sample {'backward' if is_backward else 'forward'}",
        sizes=f"batch {batch}, 6 cameras, C {channels}, {num_z} x {cells}^2 points, bf16",
        goal=1.5 if is_backward else 1.25,
        make=make,
    )


def occupancy_loss_case(
    *, shape: tuple[int, int, int, int] = (1, 200, 200, 16), num_classes: int = 18
) -> Case:
    """One clip's voxels of Occ3D-nuScenes (arXiv 2304.14365), 18 classes."""

    def make(device: str) -> Bench:
        from fsdtrain_cuda.kernels import occupancy_loss as kernels

        logits = torch.randn(*shape, num_classes, device=device, dtype=BF16).requires_grad_()
        target = torch.randint(num_classes, shape, device=device)
        valid = torch.rand(shape, device=device) < 0.9
        weights = torch.rand(num_classes, device=device) + 0.5

        def both(loss: Callable[..., Tensor]) -> object:
            return torch.autograd.grad(loss(logits, target, valid, weights), logits)

        return Bench(
            kernel=lambda: both(kernels.occupancy_loss),
            plain=lambda: both(occupancy_loss),
            # Logits in, their gradient out, targets and what is valid in: each once.
            min_bytes=2 * logits.nbytes + target.nbytes + valid.nbytes,
        )

    return Case(
        name="occupancy_loss forward + backward",
        sizes="200x200x16x18, bf16",
        goal=1.3,
        plain_goal=4.0,
        make=make,
    )


def round_to_case(rounding: Rounding, *, share_of_copy: float, num_elements: int = 1 << 26) -> Case:
    """In place, with the counts of what is lost."""

    def make(device: str) -> Bench:
        values = torch.empty(num_elements, device=device).normal_()
        counts = torch.zeros(NUM_COUNTS, dtype=torch.int64, device=device)
        format = find_format("cfloat8_1_4_3")
        rounder = make_rounder(format, rounding)
        is_stochastic = rounding is Rounding.STOCHASTIC
        return Bench(
            kernel=lambda: rounder(values, 7, counts, (1, 2)),
            plain=lambda: round_plainly(values, is_stochastic=is_stochastic),
            min_bytes=2 * values.nbytes,
        )

    return Case(
        name=f"round_to {rounding.value}",
        sizes="2^26 float32 in place to cfloat8_1_4_3",
        goal=1 / share_of_copy,
        make=make,
    )


def round_plainly(values: Tensor, *, is_stochastic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """To 3 bits of mantissa, exponent bias 7, in eager PyTorch; with the largest and the lost."""
    step = torch.exp2(torch.floor(torch.log2(values.abs())).clamp(min=-6) - 3)
    steps = values / step
    whole = torch.floor(steps + torch.rand_like(steps)) if is_stochastic else torch.round(steps)
    rounded = (whole * step).clamp(-480, 480)
    return rounded, values.abs().amax(), ((rounded == 0) & (values != 0)).sum()


CASES: tuple[Case, ...] = (
    *(
        bev_pool_case(
            batch=batch, cameras=cameras, depths=depths, channels=channels, cells=cells,
            is_backward=is_backward,
        )
        for batch, cameras, depths, channels, cells in ((8, 6, 59, 80, 128), (4, 8, 118, 64, 200))
        for is_backward in (False, True)
    ),
    project_sample_case(is_backward=False),
    project_sample_case(is_backward=True),
    yuv_to_input_case(),
    round_to_case(Rounding.NEAREST, share_of_copy=0.85),
    round_to_case(Rounding.STOCHASTIC, share_of_copy=0.7),
    occupancy_loss_case(),
    ms_deform_attn_case(is_backward=False),
    ms_deform_attn_case(is_backward=True),
)  # fmt: skip
