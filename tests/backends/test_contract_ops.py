"""The contract, ops: every op of every backend against its reference computed in float64.

Op x dtype x ragged shape, forward and gradient, within the backend's stated tolerance.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fsdtrain.backend import Backend
from fsdtrain.ops.table import OpTable
from fsdtrain.ops.yuv_to_input import rgb_from_yuv

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class OpCase:
    """One call: the features come first; coordinates stay float32, features vary in dtype."""

    op: str
    label: str
    make: Callable[[torch.Generator], tuple[Any, ...]]
    num_differentiable: int = 1  # leading tensors that are learnt through


def random_rig(
    generator: torch.Generator, num_clips: int, num_cameras: int, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Cameras 1.5 m above the ego that look anywhere near the horizon: intrinsics, poses."""
    height, width = image_size
    shape = (num_clips, num_cameras)
    intrinsics = torch.zeros(*shape, 3, 3)
    intrinsics[..., 0, 0] = width * (0.6 + 0.3 * torch.rand(shape, generator=generator))
    intrinsics[..., 1, 1] = width * (0.6 + 0.3 * torch.rand(shape, generator=generator))
    intrinsics[..., 0, 1] = 0.3 * torch.randn(shape, generator=generator)  # skew
    intrinsics[..., 0, 2] = width * (0.45 + 0.1 * torch.rand(shape, generator=generator))
    intrinsics[..., 1, 2] = height * (0.45 + 0.1 * torch.rand(shape, generator=generator))
    intrinsics[..., 2, 2] = 1.0
    yaw = 6.28 * torch.rand(shape, generator=generator)
    turn = torch.zeros(*shape, 3, 3)
    turn[..., 0, 0] = turn[..., 1, 1] = yaw.cos()
    turn[..., 1, 0], turn[..., 0, 1] = yaw.sin(), -yaw.sin()
    turn[..., 2, 2] = 1.0
    forward = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    pose = torch.eye(4).repeat(*shape, 1, 1)
    pose[..., :3, :3] = turn @ forward
    pose[..., :3, 3] = torch.randn(*shape, 3, generator=generator) * 0.3
    pose[..., 2, 3] += 1.5
    return intrinsics, pose


def project_sample_case(
    label: str,
    *,
    feats: tuple[int, int, int, int, int, int],
    points: tuple[int, int, int],
    image_size: tuple[int, int],
    max_views: int,
    reach_m: float = 12.0,
    is_channels_last: bool = False,
) -> OpCase:
    """`feats` is [B, T, N, C, h, w], `points` [Z, X, Y] places scattered over the ground."""

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        B, T, N, C, h, w = feats
        values = torch.randn(feats, generator=generator)
        if is_channels_last:  # as the backbone's convolutions leave them
            flat = values.flatten(0, 2).contiguous(memory_format=torch.channels_last)
            values = flat.view(B, T, N, C, h, w)
        places = (torch.rand(*points, 3, generator=generator) - 0.5) * 2 * reach_m
        places[..., 2] = 2 * torch.rand(points, generator=generator)
        intrinsics, pose = random_rig(generator, B, N, image_size)
        return values, places, intrinsics, pose, image_size, max_views

    return OpCase("project_sample", label, make)


def warp_bev_case(
    label: str,
    *,
    bev: tuple[int, int, int, int],
    yaw_rad: float = 0.1,
    shift_m: tuple[float, float] = (0.7, -0.2),
    tilt_rad: float = 0.0,
    cell_m: float = 0.5,
    is_channels_last: bool = False,
) -> OpCase:
    """`bev` is [B, C, X, Y]; clips turn and shift a little differently."""

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        values = torch.randn(bev, generator=generator)
        if is_channels_last:
            values = values.contiguous(memory_format=torch.channels_last)
        motion = torch.zeros(bev[0], 4, 4)
        for clip in range(bev[0]):
            yaw = torch.tensor(yaw_rad * (1 + 0.1 * clip))
            tilt = torch.tensor(tilt_rad)
            turn = torch.tensor([[yaw.cos(), -yaw.sin(), 0], [yaw.sin(), yaw.cos(), 0], [0, 0, 1]])
            pitch = torch.tensor(
                [[tilt.cos(), 0, tilt.sin()], [0, 1, 0], [-tilt.sin(), 0, tilt.cos()]]
            )
            motion[clip, :3, :3] = turn @ pitch
            motion[clip, :3, 3] = torch.tensor([*shift_m, 0.05]) * (1 + 0.1 * clip)
            motion[clip, 3, 3] = 1.0
        corner = (-cell_m * bev[2] / 2, -cell_m * bev[3] / 3)
        return values, motion, corner, cell_m

    return OpCase("warp_bev", label, make)


