from typing import Any

import pytest
import torch
from torch import Tensor

from fsdtrain.data.geometry import BevGrid
from fsdtrain.models.depth_splat import DepthSplat
from fsdtrain.ops.table import OpTable

GRID = BevGrid(x_min_m=-8.0, x_max_m=24.0, y_min_m=-12.0, y_max_m=12.0, cell_m=2.0)
IMAGE_SIZE = (32, 48)
FEAT_SIZE = (4, 6)


def make_lift(**changes: Any) -> DepthSplat:
    options: dict[str, Any] = {
        "grid": GRID,
        "ops": OpTable(),
        "in_channels": 5,
        "out_channels": 7,
        "depth_min_m": 1.0,
        "depth_max_m": 21.0,
        "num_depths": 10,
        "z_range_m": [-2.0, 4.0],
    }
    torch.manual_seed(0)
    return DepthSplat(**(options | changes))


def front_cameras(num_clips: int, num_cameras: int) -> tuple[Tensor, Tensor]:
    """Level, 1 m above the ego's origin, looking ahead."""
    intrinsics = torch.tensor([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]])
    pose = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]])
    return intrinsics.expand(num_clips, num_cameras, 3, 3), pose.expand(
        num_clips, num_cameras, 4, 4
    )


def test_shapes_and_every_parameter_learns() -> None:
    lift = make_lift()
    feats = torch.randn(2, 3, 2, 5, *FEAT_SIZE, requires_grad=True)
    bev = lift(feats, *front_cameras(2, 2), IMAGE_SIZE)
    assert bev.shape == (2, 3, 7, *GRID.shape)
    (bev * torch.randn(bev.shape)).sum().backward()
    assert feats.grad is not None
    assert feats.grad.abs().sum() > 0
    for name, parameter in lift.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_frames_and_clips_are_alone() -> None:
    lift = make_lift().eval()
    feats = torch.randn(2, 2, 1, 5, *FEAT_SIZE)
    changed = feats.clone()
    changed[1, 0] += 1
    before, after = (lift(each, *front_cameras(2, 1), IMAGE_SIZE) for each in (feats, changed))
    differs = (before != after).flatten(2).any(-1)
    assert differs.tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(("row", "column", "bin_index"), [(1, 4, 8), (2, 0, 3), (1, 2, 0)])
def test_a_light_at_a_known_place_lands_in_its_cell(row: int, column: int, bin_index: int) -> None:
    """The first channel is the brightness, the second says in which bin it stands."""
    lift = make_lift(in_channels=2, out_channels=1).eval()
    with torch.no_grad():
        for parameter in lift.parameters():
            parameter.zero_()
        lift.features.weight[0, 0] = 1
        lift.depth.weight[bin_index, 1] = 1000
        lift.norm_relu[0].weight.fill_(1)  # type: ignore[operator]  # Sequential's items are Modules
    feats = torch.zeros(1, 1, 1, 2, *FEAT_SIZE)
    feats[..., row, column] = torch.tensor([3.0, 1.0])

    bev = lift(feats, *front_cameras(1, 1), IMAGE_SIZE)[0, 0, 0]
    x = 1.0 + 2.0 * bin_index + 1.0  # the middle of a bin that is 2 m long
    y = -(8 * (column + 0.5) - 24) / 40 * x  # pixels to the right are to the ego's right
    lit = bev.nonzero().tolist()
    assert lit == [[int((x + 8) / 2), int((y + 12) / 2)]]
    assert bev.max().item() == pytest.approx(3.0, rel=1e-4)


def test_under_autocast_the_depths_stay_float32() -> None:
    calls = []

    def watch(feats: Tensor, depth: Tensor, *others: Any) -> Tensor:
        calls.append((feats.dtype, depth.dtype, {each.dtype for each in others[:3]}))
        return OpTable().bev_pool(feats, depth, *others)

    lift = make_lift(ops=OpTable(bev_pool=watch))
    with torch.autocast("cpu", torch.bfloat16):
        lift(torch.randn(1, 1, 2, 5, *FEAT_SIZE), *front_cameras(1, 2), IMAGE_SIZE)
    assert calls == [(torch.bfloat16, torch.float32, {torch.float32})]


def test_channels_last_stays_so() -> None:
    """What the pooling gathers lies together: the channels of a pixel, and its depths."""
    strides = []

    def watch(feats: Tensor, depth: Tensor, *others: Any) -> Tensor:
        strides.append((feats.stride(3), depth.stride(3)))
        return OpTable().bev_pool(feats, depth, *others)

    lift = make_lift(ops=OpTable(bev_pool=watch)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
    images = torch.randn(4, 5, *FEAT_SIZE).contiguous(memory_format=torch.channels_last)
    lift(images.view(2, 1, 2, 5, *FEAT_SIZE), *front_cameras(2, 2), IMAGE_SIZE)
    assert strides == [(1, 1)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"depth_min_m": 0.0}, "depth_min_m=0.0.*above 0"),
        ({"depth_max_m": 1.0}, "depth_max_m=1.0.*above where they begin"),
        ({"num_depths": 0}, "num_depths=0.*at least one"),
        ({"z_range_m": [4.0, -2.0]}, r"z_range_m=\[4.0, -2.0\].*lowest first"),
        ({"z_range_m": [4.0]}, r"z_range_m=\[4.0\] must be"),
    ],
)
def test_ranges_that_hold_nothing_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_lift(**changes)
