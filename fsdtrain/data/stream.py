"""The stream of batches: clips of a catalog -> windows -> augmented -> targets -> batches.

The stages stand in one list in `batch_pipeline` and run in DataLoader workers; which clips they
get is `assignment.py`'s decision. Nothing here logs: workers hand the clips they had to skip to the
main process with the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import webdataset
from torch.utils.data import get_worker_info

from fsdtrain.data.assignment import (
    Share,
    Tail,
    epoch_order,
    num_steps,
    sample_rng,
    step_positions,
    worker_steps,
)
from fsdtrain.data.augment import Augmentation, augment_views, augment_window
from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.catalog import Catalog, CatalogClip
from fsdtrain.data.collate import Sample, collate
from fsdtrain.data.shard import read_clip
from fsdtrain.data.window import WindowShape, base_views, cut_window
from fsdtrain.errors import DataError
from fsdtrain.heads.head import TargetBuilder

PADDING = -1  # the clip index of a row that only fills up a batch


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """Everything that decides what the batches are; plain values, picklable."""

    catalog: Catalog
    shape: WindowShape
    share: Share
    tail: Tail
    seed: int
    is_training: bool  # shuffled order, random windows, augmentation
    augmentation: Augmentation | None
    target_builders: tuple[TargetBuilder, ...]
    max_bad_clips: int

    @property
    def num_steps(self) -> int:
        """Batches an epoch."""
        return num_steps(len(self.catalog.clips), self.share, self.tail)


class Position(NamedTuple):
    """Where in the endless sequence of epochs an iteration begins."""

    epoch: int
    step: int


class BadClip(NamedTuple):
    """A clip that could not be read, and why."""

    clip_index: int
    reason: str


class StreamBatch(NamedTuple):
    """A batch, and the clips that were found bad while making it; no batch: too many were."""

    batch: ClipBatch | None
    bad_clips: tuple[BadClip, ...]


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One row of a batch to come: a place in an epoch's order."""

    epoch: int
    position: int
    candidates: tuple[int, ...]  # the clip, then those that stand in for it, in order


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A ticket on its way; `window` is None when no candidate could be read."""

    rng: np.random.Generator
    window: ClipWindow | None
    clip_index: int
    bad_clips: tuple[BadClip, ...]


@dataclass
class Tickets:
    """First stage: the tickets of this process's share, by worker."""

    plan: StreamPlan
    # Shared memory: the main process moves it before an epoch, workers that live on read it.
    position: torch.Tensor = field(default_factory=lambda: _shared(Position(0, 0)))

    def start_at(self, position: Position) -> None:
        """Set where the next iteration begins."""
        self.position.copy_(torch.tensor(position))

    def __call__(self) -> Iterator[Ticket]:
        plan = self.plan
        epoch, start_step = (int(value) for value in self.position)
        order = epoch_order(
            len(plan.catalog.clips), seed=plan.seed, epoch=epoch, shuffle=plan.is_training
        )
        info = get_worker_info()
        steps = worker_steps(
            plan.num_steps,
            start_step=start_step,
            worker=0 if info is None else info.id,
            num_workers=1 if info is None else info.num_workers,
        )
        for step in steps:
            for position in step_positions(step, plan.share):
                # One more candidate than may fail; beyond the end the order begins again.
                places = range(int(position), int(position) + plan.max_bad_clips + 1)
                candidates = dict.fromkeys(int(order[place % len(order)]) for place in places)
                yield Ticket(epoch=epoch, position=int(position), candidates=tuple(candidates))


def _shared(position: Position) -> torch.Tensor:
    tensor = torch.tensor(position, dtype=torch.int64)
    tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return tensor


