"""The numbers of section 1: derived, and refused when weaker."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Refusal
from common.secagg.params import SecAggParams, default_colluders, quorum, smallest_set


@pytest.mark.parametrize(
    ("n", "c", "q", "dropouts"),
    [
        (2, 0, 2, 0),
        (3, 1, 3, 0),
        (4, 1, 3, 1),
        (5, 1, 4, 1),
        (8, 2, 6, 2),
        (10, 2, 7, 3),
        (16, 4, 11, 5),
        (20, 5, 13, 7),
        (32, 8, 21, 11),
        (64, 16, 41, 23),
        (100, 25, 63, 37),
        (256, 64, 161, 95),
        (1000, 250, 626, 374),
    ],
)
def test_the_table_of_section_1(n: int, c: int, q: int, dropouts: int) -> None:
    assert default_colluders(n) == c
    assert quorum(n, c) == q
    assert n - q == dropouts
    SecAggParams.derive(n, c).check_rules()


def test_three_members_without_colluders_may_open_a_sum_of_two() -> None:
    params = SecAggParams.derive(3, 0)
    assert (params.q, params.s_min, params.t_h, params.kappa) == (2, 2, 1, 2)


@given(st.integers(2, 64), st.integers(0, 64))
def test_every_derived_round_is_safe(n: int, c: int) -> None:
    if smallest_set(n, c) > n:
        with pytest.raises(Refusal, match="COHORT_SMALL"):
            SecAggParams.derive(n, c)
        return
    params = SecAggParams.derive(n, c)
    assert 2 * params.q - n >= c + 1, "two certificates share an honest signer"
    assert params.s_min - c >= 2, "two honest inputs stay hidden in each other"
    assert c < params.t_h <= params.s_min - 1, "colluders cannot, the other survivors can recover"
    params.check_rules()


GOOD = SecAggParams.derive(10, 2)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"q": 6}, "QUORUM_RULE"),
        ({"q": 8}, "QUORUM_RULE"),
        ({"c": 1}, "QUORUM_RULE"),
        ({"c": -1}, "QUORUM_RULE"),
        ({"s_min": 6}, "SMIN_RULE"),
        ({"s_min": 11}, "SMIN_RULE"),
        ({"t_h": 1}, "HELPER_RULE"),
        ({"t_h": 2}, "HELPER_RULE"),
        ({"t_h": 4}, "HELPER_RULE"),
        ({"kappa": 8}, "HELPER_RULE"),
        ({"kappa": 64}, "HELPER_RULE"),
        ({"ring_bits": 24}, "HEADER_FORM"),
        ({"n": 9}, "QUORUM_RULE"),
        ({"n": 1}, "COHORT_SMALL"),
    ],
)
def test_each_number_off_its_rule_is_refused(change: dict[str, int], name: str) -> None:
    GOOD.check_rules()
    with pytest.raises(Refusal, match=name):
        replace(GOOD, **change).check_rules()


def test_a_study_may_ask_for_more_survivors_but_not_fewer() -> None:
    assert SecAggParams.derive(10, 2, s_min=9).s_min == 9
    assert SecAggParams.derive(10, 2, s_min=1).s_min == 7
    with pytest.raises(Refusal, match="SMIN_RULE"):
        SecAggParams.derive(10, 2, s_min=11)


def test_two_hospitals_have_rules_without_colluders_only() -> None:
    SecAggParams.derive(2, 0).check_rules()
    with pytest.raises(Refusal, match="COHORT_SMALL"):
        SecAggParams.derive(2, 1)


def test_a_smaller_cohort_keeps_the_rosters_colluders() -> None:
    params = SecAggParams.derive(12, default_colluders(20))
    assert (params.c, params.q, params.s_min, params.t_h) == (5, 9, 9, 6)


def test_narrow_rings_are_for_at_most_64_members() -> None:
    SecAggParams.derive(64, 16, ring_bits=16)
    with pytest.raises(Refusal, match="OVERFLOW_BOUND"):
        SecAggParams.derive(65, 16, ring_bits=16)
