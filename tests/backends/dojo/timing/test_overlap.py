"""Against a pipeline of two buffers that is played step by step."""

import pytest
from fsdtrain_dojo.timing.cost import Resource, TransferCost
from fsdtrain_dojo.timing.overlap import overlap
from fsdtrain_dojo.timing.step_loads import StepPlan, Visits
from hypothesis import given
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
    """One memory serves in order; loads of a step wait for the buffer two steps before."""
    memory = 0.0
    computed = [0.0] * (steps + 1)
    arrived = [0.0] * (steps + 1)
    end = 0.0
    waiting = []  # stores: computed, not yet written
    for step in range(1, steps + 1):
        free = computed[step - 2] if step > 2 else 0.0
        while waiting and max(memory, waiting[0]) < free:  # loads go first
            memory = max(memory, waiting.pop(0)) + store_s
            end = memory + latency
        begin = max(memory, free)
        memory = begin + load_s
        arrived[step] = memory + latency
        computed[step] = max(arrived[step], computed[step - 1]) + compute_s
        waiting.append(computed[step])
    for ready in waiting:
        memory = max(memory, ready) + store_s
        end = memory + latency
    return end


@given(
    steps=st.integers(1, 40),
    load_s=SECONDS,
    compute_s=SECONDS,
    store_s=SECONDS,
    latency=st.floats(0, 1),
)
def test_a_stream_takes_as_long_as_when_it_is_played(steps, load_s, compute_s, store_s, latency):
    played = play(steps, load_s, compute_s, store_s, latency)
    found = overlap(
        stream(steps),
        steps * compute_s,
        [hbm(steps * load_s, latency)],
        [hbm(steps * store_s, latency)],
        cache_bytes=0,
    )
    # What the memory serves first when both wait is a matter of luck, most so in few steps.
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
