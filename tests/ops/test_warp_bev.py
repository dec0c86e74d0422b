import numpy as np
import pytest
import torch
from torch import Tensor

from fsdtrain.data.geometry import (
    BevGrid,
    invert_pose,
    pose_matrix,
    quaternion_from_matrix,
    rotation_matrix,
    transform_points,
    yaw_quaternion,
)
from fsdtrain.data.schema import Pose
from fsdtrain.ops.warp_bev import warp_bev


def motion(x_m: float, y_m: float, yaw_rad: float) -> Tensor:
    pose = Pose(rotation_wxyz=yaw_quaternion(yaw_rad), translation_m=(x_m, y_m, 0.3))
    return torch.tensor(pose_matrix(pose)).float()[None]


def warp(bev: Tensor, previous_to_current: Tensor, grid: BevGrid) -> Tensor:
    return warp_bev(bev, previous_to_current, (grid.x_min_m, grid.y_min_m), grid.cell_m)


SQUARE = BevGrid(x_min_m=-2.0, x_max_m=2.0, y_min_m=-2.0, y_max_m=2.0, cell_m=0.5)
RAGGED = BevGrid(x_min_m=-1.0, x_max_m=3.5, y_min_m=-2.0, y_max_m=1.5, cell_m=0.5)


@pytest.mark.parametrize("grid", [SQUARE, RAGGED])
def test_no_motion_changes_nothing(grid: BevGrid) -> None:
    bev = torch.randn(2, 3, *grid.shape)
    torch.testing.assert_close(warp(bev, motion(0, 0, 0).expand(2, 4, 4), grid), bev)


@pytest.mark.parametrize("grid", [SQUARE, RAGGED])
@pytest.mark.parametrize(("cells_x", "cells_y"), [(2, 0), (-1, 0), (0, 3), (-2, -1)])
def test_whole_cells_are_an_exact_shift(grid: BevGrid, cells_x: int, cells_y: int) -> None:
    bev = torch.randn(1, 2, *grid.shape)
    num_x, num_y = grid.shape
    expected = torch.zeros_like(bev)
    for i in range(num_x):
        for j in range(num_y):
            if 0 <= i - cells_x < num_x and 0 <= j - cells_y < num_y:
                expected[:, :, i, j] = bev[:, :, i - cells_x, j - cells_y]

    moved = warp(bev, motion(cells_x * 0.5, cells_y * 0.5, 0), grid)

    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_driving_forward_moves_the_world_back() -> None:
    bev = torch.zeros(1, 1, *SQUARE.shape)
    bev[0, 0, 6, 4] = 1.0
    moved = warp(bev, motion(-1.0, 0, 0), SQUARE)
    assert moved.argmax() == 4 * SQUARE.shape[1] + 4


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_exact_permutations(quarters: int) -> None:
    bev = torch.randn(1, 2, *SQUARE.shape)
    # Counter-clockwise seen from above with x down the rows and y along the columns, as rot90's
    # plane is (0, 1): cell [i, j] at (x, y) goes to (-y, x).
    expected = torch.rot90(bev, quarters, (2, 3))

    turned = warp(bev, motion(0, 0, quarters * np.pi / 2), SQUARE)

    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def test_agrees_with_the_frames_of_reference() -> None:
    """A smooth function of world places, seen from two poses, warps from one into the other."""
    rng = np.random.default_rng(0)
    grid = BevGrid(x_min_m=-8.0, x_max_m=10.0, y_min_m=-9.0, y_max_m=8.0, cell_m=0.25)
    # Some pitch and roll, as a real pose has: only the planar part may count.
    tilt = np.array([0.01, -0.02])
    poses = []
    for yaw in rng.uniform(-3, 3, 2) * [1, 0] + [0, 0.15]:
        rotation = rotation_matrix(yaw_quaternion(float(yaw)))
        poses.append((rotation, rng.uniform(-0.5, 0.5, 3) * [1, 1, 0]))
    (r0, t0), (dr, dt) = poses
    previous_to_world, current_to_previous = np.eye(4), np.eye(4)
    previous_to_world[:3, :3], previous_to_world[:3, 3] = r0, t0
    current_to_previous[:3, :3], current_to_previous[:3, 3] = dr, dt
    current_to_world = previous_to_world @ current_to_previous

    def view(ego_to_world: np.ndarray) -> Tensor:
        centers = np.concatenate([grid.cell_centers(), np.zeros((*grid.shape, 1))], axis=-1)
        world = transform_points(ego_to_world, centers)
        values = np.sin(world[..., 0] * 0.7 + tilt[0]) + np.cos(world[..., 1] * 0.5 + tilt[1])
        return torch.tensor(values).float()[None, None]

    previous_to_current = torch.tensor(invert_pose(current_to_previous)).float()[None]
    warped = warp(view(previous_to_world), previous_to_current, grid)

    inner = (..., slice(12, -12), slice(12, -12))  # what was inside the previous view as well
    torch.testing.assert_close(warped[inner], view(current_to_world)[inner], atol=0.01, rtol=0)


def test_pitch_does_not_shrink_the_view() -> None:
    pitch = quaternion_from_matrix(
        np.array([[np.cos(0.3), 0, np.sin(0.3)], [0, 1, 0], [-np.sin(0.3), 0, np.cos(0.3)]])
    )
    tilted = pose_matrix(Pose(rotation_wxyz=pitch, translation_m=(0.0, 0.0, 0.0)))
    bev = torch.randn(1, 1, *SQUARE.shape)
    torch.testing.assert_close(warp(bev, torch.tensor(tilted).float()[None], SQUARE), bev)


def test_gradient_in_double_precision() -> None:
    bev = torch.randn(2, 2, *RAGGED.shape, dtype=torch.float64, requires_grad=True)
    motions = torch.cat([motion(0.2, -0.3, 0.4), motion(-1, 0.1, -0.2)]).double()
    assert torch.autograd.gradcheck(lambda b: warp(b, motions, RAGGED), (bev,))
