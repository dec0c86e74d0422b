"""Young and Daly: against published anchors, a plain search, and a training that is played."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdtrain.planning.failures import (
    best_goodput,
    daly_interval,
    useful_share,
    young_interval,
)

HOUR = 3600.0
MTBF_1024 = 7.9 * HOUR  # of 1,024 GPUs


def play(
    interval_s: float, checkpoint_s: float, mtbf_s: float, restart_s: float, num_pieces: int
) -> float:
    """Useful share of a training whose stops are drawn one by one."""
    draw = random.Random(3)
    clock = 0.0
    next_stop = draw.expovariate(1 / mtbf_s)
    done = 0
    while done < num_pieces:
        end = clock + interval_s + checkpoint_s
        if end <= next_stop:
            clock, done = end, done + 1
            continue
        # The piece is lost; restarts may be stopped, too.
        clock = next_stop
        next_stop = clock + draw.expovariate(1 / mtbf_s)
        while clock + restart_s > next_stop:
            clock = next_stop
            next_stop = clock + draw.expovariate(1 / mtbf_s)
        clock += restart_s
    return num_pieces * interval_s / clock


@pytest.mark.parametrize(
    ("checkpoint_s", "mtbf_s", "restart_s"),
    [(5.0, MTBF_1024, 300.0), (30.0, MTBF_1024, 0.0), (60.0, 1000.0, 200.0), (5.0, 60.0, 20.0)],
)
def test_agrees_with_a_training_that_is_played(
    checkpoint_s: float, mtbf_s: float, restart_s: float
) -> None:
    found = best_goodput(checkpoint_s=checkpoint_s, mtbf_s=mtbf_s, restart_s=restart_s)
    assert found.interval_s is not None
    played = play(found.interval_s, checkpoint_s, mtbf_s, restart_s, num_pieces=100_000)
    assert found.useful_share == pytest.approx(played, rel=0.01)


@pytest.mark.parametrize(("checkpoint_s", "loss"), [(5.0, 0.019), (30.0, 0.046)])
def test_published_anchors_of_1024_gpus(checkpoint_s: float, loss: float) -> None:
    found = best_goodput(checkpoint_s=checkpoint_s, mtbf_s=MTBF_1024, restart_s=0.0)
    assert 1 - found.useful_share == pytest.approx(loss, abs=0.001)
    if checkpoint_s == 5:
        assert young_interval(checkpoint_s, MTBF_1024) == pytest.approx(530, abs=5)
        assert found.interval_s == pytest.approx(530, abs=5)
        slow = best_goodput(checkpoint_s=checkpoint_s, mtbf_s=MTBF_1024, restart_s=300.0)
        assert found.useful_share - slow.useful_share == pytest.approx(0.01, abs=0.001)


@given(
    st.floats(min_value=0.1, max_value=600),
    st.floats(min_value=1e3, max_value=1e7),
)
def test_no_other_interval_is_much_better(checkpoint_s: float, mtbf_s: float) -> None:
    best = daly_interval(checkpoint_s, mtbf_s)

    def share(interval_s: float) -> float:
        return useful_share(interval_s, checkpoint_s=checkpoint_s, mtbf_s=mtbf_s, restart_s=0.0)

    others = [share(best * 2 ** (step / 20)) for step in range(-60, 61)]
    assert share(best) >= 0.998 * max(others)


def test_without_stops_all_time_is_useful() -> None:
    found = best_goodput(checkpoint_s=30.0, mtbf_s=math.inf, restart_s=300.0)
    assert found.useful_share == 1.0
    assert found.interval_s is None


def test_where_checkpoints_cost_nothing_only_restarts_are_lost() -> None:
    found = best_goodput(checkpoint_s=0.0, mtbf_s=1000.0, restart_s=100.0)
    tiny = best_goodput(checkpoint_s=1e-6, mtbf_s=1000.0, restart_s=100.0)
    assert found.useful_share == pytest.approx(tiny.useful_share, rel=1e-3)


def test_a_training_that_stops_before_it_starts_never_ends() -> None:
    assert best_goodput(checkpoint_s=1.0, mtbf_s=1.0, restart_s=1000.0).useful_share == 0.0


@given(st.floats(min_value=10, max_value=1e6), st.floats(min_value=1.01, max_value=10))
def test_rarer_stops_are_never_worse(mtbf_s: float, factor: float) -> None:
    few, many = (
        best_goodput(checkpoint_s=5.0, mtbf_s=each, restart_s=60.0).useful_share
        for each in (mtbf_s * factor, mtbf_s)
    )
    assert few >= many
