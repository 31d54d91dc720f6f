"""Harrell's C by pairs: as lifelines counts it, and additive over hospitals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import survival_evaluation
from common.concordance import pairs

PATIENTS = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40
)


@given(PATIENTS)
def test_c_is_that_of_lifelines_with_ties_of_times_and_scores(
    patients: list[tuple[int, bool, int]],
) -> None:
    concordance = pytest.importorskip("lifelines.utils").concordance_index
    time, event, score = (np.array(part, np.float64) for part in zip(*patients, strict=True))
    found = pairs(score, np.stack([time, event], axis=1)).c_index
    try:
        wanted = concordance(time, -score, event)
    except ZeroDivisionError:
        assert found is None
        return
    assert found == pytest.approx(wanted)


@given(PATIENTS, PATIENTS)
def test_hospitals_words_add_up_to_the_c_of_all_pairs_inside_them(
    one: list[tuple[int, bool, int]], other: list[tuple[int, bool, int]]
) -> None:
    words = np.zeros(len(survival_evaluation.NAMES))
    concordant = comparable = 0.0
    for part in (one, other):
        time, event, score = (np.array(column, np.float64) for column in zip(*part, strict=True))
        target = np.stack([time, event], axis=1)
        words += survival_evaluation.sums(score, target)
        found = pairs(score, target)
        concordant, comparable = concordant + found.concordant, comparable + found.comparable
    figures = survival_evaluation.figures(words)
    assert figures["rows"] == len(one) + len(other)
    if comparable:
        assert figures["c_index"] == pytest.approx(concordant / comparable)
    else:
        assert figures["c_index"] is None
