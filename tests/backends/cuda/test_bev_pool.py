"""The kernels of bev_pool against the reference in float64, where autograd differentiates."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain.ops.bev_pool import bev_pool as reference
from fsdtrain.ops.bev_pool import find_cells

pytest.importorskip("triton")
import triton
from fsdtrain_cuda.kernels import bev_pool as launcher
from fsdtrain_cuda.kernels.bev_pool import bev_pool
from fsdtrain_cuda.kernels.bev_pool_backward import send_back
from fsdtrain_cuda.kernels.bev_pool_kernels import sum_cells
from fsdtrain_cuda.kernels.frustum_cells import find_keys

IMAGE_SIZE = (24, 40)
# min_corner_m, cell_m, num_cells, z_range_m
GRID: tuple[Any, ...] = ((-5.0, -6.0), 1.0, (11, 13), (-1.0, 4.0))
ONE_CELL: tuple[Any, ...] = ((-100.0, -100.0), 200.0, (1, 1), (-100.0, 100.0))
Shape = tuple[int, int, int, int, int, int]


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by programs, not by lanes; and few points make a long cell."""
    monkeypatch.setattr(sum_cells, "configs", [triton.Config({"CELLS": 64, "POINTS": 2})])
    monkeypatch.setattr(send_back, "configs", [triton.Config({"BLOCK_P": 16, "BLOCK_D": 4})])
    monkeypatch.setattr(launcher, "CHUNK", 8)


def make_inputs(feats: Shape, num_depths: int, *, seed: int = 0) -> tuple[Tensor, ...]:
    """Features, depth shares, depths, intrinsics and poses of level cameras that look anywhere."""
    generator = torch.Generator().manual_seed(seed)
    B, T, N, _, h, w = feats
    shares = torch.randn(B, T, N, h, w, num_depths, generator=generator).softmax(-1)
    depths_m = 0.5 + 6 * torch.rand(num_depths, generator=generator)
    intrinsics = torch.tensor([[22.0, 0.2, 19.0], [0.0, 25.0, 13.0], [0.0, 0.0, 1.0]])
    intrinsics = intrinsics + torch.rand(B, N, 3, 3, generator=generator)
    yaw = 2 * math.pi * torch.rand(B, N, generator=generator)
    poses = torch.zeros(B, N, 4, 4)
    poses[..., 0, 0], poses[..., 1, 0] = yaw.sin(), -yaw.cos()  # right
    poses[..., 2, 1] = -1.0  # down
    poses[..., 0, 2], poses[..., 1, 2] = yaw.cos(), yaw.sin()  # ahead
    poses[..., :3, 3] = torch.rand(B, N, 3, generator=generator)
    poses[..., 3, 3] = 1.0
    values = torch.randn(feats, generator=generator)
    return values, shares.movedim(-1, 3), depths_m, intrinsics, poses


def run(op: Any, inputs: tuple[Tensor, ...], grid: tuple[Any, ...], cotangent: Tensor) -> Any:
    feats, depth = (each.detach().requires_grad_() for each in inputs[:2])
    pooled = op(feats, depth, *inputs[2:], IMAGE_SIZE, *grid)
    pooled.backward(cotangent.to(pooled))
    return pooled.detach(), feats.grad, depth.grad


def assert_twice_as_good_as_torch(
    device: str, inputs: tuple[Tensor, ...], grid: tuple[Any, ...] = GRID
) -> None:
    """At most twice the error of the reference in the same dtype, and some units in the last."""
    B, T, _, C = inputs[0].shape[:4]
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(B, T, C, *grid[2], generator=generator).to(inputs[0].dtype)
    # A point may lie so near to a border that float64 puts it into the next cell.
    in_float64 = tuple(each.double() for each in inputs)
    cells = find_cells(*in_float64[2:], inputs[0].shape[-2:], IMAGE_SIZE, *grid)
    assert torch.equal(cells, find_cells(*inputs[2:], inputs[0].shape[-2:], IMAGE_SIZE, *grid))
    assert (cells >= 0).any()
    exact = run(reference, in_float64, grid, cotangent)
    plain = run(reference, inputs, grid, cotangent)
    ours = run(bev_pool, tuple(each.to(device) for each in inputs), grid, cotangent.to(device))
    for found, allowed, expected in zip(ours, plain, exact, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == allowed.dtype
        eps = torch.finfo(found.dtype).eps * expected.abs().max().item()
        # The interpreter cuts float32 down to bfloat16 instead of rounding: a whole unit.
        floor = (4 if found.dtype.itemsize > 2 else 1) * eps
        error = (found.cpu() - expected).abs().max().item()
        assert error <= 2 * (allowed - expected).abs().max().item() + floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("feats", "num_depths"),
    [
        ((2, 2, 2, 8, 4, 6), 3),
        ((1, 3, 5, 7, 3, 3), 3),  # nothing is a power of two
        ((3, 1, 1, 1, 1, 1), 9),
        ((1, 2, 2, 80, 2, 3), 3),  # two tensors of groups
        ((2, 1, 2, 19, 1, 9), 1),
    ],
)
def test_forward_and_gradients(
    device: str, feats: Shape, num_depths: int, dtype: torch.dtype
) -> None:
    values, *rest = make_inputs(feats, num_depths)
    assert_twice_as_good_as_torch(device, (values.to(dtype), *rest))


