"""What crosses every hop of the grid when boxes go from who keeps them to who needs them.

Packets go along the row of the node that keeps them, then along the column of the node that needs
them; routers copy what several need. Of copies, the nearest one along each axis serves, and what a
node keeps itself does not move. With boxes whose dimensions run along one axis each, and that are
equal or do not overlap along it, loads are exact; otherwise they are never too small.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsdtrain_dojo.lowering.mapping import Axis
from fsdtrain_dojo.timing.axis_traffic import AxisTraffic, follow_axis
from fsdtrain_dojo.timing.box_axes import Ranges, SplitBoxes
from fsdtrain_dojo.timing.traffic_kernel import cut_to_overlap, find_hulls, multiply

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MeshTraffic:
    """Elements.

    Args:
        east: over the hop from (r, c) to (r, c + 1): (R, C - 1); west: back.
        south: over the hop from (r, c) to (r + 1, c): (R - 1, C); north: back.
        sent: read for others by every node, (R, C).
        received: written from others by every node, (R, C).
        piece: the most that one node sends another.
        along_rows: which column serves which, for latencies.
        along_columns: which row serves which.
    """

    east: Floats
    west: Floats
    south: Floats
    north: Floats
    sent: Floats
    received: Floats
    piece: float
    along_rows: AxisTraffic
    along_columns: AxisTraffic


def route_boxes(kept: SplitBoxes, needed: SplitBoxes, *, is_multicast: bool = True) -> MeshTraffic:
    """Traffic from nodes that keep boxes to nodes that need others; see the top of this file."""
    turned_rc, turned_cr = _turned(kept, needed)
    turns = bool(turned_rc or turned_cr)
    options = {"is_multicast": is_multicast, "by_keeper": turns}
    across, down = along_axes(kept, needed, is_multicast=is_multicast)
    down_straight, across_straight = down, across
    if turned_cr:
        down_straight = _follow(kept, needed, Axis.ROW, turned_cr, **options)
    if turned_rc:
        across_straight = _follow(kept, needed, Axis.COLUMN, turned_rc, **options)
    fixed = float(
        np.prod(
            [
                need.extent[0]
                for have, need in zip(kept.dims, needed.dims, strict=True)
                if have.axis is None and need.axis is None
            ],
            initial=1.0,
        )
    )
    south, north = _column_phase(down, kept, needed, turned_rc)
    row_phase = _row_phase
    if turns and not is_multicast:
        row_phase = _row_phase_of_each
    east, west, sent = row_phase(down_straight, across_straight, turned_rc, turned_cr)
    if turns and is_multicast:
        of_rows, for_columns, own = _pairs(down_straight, across_straight, turned_rc, turned_cr)
        needs = multiply(_turn(for_columns), _turn(across_straight.volume))
        sent = np.minimum(sent, of_rows * needs - own)
    received = _received(kept, needed)
    turned = [np.minimum(k.extent.max(initial=0), n.extent.max(initial=0)) for k, n in turned_rc]
    return MeshTraffic(
        east=east * fixed,
        west=west * fixed,
        south=south,
        north=north,
        sent=sent * fixed,
        received=received,
        piece=down.piece * across_straight.piece * fixed * float(np.prod(turned)),
        along_rows=across,
        along_columns=down,
    )


def along_axes(
    kept: SplitBoxes, needed: SplitBoxes, *, is_multicast: bool = True
) -> tuple[AxisTraffic, AxisTraffic]:
    """`MeshTraffic.along_rows` and `along_columns`, without the rest."""
    options = {"is_multicast": is_multicast, "by_keeper": any(_turned(kept, needed))}
    across = _follow(kept, needed, Axis.COLUMN, (), **options)
    return across, _follow(kept, needed, Axis.ROW, (), **options)


def _turned(
    kept: SplitBoxes, needed: SplitBoxes
) -> tuple[list[tuple[Ranges, Ranges]], list[tuple[Ranges, Ranges]]]:
    """Dimensions kept along rows and needed along columns, and the other way round."""
    pairs = list(zip(kept.dims, needed.dims, strict=True))
    return (
        [(k, n) for k, n in pairs if k.axis is Axis.ROW and n.axis is Axis.COLUMN],
        [(k, n) for k, n in pairs if k.axis is Axis.COLUMN and n.axis is Axis.ROW],
    )


def _follow(
    kept: SplitBoxes,
    needed: SplitBoxes,
    axis: Axis,
    leave_out: Sequence[tuple[Ranges, Ranges]],
    *,
    is_multicast: bool,
    by_keeper: bool,
) -> AxisTraffic:
    """Traffic along an axis, but for needed dimensions that are left out."""
    length = len(kept.busy(axis))
    skip = {id(need) for _, need in leave_out}
    both, only_kept, only_needed = [], [], []
    for have, need in zip(kept.dims, needed.dims, strict=True):
        if have.axis is axis and need.axis in (axis, None):
            both.append((have, need))
        elif have.axis is axis:
            only_kept.append(have)
        elif need.axis is axis and id(need) not in skip:
            only_needed.append(need)
    return follow_axis(
        (*(have.key for have, _ in both), *(have.key for have in only_kept)),
        (*(need.widened(length) for _, need in both), *(need.key for need in only_needed)),
        len(both),
        kept.busy_bytes(axis),
        needed.busy_bytes(axis),
        is_multicast,
        by_keeper,
    )


def _overlaps(shape: tuple[int, int], pairs: Iterable[tuple[Ranges, Ints, Ints]]) -> Floats:
    """[h, j]: elements of what h keeps from first[j] to end[j], of all dimensions together."""
    found = np.ones(shape)
    for have, first, end in pairs:
        cut_to_overlap(found, have.ranges, first, end)
    return found


def _column_phase(
    down: AxisTraffic,
    kept: SplitBoxes,
    needed: SplitBoxes,
    turned_rc: Sequence[tuple[Ranges, Ranges]],
) -> tuple[Floats, Floats]:
    """South and north: all that nodes of a column need and other rows keep comes along it."""
    turned = {id(need) for _, need in turned_rc}
    into = needed.columns.astype(np.float64)
    for have, need in zip(kept.dims, needed.dims, strict=True):
        if id(need) not in turned and (
            need.axis is Axis.COLUMN or (need.axis is None and have.axis is not Axis.ROW)
        ):
            into = into * need.extent
    if not turned_rc:
        south, north = (way.sum(0)[:, None] * into for way in (down.forward, down.backward))
        return south, north
    shape = (len(kept.rows), len(needed.columns))
    meets = _overlaps(shape, ((have, *need.ranges) for have, need in turned_rc))
    return multiply(down.forward, meets) * into, multiply(down.backward, meets) * into


def _row_phase(
    down: AxisTraffic,
    across: AxisTraffic,
    turned_rc: Sequence[tuple[Ranges, Ranges]],
    turned_cr: Sequence[tuple[Ranges, Ranges]],
) -> tuple[Floats, Floats, Floats]:
    """East, west, and what nodes send: all that the rows need that a row serves."""
    from_row = down.all
    if turned_cr:
        meets = _overlaps(  # [c1, r1]
            (len(across.all), len(down.all)),
            ((have, *find_hulls(need.ranges, down.is_served, 0)) for have, need in turned_cr),
        )
        east = from_row[:, None] * multiply(meets, across.forward)
        west = from_row[:, None] * multiply(meets, across.backward)
    else:
        meets = np.ones((1, 1))
        east = from_row[:, None] * across.forward.sum(0)
        west = from_row[:, None] * across.backward.sum(0)
    whole = meets.T.copy()
    if turned_rc:
        whole = np.broadcast_to(whole, (len(down.all), len(across.all))).copy()
    for have, need in turned_rc:
        for amounts, hop_side in ((east, 1), (west, -1), (whole, 0)):
            hulls = find_hulls(need.ranges, across.is_served, hop_side)
            cut_to_overlap(amounts, have.ranges, hulls[0], hulls[1])
    everything = from_row[:, None] * across.all * whole
    to_others = (down.others[:, None] * across.all + down.own[:, None] * across.others) * whole
    return east, west, np.minimum(everything, to_others)


def _row_phase_of_each(
    down: AxisTraffic,
    across: AxisTraffic,
    turned_rc: Sequence[tuple[Ranges, Ranges]],
    turned_cr: Sequence[tuple[Ranges, Ranges]],
) -> tuple[Floats, Floats, Floats]:
    """As `_row_phase`, where nothing is copied on the way: sums over all pairs of nodes."""
    of_rows, for_columns, own = _pairs(down, across, turned_rc, turned_cr)
    rows, columns = own.shape
    east, west = np.zeros((rows, columns - 1)), np.zeros((rows, columns - 1))
    sent = np.empty((rows, columns))
    for row in range(rows):
        pairs = across.volume * for_columns[row] * of_rows[row][:, None]
        sent[row] = pairs.sum(1)
        above, below = np.triu(pairs, 1), np.tril(pairs, -1)
        # Over the hop behind x go pairs (c1, c2) with c1 <= x < c2.
        east[row] = (np.cumsum(above.sum(1)) - np.cumsum(above.sum(0)))[:-1]
        west[row] = (np.cumsum(below.sum(0)) - np.cumsum(below.sum(1)))[:-1]
    return east, west, sent - own


def _pairs(
    down: AxisTraffic,
    across: AxisTraffic,
    turned_rc: Sequence[tuple[Ranges, Ranges]],
    turned_cr: Sequence[tuple[Ranges, Ranges]],
) -> tuple[Floats, Floats, Floats]:
    """What pairs of nodes have for each other, in factors, and what nodes have for themselves.

    Node (r1, c1) has for all nodes of column c2 of_rows[r1, c1] x for_columns[r1, c2] x
    across.volume[c1, c2].
    """
    rows, columns = len(down.all), len(across.all)
    for_columns = _overlaps((rows, columns), ((have, *need.ranges) for have, need in turned_rc))
    of_columns = _overlaps((rows, columns), ((need, *have.ranges) for have, need in turned_cr))
    own = np.diag(down.volume)[:, None] * np.diag(across.volume) * for_columns * of_columns
    return multiply(_turn(down.volume), of_columns), for_columns, own


def _turn(matrix: Floats) -> Floats:
    return np.ascontiguousarray(matrix.T)


def _received(kept: SplitBoxes, needed: SplitBoxes) -> Floats:
    """What every node needs and has not got, (R, C)."""
    rows, columns = needed.rows.astype(np.float64)[:, None], needed.columns.astype(np.float64)
    has = (kept.rows[:, None] * rows, kept.columns * columns)
    need_by, own_by = [rows, columns], list(has)
    own_turned = np.ones((1, 1))
    for have, need in zip(kept.dims, needed.dims, strict=True):
        extent = need.extent.astype(np.float64)
        index = 0 if need.axis is Axis.ROW else 1
        need_by[index] = need_by[index] * (extent[:, None] if index == 0 else extent)
        if {have.axis, need.axis} == {Axis.ROW, Axis.COLUMN}:
            shape = (have.ranges.shape[1], need.ranges.shape[1])
            overlap = _overlaps(shape, [(have, *need.ranges)])
            own_turned = own_turned * (overlap if have.axis is Axis.ROW else overlap.T)
            continue
        both = np.maximum(
            np.minimum(have.ranges[1], need.ranges[1]) - np.maximum(have.ranges[0], need.ranges[0]),
            0,
        )
        index = 0 if Axis.ROW in (have.axis, need.axis) else 1
        own_by[index] = own_by[index] * (both[:, None] if index == 0 else both)
    received: Floats = need_by[0] * need_by[1] - own_by[0] * own_by[1] * own_turned
    return received
