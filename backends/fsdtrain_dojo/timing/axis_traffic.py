"""Who serves whom along one axis of the grid, and how much crosses each hop.

A value's boxes are products of ranges, each of which depends on a place of one axis alone, so
traffic factors: what is moved between two nodes is a product of what overlaps along either axis.
This file has one axis. Of several places that keep the same range the nearest one serves; what
several places need of it crosses a hop once. Knows no links and no bytes: elements go in and out.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = bytes  # int64 ranges of a dimension at every place: (2, L), as they lie in memory


@dataclass(frozen=True, kw_only=True, eq=False)
class AxisTraffic:
    """Elements along an axis of L places; h is a place that keeps a part, [h] or [h, hop].

    Args:
        forward: over hop i from place i to i + 1, of what h keeps: (L, L - 1).
        backward: over hop i from place i + 1 to i.
        all: that places which h serves need, itself among them.
        others: of those, what places but itself need.
        own: what it needs itself.
        first: of those that h serves, the first and the last place; first > last: none.
        last: see `first`.
        volume: [h, j]: that h sends to place j, or keeps where they are one.
        is_served: [h, j]: whether that is anything.
        is_local: nothing crosses a hop.
    """

    forward: Floats
    backward: Floats
    all: Floats
    others: Floats
    own: Floats
    first: Ints
    last: Ints
    volume: Floats
    is_served: NDArray[np.bool_]
    is_local: bool

    @property
    def piece(self) -> float:
        """The most that one place has for another."""
        return float(self.volume.max(initial=0.0))


@lru_cache(maxsize=128)  # of a tray, one result is 2.6 MB
def follow_axis(
    kept: tuple[Key, ...],
    needed: tuple[Key, ...],
    shared: int,
    keeps: bytes,
    needs: bytes,
    is_multicast: bool,
) -> AxisTraffic:
    """Traffic along an axis.

    Args:
        kept: for every dimension whose kept ranges depend on this axis, those ranges.
        needed: for every dimension whose needed ranges depend on this axis, or are the same
            everywhere while the kept ones depend on it, those ranges.
        shared: the first of these many dimensions are the same ones in both.
        keeps: whether a place keeps anything, bool (L).
        needs: whether a place needs anything, bool (L).
        is_multicast: False where every place's need is sent by itself, though it be the same.
    """
    keeps_L, needs_L = np.frombuffer(keeps, bool), np.frombuffer(needs, bool)
    length = len(keeps_L)
    kept_ranges = [np.frombuffer(each, np.int64).reshape(2, length) for each in kept]
    need_ranges = [np.frombuffer(each, np.int64).reshape(2, length) for each in needed]
    for ranges in kept_ranges:
        keeps_L = keeps_L & (ranges[1] > ranges[0])
    if _has_own(kept_ranges, need_ranges, keeps_L, needs_L, shared):
        first, last = np.arange(length), np.where(keeps_L, np.arange(length), -1)
    else:
        kept_ranges = [_without_overlaps(ranges, keeps_L) for ranges in kept_ranges]
        first, last = _served_ranges(kept_ranges, keeps_L)
    places = np.arange(length)
    serves = (first[:, None] <= places) & (places <= last[:, None])
    served = serves & keeps_L[:, None] & needs_L
    lows, highs = [], []
    for number, ranges in enumerate(need_ranges):
        low, high = ranges[0][None, :], ranges[1][None, :]
        if number < shared:
            low = np.maximum(low, kept_ranges[number][0][:, None])
            high = np.minimum(high, kept_ranges[number][1][:, None])
        served = served & (high > low)
        lows.append(low)
        highs.append(high)
    volume = served.astype(np.float64)
    for low, high in zip(lows, highs, strict=True):
        volume *= high - low
    counted = volume
    if is_multicast:
        forward_counted, backward_counted = _once_each(volume, need_ranges, needs_L, first, last)
    else:
        forward_counted = backward_counted = counted
    # beyond[h, i]: what places from i on need; before[h, i]: what places up to i need
    beyond = np.cumsum(forward_counted[:, ::-1], axis=1)[:, ::-1]
    before = np.cumsum(backward_counted, axis=1)
    if is_multicast:
        hull_beyond, hull_before = _hulls(served, lows, highs)
        beyond, before = np.minimum(beyond, hull_beyond), np.minimum(before, hull_before)
    is_beyond = places[None, :-1] >= places[:, None]
    forward = np.where(is_beyond, beyond[:, 1:], 0.0)
    backward = np.where(is_beyond, 0.0, before[:, :-1])
    own = volume[places, places]
    everything = beyond[:, 0]
    after_own = np.concatenate([beyond[:, 1:], np.zeros((length, 1))], axis=1)[places, places]
    before_own = np.concatenate([np.zeros((length, 1)), before[:, :-1]], axis=1)[places, places]
    others = after_own + before_own
    return AxisTraffic(
        forward=forward,
        backward=backward,
        all=everything,
        others=np.minimum(others, everything) if is_multicast else others,
        own=own,
        first=first,
        last=last,
        volume=volume,
        is_served=served,
        is_local=not (forward.any() or backward.any()),
    )


def _has_own(
    kept: list[Ints],
    needed: list[Ints],
    keeps: NDArray[np.bool_],
    needs: NDArray[np.bool_],
    shared: int,
) -> bool:
    """Whether every place keeps what it needs, as far as this axis goes."""
    return (
        len(kept) == shared
        and not (needs & ~keeps).any()
        and all(
            bool(
                (~needs | (have[0] <= want[0]) & (want[1] <= have[1]) | (want[1] <= want[0])).all()
            )
            for have, want in zip(kept, needed, strict=False)
        )
    )


def _without_overlaps(ranges: Ints, keeps: NDArray[np.bool_]) -> Ints:
    """Ranges of which any two are equal or have nothing in common: each ends where another begins.

    So that nothing is sent twice; what a place loses in this way it is taken to need from others.
    Where one range lies within another, all stay as they are.
    """
    firsts = np.unique(ranges[0][keeps])
    following = np.append(firsts[1:], np.iinfo(np.int64).max)
    nearest = following[np.minimum(np.searchsorted(firsts, ranges[0]), len(firsts) - 1)]
    longest = np.zeros(len(firsts), np.int64)
    begins = np.searchsorted(firsts, ranges[0][keeps])
    np.maximum.at(longest, begins, ranges[1][keeps])
    do_overlap = (longest[:-1] > firsts[1:]).any()
    if do_overlap and (longest[1:] >= longest[:-1]).all():
        return np.stack([ranges[0], np.minimum(ranges[1], nearest)])
    return ranges


def _served_ranges(kept: list[Ints], keeps: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """For every place the first and the last place that it is the nearest keeper for."""
    length = len(keeps)
    first, last = np.zeros(length, np.int64), np.full(length, length - 1)
    if kept:
        _, group = np.unique(np.concatenate(kept), axis=1, return_inverse=True)
        group = group.ravel()
    else:
        group = np.zeros(length, np.int64)
    keepers = np.flatnonzero(keeps)
    order = keepers[np.argsort(group[keepers], kind="stable")]
    alike = group[order[1:]] == group[order[:-1]]
    middle = (order[1:] + order[:-1]) // 2
    last[order[:-1][alike]] = middle[alike]
    first[order[1:][alike]] = middle[alike] + 1
    last[~keeps] = -1
    return first, last


def _once_each(
    volume: Floats, needed: list[Ints], needs: NDArray[np.bool_], first: Ints, last: Ints
) -> tuple[Floats, Floats]:
    """`volume` of every need that no place further on (further back) has, too."""
    length = volume.shape[1]
    places = np.flatnonzero(needs)
    group = np.zeros(length, np.int64)
    if needed:
        _, group = np.unique(np.concatenate(needed), axis=1, return_inverse=True)
    order = places[np.argsort(group.ravel()[places], kind="stable")]
    group = group.ravel()
    alike = group[order[1:]] == group[order[:-1]]
    following, preceding = np.full(length, length), np.full(length, -1)
    following[order[:-1][alike]] = order[1:][alike]
    preceding[order[1:][alike]] = order[:-1][alike]
    return (
        volume * (following[None, :] > last[:, None]),
        volume * (preceding[None, :] < first[:, None]),
    )


def _hulls(served: NDArray[np.bool_], lows: list[Ints], highs: list[Ints]) -> tuple[Floats, Floats]:
    """Elements in the box around all needs from a place on, and up to it: [h, i]."""
    beyond = np.logical_or.accumulate(served[:, ::-1], axis=1)[:, ::-1].astype(np.float64)
    before = np.logical_or.accumulate(served, axis=1).astype(np.float64)
    far = np.iinfo(np.int64).max
    for low, high in zip(lows, highs, strict=True):
        begin, end = np.where(served, low, far), np.where(served, high, -1)
        beyond *= np.maximum(
            np.maximum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
            - np.minimum.accumulate(begin[:, ::-1], axis=1)[:, ::-1],
            0,
        )
        before *= np.maximum(
            np.maximum.accumulate(end, axis=1) - np.minimum.accumulate(begin, axis=1), 0
        )
    return beyond, before