def test_all_points_in_one_cell(device: str) -> None:
    """In parts of eight points, of which one ends with the clip and its neighbour begins there."""
    inputs = make_inputs((2, 2, 2, 5, 3, 5), 3)
    assert_twice_as_good_as_torch(device, inputs, ONE_CELL)
    assert_twice_as_good_as_torch(device, (inputs[0].bfloat16(), *inputs[1:]), ONE_CELL)


@pytest.mark.parametrize("chunk", [2, 7, 1000])
def test_however_long_cells_are_cut(
    device: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "CHUNK", chunk)
    monkeypatch.setattr(sum_cells, "configs", [triton.Config({"CELLS": 16, "POINTS": 4})])
    inputs = make_inputs((2, 1, 2, 3, 4, 5), 4, seed=5)
    few_cells = ((-6.0, -6.0), 4.0, (3, 3), (-1.0, 4.0))
    assert_twice_as_good_as_torch(device, inputs, few_cells)


def test_more_channels_than_a_program_takes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "MAX_CHANNELS", 16)
    assert_twice_as_good_as_torch(device, make_inputs((1, 2, 2, 41, 2, 3), 3))


@settings(max_examples=10, deadline=None)
@given(
    feats=st.tuples(*(st.integers(1, most) for most in (2, 2, 3, 20, 3, 3))),
    num_depths=st.integers(1, 4),
    num_cells=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1000),
)
def test_any_shape(feats: Shape, num_depths: int, num_cells: tuple[int, int], seed: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    grid = ((-10.0, -10.0), 20.0 / min(num_cells), num_cells, (-50.0, 50.0))
    assert_twice_as_good_as_torch(device, make_inputs(feats, num_depths, seed=seed), grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_cells_as_the_reference_to_the_last_point(device: str, dtype: torch.dtype) -> None:
    feats, _, *geometry = make_inputs((3, 1, 4, 1, 11, 17), 23)
    geometry = [each.to(device, dtype) for each in geometry]
    fine = ((-5.0, -6.0), 1 / 37, (300, 411), (-1.0, 2.0))
    cells = find_cells(*geometry, feats.shape[-2:], IMAGE_SIZE, *fine)
    keys = find_keys(*geometry, feats.shape[-2:], IMAGE_SIZE, *fine)
    clip = torch.arange(3, device=device).view(3, 1, 1, 1, 1)
    expected = torch.where(cells >= 0, cells + clip * 300 * 411, 3 * 300 * 411)
    assert (cells >= 0).float().mean() > 0.2
    assert (cells < 0).any()
    assert torch.equal(keys.view(3, 4, 11, 17, 23).movedim(-1, 2).long(), expected)


def test_any_layout(device: str) -> None:
    values, depth, *rest = make_inputs((2, 1, 2, 6, 2, 3), 3)
    last = values.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)
    # A part of the channels of a wider convolution: no copy, but other strides.
    part = torch.cat([last.movedim(3, -1)] * 2, -1)[..., 3:9].movedim(-1, 3)
    assert part.stride(5) == 12
    part_depth = torch.cat([depth.movedim(3, -1)] * 2, -1)[..., 1:4].movedim(-1, 3)
    one = values[:, :, :1].expand(-1, -1, 2, -1, -1, -1)
    turned = values.transpose(0, 2).contiguous().transpose(0, 2)
    for layout in (values, last, part, one, turned):
        assert_twice_as_good_as_torch(device, (layout, depth, *rest))
    for layout in (depth.contiguous(), part_depth, depth[:1].expand(2, -1, -1, -1, -1, -1)):
        assert_twice_as_good_as_torch(device, (last, layout, *rest))


def test_results_and_gradients_have_channels_side_by_side(device: str) -> None:
    values, depth, *rest = (each.to(device) for each in make_inputs((1, 2, 2, 6, 3, 2), 5))
    last = values.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)
    ones = torch.ones(1, device=device).expand(1, 2, 6, *GRID[2])  # a cotangent of strides zero
    found = run(bev_pool, (last, depth, *rest), GRID, ones)
    expected = run(reference, (values, depth, *rest), GRID, ones)
    torch.testing.assert_close(found, expected)
    assert found[0].stride(2) == 1
    assert found[1].stride() == last.stride()
    assert found[2].stride() == depth.stride()


