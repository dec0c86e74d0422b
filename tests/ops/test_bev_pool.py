from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsdtrain.ops.bev_pool import bev_pool, find_cells

Array = NDArray[np.float64]
pool: Callable[..., Tensor] = bev_pool
IMAGE_SIZE = (24, 40)
GRID: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "min_corner_m": (-4.0, -6.0),
    "cell_m": 0.8,
    "num_cells": (14, 13),
    "z_range_m": (-0.5, 2.5),
}
# From a camera's axes (right, down, ahead) to the ego's (forward, left, up).
LEVEL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def random_rig(rng: np.random.Generator, num_clips: int, num_cameras: int) -> tuple[Array, Array]:
    """Intrinsics with skew and poses that look any way, upside down too."""
    intrinsics = np.zeros((num_clips, num_cameras, 3, 3))
    poses = np.zeros((num_clips, num_cameras, 4, 4))
    for place in np.ndindex(num_clips, num_cameras):
        fx, fy = rng.uniform(15, 30, 2)
        cx, cy = rng.uniform([15, 8], [25, 16])
        intrinsics[place] = [[fx, rng.normal(), cx], [0, fy, cy], [0, 0, 1]]
        rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        poses[place][:3, :3] = rotation * np.linalg.det(rotation)
        poses[place][:3, 3] = rng.uniform([-1, -1, 1], [1, 1, 2])
        poses[place][3, 3] = 1
    return intrinsics, poses


def level_rig(height_m: float = 1.0) -> tuple[Tensor, Tensor]:
    """One camera at the origin that looks ahead."""
    pose = np.eye(4)
    pose[:3, :3], pose[2, 3] = LEVEL, height_m
    intrinsics = np.array([[20.0, 0, 20], [0, 20, 12], [0, 0, 1]])
    return torch.tensor(intrinsics)[None, None], torch.tensor(pose)[None, None]