def ms_deform_attn_case(
    label: str,
    *,
    value: tuple[int, int, int],
    queries: tuple[int, int],
    level_sizes: tuple[tuple[int, int], ...],
    zero_share: float = 0.0,
    margin: float = 0.2,
) -> OpCase:
    """`value` is [B, H, C], `queries` [Q, P]; some locations lie beyond the maps' borders."""

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        (B, H, C), (Q, P), L = value, queries, len(level_sizes)
        S = sum(h * w for h, w in level_sizes)
        values = torch.randn(B, S, H, C, generator=generator)
        places = torch.rand(B, Q, H, L, P, 2, generator=generator)
        places = places * (1 + 2 * margin) - margin
        weights = torch.randn(B, Q, H, L, P, generator=generator)
        is_zero = torch.rand(weights.shape, generator=generator) < zero_share
        return values, places, weights.masked_fill(is_zero, 0.0), level_sizes

    return OpCase("ms_deform_attn", label, make, num_differentiable=3)


def bev_pool_case(
    label: str,
    *,
    feats: tuple[int, int, int, int, int, int],
    num_depths: int,
    image_size: tuple[int, int],
    num_cells: tuple[int, int],
    cell_m: float = 0.5,
    z_range_m: tuple[float, float] = (-1.0, 3.0),
    reach_m: float = 12.0,
    is_channels_last: bool = False,
) -> OpCase:
    """`feats` is [B, T, N, C, h, w]; the ego stands in the middle of the cells."""

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        B, T, N, C, h, w = feats
        values = torch.randn(feats, generator=generator)
        if is_channels_last:  # as the lift's convolutions leave them
            flat = values.flatten(0, 2).contiguous(memory_format=torch.channels_last)
            values = flat.view(B, T, N, C, h, w)
        depth = torch.randn(B, T, N, h, w, num_depths, generator=generator).softmax(-1)
        depths_m = 1 + (reach_m - 1) * torch.rand(num_depths, generator=generator).sort().values
        intrinsics, pose = random_rig(generator, B, N, image_size)
        corner = (-cell_m * num_cells[0] / 2, -cell_m * num_cells[1] / 2)
        return (
            values, depth.movedim(-1, 3), depths_m, intrinsics, pose,
            image_size, corner, cell_m, num_cells, z_range_m,
        )  # fmt: skip

    return OpCase("bev_pool", label, make, num_differentiable=2)


def yuv_to_input_case(
    label: str, *, yuv: tuple[int, int, int], out_size: tuple[int, int], layout: str = "i420"
) -> OpCase:
    """`yuv` is [K, H, W] of the pictures; each has a window, colours and a mirror of its own."""

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        K, H, W = yuv
        num_rows = H * 3 if layout == "planar444" else H * 3 // 2
        packed = torch.randint(0, 256, (K, num_rows, W), generator=generator, dtype=torch.uint8)
        share = 0.3 + 0.7 * torch.rand(K, 2, generator=generator)
        length = share * torch.tensor([H, W])
        start = torch.rand(K, 2, generator=generator) * (torch.tensor([H, W]) - length)
        site = 0.5 + 0.5 * torch.randint(0, 3, (K, 2), generator=generator)
        matrix = torch.tensor(rgb_from_yuv("bt709", is_full_range=False)).repeat(K, 1, 1)
        gain = torch.eye(3) + 0.1 * torch.randn(K, 3, 3, generator=generator)
        offset = 20 * torch.randn(K, 3, 1, generator=generator)
        is_mirrored = torch.randint(0, 2, (K,), generator=generator) == 1
        return (
            packed, torch.cat([start, length], 1), site, matrix, torch.cat([gain, offset], 2),
            is_mirrored, layout, out_size, (123.7, 116.3, 103.5), (58.4, 57.1, 57.4), torch.float32,
        )  # fmt: skip

    return OpCase("yuv_to_input", label, make, num_differentiable=0)


def occupancy_loss_case(
    label: str, *, voxels: tuple[int, int, int, int], num_classes: int, valid_share: float = 0.7
) -> OpCase:
    """`voxels` is [B, X, Y, Z]; what is invalid holds nonsense."""

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        logits = 3 * torch.randn(*voxels, num_classes, generator=generator)
        target = torch.randint(num_classes, voxels, generator=generator)
        valid = torch.rand(voxels, generator=generator) < valid_share
        logits = torch.where(valid[..., None], logits, 1e3)
        weights = 0.1 + torch.rand(num_classes, generator=generator)
        return logits, torch.where(valid, target, 255), valid, weights

    return OpCase("occupancy_loss", label, make)


