import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.geometry import BevGrid
from fsdtrain.heads.ego_path import (
    CROSSINGS,
    PATH,
    PATH_VALID,
    EgoPath,
    PathTargets,
    fit_curvature,
    follow_arc,
    path_crossings,
    speed_from_motion,
)

GRID = BevGrid(x_min_m=-8.0, x_max_m=8.0, y_min_m=-5.5, y_max_m=5.5, cell_m=0.5)
MakePose = Callable[[float, float, float], np.ndarray]


def make_head() -> EgoPath:
    return EgoPath(
        in_channels=4,
        grid=GRID,
        num_modes=3,
        curvature_spread=0.0,
        num_steps=6,
        step_s=0.5,
        report_s=2.0,
        channels=2,
        hidden=8,
        loss_weight=1.0,
        crossing_weight=1.0,
    )


def test_targets_follow_a_circle(make_window: Callable[..., ClipWindow], pose: MakePose) -> None:
    """10 m/s on a circle of 50 m to the left, from any heading in the world."""
    speed, radius, start_yaw = 10.0, 50.0, 0.7

    def on_circle(seconds: float) -> np.ndarray:
        angle = speed * seconds / radius
        x, y = radius * np.sin(angle), radius * (1 - np.cos(angle))
        cos, sin = np.cos(start_yaw), np.sin(start_yaw)
        return pose(3 + cos * x - sin * y, -2 + sin * x + cos * y, start_yaw + angle)

    future_s = np.arange(0, 2.3, 0.1).tolist()
    window = make_window(
        poses=[on_circle(-0.2), on_circle(0.0)],
        future_s=future_s,
        future_poses=[on_circle(seconds) for seconds in future_s],
    )
    targets = pickle.loads(pickle.dumps(PathTargets(grid=GRID, num_steps=6, step_s=0.5)))(window)

    assert targets[PATH].dtype == np.float32
    assert targets[PATH_VALID].tolist() == [True] * 4 + [False] * 2
    angles = speed * 0.5 * np.arange(1, 5) / radius
    expected = radius * np.stack([np.sin(angles), 1 - np.cos(angles)], axis=-1)
    np.testing.assert_allclose(targets[PATH][:4], expected, atol=1e-5)
    assert np.isfinite(targets[PATH]).all()


def test_targets_without_a_future_are_not_valid(make_window: Callable[..., ClipWindow]) -> None:
    targets = PathTargets(grid=GRID, num_steps=6, step_s=0.5)(make_window())
    assert not targets[PATH_VALID].any()
    assert np.isfinite(targets[PATH]).all()


def path_targets(num_clips: int) -> dict[str, torch.Tensor]:
    return {
        PATH: torch.randn(num_clips, 6, 2),
        PATH_VALID: torch.ones(num_clips, 6, dtype=torch.bool),
        CROSSINGS: torch.zeros(num_clips, 16, 22),
    }


def test_speed_comes_from_the_motion_between_frames(
    make_batch: Callable[..., ClipBatch],
) -> None:
    forward_m = torch.tensor([2.0, -0.4])
    batch = make_batch(path_targets(2), forward_m=forward_m, interval_s=0.2)
    torch.testing.assert_close(speed_from_motion(batch), torch.tensor([10.0, -2.0]))
    single = make_batch(path_targets(2), num_frames=1)
    assert speed_from_motion(single).tolist() == [0, 0]


def test_with_nothing_read_the_path_is_straight_at_that_speed(
    make_batch: Callable[..., ClipBatch],
) -> None:
    head = make_head()
    torch.nn.init.zeros_(head.correct.weight)
    torch.nn.init.zeros_(head.cross.weight)
    batch = make_batch(path_targets(2), forward_m=torch.tensor([2.0, 0.0]))
    outputs = head(torch.randn(2, 1, 4, *GRID.shape), batch)
    assert outputs["path_BKS2"].shape == (2, 3, 6, 2)
    assert outputs["mode_logits_BK"].shape == (2, 3)
    expected = torch.zeros(3, 6, 2)
    expected[..., 0] = 10.0 * 0.5 * torch.arange(1, 7)
    torch.testing.assert_close(outputs["path_BKS2"][0], expected)
    assert not outputs["path_BKS2"][1].any()


def test_the_ego_state_is_not_read(make_batch: Callable[..., ClipBatch]) -> None:
    head, bev, targets = make_head(), torch.randn(2, 1, 4, *GRID.shape), path_targets(2)
    head.eval()
    slow = head(bev, make_batch(targets, speed_mps=1.0, yaw_rate_radps=0.1))
    fast = head(bev, make_batch(targets, speed_mps=9.0, yaw_rate_radps=-0.4))
    for name, value in slow.items():
        assert torch.equal(value, fast[name])


