"""The privacy items of a header: computed alike at both ends, refused when weaker."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from common.errors import Refusal
from common.secagg.dp import (
    NO_DP,
    DpMode,
    DpPlan,
    DpTerms,
    check_terms,
    delta_int_of,
    word_bound,
)

PATIENTS = DpPlan(DpMode.PATIENT_DISTRIBUTED, 1.25, 0.5, 20_000, 0.25, 500)
LOCAL = DpPlan(DpMode.PATIENT_LOCAL, 1.25, 0.5, 20_000, 0.25, 500, 3)
HOSPITALS = DpPlan(DpMode.HOSPITAL, 10.0, 2.0, 20_000, 0.0, 0)
ROUND: dict[str, int] = {"n": 5, "h": 3, "d": 1000, "w": 32}


@pytest.mark.parametrize("plan", [PATIENTS, LOCAL, HOSPITALS])
def test_terms_of_a_plan_obey_every_rule(plan: DpPlan) -> None:
    check_terms(plan.terms(3), **ROUND)


def test_the_honest_survivors_alone_make_the_noise_the_study_states() -> None:
    for h in range(2, 200):
        variance = h * PATIENTS.terms(h).sigma_loc ** 2
        assert math.sqrt(variance) == pytest.approx(1.25 * 20_000, rel=1e-12)


def test_in_mode_local_each_hospital_makes_the_whole_noise_whoever_is_honest() -> None:
    for honest in range(200):
        terms = LOCAL.terms(honest)
        assert terms == LOCAL.terms(2)
        assert terms.sigma_loc == 1.25 * 20_000
        check_terms(terms, **{**ROUND, "h": honest})


def test_a_round_charges_the_steps_of_its_mode() -> None:
    assert LOCAL.terms(3).noised_steps == 3
    assert PATIENTS.terms(3).noised_steps == HOSPITALS.terms(3).noised_steps == 1
    assert NO_DP.noised_steps == 0


def test_the_example_of_section_7_3() -> None:
    terms = DpPlan(DpMode.HOSPITAL, 1.0, 1.0, delta_int_of(25_000_000), 0.0, 0).terms(48)
    assert terms.delta_int == 20_000
    assert round(terms.sigma_loc) == 2887
    assert terms.noise_cap == 37_528
    assert word_bound(terms) == 57_528
    check_terms(terms, n=64, h=48, d=25_000_000, w=32)


@pytest.mark.parametrize("words", [1, 2, 24_999_999, 25_000_000, 25_000_001, 10**9])
def test_delta_int_is_at_least_four_roots_of_the_words(words: int) -> None:
    delta = delta_int_of(words)
    assert delta >= 4_096
    assert delta**2 >= 16 * words


WEAKER: list[tuple[str, dict[str, Any], str]] = [
    ("less noise", {"sigma_loc": 14433.0, "noise_cap": 187_629}, "DP_WEAK"),
    ("no noise", {"sigma_loc": 0.0, "noise_cap": 0}, "DP_WEAK"),
    ("cut noise", {"noise_cap": 10}, "DP_WEAK"),
    ("z of 0", {"z": 0.0}, "DP_WEAK"),
    ("no clip", {"clip": 0.0}, "DP_WEAK"),
    ("coarse", {"delta_int": 126}, "DP_WEAK"),
    ("p of 0", {"p": 0.0}, "DP_WEAK"),
    ("p above 1", {"p": 1.5}, "DP_WEAK"),
    ("no patient", {"m_max": 0}, "DP_WEAK"),
    ("a ring too small", {"m_max": 30_000}, "OVERFLOW_BOUND"),
    ("another mode's items", {"mode": DpMode.HOSPITAL}, "HEADER_FORM"),
    ("mode none with terms", {"mode": DpMode.NONE}, "HEADER_FORM"),
    ("a mode that needs steps", {"mode": DpMode.PATIENT_LOCAL}, "DP_WEAK"),
    ("steps of another mode", {"steps": 1}, "HEADER_FORM"),
]


@pytest.mark.parametrize(("what", "change", "name"), WEAKER, ids=[row[0] for row in WEAKER])
def test_weaker_terms_are_refused(what: str, change: dict[str, Any], name: str) -> None:
    assert what
    with pytest.raises(Refusal) as refusal:
        check_terms(replace(PATIENTS.terms(3), **change), **ROUND)
    assert refusal.value.name == name


LOCALLY_WEAKER: list[tuple[str, dict[str, Any], str]] = [
    ("no steps", {"steps": 0}, "DP_WEAK"),
    ("steps beyond the keystream", {"steps": 2**32 // 1000 + 1}, "DP_WEAK"),
    ("noise that others complete", {"sigma_loc": 14433.8, "noise_cap": 187_640}, "DP_WEAK"),
    ("p of 0", {"p": 0.0}, "DP_WEAK"),
    ("no patient", {"m_max": 0}, "DP_WEAK"),
    ("a sum that float64 rounds", {"m_max": 2**53 // 20_000}, "OVERFLOW_BOUND"),
]


@pytest.mark.parametrize(
    ("what", "change", "name"), LOCALLY_WEAKER, ids=[row[0] for row in LOCALLY_WEAKER]
)
def test_weaker_local_terms_are_refused(what: str, change: dict[str, Any], name: str) -> None:
    assert what
    with pytest.raises(Refusal) as refusal:
        check_terms(replace(LOCAL.terms(3), **change), **ROUND)
    assert refusal.value.name == name


def test_the_most_steps_and_patients_that_local_terms_may_have() -> None:
    check_terms(replace(LOCAL.terms(3), steps=2**32 // 1000), **ROUND)
    most = (2**53 - LOCAL.terms(3).noise_cap) // 20_000
    check_terms(replace(LOCAL.terms(3), m_max=most), **ROUND)


def test_sigma_below_four_is_refused_because_the_sum_would_not_be_a_gaussian() -> None:
    small = DpTerms(DpMode.HOSPITAL, 0.0003, 1.0, 20_000, 3.5, 46, 0.0, 0)
    with pytest.raises(Refusal, match="below 4"):
        check_terms(small, **ROUND)


def test_one_honest_hospital_is_too_few_to_add_noise() -> None:
    with pytest.raises(Refusal, match="two honest"):
        PATIENTS.terms(1)
    with pytest.raises(Refusal, match="two honest"):
        check_terms(PATIENTS.terms(2), **{**ROUND, "h": 1})


def test_no_sum_of_words_within_the_bound_wraps() -> None:
    terms = PATIENTS.terms(3)
    most = ((1 << 31) - 1) // word_bound(terms)
    check_terms(terms, **{**ROUND, "n": most})
    with pytest.raises(Refusal, match="do not fit"):
        check_terms(terms, **{**ROUND, "n": most + 1})


def test_no_terms_are_the_terms_of_a_round_without_privacy() -> None:
    check_terms(NO_DP, **ROUND)