def focal_loss_case(
    label: str,
    *,
    shape: tuple[int, ...],
    valid_share: float = 0.7,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> OpCase:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        logits = 3 * torch.randn(shape, generator=generator)
        target = torch.rand(shape, generator=generator) < 0.2
        valid = torch.rand(shape, generator=generator) < valid_share
        return torch.where(valid, logits, 1e3), target, valid, alpha, gamma

    return OpCase("focal_loss", label, make)


CASES = (
    project_sample_case(
        "tiny", feats=(2, 2, 2, 8, 6, 12), points=(2, 8, 8), image_size=(24, 48), max_views=2
    ),
    project_sample_case(
        "primes", feats=(3, 1, 5, 7, 5, 11), points=(3, 13, 17), image_size=(37, 83), max_views=3
    ),
    project_sample_case(
        "one of each", feats=(1, 1, 1, 1, 1, 1), points=(1, 1, 1), image_size=(2, 2), max_views=1
    ),
    project_sample_case(
        "one row of features",
        feats=(1, 2, 3, 4, 1, 9), points=(1, 31, 2), image_size=(8, 72), max_views=2,
    ),
    project_sample_case(
        "more cameras see a point than count",
        feats=(2, 1, 8, 3, 4, 4), points=(2, 9, 5), image_size=(64, 64), max_views=1,
    ),
    project_sample_case(
        "more views than cameras",
        feats=(1, 3, 2, 5, 3, 7), points=(2, 6, 6), image_size=(12, 28), max_views=4,
    ),
    project_sample_case(
        "hardly any point is seen",
        feats=(1, 1, 1, 2, 4, 6), points=(1, 40, 3), image_size=(16, 24), max_views=2,
        reach_m=400.0,
    ),
    project_sample_case(
        "channels last", feats=(2, 2, 3, 6, 5, 9), points=(2, 7, 9), image_size=(20, 36),
        max_views=2, is_channels_last=True,
    ),
    ms_deform_attn_case(
        "tiny", value=(2, 2, 8), queries=(16, 4), level_sizes=((6, 12), (3, 6)),
    ),
    ms_deform_attn_case(
        "primes", value=(3, 5, 7), queries=(31, 3), level_sizes=((5, 11), (7, 3), (2, 13)),
    ),
    ms_deform_attn_case(
        "one of each", value=(1, 1, 1), queries=(1, 1), level_sizes=((1, 1),), margin=0.0,
    ),
    ms_deform_attn_case(
        "most weights are zero",
        value=(2, 4, 16), queries=(40, 8), level_sizes=((4, 7),) * 6, zero_share=0.9,
    ),
    ms_deform_attn_case(
        "far beyond the borders",
        value=(1, 2, 3), queries=(50, 2), level_sizes=((4, 4),), margin=5.0,
    ),
    ms_deform_attn_case(
        "all queries read one pixel",
        value=(1, 2, 5), queries=(300, 2), level_sizes=((1, 1), (2, 1)),
    ),
    bev_pool_case(
        "tiny", feats=(2, 2, 2, 8, 6, 12), num_depths=8, image_size=(24, 48), num_cells=(8, 12),
    ),
    bev_pool_case(
        "primes", feats=(3, 1, 5, 7, 5, 11), num_depths=13, image_size=(37, 83),
        num_cells=(19, 17), cell_m=0.7,
    ),
    bev_pool_case(
        "one of each", feats=(1, 1, 1, 1, 1, 1), num_depths=1, image_size=(2, 2),
        num_cells=(1, 1), cell_m=50.0,
    ),
    bev_pool_case(
        "all points in one cell", feats=(2, 1, 2, 5, 4, 9), num_depths=11, image_size=(16, 36),
        num_cells=(1, 1), cell_m=100.0, z_range_m=(-50.0, 50.0),
    ),
    bev_pool_case(
        "hardly any point is inside", feats=(1, 2, 2, 3, 9, 6), num_depths=9, image_size=(16, 24),
        num_cells=(30, 4), z_range_m=(0.0, 0.2), reach_m=20.0,
    ),
    bev_pool_case(
        "channels last", feats=(2, 2, 3, 6, 5, 9), num_depths=10, image_size=(20, 36),
        num_cells=(16, 9), cell_m=1.5, is_channels_last=True,
    ),
    warp_bev_case("square", bev=(2, 8, 16, 16)),
    warp_bev_case("primes", bev=(3, 5, 13, 7)),
    warp_bev_case("one cell", bev=(1, 1, 1, 1), shift_m=(0.1, 0.0)),
    warp_bev_case("one row", bev=(2, 3, 1, 29)),
    warp_bev_case("standing still", bev=(1, 4, 9, 11), yaw_rad=0.0, shift_m=(0.0, 0.0)),
    warp_bev_case("turned round", bev=(2, 2, 10, 6), yaw_rad=3.0),
    warp_bev_case("driven away", bev=(1, 3, 8, 8), shift_m=(100.0, 0.0)),
    warp_bev_case("up a ramp", bev=(2, 4, 12, 5), tilt_rad=0.2),
    warp_bev_case("channels last", bev=(2, 6, 11, 13), is_channels_last=True),
    yuv_to_input_case("smaller", yuv=(3, 36, 64), out_size=(16, 28)),
    yuv_to_input_case("larger", yuv=(2, 10, 14), out_size=(33, 19)),
    yuv_to_input_case("half a packed row", yuv=(5, 6, 22), out_size=(5, 7)),
    yuv_to_input_case("pairs", yuv=(2, 26, 38), out_size=(11, 17), layout="nv12"),
    yuv_to_input_case("whole planes", yuv=(2, 13, 17), out_size=(6, 9), layout="planar444"),
    yuv_to_input_case("one of each", yuv=(1, 2, 2), out_size=(1, 1)),
    occupancy_loss_case("18 classes", voxels=(2, 9, 7, 4), num_classes=18),
    occupancy_loss_case("one class", voxels=(1, 3, 3, 2), num_classes=1),
    occupancy_loss_case("nothing valid", voxels=(1, 4, 2, 3), num_classes=5, valid_share=0.0),
    occupancy_loss_case("everything valid", voxels=(3, 1, 13, 2), num_classes=2, valid_share=1.0),
    focal_loss_case("heat map", shape=(1, 1, 13, 5)),
    focal_loss_case("a class each", shape=(2, 5, 31), alpha=0.6, gamma=0.5),
    focal_loss_case("cross entropy", shape=(67,), alpha=0.5, gamma=0.0),
    focal_loss_case("nothing valid", shape=(3, 4), valid_share=0.0),
)  # fmt: skip


def test_every_op_has_cases() -> None:
    assert {case.op for case in CASES} == {field.name for field in dataclasses.fields(OpTable)}


def in_float64(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64
    is_number = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().double() if is_number else value


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    largest = expected.abs().max().item()
    return (found.double().cpu() - expected).abs().max().item() / (largest or 1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}: {case.label}")
def test_ops_and_their_gradients_agree_with_the_references(
    backend: Backend, case: OpCase, dtype: torch.dtype
) -> None:
    """Calibration and motion are data; what is learnt through comes first.

    A loss, which is a scalar, is float32 whatever its inputs are.
    """
    generator = torch.Generator().manual_seed(sum(case.label.encode()))
    feats, *others = case.make(generator)
    others = [dtype if isinstance(value, torch.dtype) else value for value in others]
    arguments = [feats.to(dtype) if feats.is_floating_point() else feats, *others]
    exact = [in_float64(value) for value in arguments]
    learnt = range(case.num_differentiable)
    for i in learnt:
        exact[i].requires_grad_()
    expected = getattr(OpTable(), case.op)(*exact)
    result_dtype = dtype if expected.ndim else torch.float32
    cotangent = torch.randn(expected.shape, generator=generator).to(result_dtype)
    if learnt:
        expected.backward(cotangent.double())

    given = [backend.to_device(v) if isinstance(v, Tensor) else v for v in arguments]
    copies = [v.clone() if isinstance(v, Tensor) else v for v in given]
    for i in learnt:
        given[i] = given[i].detach().requires_grad_()
    found = getattr(backend.op_table(), case.op)(*given)
    if learnt:
        found.backward(backend.to_device(cotangent))

    assert found.shape == expected.shape
    assert found.dtype == result_dtype
    assert found.device == given[0].device
    # The stated tolerance is for float32; below it the result is rounded once more.
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    tolerance = backend.tolerance.op_relative + rounding
    assert worst(found, expected.detach()) <= tolerance
    for i in learnt:
        assert given[i].grad is not None
        assert given[i].grad.dtype == given[i].dtype
        assert worst(given[i].grad, exact[i].grad) <= tolerance, f"gradient of argument {i}"
    for value, before in zip(given, copies, strict=True):
        assert not isinstance(value, Tensor) or torch.equal(value, before), "an input was changed"