@dataclass
class LoadWindow:
    """Second stage: one ranged read, checksums, decoding; a bad clip's successor replaces it."""

    plan: StreamPlan
    known_bad: dict[int, BadClip] = field(default_factory=dict)  # not read again by this worker

    def __call__(self, ticket: Ticket) -> Draft:
        plan = self.plan
        bad_clips: list[BadClip] = []
        for clip_index in ticket.candidates:
            # Anew for each candidate: what a clip looks like must not depend on failed ones.
            rng = sample_rng(seed=plan.seed, epoch=ticket.epoch, position=ticket.position)
            if clip_index not in self.known_bad:
                try:
                    window = load_window(plan, clip_index, rng)
                except DataError as error:
                    self.known_bad[clip_index] = BadClip(clip_index, str(error))
                else:
                    return self._draft(ticket, clip_index, window, rng, bad_clips)
            bad_clips.append(self.known_bad[clip_index])
        return Draft(rng=rng, window=None, clip_index=PADDING, bad_clips=tuple(bad_clips))

    def _draft(
        self,
        ticket: Ticket,
        clip_index: int,
        window: ClipWindow,
        rng: np.random.Generator,
        bad_clips: Sequence[BadClip],
    ) -> Draft:
        # An evaluation counts every clip once: neither the filling of the last batch nor a stand-in
        # for a bad clip may count.
        is_padding = not self.plan.is_training and (
            ticket.position >= len(self.plan.catalog.clips) or clip_index != ticket.candidates[0]
        )
        return Draft(
            rng=rng,
            window=without_labels(window) if is_padding else window,
            clip_index=PADDING if is_padding else clip_index,
            bad_clips=tuple(bad_clips),
        )


def load_window(plan: StreamPlan, clip_index: int, rng: np.random.Generator) -> ClipWindow:
    """Read and cut one clip; in training a random window of it, with random views."""
    located = plan.catalog.clips[clip_index]
    clip = read_clip(located.shard, located.entry, cameras=plan.catalog.cameras)
    first_frame, views = None, base_views(clip, plan.shape)
    if plan.is_training:
        num_starts = clip.meta.num_frames - plan.shape.num_stored_frames + 1
        first_frame = int(rng.integers(num_starts))
        if plan.augmentation is not None:
            views = augment_views(views, plan.augmentation, rng)
    return cut_window(
        clip,
        plan.shape,
        where=clip_name(located),
        first_frame=first_frame,
        views=views,
    )


def clip_name(located: CatalogClip) -> str:
    """A clip as errors name it."""
    return f"shard {located.shard}: clip {located.entry.clip_id!r}"


def without_labels(window: ClipWindow) -> ClipWindow:
    """The window as if nothing about it were known: no head learns or counts anything there."""
    return replace(
        window,
        future_s_F=window.future_s_F[:0],
        future_ego_to_world_F44=window.future_ego_to_world_F44[:0],
        boxes=None,
        lanes=None,
        occupancy=None,
    )


@dataclass(frozen=True)
class AugmentDraft:
    """Third stage: mirror the world, change the colours."""

    augmentation: Augmentation | None

    def __call__(self, draft: Draft) -> Draft:
        if self.augmentation is None or draft.window is None:
            return draft
        return replace(draft, window=augment_window(draft.window, self.augmentation, draft.rng))


@dataclass(frozen=True)
class BuildTargets:
    """Fourth stage: what the heads learn from; None for a draft without a window."""

    target_builders: tuple[TargetBuilder, ...]

    def __call__(self, draft: Draft) -> tuple[Sample | None, tuple[BadClip, ...]]:
        if draft.window is None:
            return None, draft.bad_clips
        targets = {}
        for build in self.target_builders:
            targets.update(build(draft.window))
        sample = Sample(window=draft.window, targets=targets, clip_index=draft.clip_index)
        return sample, draft.bad_clips


def collate_rows(rows: Sequence[tuple[Sample | None, tuple[BadClip, ...]]]) -> StreamBatch:
    """Last stage: rows to tensors, in the worker, so that the main process only receives them."""
    samples = [sample for sample, _ in rows if sample is not None]
    return StreamBatch(
        batch=collate(samples) if len(samples) == len(rows) else None,
        bad_clips=tuple(dict.fromkeys(bad for _, some in rows for bad in some)),
    )


def batch_pipeline(plan: StreamPlan, tickets: Tickets) -> webdataset.DataPipeline:
    """The stages in their order; iterating it makes this worker's batches of one epoch."""
    return webdataset.DataPipeline(
        tickets,
        webdataset.map(LoadWindow(plan)),
        webdataset.map(AugmentDraft(plan.augmentation if plan.is_training else None)),
        webdataset.map(BuildTargets(plan.target_builders)),
        webdataset.batched(plan.share.batch_size, collation_fn=collate_rows, partial=False),
    )
