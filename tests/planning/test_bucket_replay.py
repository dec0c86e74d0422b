import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from fsdtrain.planning.bucket_replay import (
    BUCKET_BYTES,
    FIRST_BUCKET_BYTES,
    bucket_ends,
    replay_buckets,
)
from fsdtrain.planning.gradients import Gradient


def gradients(*pairs: tuple[float, float]) -> tuple[Gradient, ...]:
    return tuple(Gradient(num_bytes=num_bytes, ready_s=ready_s) for num_bytes, ready_s in pairs)


@given(
    sizes=st.lists(st.integers(1, 12_000_000), min_size=1, max_size=40),
    limits=st.sampled_from([(2**20, 25 * 2**20), (25 * 2**20,), (1, 2**22)]),
)
def test_buckets_are_those_of_torch(sizes: list[int], limits: tuple[int, ...]) -> None:
    tensors = [torch.empty(size, device="meta") for size in sizes]
    theirs, _ = dist._compute_bucket_assignment_by_size(tensors, list(limits))
    ends = bucket_ends([4 * size for size in sizes], limits)
    ours = [list(range(a, b)) for a, b in zip((0, *ends), ends, strict=False)]
    assert ours == theirs


def test_limits_are_those_of_torch() -> None:
    assert FIRST_BUCKET_BYTES == dist._DEFAULT_FIRST_BUCKET_BYTES
    assert BUCKET_BYTES == 25 * 2**20


def test_only_the_tail_is_exposed() -> None:
    """Three buckets of 10, 10, 10 bytes at 1 byte/s, the last one ready when the pass ends."""
    replay = replay_buckets(
        gradients((10, 20.0), (10, 50.0), (10, 100.0)), 100.0, lambda size: size, limits=(10,)
    )
    assert [(each.start_s, each.end_s) for each in replay.buckets] == [
        (20, 30),
        (50, 60),
        (100, 110),
    ]
    assert replay.exposed_s == 10.0
    assert replay.exchange_s == 30.0


def test_a_slow_network_works_through_its_queue() -> None:
    replay = replay_buckets(
        gradients((10, 20.0), (10, 50.0), (10, 100.0)), 100.0, lambda size: 9 * size, limits=(10,)
    )
    assert replay.exposed_s == 20.0 + 3 * 90.0 - 100.0


def test_an_exchange_that_takes_all_cores_hides_nothing() -> None:
    replay = replay_buckets(
        gradients((10, 20.0), (10, 50.0), (10, 100.0)),
        100.0,
        lambda size: 3 * size,
        limits=(10,),
        rate_left=0.0,
    )
    assert replay.exposed_s == pytest.approx(90.0)


def test_an_exchange_that_takes_half_the_cores_delays_by_half() -> None:
    """One early bucket: while it takes 40 s the pass gets on by 20 s, and ends 20 s later."""
    replay = replay_buckets(
        gradients((10, 20.0), (1, 100.0)),
        100.0,
        lambda size: 40.0 if size == 10 else 0.0,
        limits=(10,),
        rate_left=0.5,
    )
    assert replay.exposed_s == pytest.approx(20.0)


def test_nothing_to_exchange() -> None:
    assert replay_buckets((), 3.0, lambda size: size).exposed_s == 0.0


SCHEDULES = st.lists(
    st.tuples(st.floats(1.0, 1e8), st.floats(0.0, 1.0)), min_size=1, max_size=30
).map(lambda pairs: gradients(*sorted(pairs, key=lambda pair: pair[1])))


@given(
    schedule=SCHEDULES,
    bytes_per_s=st.floats(1e6, 1e12),
    factor=st.floats(1.0, 100.0),
    rate_left=st.floats(0.0, 1.0),
)
def test_exposed_time_is_between_its_bounds_and_falls_with_bandwidth(
    schedule, bytes_per_s, factor, rate_left
) -> None:
    def replay(rate: float, left: float):
        return replay_buckets(schedule, 1.0, lambda size: 1e-5 + size / rate, rate_left=left)

    slow = replay(bytes_per_s, rate_left)
    last = slow.buckets[-1]
    assert slow.exchange_s * (1 + 1e-9) + 1e-9 >= slow.exposed_s
    assert slow.exposed_s + 1e-9 >= last.end_s - last.start_s - (1.0 - schedule[-1].ready_s)
    assert replay(bytes_per_s * factor, rate_left).exposed_s <= slow.exposed_s + 1e-9
    assert replay(bytes_per_s, 1.0).exposed_s <= slow.exposed_s + 1e-9


@given(schedule=SCHEDULES, bytes_per_s=st.floats(1e6, 1e12))
def test_replay_is_the_maximum_over_where_the_queue_last_stood_idle(schedule, bytes_per_s) -> None:
    """Closed form of a queue: the latest of (ready + all that is served from there on)."""
    replay = replay_buckets(schedule, 1.0, lambda size: size / bytes_per_s, limits=(2**20,))
    ends = bucket_ends([each.num_bytes for each in schedule], (2**20,))
    ready = [schedule[end - 1].ready_s for end in ends]
    took = [each.num_bytes / bytes_per_s for each in replay.buckets]
    latest = max(ready[at] + sum(took[at:]) for at in range(len(ends)))
    assert replay.end_s == pytest.approx(max(latest, 1.0), rel=1e-9)
