from itertools import chain, zip_longest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fsdtrain.data.assignment import (
    Share,
    epoch_order,
    num_steps,
    resume_step,
    sample_rng,
    step_positions,
    worker_steps,
)
from fsdtrain.errors import UserError

sizes = st.integers(1, 60)
few = st.integers(1, 5)


def positions_of(rank: int, workers: int, start: int, clips: int, tail: str, **share: int) -> list:
    """One rank's positions, drawn from its workers in turn as a DataLoader does."""
    part = Share(rank=rank, **share)
    steps = num_steps(clips, part, tail)
    queues = [
        worker_steps(steps, start_step=start, worker=worker, num_workers=workers)
        for worker in range(workers)
    ]
    drawn = [step for turn in zip_longest(*queues) for step in turn if step is not None]
    return list(chain.from_iterable(step_positions(step, part).tolist() for step in drawn))


@given(sizes, few, few, st.integers(1, 7))
def test_padding_covers_every_position_once_and_ranks_are_even(clips, world, workers, batch):
    ranks = [
        positions_of(rank, workers, 0, clips, "pad", world_size=world, batch_size=batch)
        for rank in range(world)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    every = sorted(chain.from_iterable(ranks))
    assert every == list(range(len(every)))  # none twice
    assert clips <= len(every) < clips + world * batch  # none lost, less than a step of padding


@given(sizes, few, few, st.integers(1, 7))
def test_dropping_loses_less_than_a_step_and_doubles_nothing(clips, world, workers, batch):
    if clips < world * batch:
        with pytest.raises(UserError, match=f"{clips} clips do not fill"):
            num_steps(clips, Share(world_size=world, batch_size=batch), "drop")
        return
    ranks = [
        positions_of(rank, workers, 0, clips, "drop", world_size=world, batch_size=batch)
        for rank in range(world)
    ]
    every = sorted(chain.from_iterable(ranks))
    assert every == list(range(len(every)))
    assert clips - world * batch < len(every) <= clips


@given(sizes, few, few, few, st.integers(0, 10))
def test_resuming_on_other_ranks_and_workers_continues_exactly(clips, world, workers, batch, done):
    """B*W stays, W and the workers change: the steps still to come hold the same clips."""
    global_batch = world * batch
    steps = num_steps(clips, Share(world_size=world, batch_size=batch), "pad")
    done = min(done, steps)
    alone = positions_of(0, 1, 0, clips, "pad", world_size=1, batch_size=global_batch)
    start = resume_step(done * global_batch, Share(world_size=world, batch_size=batch))
    ranks = [
        positions_of(rank, workers, start, clips, "pad", world_size=world, batch_size=batch)
        for rank in range(world)
    ]
    per_step = [
        sorted(chain.from_iterable(rank[i * batch : (i + 1) * batch] for rank in ranks))
        for i in range(steps - start)
    ]
    assert list(chain.from_iterable(per_step)) == alone[done * global_batch :]


@given(st.integers(0, 300), st.integers(0, 2**31), st.integers(0, 1000))
def test_order_is_a_permutation_that_depends_on_seed_and_epoch(clips, seed, epoch):
    order = epoch_order(clips, seed=seed, epoch=epoch, shuffle=True)
    assert sorted(order.tolist()) == list(range(clips))
    np.testing.assert_array_equal(order, epoch_order(clips, seed=seed, epoch=epoch, shuffle=True))
    if clips > 20:
        for other in (
            epoch_order(clips, seed=seed, epoch=epoch + 1, shuffle=True),
            epoch_order(clips, seed=seed + 1, epoch=epoch, shuffle=True),
        ):
            assert (order != other).any()


def test_order_is_frozen():
    """A resumed run must see the order of the run it continues, on every version of numpy."""
    assert epoch_order(8, seed=1, epoch=2, shuffle=True).tolist() == [7, 1, 3, 0, 4, 2, 6, 5]
    assert epoch_order(4, seed=1, epoch=2, shuffle=False).tolist() == [0, 1, 2, 3]


def test_shuffling_is_even():
    """Each clip stands in each place about as often."""
    counts = np.zeros((5, 5))
    for epoch in range(2000):
        counts[np.arange(5), epoch_order(5, seed=3, epoch=epoch, shuffle=True)] += 1
    chi_squared = ((counts - 400) ** 2 / 400).sum()
    assert chi_squared < 40  # 16 degrees of freedom: 99.9 % lie below 39.3


def test_sample_streams_differ_and_repeat():
    draws = {
        (seed, epoch, position): sample_rng(seed=seed, epoch=epoch, position=position).random()
        for seed in range(3)
        for epoch in range(3)
        for position in range(20)
    }
    assert len(set(draws.values())) == len(draws)
    assert sample_rng(seed=2, epoch=1, position=7).random() == draws[2, 1, 7]


def test_a_checkpoint_between_steps_of_another_size_is_refused():
    with pytest.raises(UserError, match="data.batch_size times the number of ranks"):
        resume_step(12, Share(world_size=2, batch_size=4))
    with pytest.raises(UserError, match="rank 2 of 2"):
        Share(rank=2, world_size=2)


class Steps(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        return iter(worker_steps(11, start_step=2, worker=info.id, num_workers=info.num_workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_real_dataloader_keeps_the_order_of_the_steps(workers):
    loader = DataLoader(Steps(), batch_size=None, num_workers=workers)
    assert [int(torch.as_tensor(step)) for step in loader] == list(range(2, 11))
