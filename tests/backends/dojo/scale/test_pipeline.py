"""Stages of a pipeline."""

import pytest
from fsdtrain_dojo.scale.pipeline import bubble_share, time_pipeline

from tests.backends.dojo.scale.stubs import replica


def no_time(num_bytes: float) -> float:
    return 0.0


@pytest.mark.parametrize(("stages", "batch"), [(2, 1), (4, 7), (4, 32), (8, 24)])
def test_the_bubble_is_p_minus_1_over_m_plus_p_minus_1(stages, batch):
    time = time_pipeline(replica(1.2, batch_size=batch), stages, no_time)
    assert time.num_microbatches == batch  # more are never worse where nothing is fixed
    share = time.bubble_s / time.forward_backward_s
    assert share == pytest.approx(bubble_share(stages, batch))
    assert share == pytest.approx((stages - 1) / (batch + stages - 1))
    assert time.work_s == pytest.approx(1.0 / stages)
    assert time.seconds == pytest.approx(time.forward_backward_s + 0.2 / stages)


def test_one_stage_is_the_replica_itself():
    one = replica(1.2, fixed_s=0.3)
    time = time_pipeline(one, 1, no_time)
    assert (time.seconds, time.bubble_s, time.transfer_s) == (1.2, 0, 0)
    assert [each.ready_s for each in time.gradients] == pytest.approx(
        [each.ready_s for each in one.gradients]
    )


def test_what_does_not_shrink_with_the_batch_limits_the_number_of_microbatches():
    counts = [
        time_pipeline(replica(1.2, fixed_s=fixed), 4, no_time).num_microbatches
        for fixed in (0.0, 0.01, 0.3, 1.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 240
    assert counts[-1] == 1


def test_messages_between_stages_are_waited_for():
    one = replica(1.2, batch_size=4, cut_bytes=(4.0,))
    free = time_pipeline(one, 2, no_time)
    slow = time_pipeline(one, 2, lambda num_bytes: 0.25 * num_bytes)
    # 4 micro-batches: a message takes 0.25 s, a stage 0.125 s: 5 turns of 0.25 s, and 2 messages
    assert free.forward_backward_s == pytest.approx(5 * 0.125)
    assert slow.forward_backward_s == pytest.approx(min(5 * 0.25 + 2 * 0.25, 3 * 0.5 + 1.0, 4.0))


def test_gradients_are_ready_when_the_last_microbatch_has_passed():
    time = time_pipeline(replica(1.2), 4, no_time)
    ready = [each.ready_s for each in time.gradients]
    assert ready == sorted(ready)
    assert ready[-1] == pytest.approx(time.forward_backward_s)
    assert sum(each.num_bytes for each in time.gradients) == pytest.approx(184e6)
