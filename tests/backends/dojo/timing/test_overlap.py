"""Against a pipeline of two buffers that is played step by step."""

from math import inf

import pytest
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.overlap import overlap
from fsdtrain_dojo.timing.step_loads import StepPlan, Visits
from hypothesis import example, given
from hypothesis import strategies as st

SECONDS = st.floats(0.01, 10)


def hbm(seconds, latency=0.0):
    return TransferCost(
        seconds=seconds + latency,
        latency_s=latency,
        busy_s={Resource.HBM: seconds},
        num_bytes={"HBM": 1e6 * seconds},
    )


def stream(steps, *, reads=1, writes=1):
    """Every step loads a piece of each operand and stores a piece of each result."""
    visits = Visits(pieces=steps, loads=(steps, 1) if steps > 1 else (1,))
    return StepPlan(
        counts=(steps,) if steps > 1 else (),
        reads=(visits,) * reads,
        write_pieces=(steps,) * writes,
        num_bytes=0,
    )


def play(steps, load_s, compute_s, store_s, latency):
    """One memory serves one thing at a time, in the better of two orders."""
    return min(
        play_in_order(steps, load_s, compute_s, store_s, latency, is_load_first=is_load_first)
        for is_load_first in (False, True)
    )


def play_in_order(steps, load_s, compute_s, store_s, latency, *, is_load_first):
    """Operands and results have two buffers each; what is ready first goes, then what is given."""
    memory, arrived, computed, left = 0.0, [], [], []  # by step; `left`: the result has gone
    while len(left) < steps:
        while len(computed) < min(len(arrived), len(left) + 2):
            step = len(computed)
            ready = [arrived[step], *computed[-1:]]
            if step >= 2:
                ready.append(left[step - 2])
            computed.append(max(ready) + compute_s)
        load = store = inf
        if len(arrived) < min(steps, len(computed) + 2):
            load = max(memory, computed[len(arrived) - 2]) if len(arrived) >= 2 else memory
        if len(left) < len(computed):
            store = max(memory, computed[len(left)])
        if load < store or (load == store and is_load_first):
            memory = load + load_s
            arrived.append(memory + latency)
        else:
            memory = store + store_s
            left.append(memory)
    return memory + latency


@given(
    steps=st.integers(1, 40),
    load_s=SECONDS,
    compute_s=SECONDS,
    store_s=SECONDS,
    latency=st.floats(0, 1),
)
@example(steps=5, load_s=4.0, compute_s=3.0, store_s=1.0, latency=1.0)  # stores wait for loads
def test_a_stream_takes_as_long_as_when_it_is_played(steps, load_s, compute_s, store_s, latency):
    played = play(steps, load_s, compute_s, store_s, latency)
    found = overlap(
        stream(steps),
        steps * compute_s,
        [hbm(steps * load_s, latency)],
        [hbm(steps * store_s, latency)],
        cache_bytes=0,
    )
    assert 0.8 * played <= found.seconds <= 1.05 * played
    busiest = max(compute_s, load_s + store_s)
    if busiest > 3 * (load_s + compute_s + store_s + latency - busiest):
        assert found.seconds == pytest.approx(played, rel=0.1)


def test_one_step_is_the_sum_of_its_parts():
    found = overlap(stream(1), 5.0, [hbm(2.0, 0.5)], [hbm(3.0, 0.25)], cache_bytes=0)
    assert found.seconds == 0.5 + 2 + 5 + 3 + 0.25
    assert found.fill_s == 0.5 + 2 + 3 + 0.25


def test_many_steps_come_near_to_the_busiest():
    found = overlap(stream(1000), 5.0, [hbm(2.0)], [hbm(1.0)], cache_bytes=0)
    assert found.seconds == pytest.approx(5.0, rel=0.001)


def test_short_steps_wait_for_latency():
    """Two buffers, each on its way for a latency: half a latency a step."""
    found = overlap(stream(100, writes=0), 0.1, [hbm(0.1, 1.0)], [], cache_bytes=0)
    assert found.seconds == pytest.approx(50, rel=0.05)


def test_transfers_over_different_resources_go_on_at_once():
    link = TransferCost(seconds=2.0, latency_s=0.0, busy_s={Resource.LINK: 2.0})
    plan = stream(1, reads=2, writes=0)
    assert overlap(plan, 1.0, [hbm(2.0), link], [], cache_bytes=0).seconds == 3
    assert overlap(plan, 1.0, [hbm(2.0), hbm(2.0)], [], cache_bytes=0).seconds == 5


def again(loads):
    return StepPlan(
        counts=(4, 2),
        reads=(Visits(pieces=2, loads=(loads, 2, 1)),),
        write_pieces=(),
        num_bytes=0,
    )


def test_what_is_loaded_again_counts_again():
    held, streamed = (
        overlap(again(loads), 0.0, [hbm(1.0)], [], cache_bytes=0).busy_s for loads in (2, 8)
    )
    assert held == {Resource.HBM: 1.0}
    assert streamed == {Resource.HBM: 4.0}


@pytest.mark.parametrize(
    ("cache_bytes", "seconds"), [(1e6, 1.0), (2e6, 1.0), (0.5e6, 2.5), (0, 4.0)]
)
def test_a_cache_gives_again_what_it_holds(cache_bytes, seconds):
    found = overlap(again(8), 0.0, [hbm(1.0)], [], cache_bytes=cache_bytes)
    assert found.busy_s == {Resource.HBM: pytest.approx(seconds)}
    assert found.times == ((pytest.approx(seconds), 4.0),)


def test_an_operand_that_is_held_arrives_during_the_first_sweep():
    """8 s of loads in the first of 4 sweeps, 4 s of work: three sweeps of work come after them."""
    found = overlap(again(2), 4.0, [hbm(8.0)], [], cache_bytes=0)
    assert found.seconds == pytest.approx(8 + 4 * 7 / 8)