def pool_by_loops(
    feats: Array, depth: Array, depths_m: Array, intrinsics: Array, poses: Array
) -> tuple[Array, int]:
    """One point after the other; and how many were inside."""
    B, T, N, C, h, w = feats.shape
    num_x, num_y = GRID["num_cells"]
    out = np.zeros((B, T, C, num_x, num_y))
    num_inside = 0
    for b, n, d, row, column in np.ndindex(B, N, len(depths_m), h, w):
        pixel = ((column + 0.5) / w * IMAGE_SIZE[1], (row + 0.5) / h * IMAGE_SIZE[0], 1.0)
        in_camera = np.linalg.solve(intrinsics[b, n], pixel) * depths_m[d]
        x, y, z, _ = poses[b, n] @ [*in_camera, 1.0]
        i = int(np.floor((x - GRID["min_corner_m"][0]) / GRID["cell_m"]))
        j = int(np.floor((y - GRID["min_corner_m"][1]) / GRID["cell_m"]))
        lowest, highest = GRID["z_range_m"]
        if 0 <= i < num_x and 0 <= j < num_y and lowest <= z < highest:
            num_inside += 1
            for t in range(T):
                out[b, t, :, i, j] += (
                    depth[b, t, n, d, row, column] * feats[b, t, n, :, row, column]
                )
    return out, num_inside


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("num_clips", "num_frames", "num_cameras", "channels", "num_depths", "feat_size"),
    [(2, 2, 3, 3, 7, (3, 5)), (1, 1, 5, 1, 1, (6, 10)), (3, 1, 2, 4, 12, (1, 7))],
)
def test_equals_a_loop_over_points(
    num_clips: int,
    num_frames: int,
    num_cameras: int,
    channels: int,
    num_depths: int,
    feat_size: tuple[int, int],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    rig = random_rig(rng, num_clips, num_cameras)
    feats = rng.standard_normal((num_clips, num_frames, num_cameras, channels, *feat_size))
    depth = rng.uniform(size=(num_clips, num_frames, num_cameras, num_depths, *feat_size))
    depths_m = np.sort(rng.uniform(0.5, 5, num_depths))

    expected, num_inside = pool_by_loops(feats, depth, depths_m, *rig)
    assert num_inside > 5
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        given = [torch.tensor(each, dtype=dtype) for each in (feats, depth, depths_m, *rig)]
        found = pool(*given, **GRID)
        assert found.dtype == dtype
        np.testing.assert_allclose(found.numpy(), expected, atol=tolerance)


def test_one_depth_for_all_counts_the_points_of_a_cell() -> None:
    """Features one and all mass on one depth: a plane across the optical axis, in closed form."""
    feats = torch.ones(1, 1, 1, 2, 6, 10, dtype=torch.float64)
    depth = torch.zeros(1, 1, 1, 3, 6, 10, dtype=torch.float64)
    depth[:, :, :, 1] = 1
    depths_m = torch.tensor([1.0, 4.5, 9.0], dtype=torch.float64)
    found = pool(feats, depth, depths_m, *level_rig(), **GRID)

    # Pixels are 4 apart and the focal length is 20: at 4.5 m the points are 0.9 m apart. The ten
    # columns lie at y = 4.05, 3.15, ... -4.05, the six rows at z = 3.25, 2.35, ... -1.25.
    expected = torch.zeros(14, 13, dtype=torch.float64)
    for y in np.arange(10) * 0.9 - 4.05:
        expected[int((4.5 + 4) / 0.8), int((y + 6) / 0.8)] += 4  # z = 2.35 ... -0.35 count
    assert torch.equal(found[0, 0], expected.expand(2, -1, -1))


def test_no_mass_is_lost_inside_a_grid_that_holds_every_point() -> None:
    rng = np.random.default_rng(5)
    rig = [torch.tensor(each) for each in random_rig(rng, 2, 3)]
    feats = torch.tensor(rng.standard_normal((2, 2, 3, 4, 3, 5)))
    depth = torch.tensor(rng.standard_normal((2, 2, 3, 6, 3, 5))).softmax(3)
    depths_m = torch.linspace(1, 9, 6, dtype=torch.float64)
    wide = {**GRID, "min_corner_m": (-40.0, -40.0), "num_cells": (100, 100)}

    found = pool(feats, depth, depths_m, *rig, **{**wide, "z_range_m": (-40.0, 40.0)})
    torch.testing.assert_close(found.sum((-1, -2)), feats.sum((2, 4, 5)))
    nothing = pool(feats, depth, depths_m, *rig, **{**wide, "z_range_m": (50.0, 60.0)})
    assert not nothing.any()


def test_gradients_in_double_precision() -> None:
    rng = np.random.default_rng(3)
    rig = [torch.tensor(each) for each in random_rig(rng, 1, 2)]
    feats = torch.randn(1, 2, 2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    depth = torch.randn(1, 2, 2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    depths_m = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda f, d: pool(f, d, depths_m, *rig, **GRID), (feats, depth))


def test_low_precision_features_keep_exact_places_and_sums() -> None:
    """A thousand halves and a one: in bfloat16 alone the sum would stop at 128."""
    feats = torch.full((1, 1, 1, 1, 25, 40), 0.5, dtype=torch.bfloat16)
    feats[..., 7, 7] = 1
    depth = torch.ones(1, 1, 1, 1, 25, 40, dtype=torch.bfloat16)
    rig = [each.float() for each in level_rig()]
    one_cell = {"min_corner_m": (-50.0, -50.0), "cell_m": 100.0, "num_cells": (1, 1)}
    grid = {**GRID, **one_cell, "z_range_m": (-50.0, 50.0)}
    found = pool(feats, depth, torch.tensor([3.0]), *rig, **grid)
    assert found.dtype == torch.bfloat16
    assert found.item() == torch.tensor(500.5).bfloat16().item()


def test_not_a_number_lies_in_no_cell() -> None:
    intrinsics, pose = level_rig()
    pose[..., 1, 3] = torch.nan
    geometry = {key: value for key, value in GRID.items() if key != "image_size"}
    depths_m = torch.tensor([2.0], dtype=torch.float64)
    cells = find_cells(depths_m, intrinsics, pose, (3, 5), IMAGE_SIZE, **geometry)
    assert (cells == -1).all()


def test_is_one_graph() -> None:
    rig = [each.float() for each in level_rig()]
    given = (torch.randn(1, 2, 1, 3, 3, 5), torch.rand(1, 2, 1, 4, 3, 5), torch.arange(1.0, 5))
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given, *rig, **GRID), pool(*given, *rig, **GRID))
