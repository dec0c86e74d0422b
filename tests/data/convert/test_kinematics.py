import numpy as np
import pytest

from fsdtrain.data.convert.kinematics import differentiate, track_ego
from fsdtrain.data.geometry import rotation_matrix, yaw_quaternion


def test_rates_of_a_parabola_are_exact_inside():
    """Second order: exact for a parabola at uneven times."""
    times_ns = [0, 90_000_000, 210_000_000, 280_000_000, 410_000_000]
    seconds = np.array(times_ns) / 1e9
    values = np.stack([3 * seconds**2 - seconds, 5 * seconds], axis=-1)
    rates = differentiate([t + 1_500_000_000_000_000_000 for t in times_ns], values)
    np.testing.assert_allclose(rates[1:-1, 0], (6 * seconds - 1)[1:-1], atol=1e-6)
    np.testing.assert_allclose(rates[:, 1], 5, atol=1e-6)


@pytest.mark.parametrize("heading", [0.0, 3.1, -2.0])
def test_a_circle_has_constant_speed_and_yaw_rate(heading):
    """10 m/s at 0.4 rad/s: forward speed, acceleration to the left of v * yaw rate."""
    times_ns = [50_000_000 * n for n in range(40)]
    angles = heading + 0.4 * np.array(times_ns) / 1e9
    poses = np.tile(np.eye(4), (40, 1, 1))
    for pose, angle in zip(poses, angles, strict=True):
        pose[:3, :3] = rotation_matrix(yaw_quaternion(angle))
        pose[:2, 3] = 25 * np.sin(angle), -25 * np.cos(angle)
    for state in track_ego(times_ns, poses).states[2:-2]:
        np.testing.assert_allclose(state.velocity_mps, (10, 0, 0), atol=0.01)
        np.testing.assert_allclose(state.acceleration_mps2, (0, 4, 0), atol=0.01)
        assert state.yaw_rate_radps == pytest.approx(0.4)


def test_one_pose_is_at_rest():
    (state,) = track_ego([7], np.eye(4)[None]).states
    assert state.timestamp_ns == 7
    assert state.velocity_mps == (0, 0, 0)
