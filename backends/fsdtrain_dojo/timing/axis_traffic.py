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

from fsdtrain_dojo.timing.traffic_kernel import are_apart, find_alike, follow_keepers

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


@lru_cache(maxsize=512)  # a result of a tray is up to 2 MB
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
    keeps_L, needs_L = np.frombuffer(keeps, bool).copy(), np.frombuffer(needs, bool).copy()
    length = len(keeps_L)
    kept_ranges = [np.frombuffer(each, np.int64).reshape(2, length) for each in kept]
    need_ranges = [np.frombuffer(each, np.int64).reshape(2, length) for each in needed]
    for ranges in kept_ranges:
        keeps_L = keeps_L & (ranges[1] > ranges[0])
    if _has_own(kept_ranges, need_ranges, keeps_L, needs_L, shared):
        return _stay(need_ranges, needs_L, by_keeper)
    kept_D2L = _stacked([_without_overlaps(ranges, keeps_L) for ranges in kept_ranges], length)
    needed_D2L = _stacked(need_ranges, length)
    ways = np.zeros((2, length if by_keeper else 1, length - 1))
    volume = np.zeros((length, length) if by_keeper else (0, 0))
    is_served = np.zeros((length, length), bool)
    at_place = np.zeros((3, length))
    piece = follow_keepers(
        kept_D2L[:shared],
        needed_D2L,
        needs_L,
        _served_ranges(kept_D2L, keeps_L),
        np.stack(find_alike(needed_D2L, needs_L)),
        is_multicast,
        is_multicast and not all(are_apart(ranges, needs_L) for ranges in needed_D2L),
        ways,
        volume,
        is_served,
        at_place,
    )
    return AxisTraffic(
        forward=ways[0],
        backward=ways[1],
        all=at_place[0],
        others=at_place[1],
        own=at_place[2],
        is_served=is_served,
        volume=volume,
        piece=piece,
    )


def _stacked(ranges: list[Ints], length: int) -> Ints:
    return np.stack(ranges) if ranges else np.zeros((0, 2, length), np.int64)


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
    if len(firsts) == 1:
        return ranges
    following = np.append(firsts[1:], np.iinfo(np.int64).max)
    nearest = following[np.minimum(np.searchsorted(firsts, ranges[0]), len(firsts) - 1)]
    longest = np.zeros(len(firsts), np.int64)
    begins = np.searchsorted(firsts, ranges[0][keeps])
    np.maximum.at(longest, begins, ranges[1][keeps])
    do_overlap = (longest[:-1] > firsts[1:]).any()
    if do_overlap and (longest[1:] >= longest[:-1]).all():
        return np.stack([ranges[0], np.minimum(ranges[1], nearest)])
    return ranges


def _served_ranges(kept_D2L: Ints, keeps: NDArray[np.bool_]) -> Ints:
    """For every place the first and the last place that it is the nearest keeper for: (2, L)."""
    length = len(keeps)
    places = np.arange(length)
    following, preceding = find_alike(kept_D2L, keeps)
    first = np.where(preceding >= 0, (places + preceding) // 2 + 1, 0)
    last = np.where(following < length, (places + following) // 2, length - 1)
    return np.stack([first, np.where(keeps, last, -1)])
