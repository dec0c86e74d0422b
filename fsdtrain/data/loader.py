"""One process's loader: iterating it gives an epoch's ClipBatches, in order, resumable anywhere.

It owns the DataLoader and its workers, counts the clips that had to be skipped, and stops when they
exceed the budget. It knows neither Lightning nor which rank it is (see the plan's share).
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from fsdtrain.data.assignment import resume_step
from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.stream import (
    BadClip,
    Position,
    StreamBatch,
    StreamPlan,
    Tickets,
    batch_pipeline,
)
from fsdtrain.errors import DataError, UserError

logger = logging.getLogger(__name__)


class Quarantine:
    """The clips that could not be read, each once; raises when there are too many."""

    def __init__(self, max_bad_clips: int) -> None:
        self._max_bad_clips = max_bad_clips
        self._reasons: dict[tuple[str, int], str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, source: str, bad: BadClip) -> None:
        """Log and count a clip; DataError when that exceeds the budget."""
        key = (source, bad.clip_index)
        if key in self._reasons:
            return
        self._reasons[key] = bad.reason
        if len(self._reasons) > self._max_bad_clips:
            raise DataError(
                f"{len(self._reasons)} bad clips, data.max_bad_clips allows "
                f"{self._max_bad_clips}: {'; '.join(self._reasons.values())}"
            )
        logger.warning(
            "skipping a bad clip (%d of at most %d): %s",
            len(self._reasons), self._max_bad_clips, bad.reason,
        )  # fmt: skip


class ClipLoader:
    """An epoch of batches for each iteration.

    `state_dict` and `load_state_dict` follow Lightning's protocol for resumable loaders: the state
    counts clips over all ranks, so it may be loaded with any number of ranks and workers, as long
    as batch size times ranks stays.
    """

    def __init__(
        self,
        plan: StreamPlan,
        *,
        num_workers: int,
        quarantine: Quarantine,
        pin_memory: bool = False,
    ) -> None:
        self.plan = plan
        self._quarantine = quarantine
        self._tickets = Tickets(plan)
        self._position = Position(0, 0)  # of the next batch
        # Whether the next iteration goes on at the position; otherwise it begins an epoch.
        self._continues = True
        self._batches = DataLoader(
            batch_pipeline(plan, self._tickets),
            batch_size=None,  # batches are made in the workers
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # Otherwise every epoch draws its seed from the run's own random stream.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.plan.num_steps

    def __iter__(self) -> Iterator[ClipBatch]:
        if not self._continues:
            self._position = Position(self._position.epoch + 1, 0)
        self._continues = True  # until a batch was taken
        if self._position.step >= len(self):
            self._position = Position(self._position.epoch + 1, 0)
        self._tickets.start_at(self._position)
        for made in self._received():
            batch = self._accept(made)
            self._position = Position(self._position.epoch, self._position.step + 1)
            self._continues = False
            yield batch

    def _received(self) -> Iterator[StreamBatch]:
        """What the workers make; that one died while it handed over a batch is said too."""
        batches = iter(self._batches)
        while True:
            try:
                made = next(batches)
            except StopIteration:
                return
            except (EOFError, ConnectionError) as error:
                # torch has not noticed yet, and reads from a socket that nobody writes to.
                raise RuntimeError(
                    "DataLoader worker exited unexpectedly while it handed over a batch: was it "
                    "killed, or out of memory?"
                ) from error
            yield made

    def _accept(self, made: StreamBatch) -> ClipBatch:
        for bad in made.bad_clips:
            self._quarantine.add(self.plan.catalog.source, bad)
        if made.batch is None:
            raise DataError(f"{self.plan.catalog.source}: none of its clips can be read")
        return made.batch

    def state_dict(self) -> dict[str, Any]:  # Lightning's protocol
        """Plain numbers: which epoch, and how many of its clips were handed out, over all ranks."""
        return {
            "seed": self.plan.seed,
            "num_clips": len(self.plan.catalog.clips),
            "epoch": self._position.epoch,
            "num_samples": self._position.step * self.plan.share.clips_per_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:  # Lightning's protocol
        """Go on exactly behind the clips that were handed out.

        Raises:
            UserError: the state belongs to another seed, data set or step size.
        """
        for field, value in (("seed", self.plan.seed), ("num_clips", len(self.plan.catalog.clips))):
            if state[field] != value:
                raise UserError(
                    f"the checkpoint was made with {field}={state[field]} of the training data, "
                    f"this run has {value}; resume with the same data and seed, or start afresh"
                )
        step = resume_step(state["num_samples"], self.plan.share)
        self._position = Position(state["epoch"], step)
        self._continues = True