def test_baselines_are_exact_where_they_should_be(make_batch: Callable[..., ClipBatch]) -> None:
    """A true path on a circle: constant turn rate is right, constant velocity is not."""
    speed, yaw_rate = 8.0, 0.25
    angles = yaw_rate * 0.5 * torch.arange(1, 7)
    path = speed / yaw_rate * torch.stack([angles.sin(), 1 - angles.cos()], -1)
    targets = {PATH: path[None], PATH_VALID: torch.ones(1, 6, dtype=torch.bool)}
    batch = make_batch(targets, speed_mps=speed, yaw_rate_radps=yaw_rate)
    metric = make_head().metric()
    metric.update({"path_BKS2": path[None, None], "mode_logits_BK": torch.zeros(1, 1)}, batch)
    figures = metric.compute()
    assert figures["fde_2s_turn"] == 0
    assert figures["fde_2s_turn_baseline_constant_turn_rate"].item() == pytest.approx(0, abs=1e-5)
    expected = np.hypot(16 - path[3, 0].item(), path[3, 1].item())
    assert figures["fde_2s_turn_baseline_constant_velocity"].item() == pytest.approx(expected)


def test_learns_a_bend_from_the_features(make_batch: Callable[..., ClipBatch]) -> None:
    torch.manual_seed(0)
    head = make_head()
    bend = torch.tensor([1.0, -1.0] * 4)
    bev = torch.randn(8, 1, 4, *GRID.shape) * 0.1
    bev[:, 0, 0, 20:, :] += bend[:, None, None]
    path = torch.zeros(8, 6, 2)
    path[..., 0] = 5.0 * torch.arange(1, 7)
    path[..., 1] = bend[:, None] * 0.2 * torch.arange(1, 7) ** 2
    crossings = [path_crossings(np.vstack([[0, 0], places]), GRID) for places in path.numpy()]
    targets = {
        PATH: path,
        PATH_VALID: torch.ones(8, 6, dtype=torch.bool),
        CROSSINGS: torch.from_numpy(np.stack(crossings)),
    }
    batch = make_batch(targets, forward_m=torch.full((8,), 2.0), speed_mps=10.0)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.stack([*head.loss(head(bev, batch), batch).values()]).sum()
        torch.autograd.backward(loss)
        optimizer.step()
    metric = head.metric()
    metric.update(head(bev, batch), batch)
    figures = metric.compute()
    assert figures["fde_2s_turn"] < 0.2 * figures["fde_2s_turn_baseline_constant_velocity"]


def test_crossings_are_where_the_path_meets_each_row() -> None:
    """A parabola: the mean of each row's shares is its y, as far as the path goes."""
    x = np.linspace(0, 6.2, 200)
    shares_RY = path_crossings(np.stack([x, 0.05 * x**2], axis=-1), GRID)
    assert shares_RY.shape == (16, 22)
    centers = GRID.cell_centers()
    x_R, y_Y = centers[16:, 0, 0], centers[0, :, 1]
    is_reached = x_R <= 6.2
    np.testing.assert_allclose(shares_RY.sum(1), is_reached, atol=1e-6)
    # Shares over whole cells: off by less than a fifth of a cell.
    error = (shares_RY @ y_Y)[is_reached] - 0.05 * x_R[is_reached] ** 2
    assert np.abs(error).max() < 0.2 * GRID.cell_m


def test_a_path_that_turns_back_counts_until_there() -> None:
    places = np.array([[0, 0], [2.0, 0], [4.0, 1.0], [3.0, 2.0], [6.0, 3.0]])
    is_reached = path_crossings(places, GRID).sum(1) > 0
    assert is_reached.tolist() == (GRID.cell_centers()[16:, 0, 0] <= 4.0).tolist()


def test_the_fit_finds_a_parabola_and_trusts_certain_rows() -> None:
    x = torch.arange(1.0, 13.0)
    curvature = torch.tensor([0.04, -0.01, 0.0])
    y = curvature[:, None] * x.square() / 2
    variance = torch.ones_like(y)
    torch.testing.assert_close(fit_curvature(x, y, variance), curvature)
    y[:, 5] += 10.0
    variance[:, 5] = 1e9
    torch.testing.assert_close(fit_curvature(x, y, variance), curvature)


def test_arcs_keep_their_length_radius_and_side() -> None:
    """Against the circle's equation, straight on included; gradients are finite there too."""
    distance = torch.tensor([3.0, 12.0, 30.0], dtype=torch.float64)
    for curvature in (0.05, -0.02, 1e-9):
        k = torch.tensor(curvature, dtype=torch.float64, requires_grad=True)
        on_arc = follow_arc(distance, k, torch.zeros_like(distance))
        radius = 1 / curvature
        from_center = on_arc - torch.tensor([0.0, radius], dtype=torch.float64)
        torch.testing.assert_close(from_center.norm(dim=-1), torch.full((3,), abs(radius)).double())
        beside = follow_arc(distance, k, torch.ones_like(distance))
        closer = torch.full((3,), abs(radius - 1)).double()
        torch.testing.assert_close(
            (beside - torch.tensor([0.0, radius], dtype=torch.float64)).norm(dim=-1), closer
        )
    straight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    ahead = follow_arc(distance, straight, torch.zeros_like(distance))
    torch.testing.assert_close(ahead[:, 0], distance)
    assert not ahead[:, 1].any()
    torch.autograd.backward(ahead.sum())
    assert straight.grad is not None
    # d/dc of y = c d^2 / 2 at c = 0.
    torch.testing.assert_close(straight.grad, distance.square().sum() / 2)
