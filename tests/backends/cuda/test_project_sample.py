"""The kernels of project_sample against the reference in float64, where autograd differentiates."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain.ops.project_sample import project_sample as reference

pytest.importorskip("triton")
from fsdtrain_cuda.kernels.project_sample import project_sample

IMAGE_SIZE = (24, 40)


def make_inputs(
    feats: tuple[int, int, int, int, int, int],
    points: tuple[int, int, int],
    *,
    seed: int = 0,
    reach_m: float = 10.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, points, intrinsics and poses of cameras that look level, in any direction."""
    generator = torch.Generator().manual_seed(seed)
    B, _, N = feats[:3]
    places = (torch.rand(*points, 3, generator=generator) - 0.5) * 2 * reach_m
    places[..., 2] = 3 * torch.rand(points, generator=generator)
    intrinsics = torch.tensor([[22.0, 0.2, 19.0], [0.0, 25.0, 13.0], [0.0, 0.0, 1.0]])
    intrinsics = intrinsics + torch.rand(B, N, 3, 3, generator=generator)
    yaw = 2 * math.pi * torch.rand(B, N, generator=generator)
    poses = torch.zeros(B, N, 4, 4)
    poses[..., 0, 0], poses[..., 1, 0] = yaw.sin(), -yaw.cos()  # right
    poses[..., 2, 1] = -1.0  # down
    poses[..., 0, 2], poses[..., 1, 2] = yaw.cos(), yaw.sin()  # ahead
    poses[..., :3, 3] = torch.rand(B, N, 3, generator=generator)
    poses[..., 3, 3] = 1.0
    return torch.randn(feats, generator=generator), places, intrinsics, poses


def run(op: Any, feats: Tensor, rest: tuple[Tensor, ...], views: int, cotangent: Tensor) -> Any:
    feats = feats.detach().requires_grad_()
    sampled = op(feats, *rest, IMAGE_SIZE, views)
    sampled.backward(cotangent.to(sampled))
    return sampled.detach(), feats.grad


def assert_twice_as_good_as_torch(
    device: str, feats: Tensor, rest: tuple[Tensor, ...], views: int
) -> None:
    """At most twice the error of the reference in the same dtype, and some units in the last."""
    in_float64 = tuple(tensor.double() for tensor in rest)
    shape = (*feats.shape[:2], feats.shape[3], *rest[0].shape[:3])
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(feats.dtype)
    exact = run(reference, feats.double(), in_float64, views, cotangent)
    plain = run(reference, feats, rest, views, cotangent)
    moved = tuple(tensor.to(device) for tensor in rest)
    ours = run(project_sample, feats.to(device), moved, views, cotangent.to(device))
    for found, allowed, expected in zip(ours, plain, exact, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == feats.dtype
        largest = expected.abs().max().item() if expected.numel() else 0.0
        # The interpreter cuts float32 down to bfloat16 instead of rounding: a whole unit.
        floor = (4 if feats.dtype.itemsize > 2 else 1) * torch.finfo(feats.dtype).eps * largest
        error = (found.cpu() - expected).abs().max().item() if expected.numel() else 0.0
        bound = (allowed - expected).abs().max().item() if expected.numel() else 0.0
        assert error <= 2 * bound + floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("feats", "points", "views"),
    [
        ((2, 2, 2, 8, 3, 4), (2, 9, 8), 2),
        ((1, 1, 5, 7, 2, 3), (3, 5, 11), 3),  # nothing is a power of two
        ((1, 1, 8, 1, 3, 2), (1, 70, 2), 1),  # more cameras see a point than count
        ((1, 1, 2, 80, 1, 3), (1, 13, 3), 4),  # more views than cameras; blocks of channels
        ((1, 1, 1, 3, 1, 1), (1, 40, 1), 1),  # every sample is at the border
        ((1, 1, 3, 20, 1, 9), (1, 1, 1), 2),
    ],
)
def test_forward_and_gradient(
    device: str,
    feats: tuple[int, int, int, int, int, int],
    points: tuple[int, int, int],
    views: int,
    dtype: torch.dtype,
) -> None:
    values, *rest = make_inputs(feats, points)
    assert_twice_as_good_as_torch(device, values.to(dtype), tuple(rest), views)


@settings(max_examples=6, deadline=None)
@given(
    feats=st.tuples(*(st.integers(1, most) for most in (2, 2, 3, 9, 3, 3))),
    points=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)),
    views=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    feats: tuple[int, int, int, int, int, int],
    points: tuple[int, int, int],
    views: int,
    seed: int,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values, *rest = make_inputs(feats, points, seed=seed)
    assert_twice_as_good_as_torch(device, values, tuple(rest), views)


