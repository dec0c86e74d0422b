"""The all-reduce beside the backward pass."""

import pytest
from fsdtrain_dojo.scale.all_reduce import AllReduce
from fsdtrain_dojo.scale.overlap import bucketise, overlap
from fsdtrain_dojo.scale.replica import Gradient

GRADIENTS = [Gradient(num_bytes=1.0, ready_s=1.0 + each) for each in range(8)]  # ready at 1 ... 8


def cost(scatter: float, network: float, gather: float, *, latency: float = 0.0):
    """Seconds a byte of each phase, and of every block besides."""

    def all_reduce(num_bytes: float) -> AllReduce:
        phases = [num_bytes * each + latency for each in (scatter, network, gather)]
        return AllReduce(
            scatter_s=phases[0], network_s=phases[1], gather_s=phases[2], memory_s=0.0,
            how="", num_bytes={}, joules=num_bytes,
        )  # fmt: skip

    return all_reduce


def test_buckets_hold_every_gradient_once_and_wait_for_their_last():
    for count in (1, 2, 4, 8):
        buckets = bucketise(GRADIENTS, count)
        assert [each.num_bytes for each in buckets] == [8 / count] * count
        assert [each.ready_s for each in buckets] == [8 / count * (1 + i) for i in range(count)]
    uneven = [Gradient(num_bytes=size, ready_s=at) for size, at in ((9, 3), (1, 1), (2, 2), (1, 4))]
    assert [(each.num_bytes, each.ready_s) for each in bucketise(uneven, 2)] == [(12, 3), (1, 4)]


def test_what_is_left_after_the_last_gradient_is_exposed():
    # each bucket takes 0.5 s, a gradient comes every second: only the last one is waited for
    quick = overlap(GRADIENTS, 8.0, 0.0, cost(0.5, 0, 0))
    assert (quick.num_buckets, quick.exposed_s) == (8, pytest.approx(0.5))
    assert quick.hidden_share == pytest.approx(1 - 0.5 / 4)
    # each takes 2 s: the mesh works from 1 s on without a pause
    slow = overlap(GRADIENTS, 8.0, 0.0, cost(2, 0, 0))
    assert slow.end_s == pytest.approx(1 + 16)


def test_mesh_and_network_work_at_the_same_time():
    both = overlap(GRADIENTS, 8.0, 0.0, cost(1, 2, 1))
    alone = both.mesh_s + both.network_s
    assert both.alone_s < alone
    assert both.alone_s >= max(both.mesh_s, both.network_s)


def test_the_network_sums_one_bucket_after_another():
    # from the first gradient on, at 1 s, it works for 8 x 2 s
    assert overlap(GRADIENTS, 8.0, 0.0, cost(0, 2, 0)).end_s == pytest.approx(1 + 16)


def test_a_mesh_that_the_program_uses_is_slower_until_the_program_ends():
    free = overlap(GRADIENTS, 8.0, 0.0, cost(0.9, 0, 0))
    half = overlap(GRADIENTS, 8.0, 0.5, cost(0.9, 0, 0))
    full = overlap(GRADIENTS, 8.0, 1.0, cost(0.9, 0, 0))
    # at half speed 7 s hold 3.5 s of the 7.2 s of work
    assert half.end_s == pytest.approx(8 + 7.2 - 3.5)
    assert full.end_s == pytest.approx(8 + 7.2)
    assert free.end_s < half.end_s < full.end_s


def test_latency_makes_for_fewer_buckets():
    counts = [
        overlap(GRADIENTS, 8.0, 0.0, cost(0.5, 0, 0, latency=each)).num_buckets
        for each in (0.0, 0.4, 10.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1


def test_nothing_to_sum_takes_no_time():
    nothing = overlap((), 8.0, 0.3, cost(1, 1, 1))
    assert (nothing.exposed_s, nothing.end_s, nothing.hidden_share) == (0, 8, 1)
