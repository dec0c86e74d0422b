"""Loops over pairs of places of an axis, or of two axes, compiled. Elements; see `axis_traffic`.

Amounts are whole numbers in float64, so sums are exact in any order.
"""

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.arithmetic.compiled import compiled

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@compiled
def find_alike(ranges: Ints, counts: Bools) -> tuple[Ints, Ints]:
    """The next place that has the same ranges, and the one before; L and -1 where there is none.

    Args:
        ranges: of every dimension, (D, 2, L).
        counts: places that are looked at, (L).
    """
    length = len(counts)
    following, preceding = np.zeros(length, np.int64), np.zeros(length, np.int64)
    for place in range(length):
        following[place], preceding[place] = length, -1
    for place in range(length):
        for other in range(place + 1, length if counts[place] else 0):
            is_alike = counts[other]
            for dim in range(len(ranges)):
                for bound in range(2):
                    is_alike &= ranges[dim, bound, place] == ranges[dim, bound, other]
                if not is_alike:
                    break
            if is_alike:
                following[place], preceding[other] = other, place
                break
    return following, preceding


@compiled
def are_apart(ranges: Ints, counts: Bools) -> bool:
    """Whether any two of these ranges, (2, L), are equal or have nothing in common."""
    for place in range(len(counts)):
        first, end = ranges[0, place], ranges[1, place]
        for other in range(place + 1, len(counts) if counts[place] else 0):
            begin, stop = ranges[0, other], ranges[1, other]
            is_other = first != begin or end != stop
            if is_other and counts[other] and max(first, begin) < min(end, stop):
                return False
    return True


@compiled
def follow_keepers(
    kept: Ints,
    needed: Ints,
    needs: Bools,
    served: Ints,
    alike: Ints,
    is_multicast: bool,
    has_hulls: bool,
    ways: Floats,
    volume: Floats,
    is_served: Bools,
    at_place: Floats,
) -> float:
    """Fill in what `AxisTraffic` has, of every place that keeps a part; the largest volume.

    Args:
        kept: ranges of the dimensions that both have, (S, 2, L).
        needed: ranges of every dimension, those that both have first, (D, 2, L).
        needs: whether a place needs anything, (L).
        served: first and last place that a place serves, (2, L); last before first: none.
        alike: next place and the one before with the same need, (2, L).
        is_multicast: whether needs that are alike are counted once.
        has_hulls: whether what several need is at most the box around it.
        ways: over every hop, forward and backward, (2, L or 1, L - 1).
        volume: what a place has for another, (L, L); of (0, 0) it is left out.
        is_served: whether it has anything, (L, L).
        at_place: `all`, `others` and `own`, (3, L).
    """
    length, num_dims = len(needs), len(needed)
    low, high = np.zeros(num_dims, np.int64), np.zeros(num_dims, np.int64)
    begin, end = np.zeros(num_dims, np.int64), np.zeros(num_dims, np.int64)
    piece = 0.0
    for keeper in range(length):
        first, last = served[0, keeper], served[1, keeper]
        row = min(keeper, ways.shape[1] - 1)
        total, is_any = 0.0, False
        # Forward from the far end to the first place served, then backward up to the keeper.
        for step in range(last - first + 1 + keeper - first if last >= first else 0):
            is_forward = step <= last - first
            place = last - step if is_forward else first + step - (last - first + 1)
            if place == first and not is_forward:
                total, is_any = 0.0, False
            amount = 1.0 if needs[place] else 0.0
            for dim in range(num_dims):
                low[dim], high[dim] = needed[dim, 0, place], needed[dim, 1, place]
                if dim < len(kept):
                    low[dim] = max(low[dim], kept[dim, 0, keeper])
                    high[dim] = min(high[dim], kept[dim, 1, keeper])
                amount *= max(high[dim] - low[dim], 0)
                if amount == 0.0:
                    break
            if amount > 0:
                is_counted = alike[0, place] > last if is_forward else alike[1, place] < first
                if is_counted or not is_multicast:
                    total += amount
                for dim in range(num_dims if has_hulls else 0):
                    begin[dim] = min(begin[dim], low[dim]) if is_any else low[dim]
                    end[dim] = max(end[dim], high[dim]) if is_any else high[dim]
                is_any = True
                if is_forward:
                    is_served[keeper, place] = True
                    piece = max(piece, amount)
                    if len(volume):
                        volume[keeper, place] = amount
            passing = total
            if has_hulls and is_any:
                around = 1.0
                for dim in range(num_dims):
                    around *= end[dim] - begin[dim]
                passing = min(total, around)
            if is_forward:
                at_place[0, keeper] = passing
                if place == keeper:
                    at_place[2, keeper] = amount
                elif place > keeper:
                    ways[0, row, place - 1] += passing
                if place == keeper + 1:
                    at_place[1, keeper] = passing
            else:
                ways[1, row, place] += passing
                if place == keeper - 1:
                    at_place[1, keeper] += passing
        if is_multicast:
            at_place[1, keeper] = min(at_place[1, keeper], at_place[0, keeper])
    return piece


