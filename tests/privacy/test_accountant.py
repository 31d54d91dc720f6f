"""The charged epsilon against what is computed another way: slowly, exactly, or by others.

Oracles: numerical integration of the Rényi divergence with mpmath (no formula of ours in it),
the exact epsilon of the Gaussian mechanism (Balle and Wang 2018, theorem 8), dp-accounting.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise

import mpmath
import pytest
from scipy import optimize, stats

from common.privacy import accountant
from common.privacy.accountant import (
    DELTA_SHARE,
    ORDERS,
    Rdp,
    add,
    check_reserve,
    epsilon,
    inverse_noise,
    step_rdp,
    times,
)
from common.privacy.calibration import GRID, charged_epsilon, noise_multiplier
from hospital_node.private import second_accountant
from hospital_node.private.second_accountant import Spending

SECTION_9_4 = [
    # z, p, steps, epsilon charged, the estimate
    (10.0, 1.0, 100, 5.22, 4.89),
    (1.0, 0.01, 1000, 2.44, 2.12),
    (1.0, 0.02, 1000, 4.90, 4.45),
]
DELTA = 1e-6


@pytest.mark.parametrize(("z", "p", "steps", "charged", "estimated"), SECTION_9_4)
def test_the_figures_of_section_9_4(
    z: float, p: float, steps: int, charged: float, estimated: float
) -> None:
    assert charged_epsilon(z, DELTA, steps, p) == pytest.approx(charged, abs=0.005)
    spent = (Spending(z, p, steps),)
    assert second_accountant.charged_again(spent, DELTA) == pytest.approx(charged, abs=0.005)
    assert second_accountant.estimate(spent, DELTA) == pytest.approx(estimated, abs=0.005)


@pytest.mark.parametrize("z", [0.6, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("p", [0.001, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 40, 10_000])
def test_two_accountants_agree(z: float, p: float, steps: int) -> None:
    ours = charged_epsilon(z, 1e-5, steps, p)
    theirs = second_accountant.charged_again([Spending(z, p, steps)], 1e-5)
    assert ours == pytest.approx(theirs, rel=1e-9)


def integrated(alpha: int, z: float, p: float, *, swapped: bool) -> float:
    """Return the Rényi divergence of one step by integration, to some 12 digits.

    P is the mixture of N(0, z^2) and N(1, z^2) that a step draws from with the patient, Q is
    N(0, z^2) without; `swapped` exchanges them.
    """

    def q(x: mpmath.mpf) -> mpmath.mpf:
        return mpmath.npdf(x, 0, z)

    def mixed(x: mpmath.mpf) -> mpmath.mpf:
        return (1 - p) * mpmath.npdf(x, 0, z) + p * mpmath.npdf(x, 1, z)

    up, down = (q, mixed) if swapped else (mixed, q)
    with mpmath.workdps(20):
        reach = 14 * z + alpha
        moment = mpmath.quad(
            lambda x: up(x) ** alpha * down(x) ** (1 - alpha),
            mpmath.linspace(-reach, reach, 9),
            maxdegree=6,
        )
        return float(mpmath.log(moment) / (alpha - 1))


@pytest.mark.parametrize("alpha", [2, 5, 16])
@pytest.mark.parametrize(("z", "p"), [(0.8, 0.05), (2.0, 0.01), (1.0, 1.0)])
def test_a_step_costs_what_integration_says(alpha: int, z: float, p: float) -> None:
    charged = step_rdp(1 / z, p)[ORDERS.index(alpha)]
    assert charged == pytest.approx(integrated(alpha, z, p, swapped=False), rel=1e-8)
    assert charged >= integrated(alpha, z, p, swapped=True) * (1 - 1e-8)


@pytest.mark.parametrize(("z", "p"), [(0.7, 0.02), (1.0, 0.01), (5.0, 0.4)])
def test_the_sum_in_log_space_is_the_sum(z: float, p: float) -> None:
    """By mpmath with 60 digits and exact binomials, at every eleventh order and the last."""
    costs = dict(zip(ORDERS, step_rdp(1 / z, p), strict=True))
    with mpmath.workdps(60):
        for alpha in (*ORDERS[::11], ORDERS[-1]):
            charged = costs[alpha]
            total = mpmath.fsum(
                mpmath.binomial(alpha, k)
                * mpmath.mpf(1 - p) ** (alpha - k)
                * mpmath.mpf(p) ** k
                * mpmath.exp(mpmath.mpf(k * (k - 1)) / (2 * mpmath.mpf(z) ** 2))
                for k in range(alpha + 1)
            )
            assert charged == pytest.approx(float(mpmath.log(total) / (alpha - 1)), rel=1e-7)


def exact(z: float, delta: float) -> float:
    """Return the epsilon of a Gaussian step of noise z: the least there is (Balle and Wang)."""

    def excess(eps: float) -> float:
        low = stats.norm.cdf(1 / (2 * z) - eps * z)
        return float(low - math.exp(eps) * stats.norm.cdf(-1 / (2 * z) - eps * z) - delta)

    return float(optimize.brentq(excess, 0.0, 200.0, xtol=1e-12)) if excess(0.0) > 0 else 0.0


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9])
def test_nothing_is_charged_below_the_exact_epsilon_nor_far_above(z: float, delta: float) -> None:
    charged, least = charged_epsilon(z, delta, 1), exact(z, delta)
    assert charged >= least
    assert charged <= 1.15 * least + 0.03


def test_many_gaussian_steps_are_one_with_less_noise() -> None:
    """k steps of z are one of z / sqrt(k): the exact bound holds for the composition too."""
    for steps in (7, 100):
        assert charged_epsilon(10.0, DELTA, steps) == pytest.approx(
            charged_epsilon(10.0 / math.sqrt(steps), DELTA, 1)
        )
        assert charged_epsilon(10.0, DELTA, steps) >= exact(10.0 / math.sqrt(steps), DELTA)


# --- which way it moves -----------------------------------------------------------------------


def test_more_of_anything_that_hurts_costs_more() -> None:
    base = charged_epsilon(1.5, 1e-5, 200, 0.05)
    assert charged_epsilon(1.4, 1e-5, 200, 0.05) > base
    assert charged_epsilon(1.5, 1e-6, 200, 0.05) > base
    assert charged_epsilon(1.5, 1e-5, 201, 0.05) > base
    assert charged_epsilon(1.5, 1e-5, 200, 0.051) > base
    for before, after in zip(step_rdp(1.0, 0.05), step_rdp(1.01, 0.05), strict=True):
        assert after > before


def test_sampling_saves_and_all_of_them_is_no_sampling() -> None:
    assert charged_epsilon(1.5, 1e-5, 200, 0.5) < charged_epsilon(1.5, 1e-5, 200)
    nearly = step_rdp(1.0, 1 - 1e-12)
    for cost, whole in zip(nearly, step_rdp(1.0), strict=True):
        assert cost == pytest.approx(whole, rel=1e-6)


def test_costs_add_up_and_nothing_spent_is_nothing() -> None:
    once = step_rdp(0.3, 0.1)
    twice: Rdp = add(once, once)
    assert times(once, 2) == twice
    assert epsilon(twice, 1e-5).epsilon > epsilon(once, 1e-5).epsilon
    assert epsilon(accountant.NOTHING, 1e-5).epsilon == 0.0
    assert epsilon(twice, 1e-5).order in ORDERS


def test_a_thousandth_of_delta_is_kept_for_the_sampler() -> None:
    cost = step_rdp(0.3)
    alpha = epsilon(cost, 1e-5).order
    found = alpha * 0.045 + math.log1p(-1 / alpha)
    found -= (math.log(1e-5 * DELTA_SHARE) + math.log(alpha)) / (alpha - 1)
    assert epsilon(cost, 1e-5).epsilon == pytest.approx(found, rel=1e-12)


def test_what_summed_discrete_noise_misses_is_charged() -> None:
    """tau of section 9.1: nothing at sigma 4, something where noise is coarser."""
    assert inverse_noise(2.0, d=10**9, h=1000, sigma_loc=4.0) == 0.5
    coarse = inverse_noise(2.0, d=100, h=3, sigma_loc=1.0)
    assert coarse == pytest.approx(0.5 + 10 * 10 * 2 * math.exp(-(math.pi**2)))


def test_a_delta_that_cannot_pay_for_the_sampler_is_refused() -> None:
    """The reserve: delta 2^-10 above (1 + e^eps) rounds n d 2^-100."""
    terms = {"rounds": 1000, "n": 10, "d": 10**6}
    least = (1 + math.exp(3.0)) * 1000 * 10 * 10**6 * 2.0**-100 * 2**10
    check_reserve(3.0, least * 1.01, **terms)
    with pytest.raises(Exception, match="DP_WEAK"):
        check_reserve(3.0, least, **terms)


def test_an_epsilon_whose_power_no_float_holds_is_refused_like_any_other() -> None:
    for eps in (699.0, 710.0, 1000.0, math.inf, math.nan):
        with pytest.raises(Exception, match="DP_WEAK"):
            check_reserve(eps, 0.05, rounds=1, n=2, d=1)


@pytest.mark.parametrize("e", [1e100, 1e152, 1e153, 1e154, 1e200, 1e308])
@pytest.mark.parametrize("p", [1e-9, 0.5, 1.0])
def test_noise_that_is_next_to_nothing_never_costs_nothing(e: float, p: float) -> None:
    """What no float holds costs infinity at its order; a NaN there would count as nothing."""
    cost = step_rdp(e, p)
    assert min(cost) > 1e100
    assert all(a <= b for a, b in pairwise(cost))
    assert epsilon(cost, 1e-5).epsilon > 1e100


@pytest.mark.parametrize("cost", [math.nan, -1e-9])
@pytest.mark.parametrize("at", [0, 50, len(ORDERS) - 1])
def test_a_cost_that_is_no_number_is_no_epsilon(cost: float, at: int) -> None:
    rdp = list(step_rdp(1.0))
    rdp[at] = cost
    with pytest.raises(Exception, match="INTERNAL"):
        epsilon(rdp, 1e-5)


@pytest.mark.parametrize(("e", "p"), [(0.0, 0.1), (math.nan, 0.1), (1.0, 0.0), (1.0, 1.5)])
def test_a_step_that_cannot_be_is_our_bug(e: float, p: float) -> None:
    with pytest.raises(Exception, match="INTERNAL"):
        step_rdp(e, p)


# --- calibration ------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0.3, 1.0, 8.0])
@pytest.mark.parametrize(("steps", "p"), [(17, 1.0), (1000, 0.01)])
def test_calibration_returns_the_least_noise_on_the_grid(
    wanted: float, steps: int, p: float
) -> None:
    z = noise_multiplier(wanted, 1e-5, steps, p)
    ticks = round(z * GRID)
    assert z == ticks / GRID
    assert charged_epsilon(z, 1e-5, steps, p) <= wanted
    assert charged_epsilon((ticks - 1) / GRID, 1e-5, steps, p) > wanted


def test_an_epsilon_that_no_noise_gives_is_refused_with_what_to_change() -> None:
    """Order 256 leaves about 0.02 at delta 1e-5, whatever the noise."""
    with pytest.raises(Exception, match="which no noise gives") as caught:
        noise_multiplier(0.001, 1e-5, 10)
    assert "larger epsilon" in caught.value.fix  # type: ignore[attr-defined]


# --- the second accountant --------------------------------------------------------------------


def test_the_check_of_ten_thousand_steps_takes_well_under_two_seconds() -> None:
    second_accountant.charged_again([Spending(1.0, 0.5)], 1e-5)  # the import is not counted
    began = time.process_time()
    second_accountant.charged_again([Spending(1.0, 0.01, 10_000)], 1e-5)
    assert time.process_time() - began < 1.0
