"""Lower bounds on epsilon from what an attack guessed, each true with a stated confidence.

`(epsilon, delta)` privacy bounds every test that tells a data set with one patient more
from the one without: `TPR <= exp(epsilon) FPR + delta`, and the same for `1 - FPR` and
`1 - TPR` (Kairouz, Oh and Viswanath 2015). Counting a test's errors and taking exact
binomial intervals (Clopper and Pearson 1934) turns that around.

    free       nothing assumed of the mechanism
    gaussian   the mechanism's trade-off curve is assumed to be a Gaussian one; then a single
               point of the curve tells the whole of it (Dong, Roth and Su 2022; Nasr et al.
               2023). Only for mechanisms without sampling
    one run    the canaries of a single run, each in or out by a coin (Steinke, Nasr and
               Jagielski 2023, theorem 5.2)

Statistic and threshold are chosen on one half of the trials and judged on the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats: TypeAlias = NDArray[np.float64]

_THRESHOLDS: Final = 400
_LARGEST: Final = 60.0
"""Largest epsilon looked for."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A statistic's values where the canary was present and where it was absent."""

    present: Floats
    absent: Floats

    def halves(self) -> tuple[Scored, Scored]:
        """Return every second trial, and the others."""
        return (
            Scored(self.present[::2], self.absent[::2]),
            Scored(self.present[1::2], self.absent[1::2]),
        )


@dataclass(frozen=True, slots=True)
class Errors:
    """Counts of one test: present called present, absent called present, and the trials."""

    true: int
    false: int
    present: int
    absent: int


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on epsilon, and the statistic that gave it."""

    epsilon: float
    statistic: str
    errors: Errors


def interval(count: int, trials: int, alpha: float) -> tuple[float, float]:
    """Return Clopper and Pearson's interval; each end alone is wrong with chance alpha / 2."""
    low = special.betaincinv(count, trials - count + 1, alpha / 2) if count else 0.0
    high = special.betaincinv(count + 1, trials - count, 1 - alpha / 2) if count < trials else 1.0
    return float(low), float(high)


def free_epsilon(errors: Errors, delta: float, alpha: float) -> float:
    """Return the bound that assumes nothing."""
    true = interval(errors.true, errors.present, alpha)
    false = interval(errors.false, errors.absent, alpha)
    ways = ((true[0], false[1]), (1 - false[1], 1 - true[0]))
    found = [math.log((hit - delta) / miss) for hit, miss in ways if hit > delta and miss > 0]
    return max(0.0, *found) if found else 0.0


def gaussian_epsilon(errors: Errors, delta: float, alpha: float) -> float:
    """Return the bound for a mechanism whose trade-off curve is Gaussian."""
    true = interval(errors.true, errors.present, alpha)[0]
    false = interval(errors.false, errors.absent, alpha)[1]
    if true <= 0 or false >= 1:
        return 0.0
    return gaussian_curve(float(stats.norm.isf(false) - stats.norm.isf(true)), delta)


def gaussian_curve(mu: float, delta: float) -> float:
    """Return epsilon at delta of mu-Gaussian privacy (Balle and Wang 2018, theorem 8)."""
    if mu <= 0:
        return 0.0

    def gap(eps: float) -> float:
        tail = eps + stats.norm.logcdf(-eps / mu - mu / 2)
        return float(stats.norm.cdf(-eps / mu + mu / 2) - math.exp(tail)) - delta

    if gap(0.0) <= 0:
        return 0.0
    high = 1.0
    while gap(high) > 0:
        high *= 2
    return float(optimize.brentq(gap, 0.0, high))


Rule: TypeAlias = Callable[[Errors, float, float], float]


def best(scores: Mapping[str, Scored], rule: Rule, delta: float, alpha: float) -> Bound:
    """Return the bound of the statistic and threshold that did best on half the trials.

    The other half judges it, so the confidence `1 - alpha` needs no correction.
    """

    def judge(errors: Errors) -> float:
        return rule(errors, delta, alpha)

    found = []
    for name, scored in scores.items():
        first, second = scored.halves()
        cut, worth = _choose(first, judge)
        found.append((worth, name, _errors(second, cut)))
    _, name, errors = max(found, key=lambda each: each[0])
    return Bound(judge(errors), name, errors)


def _choose(scored: Scored, judge: Callable[[Errors], float]) -> tuple[float, float]:
    """Return the threshold with the largest bound, and that bound."""
    every = np.concatenate([scored.present, scored.absent])
    ends = np.linspace(0, 1, _THRESHOLDS)
    # Close together at both ends, where the ratios of probabilities are.
    cuts = np.unique(np.quantile(every, (1 - np.cos(math.pi * ends)) / 2))
    tests = [(judge(_errors(scored, cut)), cut) for cut in cuts.tolist()]
    worth, cut = max(tests)
    return cut, worth


def _errors(scored: Scored, cut: float) -> Errors:
    true = int((scored.present > cut).sum())
    false = int((scored.absent > cut).sum())
    return Errors(true, false, scored.present.size, scored.absent.size)


# --- one run -------------------------------------------------------------------------------------


def one_run_epsilon(right: int, guesses: int, canaries: int, delta: float, alpha: float) -> float:
    """Return the bound from `right` of `guesses` about `canaries` of one run."""
    if not guesses:
        return 0.0

    def refuted(eps: float) -> bool:
        return _chance(right, guesses, canaries, eps, delta) < alpha

    low, high = 0.0, _LARGEST
    if not refuted(low):
        return 0.0
    while high - low > 1e-4:  # noqa: PLR2004 - enough digits for a table
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _chance(right: int, guesses: int, canaries: int, eps: float, delta: float) -> float:
    """Return the largest chance of as many right guesses under (eps, delta) privacy."""
    q = 1 / (1 + math.exp(-eps))
    beta = float(stats.binom.sf(right - 1, guesses, q))
    lost = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, q))
    alpha = float((lost / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, beta + 2 * canaries * delta * alpha)


def one_run(first: Scored, second: Scored, delta: float, alpha: float) -> float:
    """Return one run's bound; how many guesses to make is learnt from another run's."""
    tried = np.unique(np.geomspace(2, first.present.size, 30).astype(int))
    worth = [one_run_epsilon(*_guess(first, int(k)), delta, alpha) for k in tried]
    return one_run_epsilon(*_guess(second, int(tried[int(np.argmax(worth))])), delta, alpha)


def _guess(scored: Scored, each: int) -> tuple[int, int, int]:
    """Call the `each` highest scores present and the lowest absent: right, made, canaries."""
    every = np.concatenate([scored.present, scored.absent])
    truth = np.arange(every.size) < scored.present.size
    order = np.argsort(every, kind="stable")
    each = min(each, every.size // 2)
    right = int(truth[order[-each:]].sum() + (~truth[order[:each]]).sum())
    return right, 2 * each, every.size