def test_gradcheck(device: str) -> None:
    feats, depth, *rest = (each.double().to(device) for each in make_inputs((1, 1, 2, 2, 1, 2), 2))
    few = ((-6.0, -6.0), 4.0, (3, 3), (-1.0, 4.0))
    assert (bev_pool(feats, depth, *rest, IMAGE_SIZE, *few) != 0).sum() > 4
    assert torch.autograd.gradcheck(
        lambda f, d: bev_pool(f, d, *rest, IMAGE_SIZE, *few),
        (feats.requires_grad_(), depth.detach().requires_grad_()),
    )


def test_ten_runs_alike(device: str) -> None:
    inputs = tuple(each.to(device) for each in make_inputs((1, 1, 2, 7, 2, 4), 4))
    cotangent = torch.randn(1, 1, 7, *GRID[2]).to(device)
    first = run(bev_pool, inputs, GRID, cotangent)
    for _ in range(9):
        for again, before in zip(run(bev_pool, inputs, GRID, cotangent), first, strict=True):
            assert torch.equal(again, before)


@pytest.mark.parametrize(("cells", "points"), [(1, 1), (8, 3), (32, 8)])
def test_bits_of_forward_do_not_depend_on_the_configuration(
    device: str, cells: int, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tuple(each.to(device) for each in make_inputs((1, 1, 3, 5, 3, 5), 4))
    grid = ((-6.0, -6.0), 2.0, (6, 6), (-1.0, 4.0))
    expected = bev_pool(*inputs, IMAGE_SIZE, *grid)
    config = triton.Config({"CELLS": cells, "POINTS": points})
    monkeypatch.setattr(sum_cells, "configs", [config])
    assert torch.equal(bev_pool(*inputs, IMAGE_SIZE, *grid), expected)


def test_offsets_beyond_32_bits(device: str) -> None:
    """What the second clip has lies 2^31 elements behind the first one's, in untouched memory."""
    values, depth, *rest = make_inputs((2, 1, 2, 3, 2, 5), 4)
    far = []
    for near in (values, depth):
        size = near[0].numel()
        storage = torch.empty(2**31 + size, dtype=torch.float16, device=device)
        strides = torch.empty_like(near.movedim(3, -1)).movedim(-1, 3).stride()
        far.append(storage.as_strided(near.shape, (2**31, *strides[1:])))
        far[-1].copy_(near)
    moved = [each.to(device) for each in rest]
    cotangent = torch.empty(2**31 + 3 * 11 * 13, dtype=torch.float16, device=device)
    cotangent = cotangent.as_strided((2, 1, 3, 11, 13), (2**31, 1, 1, 39, 3))
    cotangent.copy_(torch.randn(2, 1, 3, 11, 13))
    found = run(bev_pool, (*far, *moved), GRID, cotangent)
    near = (values.half().to(device), depth.half().to(device))
    expected = run(bev_pool, (*near, *moved), GRID, cotangent.contiguous())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one[1].any()


@pytest.mark.parametrize("feats", [(0, 1, 2, 3, 4, 5), (2, 0, 1, 3, 4, 5), (1, 2, 2, 0, 4, 5)])
def test_nothing_in_nothing_out(device: str, feats: Shape) -> None:
    inputs = tuple(each.to(device) for each in make_inputs(feats, 3))
    cotangent = torch.ones(*feats[:2], feats[3], *GRID[2], device=device)
    pooled, feats_grad, depth_grad = run(bev_pool, inputs, GRID, cotangent)
    assert pooled.shape == cotangent.shape
    assert feats_grad.shape == feats
    assert depth_grad.shape == inputs[1].shape
    assert not depth_grad.any()


def test_a_bad_feature_stays_in_its_cells(device: str) -> None:
    """NaN and infinity reach the cells of their own pixel, and no other."""
    values, depth, *rest = make_inputs((1, 1, 2, 3, 3, 4), 3)
    values[0, 0, 1, :, 1, 2] = torch.tensor([math.nan, math.inf, -math.inf])
    inputs = tuple(each.to(device) for each in (values, depth, *rest))
    found = bev_pool(*inputs, IMAGE_SIZE, *GRID).isfinite()
    expected = reference(*inputs, IMAGE_SIZE, *GRID).isfinite()
    assert not expected.all()
    assert torch.equal(found, expected)


def _spoilt(**changes: Any) -> dict[str, Any]:
    names = ("feats_BTNChw", "depth_BTNDhw", "depths_m_D", "intrinsics_BN33", "camera_to_ego_BN44")
    good: dict[str, Any] = dict(zip(names, make_inputs((1, 1, 2, 3, 4, 5), 3), strict=True))
    grid = zip(("min_corner_m", "cell_m", "num_cells", "z_range_m"), GRID, strict=True)
    return {**good, "image_size": IMAGE_SIZE, **dict(grid), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feats_BTNChw": torch.zeros(1, 2, 3, 4, 5)}, r"features must be \[B, T, N, C, h, w\]"),
        ({"feats_BTNChw": torch.zeros(1, 1, 2, 3, 4, 5, dtype=torch.int32)}, "is torch.int32"),
        ({"depth_BTNDhw": torch.zeros(1, 1, 2, 4, 4, 5)}, r"depth has shape \(1, 1, 2, 4, 4, 5\)"),
        ({"depth_BTNDhw": torch.zeros(1, 1, 2, 3, 4, 5, device="meta")}, "depth on meta"),
        ({"depths_m_D": torch.ones(3).double()}, "intrinsics of shape"),
        ({"depths_m_D": torch.ones(3).half()}, "depths_m of shape"),
        ({"depths_m_D": torch.ones(3).requires_grad_()}, "depths_m asks for one"),
        ({"depths_m_D": torch.full((3,), math.inf)}, r"depths_m of shape \(3,\) has NaN or inf"),
        ({"intrinsics_BN33": torch.full((1, 2, 3, 3), math.nan)}, "intrinsics .* has NaN"),
        ({"camera_to_ego_BN44": torch.zeros(1, 3, 4, 4)}, r"shape \(1, 3, 4, 4\)"),
        ({"min_corner_m": (1e4, 1e4)}, "no frustum point lies inside"),
        ({"num_cells": (0, 4)}, "there must be a camera, a pixel, a depth and a cell"),
        ({"num_cells": (2**16, 2**16)}, "4294967296 cells"),
        ({"cell_m": 0.0}, "cell_m=0.0 must be above 0"),
        ({"z_range_m": (2.0, 2.0)}, "the second above the first"),
        (
            {
                "feats_BTNChw": torch.zeros(1, 1, 0, 3, 4, 5),
                "depth_BTNDhw": torch.zeros(1, 1, 0, 3, 4, 5),
                "intrinsics_BN33": torch.zeros(1, 0, 3, 3),
                "camera_to_ego_BN44": torch.zeros(1, 0, 4, 4),
            },
            "there must be a camera",
        ),
        (
            {
                "feats_BTNChw": torch.zeros(1).expand(1, 1, 2, 3, 2**14, 2**14),
                "depth_BTNDhw": torch.zeros(1).expand(1, 1, 2, 4, 2**14, 2**14),
                "depths_m_D": torch.ones(4),
            },
            "2147483648 frustum points",
        ),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        bev_pool(**_spoilt(**changes))


def test_registered_as_pytorch_asks(device: str) -> None:
    feats, depth, *rest = (each.to(device) for each in make_inputs((1, 2, 1, 3, 2, 3), 2))
    corner, cell_m, num_cells, z_range = GRID
    arguments = (*IMAGE_SIZE, *corner, cell_m, *num_cells, *z_range)
    torch.library.opcheck(
        torch.ops.fsdtrain.bev_pool.default,
        (feats.requires_grad_(), depth.detach().requires_grad_(), *rest, *arguments),
    )
    feats, depth = feats.detach(), depth.detach()
    _, keys = torch.ops.fsdtrain.bev_pool(feats, depth, *rest, *arguments)
    cotangent = torch.randn(1, 2, 3, *num_cells, device=device)
    torch.library.opcheck(
        torch.ops.fsdtrain.bev_pool_backward.default, (cotangent, feats, depth, keys)
    )


def test_compiles_as_one_graph(device: str) -> None:
    inputs = tuple(each.to(device) for each in make_inputs((1, 2, 2, 3, 2, 4), 3))
    compiled = torch.compile(bev_pool, fullgraph=True, backend="aot_eager")
    cotangent = torch.randn(1, 2, 3, *GRID[2], device=device)
    found = run(compiled, inputs, GRID, cotangent)
    for one, other in zip(found, run(bev_pool, inputs, GRID, cotangent), strict=True):
        assert torch.equal(one, other)


def test_autocast_leaves_it_alone(device: str) -> None:
    inputs = tuple(each.to(device) for each in make_inputs((1, 1, 2, 3, 2, 4), 3))
    expected = bev_pool(*inputs, IMAGE_SIZE, *GRID)
    with torch.autocast(device, torch.bfloat16):
        found = bev_pool(*inputs, IMAGE_SIZE, *GRID)
    assert torch.equal(found, expected)


def test_bytes_of_the_published_shape() -> None:
    """8 clips, 6 cameras of 16 x 44 pixels, 59 depths, 80 channels, 128 x 128 cells, bfloat16."""
    feats = torch.empty(8, 1, 6, 80, 16, 44, dtype=torch.bfloat16, device="meta")
    depth = torch.empty(8, 1, 6, 59, 16, 44, dtype=torch.bfloat16, device="meta")
    in_out = 2 * (33_792 * 80 + 131_072 * 80 + 33_792 * 59)
    assert launcher.min_bytes(feats, depth, (128, 128)) == in_out
    gradients = 2 * (33_792 * 80 + 33_792 * 59)
    backward = launcher.min_bytes_backward(feats, depth, (128, 128))
    assert backward == in_out + gradients + 4 * 33_792 * 59
    assert launcher.gather_bytes(feats, depth, 0.5) == 33_792 * 59 * 162 // 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("feats", "num_depths", "num_cells", "cell_m"),
    [((1, 1, 6, 80, 16, 44), 59, (128, 128), 0.8), ((1, 1, 8, 64, 16, 44), 118, (200, 200), 0.5)],
)
def test_real_shapes(
    device: str,
    feats: Shape,
    num_depths: int,
    num_cells: tuple[int, int],
    cell_m: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "CHUNK", 128)
    monkeypatch.setattr(sum_cells, "configs", [triton.Config({"CELLS": 1024, "POINTS": 2})])
    monkeypatch.setattr(send_back, "configs", [triton.Config({"BLOCK_P": 256, "BLOCK_D": 4})])
    values, depth, _, intrinsics, poses = make_inputs(feats, num_depths)
    values = values.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4).bfloat16()
    depths_m = torch.linspace(1, 60, num_depths)
    half_m = cell_m * num_cells[0] / 2
    grid = ((-half_m, -half_m), cell_m, num_cells, (-10.0, 10.0))
    inputs = (values, depth, depths_m, intrinsics, poses)
    in_float64 = (*(each.double() for each in inputs[:2]), *inputs[2:])
    cotangent = torch.randn(1, 1, feats[3], *num_cells).bfloat16()
    exact = run(reference, in_float64, grid, cotangent)
    ours = run(bev_pool, tuple(each.to(device) for each in inputs), grid, cotangent.to(device))
    for found, expected in zip(ours, exact, strict=True):
        error = (found.cpu().double() - expected).abs().max().item()
        # Sums of up to some thousand terms; below float32 the result is rounded once more.
        rounding = torch.finfo(found.dtype).eps if found.dtype.itemsize == 2 else 0.0
        assert error <= (rounding + 1e-5) * expected.abs().max().item()
