"""The smallest-cell rule: what is hidden does not follow from what is published."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from common.errors import InternalError
from common.suppression import Cut, hidden, merged, safe_cuts, sums_of

M = 10
Floats = NDArray[np.float64]


@st.composite
def tables(draw: st.DrawFn) -> Floats:
    """Return counts whose margins are 0 or large, as merging leaves them."""
    shape = draw(st.tuples(st.integers(2, 5), st.integers(2, 5)))
    cell = st.one_of(st.integers(0, 25), st.just(0), st.integers(5, 200))
    raw = np.array(
        draw(st.lists(cell, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])), float
    ).reshape(shape)
    rows = merged(raw.sum(axis=1).tolist(), M)
    raw = sums_of(raw, rows)
    return sums_of(raw, merged(raw.sum(axis=0).tolist(), M), axis=1)


def bounds(table: Floats, mask: NDArray[np.bool_], cell: tuple[int, int]) -> tuple[float, float]:
    """Return a hidden cell's least and greatest value by linear programming over its table."""
    rows, columns = table.shape
    equations, right = [], []
    for row in range(rows):
        each = np.zeros(table.shape)
        each[row] = 1
        equations.append(each.ravel())
        right.append(table[row].sum())
    for column in range(columns):
        each = np.zeros(table.shape)
        each[:, column] = 1
        equations.append(each.ravel())
        right.append(table[:, column].sum())
    limits = [
        (0, None) if gone else (n, n) for n, gone in zip(table.ravel(), mask.ravel(), strict=True)
    ]
    aim = np.zeros(table.size)
    aim[cell[0] * columns + cell[1]] = 1
    ends = [linprog(s * aim, A_eq=equations, b_eq=right, bounds=limits) for s in (1, -1)]
    assert all(end.success for end in ends)
    return ends[0].fun, -ends[1].fun


@settings(max_examples=60, deadline=None)
@given(tables())
def test_no_hidden_cell_follows_from_the_published_ones(table: Floats) -> None:
    if table.sum() < M or 1 in table.shape:
        return
    mask = hidden(table, M)
    assert not ((table > 0) & (table < M) & ~mask).any()
    for row, column in np.argwhere(mask):
        low, high = bounds(table, mask, (int(row), int(column)))
        assert high - low >= M - 1e-6


def test_a_table_without_small_cells_is_published_whole() -> None:
    assert not hidden(np.array([[10.0, 40.0], [0.0, 12.0]]), M).any()


def test_one_small_cell_takes_three_others_with_it() -> None:
    mask = hidden(np.array([[3.0, 40.0, 50.0], [30.0, 60.0, 80.0]]), M)
    assert mask[:, 0].all()
    assert mask.sum() == 4


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_merged_parts_are_a_partition_and_never_small(counts: list[int]) -> None:
    parts = merged(counts, M)
    assert sorted(place for part in parts for place in part) == list(range(len(counts)))
    if sum(counts) >= M:
        assert all(sum(counts[p] for p in part) in (0, *range(M, 1000)) for part in parts)


@given(st.lists(st.integers(0, 30), min_size=3, max_size=30))
def test_granted_cuts_have_none_or_enough_between_them(counts: list[int]) -> None:
    below = np.cumsum([0, *counts])
    wishes = [(Cut(float(place), float(below[place])),) for place in range(1, len(counts))]
    granted = safe_cuts(float(below[-1]), wishes, M)
    kept = [0.0, *(w[0].below for w, ok in zip(wishes, granted, strict=True) if ok), below[-1]]
    if below[-1] >= M:
        assert all(gap == 0 or gap >= M for gap in np.diff(kept))


@pytest.mark.parametrize("cells", [[[5.0]], [[5.0, 0.0]], [[-3.0, 4.0], [4.0, 2.0]]])
def test_a_table_that_no_mask_can_hide_is_refused_and_does_not_run_for_ever(
    cells: list[list[float]],
) -> None:
    with pytest.raises(InternalError):
        hidden(np.array(cells), M)