def test_any_layout_of_features(device: str) -> None:
    values, *rest = make_inputs((2, 1, 3, 6, 2, 3), (2, 6, 7))
    last = values.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)
    sliced = values.repeat_interleave(2, -1)[..., ::2]
    turned = values.transpose(0, 2).contiguous().transpose(0, 2)
    for layout in (last, sliced, turned, values[:, :, :1].expand(-1, -1, 3, -1, -1, -1)):
        assert_twice_as_good_as_torch(device, layout, tuple(rest), 2)


def test_gradients_of_channels_last_features_are_channels_last(device: str) -> None:
    values, *rest = (t.to(device) for t in make_inputs((1, 2, 2, 6, 3, 2), (1, 6, 7)))
    last = values.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)
    last.requires_grad_()
    project_sample(last, *rest, IMAGE_SIZE, 2).sum().backward()  # a cotangent of strides zero
    assert last.grad is not None
    assert last.grad.stride() == last.stride()
    expected = values.requires_grad_()
    reference(expected, *rest, IMAGE_SIZE, 2).sum().backward()
    torch.testing.assert_close(last.grad, expected.grad, atol=1e-5, rtol=1e-5)


def test_cotangents_with_the_channels_together(device: str) -> None:
    values, *rest = (t.to(device) for t in make_inputs((2, 2, 2, 6, 2, 3), (1, 6, 7)))
    cotangent = torch.randn(2, 2, 1, 6, 7, 6, device=device).permute(0, 1, 5, 2, 3, 4)
    found = run(project_sample, values, tuple(rest), 2, cotangent)
    expected = run(reference, values, tuple(rest), 2, cotangent)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradcheck(device: str) -> None:
    inputs = (t.double().to(device) for t in make_inputs((1, 1, 2, 2, 2, 2), (1, 2, 3)))
    feats, *rest = inputs
    feats.requires_grad_()
    assert (project_sample(feats, *rest, IMAGE_SIZE, 2) != 0).any()
    assert torch.autograd.gradcheck(lambda f: project_sample(f, *rest, IMAGE_SIZE, 2), (feats,))


def test_all_points_in_one_pixel_and_ten_runs_alike(device: str) -> None:
    values, points, *rest = make_inputs((1, 1, 2, 5, 1, 2), (1, 9, 15))
    points = points * 1e-3 + torch.tensor([6.0, 0.0, 1.0])
    rest[1][:] = torch.tensor(
        [[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]]
    )  # both cameras look ahead
    assert_twice_as_good_as_torch(device, values, (points, *rest), 2)
    moved = tuple(tensor.to(device) for tensor in (points, *rest))
    cotangent = torch.randn(1, 1, 5, 1, 9, 15).to(device)
    first = run(project_sample, values.to(device), moved, 2, cotangent)
    for _ in range(9):
        again = run(project_sample, values.to(device), moved, 2, cotangent)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])


def test_offsets_beyond_32_bits(device: str) -> None:
    """The last camera's features lie 2^31 elements behind the first one's, in untouched memory."""
    values, *rest = make_inputs((1, 1, 2, 3, 4, 5), (1, 6, 7))
    storage = torch.empty(2**31 + 60, dtype=torch.float16, device=device)
    far = storage.as_strided(values.shape, (2**31, 2**31, 2**31, 20, 5, 1))
    far.copy_(values)
    moved = tuple(tensor.to(device) for tensor in rest)
    found = project_sample(far, *moved, IMAGE_SIZE, 2)
    near = project_sample(values.half().to(device), *moved, IMAGE_SIZE, 2)
    assert torch.equal(found, near)
    assert (found != 0).any()


def test_nothing_in_nothing_out(device: str) -> None:
    for feats, points in [
        ((0, 1, 2, 3, 4, 5), (1, 2, 3)),
        ((1, 1, 2, 0, 4, 5), (1, 2, 3)),
        ((1, 2, 2, 3, 4, 5), (1, 0, 3)),
    ]:
        values, *rest = (t.to(device) for t in make_inputs(feats, points))
        values.requires_grad_()
        sampled = project_sample(values, *rest, IMAGE_SIZE, 2)
        assert sampled.shape == (*feats[:2], feats[3], *points)
        sampled.sum().backward()
        assert values.grad is not None
        assert not values.grad.any()


