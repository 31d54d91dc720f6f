"""Epsilon, measured: below the claim through the hospital's own code, above it with a defect.

A small run of `benchmarks.privacy.epsilon`. All randomness has fixed seeds: what passes
once passes always.
"""

from __future__ import annotations

import math

import pytest
from scipy import stats

from benchmarks.privacy import bounds
from benchmarks.privacy.bounds import Errors
from benchmarks.privacy.canaries import Claim, Fault
from benchmarks.privacy.epsilon import Audit, audit

PATIENT, LOCAL, HOSPITAL = "patient-distributed", "patient-local", "hospital"

WHOLE = [
    (Audit(Claim(PATIENT, 4.0, rounds=2), Fault.NONE, 8), 0.4),
    (Audit(Claim(PATIENT, 8.0), Fault.NONE, 12), 0.55),
    (Audit(Claim(PATIENT, 8.0, rounds=4, sampling=0.2), Fault.NONE, 6), 0.04),
    (Audit(Claim(PATIENT, 1.0, rounds=4, sampling=0.05), Fault.NONE, 4), 0.0),
    (Audit(Claim(PATIENT, 4.0, rows=20, columns=100), Fault.NONE, 12), 0.1),
    (Audit(Claim(LOCAL, 4.0, rounds=2, steps=3), Fault.NONE, 8), 0.4),
    (Audit(Claim(HOSPITAL, 4.0), Fault.NONE, 450), 0.15),
]

BROKEN = [
    Audit(Claim(PATIENT, 4.0, rounds=2), Fault.HALF_NOISE, 12),
    Audit(Claim(PATIENT, 1.0), Fault.NO_CLIP, 4),
    Audit(Claim(PATIENT, 1.0, rounds=4, sampling=0.05), Fault.NO_SAMPLING, 4),
    Audit(Claim(PATIENT, 1.0, rows=20, columns=100), Fault.NO_GROUPING, 4),
    Audit(Claim(PATIENT, 1.0, rounds=2, sampling=0.5), Fault.REUSED_NOISE, 4),
    Audit(Claim(LOCAL, 4.0, steps=4), Fault.HALF_NOISE, 10),
    Audit(Claim(LOCAL, 1.0, rows=20, columns=100), Fault.NO_GROUPING, 4),
    Audit(Claim(HOSPITAL, 4.0), Fault.HALF_NOISE, 400),
    Audit(Claim(HOSPITAL, 1.0), Fault.NO_CLIP, 60),
]


def name(what: Audit) -> str:
    return f"{what.claim.mode}, {what.fault}"


@pytest.mark.parametrize(("what", "least"), WHOLE, ids=[f"{k}" for k in range(len(WHOLE))])
def test_what_can_be_learnt_stays_below_the_claim_and_the_attack_is_no_straw(
    what: Audit, least: float
) -> None:
    found = audit(what)
    assert found.charged == pytest.approx(what.claim.epsilon, rel=1e-3)
    assert not found.caught, found
    assert found.bound >= least * found.charged, found


@pytest.mark.parametrize("what", BROKEN, ids=name)
def test_a_defect_is_found(what: Audit) -> None:
    found = audit(what)
    assert found.caught, found


# --- the bounds themselves ------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "trials"), [(0, 40), (1, 40), (17, 40), (40, 40)])
def test_the_interval_is_that_of_the_exact_binomial_tails(count: int, trials: int) -> None:
    low, high = bounds.interval(count, trials, 0.05)
    assert count == 0 or stats.binom.sf(count - 1, trials, low) == pytest.approx(0.025)
    assert count == trials or stats.binom.cdf(count, trials, high) == pytest.approx(0.025)
    assert low <= count / trials <= high


def test_the_free_bound_is_the_odds_of_the_intervals() -> None:
    errors = Errors(true=900, false=10, present=1000, absent=1000)
    low = bounds.interval(900, 1000, 0.01)[0]
    high = bounds.interval(10, 1000, 0.01)[1]
    assert bounds.free_epsilon(errors, 0.0, 0.01) == pytest.approx(math.log(low / high))
    assert bounds.free_epsilon(errors, 0.5, 0.01) < bounds.free_epsilon(errors, 0.0, 0.01)
    assert bounds.free_epsilon(Errors(500, 500, 1000, 1000), 1e-5, 0.01) == 0.0


@pytest.mark.parametrize("mu", [0.1, 0.7, 1.5, 3.0])
def test_the_gaussian_curve_against_its_integral(mu: float) -> None:
    eps = bounds.gaussian_curve(mu, 1e-5)
    # delta = integral of max(0, p - exp(eps) q), p = N(mu, 1), q = N(0, 1); p > exp(eps) q
    # from x = eps / mu + mu / 2 on.
    grid = [eps / mu + mu / 2 + k * 1e-4 for k in range(120_000)]
    gaps = stats.norm.pdf(grid, mu) - math.exp(eps) * stats.norm.pdf(grid)
    assert float(gaps.sum() * 1e-4) == pytest.approx(1e-5, rel=1e-3)


def test_one_run_of_certain_guesses_is_bounded_by_their_number_only() -> None:
    # All of r guesses right: P = q^r < alpha, so exp(eps) = alpha^(1/r) / (1 - alpha^(1/r)).
    q = 0.05 ** (1 / 100)
    found = bounds.one_run_epsilon(100, 100, 1000, 0.0, 0.05)
    assert found == pytest.approx(math.log(q / (1 - q)), abs=1e-3)
    assert bounds.one_run_epsilon(50, 100, 1000, 0.0, 0.05) == 0.0
    assert bounds.one_run_epsilon(100, 100, 1000, 1e-5, 0.05) < found
