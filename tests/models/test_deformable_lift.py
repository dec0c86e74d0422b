from typing import Any

import pytest
import torch
from torch import Tensor

from fsdtrain.data.geometry import BevGrid
from fsdtrain.models.deformable_lift import DeformableLift
from fsdtrain.ops.table import OpTable

GRID = BevGrid(x_min_m=-8.0, x_max_m=24.0, y_min_m=-12.0, y_max_m=12.0, cell_m=2.0)
IMAGE_SIZE = (32, 48)
FEAT_SIZE = (8, 12)


def make_lift(**changes: Any) -> DeformableLift:
    options: dict[str, Any] = {
        "grid": GRID,
        "ops": OpTable(),
        "in_channels": 5,
        "out_channels": 8,
        "heights_m": [0.0, 1.5],
        "num_heads": 4,
        "num_points": 2,
    }
    torch.manual_seed(0)
    return DeformableLift(**(options | changes))


def cameras(num_clips: int, yaws_rad: list[float]) -> tuple[Tensor, Tensor]:
    """Level, 1 m above the ego's origin, each looking in its direction."""
    intrinsics = torch.tensor([[24.0, 0, 24], [0, 24, 16], [0, 0, 1]])
    poses = []
    for yaw in yaws_rad:
        cos, sin = torch.tensor(yaw).cos(), torch.tensor(yaw).sin()
        turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        pose = torch.eye(4)
        pose[:3, :3] = turn @ torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        pose[2, 3] = 1.0
        poses.append(pose)
    return (
        intrinsics.expand(num_clips, len(yaws_rad), 3, 3),
        torch.stack(poses).expand(num_clips, -1, -1, -1),
    )


def cell_of(x_m: float, y_m: float) -> tuple[int, int]:
    return int((x_m - GRID.x_min_m) / GRID.cell_m), int((y_m - GRID.y_min_m) / GRID.cell_m)


def test_shapes_and_every_parameter_learns() -> None:
    lift = make_lift()
    feats = torch.randn(2, 3, 2, 5, *FEAT_SIZE, requires_grad=True)
    bev = lift(feats, *cameras(2, [0.0, 1.0]), IMAGE_SIZE)
    assert bev.shape == (2, 3, 8, *GRID.shape)
    (bev * torch.randn(bev.shape)).sum().backward()
    assert feats.grad is not None
    assert feats.grad.any()
    for name, parameter in lift.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def look_straight(**changes: Any) -> DeformableLift:
    """A lift whose result is what the middle of each pillar's projections shows, unchanged."""
    lift = make_lift(in_channels=2, out_channels=2, num_heads=1, num_points=1, **changes)
    with torch.no_grad():
        for parameter in (lift.query_QC, lift.offsets.bias):
            parameter.zero_()
        for layer in (lift.value, lift.out):
            layer.weight.copy_(torch.eye(2))
    lift.norm = torch.nn.Identity()  # type: ignore[assignment]
    return lift


@pytest.mark.parametrize(("x_m", "y_m"), [(7.0, 1.0), (11.0, -3.0), (15.0, 5.0)])
def test_a_light_on_a_pillar_is_brightest_in_its_cell(x_m: float, y_m: float) -> None:
    lift = look_straight(heights_m=[1.0, 2.0])
    # A camera 1 m up looking ahead: 4 image pixels are a feature pixel.
    column = (24 - 24 * y_m / x_m) / 4
    rows = [(16 - 24 * (z - 1.0) / x_m) / 4 for z in (1.0, 2.0)]
    feats = torch.zeros(1, 1, 1, 2, *FEAT_SIZE)
    for row in rows:
        feats[..., 0, int(row), int(column)] = 1.0

    bev = lift(feats, *cameras(1, [0.0]), IMAGE_SIZE)[0, 0]

    i, j = cell_of(x_m, y_m)
    assert bev[0, i, j] > 0.2
    assert not bev[1].any()
    # Only along the ray of that pixel is there any light at all.
    lit = bev[0].nonzero().tolist()
    assert [i, j] in lit
    for i, j in lit:
        x, y = GRID.x_min_m + (i + 0.5) * 2, GRID.y_min_m + (j + 0.5) * 2
        assert x > 0
        assert abs((24 - 24 * y / x) / 4 - column) < 1.6


def test_a_cell_averages_over_the_cameras_that_see_it() -> None:
    lift = look_straight(heights_m=[1.0])
    feats = torch.ones(1, 1, 3, 2, *FEAT_SIZE)
    feats[:, :, 1] = 3.0
    # Two cameras look ahead, one back.
    bev = lift(feats, *cameras(1, [0.0, 0.0, 3.14159]), IMAGE_SIZE)[0, 0, 0]
    torch.testing.assert_close(bev[cell_of(15.0, 1.0)].item(), 2.0)
    torch.testing.assert_close(bev[cell_of(-5.0, 1.0)].item(), 1.0)
    torch.testing.assert_close(bev[cell_of(1.0, 9.0)].item(), 0.0)  # beside the car


