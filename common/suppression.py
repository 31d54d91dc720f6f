"""The smallest-cell rule: which counts may be published, and which would tell of others.

`m` is the smallest count that may stand alone. What is *not* published of a table must not
follow from what is: every hidden cell can, by all that is published of its table and by
no count being below 0, still be any of a range of values at least `m` wide. Zeros are
published (as in the cell-size policy of the US Medicare agency): they tell of nobody there.

Three tools, for three shapes of table:

* `merged`: one row of counts with a known total. Levels with too few are put together, with
  the next smallest if need be, until the pool is large enough. Groups and levels are merged
  so once, before anything else, so that every margin of every table is known and hides nothing.
* `hidden`: the inside of a table whose margins are known. Small cells are hidden, and further
  ones (secondary suppression; Cox 1980) until every hidden cell's range is wide enough. The
  range is exact: fixed margins make a network, and a cell's largest value a maximum flow.
* `safe_cuts`: points on a line (histogram edges, quantiles, times) are kept only if at least
  `m` lie between neighbours.

Tables that share a margin share it in full, so they add nothing about each other's inside
that their margins do not; that three two-way tables of the same three features bound the
inside of one another more narrowly is *not* excluded (docs/statistics.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def is_small(count: float, least: int) -> bool:
    """Whether a count may not be published: above 0 and below the least."""
    return 0 < count < least


def merged(counts: Sequence[float], least: int) -> list[list[int]]:
    """Return the parts into which entries are put: those alone first, then one pool if any.

    Every part's sum is 0 or at least `least`, unless the whole is smaller: then all is one.
    """
    order = sorted((place for place, n in enumerate(counts) if n > 0), key=lambda p: counts[p])
    pool = [place for place in order if counts[place] < least]
    if not pool:
        return [[place] for place in range(len(counts))]
    rest = order[len(pool) :]
    while rest and (sum(counts[place] for place in pool) < least or len(pool) == 1):
        pool.append(rest.pop(0))
    alone = [[place] for place in range(len(counts)) if place not in pool]
    return [*alone, sorted(pool)]


def sums_of(counts: Floats, parts: Sequence[Sequence[int]], axis: int = 0) -> Floats:
    """Return the sums of an array over the parts of one axis."""
    whole = [np.take(counts, list(part), axis=axis).sum(axis=axis) for part in parts]
    return np.stack(whole, axis=axis)


# --- two-way tables -------------------------------------------------------------------------


def hidden(table: Floats, least: int) -> Mask:
    """Return the cells of [rows, columns] counts to hide, given that all margins are known.

    Margins are 0 or at least `least`, as `merged` leaves them: then hiding every cell is enough.

    Raises:
        InternalError: they are not, and no mask is enough.
    """
    mask: Mask = (table > 0) & (table < least)
    open_rows, open_columns = table.sum(axis=1) > 0, table.sum(axis=0) > 0
    free: Mask = np.outer(open_rows, open_columns)
    while True:
        narrow = [cell for cell in np.argwhere(mask) if width(table, mask, cell, least) < least]
        if not narrow:
            return mask
        for row, column in narrow:
            if width(table, mask, (row, column), least) < least:  # not yet helped by another's
                _hide_more(table, mask, free, (int(row), int(column)), least)


def _hide_more(table: Floats, mask: Mask, free: Mask, cell: tuple[int, int], least: int) -> None:
    """Hide what makes a cell's range wide enough: the cheapest rectangle, or one cell more.

    The corners of a rectangle can exchange counts and keep every margin.
    """
    row, column = cell
    best: tuple[float, list[tuple[int, int]]] | None = None
    for other_row, other_column in np.argwhere(free):
        down, across, far = (
            (int(other_row), column),
            (row, int(other_column)),
            (int(other_row), int(other_column)),
        )
        if other_row == row or other_column == column:
            continue
        room = min(table[down], table[across]) + min(table[cell], table[far])
        new = [corner for corner in (down, across, far) if not mask[corner]]
        cost = float(sum(table[corner] for corner in new))
        if new and room >= least and (best is None or cost < best[0]):
            best = cost, new
    more = best[1] if best else _beside(table, mask, free, cell)
    if not more:
        raise InternalError("a table's margins are too small for any of its cells to be hidden")
    for corner in more:
        mask[corner] = True


def _beside(table: Floats, mask: Mask, free: Mask, cell: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the smallest count beside a cell, zeros last; from anywhere if none is beside it."""
    choices = [(int(row), int(column)) for row, column in np.argwhere(free & ~mask)]
    near = [c for c in choices if c[0] == cell[0] or c[1] == cell[1]] or choices
    return sorted(near, key=lambda c: (table[c] == 0, table[c]))[:1]


def width(table: Floats, mask: Mask, cell: Sequence[int] | NDArray[np.int64], most: int) -> int:
    """Return how far apart a hidden cell's least and greatest value are, up to `most`.

    Over all tables of counts with the same margins and the same published cells.
    """
    row, column = int(cell[0]), int(cell[1])
    rows = table.shape[0]
    up = _flow(table, mask, (row, column), rows + column, row, most)
    down = min(int(table[row, column]), _flow(table, mask, (row, column), row, rows + column, most))
    return min(up + down, most)


def _flow(
    table: Floats, mask: Mask, without: tuple[int, int], start: int, end: int, most: int
) -> int:
    """Return the largest flow, up to `most`, through the hidden cells but one.

    Nodes are rows, then columns. A cell may grow without bound (row to column) and shrink to
    0 (column to row): a way from a column to a row moves counts and keeps every margin.
    """
    rows, size = table.shape[0], sum(table.shape)
    room = np.zeros((size, size), np.int64)
    others = mask.copy()
    others[without] = False
    room[:rows, rows:] = np.where(others, most, 0)
    room[rows:, :rows] = np.where(others, table, 0.0).T
    total = 0
    while total < most:
        way = _way(room, start, end)
        if not way:
            return total
        step = min(int(min(room[one, other] for one, other in way)), most - total)
        for one, other in way:
            room[one, other] -= step
            room[other, one] += step
        total += step
    return total


def _way(room: NDArray[np.int64], start: int, end: int) -> list[tuple[int, int]]:
    """Return the shortest way with room on every arc (breadth first); empty if there is none."""
    came = {start: start}
    queue = [start]
    for node in queue:
        for other in np.flatnonzero(room[node]).tolist():
            if other not in came:
                came[other] = node
                queue.append(other)
        if end in came:
            break
    if end not in came:
        return []
    way, node = [], end
    while node != start:
        way.append((came[node], node))
        node = came[node]
    return way


# --- points on a line -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A point: `at` on the line, with `below` counts before it."""

    at: float
    below: float


def safe_cuts(
    total: float, wanted: Iterable[Sequence[Cut]], least: int, kept: Iterable[Cut] = ()
) -> list[bool]:
    """Say which wishes may be published, in their order of importance.

    A wish is one cut or several that stand together (a quantile tells of both edges of its
    bin). It is granted if between each of its cuts and every cut granted or `kept` before,
    and the ends, there are 0 or at least `least` counts.
    """
    ends = [Cut(-np.inf, 0.0), Cut(np.inf, total)]
    known = [*ends, *kept]
    granted: list[bool] = []
    for wish in wanted:
        ok = all(
            not is_small(abs(cut.below - other.below), least) for cut in wish for other in known
        )
        granted.append(ok)
        if ok:
            known += wish
    return granted
