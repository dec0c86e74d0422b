"""Which nodes of a mesh with holes work together as a grid without holes.

Either every column of the mesh gives as many rows as the column with most missing nodes can, or
every row as many columns, whichever keeps more nodes. Which nodes of a fuller column stay out is
chosen so that logical neighbours lie side by side: a row that jumps by two shares links with the
rows beside it. It does not know links, nor what runs on the nodes.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

NUM_SWEEPS = 8  # over all columns; the grid hardly changes after a few
PULL = 0.05  # towards an even spread, against a step of 1 beside a neighbouring column


def lay_grid(present: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Physical row and column of every node of the largest such grid, each (R, C).

    Args:
        present: of every place of the mesh, (rows, columns).
    """
    num_by_columns = int(present.sum(0).min()) * present.shape[1]
    num_by_rows = int(present.sum(1).min()) * present.shape[0]
    if num_by_columns >= num_by_rows:
        rows = _choose_rows(present)
        return rows, np.broadcast_to(np.arange(rows.shape[1]), rows.shape).copy()
    columns = _choose_rows(present.T).T
    return np.broadcast_to(np.arange(columns.shape[0])[:, None], columns.shape).copy(), columns


def _choose_rows(present: NDArray[np.bool_]) -> Ints:
    """For every column the rows that take part, from the north: (R, columns)."""
    num_rows, num_columns = present.shape
    count = int(present.sum(0).min())
    slack = num_rows - count
    spread = (np.arange(count) + 0.5) * slack / count - 0.5
    skipped = np.broadcast_to(np.round(spread)[:, None], (count, num_columns)).astype(np.int64)
    skipped = np.clip(skipped, 0, slack)
    # allowed[r, c, s]: whether logical row r of column c can lie s rows further down
    allowed = np.stack([present[s : s + count] for s in range(slack + 1)], axis=2)
    for _ in range(NUM_SWEEPS if slack else 0):
        for first in (0, 1):
            every_other = np.arange(first, num_columns, 2)
            wanted = PULL * (np.arange(slack + 1) - spread[:, None, None]) ** 2
            cost = np.broadcast_to(wanted, allowed[:, every_other].shape).copy()
            for beside in (every_other - 1, every_other + 1):
                exists = (beside >= 0) & (beside < num_columns)
                apart = np.arange(slack + 1) - skipped[:, np.clip(beside, 0, num_columns - 1), None]
                cost += exists[:, None] * apart**2
            cost[~allowed[:, every_other]] = np.inf
            skipped[:, every_other] = _cheapest_descent(cost)
    return np.arange(count)[:, None] + skipped


def _cheapest_descent(cost: NDArray[np.float64]) -> Ints:
    """The choice of s for every r that never falls as r grows, of least sum: cost[r, n, s]."""
    count, num_columns, num_choices = cost.shape
    best = np.empty_like(cost)
    best[0] = cost[0]
    for row in range(1, count):
        best[row] = cost[row] + np.minimum.accumulate(best[row - 1], axis=1)
    chosen = np.empty((count, num_columns), np.int64)
    chosen[-1] = best[-1].argmin(1)
    choices = np.arange(num_choices)
    for row in range(count - 2, -1, -1):
        reachable = np.where(choices <= chosen[row + 1][:, None], best[row], np.inf)
        chosen[row] = reachable.argmin(1)
    return chosen