def test_points_that_a_camera_does_not_see_weigh_nothing() -> None:
    """A pillar whose second height is above the image: half of its weight is left, as published."""
    lift = look_straight(heights_m=[1.0, 50.0])
    feats = torch.ones(1, 1, 1, 2, *FEAT_SIZE)
    bev = lift(feats, *cameras(1, [0.0]), IMAGE_SIZE)[0, 0, 0]
    torch.testing.assert_close(bev[cell_of(15.0, 1.0)].item(), 0.5)


def test_the_order_of_the_cameras_changes_nothing() -> None:
    lift = make_lift()
    feats = torch.randn(2, 2, 3, 5, *FEAT_SIZE)
    intrinsics, poses = cameras(2, [0.0, 0.5, 3.0])
    order = torch.tensor([2, 0, 1])
    bev = lift(feats, intrinsics, poses, IMAGE_SIZE)
    permuted = lift(feats[:, :, order], intrinsics[:, order], poses[:, order], IMAGE_SIZE)
    torch.testing.assert_close(permuted, bev)
    assert not torch.allclose(lift(feats[:, :, order], intrinsics, poses, IMAGE_SIZE), bev)


def test_frames_and_clips_are_alone() -> None:
    lift = make_lift()
    feats = torch.randn(2, 2, 1, 5, *FEAT_SIZE)
    changed = feats.clone()
    changed[1, 0] += torch.randn(5, *FEAT_SIZE)
    before, after = (lift(each, *cameras(2, [0.0]), IMAGE_SIZE) for each in (feats, changed))
    differs = (before != after).flatten(2).any(-1)
    assert differs.tolist() == [[False, False], [True, False]]


def test_it_begins_with_a_ring_of_rays_and_equal_weights() -> None:
    calls: list[tuple[Tensor, Tensor]] = []

    def watch(value: Tensor, locations: Tensor, weights: Tensor, sizes: Any) -> Tensor:
        calls.append((locations.detach(), weights.detach()))
        return OpTable().ms_deform_attn(value, locations, weights, sizes)

    lift = make_lift(ops=OpTable(ms_deform_attn=watch), heights_m=[1.0])
    lift(torch.randn(1, 1, 1, 5, *FEAT_SIZE), *cameras(1, [0.0]), IMAGE_SIZE)

    ((locations, weights),) = calls
    i, j = cell_of(11.0, 1.0)
    cell = i * GRID.shape[1] + j
    # In pixels of the features from where a point 1 m up and 11 m ahead, 1 m to the left, is seen.
    centre = torch.tensor([(24 - 24 / 11) / 4, 4.0])
    offsets = locations[0, cell, :, 0] * torch.tensor([12.0, 8.0]) - centre
    ring = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(offsets, torch.stack([ring, 2 * ring], 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights[0, cell], torch.full((4, 1, 2), 0.5))


def test_under_autocast_coordinates_and_weights_stay_float32() -> None:
    dtypes: list[list[torch.dtype]] = []

    def watch(value: Tensor, locations: Tensor, weights: Tensor, sizes: Any) -> Tensor:
        dtypes.append([each.dtype for each in (value, locations, weights)])
        return OpTable().ms_deform_attn(value, locations, weights, sizes)

    lift = make_lift(ops=OpTable(ms_deform_attn=watch))
    with torch.autocast("cpu", torch.bfloat16):
        lift(torch.randn(1, 1, 2, 5, *FEAT_SIZE), *cameras(1, [0.0, 1.0]), IMAGE_SIZE)
    assert dtypes == [[torch.bfloat16, torch.float32, torch.float32]]


def test_one_graph_with_the_gradients_of_eager() -> None:
    lift = make_lift()
    feats = torch.randn(1, 2, 2, 5, *FEAT_SIZE)
    arguments = (feats, *cameras(1, [0.0, 1.0]), IMAGE_SIZE)
    torch._dynamo.reset()
    compiled = torch.compile(lift, backend="aot_eager", fullgraph=True, dynamic=False)
    cotangent = torch.randn(1, 2, 8, *GRID.shape)
    results = []
    for each in (lift, compiled):
        lift.zero_grad()
        bev = each(*arguments)
        bev.backward(cotangent)
        results.append(
            [bev.detach(), *(p.grad.clone() for p in lift.parameters() if p.grad is not None)]
        )
    torch._dynamo.reset()
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 3}, "num_heads=3: must divide the 8 channels"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_points": 0}, "num_points=0.*at least one"),
        ({"heights_m": []}, r"heights_m=\[\].*at least one"),
    ],
)
def test_options_without_sense_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_lift(**changes)