def test_points_behind_all_cameras_are_zero(device: str) -> None:
    values, points, *rest = (t.to(device) for t in make_inputs((1, 1, 1, 3, 4, 5), (1, 4, 4)))
    ahead = rest[1][0, 0, :3, 2]
    behind = points - (points @ ahead + 5)[..., None] * ahead
    sampled, gradient = run(
        project_sample, values, (behind, *rest), 2, torch.ones(1, 1, 3, 1, 4, 4, device=device)
    )
    assert not sampled.any()
    assert not gradient.any()


def _spoilt(**changes: Any) -> dict[str, Any]:
    feats, points, intrinsics, poses = make_inputs((1, 1, 2, 3, 4, 5), (1, 2, 3))
    good = {"feats_BTNChw": feats, "points_ZXY3": points, "intrinsics_BN33": intrinsics}
    good |= {"camera_to_ego_BN44": poses, "image_size": IMAGE_SIZE, "max_views": 2}
    return {**good, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feats_BTNChw": torch.zeros(1, 2, 3, 4, 5)}, r"features must be \[B, T, N, C, h, w\]"),
        ({"feats_BTNChw": torch.zeros(1, 1, 2, 3, 4, 5, dtype=torch.int32)}, "is torch.int32"),
        ({"feats_BTNChw": torch.zeros(1, 1, 0, 3, 4, 5)}, r"intrinsics has shape \(1, 2, 3, 3\)"),
        ({"points_ZXY3": torch.zeros(1, 2, 3, 2)}, r"points has shape \(1, 2, 3, 2\)"),
        ({"points_ZXY3": torch.zeros(1, 2, 3, 3, dtype=torch.float16)}, "points of shape"),
        ({"points_ZXY3": torch.zeros(1, 2, 3, 3).double()}, "intrinsics of shape"),
        ({"points_ZXY3": torch.zeros(1, 2, 3, 3, device="meta")}, "points on meta"),
        ({"points_ZXY3": torch.zeros(1, 2, 3, 3).requires_grad_()}, "points asks for one"),
        ({"camera_to_ego_BN44": torch.zeros(1, 3, 4, 4)}, r"shape \(1, 3, 4, 4\)"),
        ({"intrinsics_BN33": torch.full((1, 2, 3, 3), math.nan)}, "clip 0, camera 0 has NaN"),
        ({"max_views": 0}, "max_views=0"),
        (
            {
                "points_ZXY3": torch.zeros(1).expand(2**15, 2**15, 1, 3),
            },
            "2147483648 views of points",
        ),
        (
            {
                "feats_BTNChw": torch.zeros(1, 1, 0, 3, 4, 5),
                "intrinsics_BN33": torch.zeros(1, 0, 3, 3),
                "camera_to_ego_BN44": torch.zeros(1, 0, 4, 4),
            },
            "0 cameras",
        ),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        project_sample(**_spoilt(**changes))


def test_registered_as_pytorch_asks(device: str) -> None:
    feats, *rest = (t.to(device) for t in make_inputs((1, 1, 2, 3, 2, 2), (1, 2, 4)))
    arguments = (feats.requires_grad_(), *rest, *IMAGE_SIZE, 2)
    torch.library.opcheck(torch.ops.fsdtrain.project_sample.default, arguments)
    cotangent = torch.randn(1, 1, 3, 1, 2, 4, device=device)
    for is_channels_last in (False, True):
        torch.library.opcheck(
            torch.ops.fsdtrain.project_sample_backward.default,
            (cotangent, *rest, 2, 2, *IMAGE_SIZE, 2, is_channels_last),
        )


def test_compiles_as_one_graph(device: str) -> None:
    feats, *rest = (t.to(device) for t in make_inputs((1, 2, 2, 3, 4, 5), (1, 3, 4)))
    compiled = torch.compile(project_sample, fullgraph=True, backend="aot_eager")
    cotangent = torch.randn(1, 2, 3, 1, 3, 4, device=device)
    found = run(compiled, feats, tuple(rest), 2, cotangent)
    expected = run(project_sample, feats, tuple(rest), 2, cotangent)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_autocast_leaves_it_alone(device: str) -> None:
    feats, *rest = (t.to(device) for t in make_inputs((1, 1, 2, 3, 4, 5), (1, 3, 4)))
    expected = project_sample(feats, *rest, IMAGE_SIZE, 2)
    with torch.autocast(device, torch.bfloat16):
        found = project_sample(feats, *rest, IMAGE_SIZE, 2)
    assert torch.equal(found, expected)


@pytest.mark.slow
def test_real_features(device: str) -> None:
    values, *rest = make_inputs((1, 1, 6, 64, 16, 44), (8, 24, 24), reach_m=50.0)
    last = values.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)
    assert_twice_as_good_as_torch(device, last.bfloat16(), tuple(rest), 3)
