import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsdtrain.data.geometry import (
    intrinsic_matrix,
    pose_matrix,
    project_points,
    quaternion_from_matrix,
)
from fsdtrain.data.schema import CameraCalibration, Pose
from fsdtrain.ops.project_sample import MIN_DEPTH_M, project_sample

IMAGE_SIZE = (24, 40)


def random_camera(rng: np.random.Generator, heading_rad: float) -> CameraCalibration:
    forward = np.array([np.cos(heading_rad), np.sin(heading_rad), 0.0])
    right = np.array([np.sin(heading_rad), -np.cos(heading_rad), 0.0])
    level = np.stack([right, [0.0, 0.0, -1.0], forward], axis=1)
    tilt = np.linalg.qr(np.eye(3) + 0.1 * rng.standard_normal((3, 3)))[0]
    rotation = level @ (tilt * np.sign(np.diag(tilt)))
    x, y, z = rng.uniform([-1, -1, 1], [1, 1, 2])
    return CameraCalibration(
        model="pinhole",
        fx=float(rng.uniform(15, 30)),
        fy=float(rng.uniform(15, 30)),
        cx=float(rng.uniform(15, 25)),
        cy=float(rng.uniform(8, 16)),
        camera_to_ego=Pose(rotation_wxyz=quaternion_from_matrix(rotation), translation_m=(x, y, z)),
        width=IMAGE_SIZE[1],
        height=IMAGE_SIZE[0],
    )


def calibration_tensors(
    rigs: list[list[CameraCalibration]], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    intrinsics = np.array([[intrinsic_matrix(camera) for camera in rig] for rig in rigs])
    poses = np.array([[pose_matrix(camera.camera_to_ego) for camera in rig] for rig in rigs])
    return torch.tensor(intrinsics, dtype=dtype), torch.tensor(poses, dtype=dtype)


def bilinear(image_Chw: NDArray[np.float64], column: float, row: float) -> NDArray[np.float64]:
    """At pixel coordinates whose integers are pixel edges; the border repeats."""
    _, height, width = image_Chw.shape
    column, row = np.clip(column, 0.5, width - 0.5) - 0.5, np.clip(row, 0.5, height - 0.5) - 0.5
    left, top = min(int(column), width - 2), min(int(row), height - 2)
    a, b = column - left, row - top
    return np.asarray(
        (1 - a) * (1 - b) * image_Chw[:, top, left]
        + a * (1 - b) * image_Chw[:, top, left + 1]
        + (1 - a) * b * image_Chw[:, top + 1, left]
        + a * b * image_Chw[:, top + 1, left + 1]
    )


def sample_by_loops(
    feats_BTNChw: NDArray[np.float64],
    points_ZXY3: NDArray[np.float64],
    rigs: list[list[CameraCalibration]],
    max_views: int,
) -> NDArray[np.float64]:
    B, T, _, C, h, w = feats_BTNChw.shape
    height, width = IMAGE_SIZE
    out = np.zeros((B, T, C, *points_ZXY3.shape[:3]))
    for b, t, *place in np.ndindex(B, T, *points_ZXY3.shape[:3]):
        samples = []
        for n, camera in enumerate(rigs[b]):
            uv, depth = project_points(camera, points_ZXY3[tuple(place)])
            if depth >= MIN_DEPTH_M and 0 <= uv[0] <= width and 0 <= uv[1] <= height:
                samples.append(
                    bilinear(feats_BTNChw[b, t, n], uv[0] / width * w, uv[1] / height * h)
                )
        if samples:
            out[(b, t, slice(None), *place)] = np.mean(samples[:max_views], axis=0)
    return out


@pytest.mark.parametrize("max_views", [1, 2, 3])
@pytest.mark.parametrize(
    ("num_clips", "num_frames", "num_cameras", "channels", "feat_size", "points_shape"),
    [
        (2, 2, 3, 3, (3, 5), (2, 5, 4)),
        (1, 1, 1, 1, (6, 10), (1, 3, 7)),
        (1, 3, 4, 2, (4, 2), (3, 1, 9)),
    ],
)
def test_equals_a_loop_over_cameras(
    num_clips: int,
    num_frames: int,
    num_cameras: int,
    channels: int,
    feat_size: tuple[int, int],
    points_shape: tuple[int, int, int],
    max_views: int,
) -> None:
    rng = np.random.default_rng(max_views)
    # Headings half a field of view apart: many points are seen twice, some by three cameras.
    rigs = [[random_camera(rng, 0.5 * n) for n in range(num_cameras)] for _ in range(num_clips)]
    feats = rng.standard_normal((num_clips, num_frames, num_cameras, channels, *feat_size))
    points = rng.uniform([-3, -8, 0], [12, 8, 2], size=(*points_shape, 3))

    expected = sample_by_loops(feats, points, rigs, max_views)
    assert np.mean(expected != 0) > 0.1
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-4)):
        found = project_sample(
            torch.tensor(feats, dtype=dtype),
            torch.tensor(points, dtype=dtype),
            *calibration_tensors(rigs, dtype),
            IMAGE_SIZE,
            max_views,
        )
        assert found.dtype == dtype
        np.testing.assert_allclose(found.numpy(), expected, atol=tolerance)


def test_two_views_are_averaged_and_none_is_zero() -> None:
    camera = random_camera(np.random.default_rng(0), 0.0)
    feats = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1, 1, 1).expand(1, 1, 2, 1, 3, 5)
    points = torch.tensor([[10.0, 0.0, 1.0], [-10.0, 0.0, 1.0]]).view(1, 2, 1, 3)
    calibration = calibration_tensors([[camera, camera]], torch.float32)

    both = project_sample(feats, points, *calibration, IMAGE_SIZE, 2)
    only_first = project_sample(feats, points, *calibration, IMAGE_SIZE, 1)

    torch.testing.assert_close(both.flatten(), torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(only_first.flatten(), torch.tensor([1.0, 0.0]))


def test_gradient_in_double_precision() -> None:
    rng = np.random.default_rng(3)
    rigs = [[random_camera(rng, 0.5 * n) for n in range(3)]]
    points = torch.tensor(rng.uniform([1, -4, 0], [9, 4, 2], size=(2, 3, 2, 3)))
    feats = torch.randn(1, 2, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    calibration = calibration_tensors(rigs, torch.float64)

    assert torch.autograd.gradcheck(
        lambda f: project_sample(f, points, *calibration, IMAGE_SIZE, 2), (feats,)
    )


def test_low_precision_features_keep_exact_coordinates() -> None:
    rng = np.random.default_rng(4)
    rigs = [[random_camera(rng, 0.0)]]
    points = torch.tensor(rng.uniform([2, -4, 0], [9, 4, 2], size=(1, 4, 4, 3))).float()
    # A ramp over the columns: the sample tells at which column it was taken.
    feats = torch.arange(64.0).expand(1, 1, 1, 1, 2, 64)
    calibration = calibration_tensors(rigs, torch.float32)

    exact = project_sample(feats, points, *calibration, IMAGE_SIZE, 1)
    rounded = project_sample(feats.bfloat16(), points, *calibration, IMAGE_SIZE, 1)

    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, exact.bfloat16())
