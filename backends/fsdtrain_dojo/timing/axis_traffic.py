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
        forward: over hop i from place i to i + 1, of what h keeps, (L, L - 1); or of all h
            together, (1, L - 1).
        backward: over hop i from place i + 1 to i.
        all: that places which h serves need, itself among them.
        others: of those, what places but itself need.
        own: what it needs itself.
        is_served: [h, j]: whether h has anything for place j (itself, where they are one).
        volume: [h, j]: how much; empty where `forward` is of all h together.
        piece: the most of that.
    """

    forward: Floats
    backward: Floats
    all: Floats
    others: Floats
    own: Floats
    is_served: NDArray[np.bool_]
    volume: Floats
    piece: float


@lru_cache(maxsize=2048)  # most results are a few kB, of a tray up to 90 kB
def follow_axis(
    kept: tuple[Key, ...],
    needed: tuple[Key, ...],
    shared: int,
    keeps: bytes,
    needs: bytes,
    is_multicast: bool,
    by_keeper: bool,
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
        by_keeper: whether `forward` and `volume` are wanted for every place that keeps a part.
    """
    keeps_L, needs_L = np.frombuffer(keeps, bool), np.frombuffer(needs, bool)
    length = len(keeps_L)
    kept_ranges = [np.frombuffer(each, np.int64).reshape(2, length) for each in kept]
    need_ranges = [np.frombuffer(each, np.int64).reshape(2, length) for each in needed]
    for ranges in kept_ranges:
        keeps_L = keeps_L & (ranges[1] > ranges[0])
    if _has_own(kept_ranges, need_ranges, keeps_L, needs_L, shared):
        return _stay(need_ranges, needs_L, by_keeper)
    kept_ranges = [_without_overlaps(ranges, keeps_L) for ranges in kept_ranges]
    first, last = _served_ranges(kept_ranges, keeps_L)
    h = np.flatnonzero(keeps_L)
    first, last, places = first[h], last[h], np.arange(length)
    served = (first[:, None] <= places) & (places <= last[:, None]) & needs_L
    boxes = []
    for number, (low, high) in enumerate(need_ranges):
        if number < shared:
            have = kept_ranges[number][:, h, None]
            low, high = np.maximum(low, have[0]), np.minimum(high, have[1])
        served &= high > low
        boxes.append((low, high))
    volume = served.astype(np.float64)
    for low, high in boxes:
        volume *= high - low
    counted = (volume, volume)
    if is_multicast:
        counted = _once_each(volume, need_ranges, needs_L, first, last)
    # beyond[h, i]: what places from i on need; before[h, i]: what places up to i need
    beyond = np.cumsum(counted[0][:, ::-1], axis=1)[:, ::-1]
    before = np.cumsum(counted[1], axis=1)
    if is_multicast and not all(_are_apart(ranges, needs_L) for ranges in need_ranges):
        hull_beyond, hull_before = _hulls(served, boxes)
        beyond, before = np.minimum(beyond, hull_beyond), np.minimum(before, hull_before)
    is_beyond = places[:-1] >= h[:, None]
    forward = beyond[:, 1:] * is_beyond
    backward = before[:, :-1] * ~is_beyond
    each = np.arange(len(h))
    others = np.where(h + 1 < length, beyond[each, np.minimum(h + 1, length - 1)], 0.0)
    others += np.where(h > 0, before[each, np.maximum(h - 1, 0)], 0.0)
    if is_multicast:
        others = np.minimum(others, beyond[:, 0])

    def at_places(of_keepers: Floats) -> Floats:
        found = np.zeros((length, *of_keepers.shape[1:]))
        found[h] = of_keepers
        return found

    return AxisTraffic(
        forward=at_places(forward) if by_keeper else forward.sum(0, keepdims=True),
        backward=at_places(backward) if by_keeper else backward.sum(0, keepdims=True),
        all=at_places(beyond[:, 0]),
        others=at_places(others),
        own=at_places(volume[each, h]),
        is_served=at_places(served.astype(np.float64)) > 0,
        volume=at_places(volume) if by_keeper else np.zeros((0, 0)),
        piece=float(volume.max(initial=0.0)),
    )


def _stay(needed: list[Ints], needs: NDArray[np.bool_], by_keeper: bool) -> AxisTraffic:
    """Where every place keeps what it needs."""
    length = len(needs)
    own = needs.astype(np.float64)
    for low, high in needed:
        own = own * np.maximum(high - low, 0)
    nothing = np.zeros((length if by_keeper else 1, length - 1))
    return AxisTraffic(
        forward=nothing,
        backward=nothing,
        all=own,
        others=np.zeros(length),
        own=own,
        is_served=np.diag(own > 0),
        volume=np.diag(own) if by_keeper else np.zeros((0, 0)),
        piece=float(own.max(initial=0.0)),
    )


def _are_apart(ranges: Ints, counts: NDArray[np.bool_]) -> bool:
    """Whether any two of these ranges are equal or have nothing in common."""
    busy = ranges[:, counts & (ranges[1] > ranges[0])]
    order = np.lexsort(busy[::-1])
    first, end = busy[:, order]
    alike = (first[1:] == first[:-1]) & (end[1:] == end[:-1])
    return bool((alike | (first[1:] >= end[:-1])).all())


def _alike(ranges: list[Ints], length: int) -> Ints:
    """A number for every place, the same where all ranges are."""
    code = np.zeros(length, np.int64)
    for bounds in (bound for each in ranges for bound in each):
        _, found = np.unique(bounds, return_inverse=True)
        _, code = np.unique(code * length + found, return_inverse=True)
    return code


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
    group = _alike(kept, length)
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
    group = _alike(needed, length)
    order = places[np.argsort(group[places], kind="stable")]
    alike = group[order[1:]] == group[order[:-1]]
    following, preceding = np.full(length, length), np.full(length, -1)
    following[order[:-1][alike]] = order[1:][alike]
    preceding[order[1:][alike]] = order[:-1][alike]
    return (
        volume * (following[None, :] > last[:, None]),
        volume * (preceding[None, :] < first[:, None]),
    )


def _hulls(served: NDArray[np.bool_], boxes: list[tuple[Ints, Ints]]) -> tuple[Floats, Floats]:
    """Elements in the box around all needs from a place on, and up to it: [h, i]."""
    beyond = np.logical_or.accumulate(served[:, ::-1], axis=1)[:, ::-1].astype(np.float64)
    before = np.logical_or.accumulate(served, axis=1).astype(np.float64)
    far = np.iinfo(np.int64).max
    for low, high in boxes:
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