@compiled
def cut_to_overlap(amounts: Floats, have: Ints, first: Ints, end: Ints) -> None:
    """Multiply amounts [h, j] by what lies in range h of `have`, (2, H), and in [first, end)."""
    for place in range(have.shape[1]):
        for other in range(len(first)):
            common = min(have[1, place], end[other]) - max(have[0, place], first[other])
            amounts[place, other] *= max(common, 0)


@compiled
def multiply(left_T: Floats, right: Floats) -> Floats:
    """The matrix product of `left_T` transposed and `right`, few of whose elements are not 0.

    Rows of the result that are like the one before are copied from it.
    """
    depth, rows = left_T.shape
    columns = right.shape[1]
    found = np.zeros((rows, columns))
    begin, stop = np.zeros(depth, np.int64), np.zeros(depth, np.int64)
    for inner in range(depth):
        stop[inner] = columns
        while begin[inner] < columns and right[inner, begin[inner]] == 0.0:
            begin[inner] += 1
        while stop[inner] > begin[inner] and right[inner, stop[inner] - 1] == 0.0:
            stop[inner] -= 1
    for row in range(rows):
        is_alike = row > 0
        inner = 0
        while is_alike and inner < depth:
            is_alike = left_T[inner, row] == left_T[inner, row - 1]
            inner += 1
        if is_alike:
            for column in range(columns):  # a slice would take a second to compile
                found[row, column] = found[row - 1, column]
            continue
        for inner in range(depth):
            factor = left_T[inner, row]
            if factor != 0.0:
                for column in range(begin[inner], stop[inner]):
                    found[row, column] += factor * right[inner, column]
    return found


@compiled
def find_hulls(need: Ints, is_served: Bools, hop_side: int) -> Ints:
    """Around what several places need, (2, H): those that the h-th place serves.

    Args:
        need: their ranges, (2, L).
        is_served: [h, j], whether h has anything for j.
        hop_side: 1: for every hop, those behind it that any place before it serves; -1: those
            before it that any place behind serves; 0: no hops.
    """
    length = len(is_served)
    found = np.zeros((2, length - abs(hop_side)), np.int64)
    reached = np.zeros(is_served.shape[1], np.bool_)
    for step in range(found.shape[1]):
        hop = step if hop_side >= 0 else found.shape[1] - 1 - step
        server = hop + 1 if hop_side < 0 else hop
        begin = hop + 1 if hop_side > 0 else 0
        stop = hop + 1 if hop_side < 0 else len(reached)
        is_any = False
        for place in range(len(reached)):
            reached[place] = is_served[server, place] or (hop_side != 0 and reached[place])
            low, high = need[0, place], need[1, place]
            if reached[place] and begin <= place < stop and high > low:
                found[0, hop] = min(found[0, hop], low) if is_any else low
                found[1, hop] = max(found[1, hop], high) if is_any else high
                is_any = True
    return found
