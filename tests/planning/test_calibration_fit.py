import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdtrain.planning.calibration_fit import NAMES, SharedRing, TimedPoint, fit_ring
from fsdtrain.planning.network import Level, ring_s

KNOWN = SharedRing(
    num_cores=2, alpha_s=9e-5, contention=0.9, relief=0.15, bytes_per_s=3e9, chain=1.5, overlap=1.4
)
OTHER = SharedRing(
    num_cores=8, alpha_s=2e-5, contention=0.5, relief=0.05, bytes_per_s=8e9, chain=2.6, overlap=2.2
)
SIZES = tuple(2**power for power in range(14, 26))


def timed(ring: SharedRing, world_sizes: tuple[int, ...], noise: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [
        TimedPoint(
            world_size=world_size,
            num_bytes=size,
            time_s=ring.seconds(world_size, size) * float(np.exp(noise * rng.normal())),
        )
        for world_size in world_sizes
        for size in SIZES
    ]


@pytest.mark.parametrize("ring", [KNOWN, OTHER])
def test_fit_recovers_what_made_the_times(ring: SharedRing) -> None:
    found = fit_ring(timed(ring, (2, 4, 8, 24, 64), noise=0.0), ring.num_cores)
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(ring, name), rel=1e-2), name


@pytest.mark.parametrize("seed", range(3))
def test_fit_predicts_through_noise_and_disturbed_points(seed: int) -> None:
    """5 % of noise, and every eleventh point thrice too long: held-out world sizes within 5 %."""
    points = timed(KNOWN, (2, 4, 5, 8), noise=0.05, seed=seed)
    for at in range(0, len(points), 11):
        old = points[at]
        points[at] = TimedPoint(
            world_size=old.world_size, num_bytes=old.num_bytes, time_s=3 * old.time_s
        )
    found = fit_ring(points, 2)
    errors = [
        found.seconds(world_size, size) / KNOWN.seconds(world_size, size) - 1
        for world_size in (3, 6)
        for size in (48_000, 3_000_000, 20_000_000)
    ]
    assert np.max(np.abs(errors)) < 0.08
    assert np.median(np.abs(errors)) < 0.05


def test_two_world_sizes_do_not_bend_the_fit() -> None:
    straight = SharedRing(
        num_cores=2, alpha_s=9e-5, contention=0.7, relief=1e-3, bytes_per_s=3e9, chain=1.5,
        overlap=1.4,
    )  # fmt: skip
    found = fit_ring(timed(straight, (2, 4), noise=0.1), 2)
    assert found.relief == pytest.approx(straight.relief)
    for size in SIZES:
        assert found.seconds(3, size) == pytest.approx(straight.seconds(3, size), rel=0.15)


def test_with_a_core_for_each_rank_it_is_the_ring_of_the_network_model() -> None:
    """No chain, no overlap: two messages a step."""
    ring = SharedRing(
        num_cores=6,
        alpha_s=1e-5,
        contention=1.0,
        relief=1e-3,
        bytes_per_s=2e9,
        chain=1.0,
        overlap=1.0,
    )
    level = Level(name="loopback", num_devices=None, alpha_s=2e-5, bytes_per_s=2e9)
    assert ring.seconds(6, 1e7) == pytest.approx(ring_s(level, 6, 1e7))


@given(
    world_size=st.integers(2, 64),
    num_bytes=st.floats(1.0, 1e9),
    factor=st.floats(1.0, 100.0),
    overlap=st.floats(1.0, 8.0),
)
def test_time_lies_between_its_parts_and_their_sum(world_size, num_bytes, factor, overlap) -> None:
    ring = SharedRing(
        num_cores=2,
        alpha_s=9e-5,
        contention=0.9,
        relief=0.15,
        bytes_per_s=3e9,
        chain=1.5,
        overlap=overlap,
    )
    parts = ring.parts(world_size, num_bytes)
    seconds = ring.seconds(world_size, num_bytes)
    assert max(parts) <= seconds * (1 + 1e-12)
    assert seconds <= sum(parts) * (1 + 1e-12)
    assert ring.seconds(world_size, num_bytes * factor) >= seconds * (1 - 1e-12)
    assert ring.seconds(world_size + 1, num_bytes) > seconds


def test_more_ranks_never_make_a_message_quicker() -> None:
    """Beyond the ranks a core where the parabola turns, it stays at its top."""
    waits = [KNOWN.parts(size, 4)[0] / (size - 1) for size in (2, 4, 8, 40, 41, 400)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(waits[-2])


def test_one_process_has_nothing_to_sum() -> None:
    assert KNOWN.seconds(1, 1e6) == 0.0
