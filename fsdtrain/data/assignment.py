"""Which clip goes where: pure functions of plain numbers, without any state or I/O.

The order of an epoch is a function of (seed, epoch) alone. Batches cut it into steps: step g of
B clips a rank on W ranks is order[g*B*W : (g+1)*B*W], and rank r takes its r-th part of B. So the
clips of a step depend on B*W only, not on how many ranks share them; every rank has the same number
of steps; and a run continues at any step on any number of ranks and workers. Worker k of K takes
steps k, k+K, ... of its rank, the order in which a DataLoader asks its workers in turn.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsdtrain.errors import UserError

# What becomes of the clips that do not fill the last step: left out of this epoch, or filled up
# with clips from the front of the order (marked, so that nothing need count them twice).
Tail = Literal["drop", "pad"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of the world that one process plays."""

    rank: int = 0
    world_size: int = 1
    batch_size: int = 1  # clips a rank and step

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and self.batch_size >= 1):
            raise UserError(
                f"rank {self.rank} of {self.world_size} with batch_size {self.batch_size}: the "
                "rank must lie below the world size, the batch size must be at least 1"
            )

    @property
    def clips_per_step(self) -> int:
        """Of all ranks together."""
        return self.batch_size * self.world_size


def epoch_order(num_clips: int, *, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """A permutation of 0..num_clips-1; the identity without `shuffle`."""
    if not shuffle:
        return np.arange(num_clips, dtype=np.int64)
    # Raw words of a bit generator, sorted: numpy keeps those streams for good, which it does not
    # promise for Generator.permutation, and a run may be resumed years later.
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_clips)
    return np.argsort(words, kind="stable").astype(np.int64)


def num_steps(num_clips: int, share: Share, tail: Tail) -> int:
    """Steps an epoch, the same on every rank.

    Raises:
        UserError: there is not one step.
    """
    steps = num_clips // share.clips_per_step
    if tail == "pad":
        steps = -(-num_clips // share.clips_per_step)
    if steps < 1:
        raise UserError(
            f"{num_clips} clips do not fill one step of {share.batch_size} clips on "
            f"{share.world_size} ranks; give more clips or a smaller data.batch_size"
        )
    return steps


def step_positions(step: int, share: Share) -> NDArray[np.int64]:
    """[B] positions in the epoch of this rank's clips in one step; past the end means padding."""
    first = step * share.clips_per_step + share.rank * share.batch_size
    return np.arange(first, first + share.batch_size, dtype=np.int64)


def worker_steps(num_steps: int, *, start_step: int, worker: int, num_workers: int) -> range:
    """The steps of start_step..num_steps-1 that one DataLoader worker prepares, in its order."""
    return range(start_step + worker, num_steps, num_workers)


def resume_step(num_samples_consumed: int, share: Share) -> int:
    """The step to continue at after that many samples of the epoch, over all ranks.

    Raises:
        UserError: the samples are no whole number of steps of this size, so that some would be
            trained twice or left out.
    """
    if num_samples_consumed % share.clips_per_step:
        raise UserError(
            f"the checkpoint ends after {num_samples_consumed} clips of its epoch, which is no "
            f"multiple of {share.batch_size} clips on {share.world_size} ranks; keep "
            "data.batch_size times the number of ranks as it was"
        )
    return num_samples_consumed // share.clips_per_step


def sample_rng(*, seed: int, epoch: int, position: int) -> np.random.Generator:
    """The randomness of one sample, whichever rank, worker or try makes it."""
    # The 1 keeps these streams apart from epoch_order's.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, 1, position])))
