"""Kaplan-Meier curves and the log-rank test from counts on a grid of times.

Exact for times on the grid. Sources: Kaplan and Meier 1958; the variance is Greenwood's
(1926) and the interval that of log(-log S) (Kalbfleisch and Prentice 2002, chapter 1);
the test as in `common.counting.logrank_terms`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from common.suppression import is_small

Floats = NDArray[np.float64]

_STEPS = 100_000
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Curve:
    """Per step of the grid, [steps]: at risk, events, lost after them, and the estimate.

    `low` and `high` are NaN where the curve is 1 or 0 and the interval has no value.
    """

    at_risk: Floats
    events: Floats
    lost: Floats
    survival: Floats
    low: Floats
    high: Floats


def kaplan_meier(events: Floats, lost: Floats, confidence: float = 0.95) -> Curve:
    """Return the curve of [steps] events and [steps + 1] losses, the last beyond the grid.

    Whoever is lost at a step was at risk for its events.
    """
    leaving: Floats = events + lost[:-1]
    at_risk: Floats = float(events.sum() + lost.sum()) - np.concatenate(
        [[0.0], leaving.cumsum()[:-1]]
    )
    known = at_risk > 0
    stays = np.where(known, 1.0 - events / np.where(known, at_risk, 1.0), 1.0)
    survival: Floats = np.cumprod(stays, dtype=np.float64)
    left = at_risk - events
    term = np.where(left > 0, events / np.where(left > 0, at_risk * left, 1.0), 0.0)
    inside = (survival > 0) & (survival < 1)
    log = np.log(np.where(inside, survival, 0.5))
    spread = np.sqrt(term.cumsum()) / np.abs(log)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    bounds = (survival ** np.exp(sign * z * spread) for sign in (1, -1))
    low, high = (np.where(inside, bound, np.nan) for bound in bounds)
    return Curve(at_risk, events, lost[:-1], survival, low, high)


def safe_steps(curve: Curve, least: int) -> list[int]:
    """Return the steps at which the curve may be published.

    Between two of them lie 0 or at least `least` events, 0 or at least as many losses, and
    after the last nobody or at least as many patients.
    """
    chosen: list[int] = []
    events = lost = 0.0
    for step in range(len(curve.events)):
        events += float(curve.events[step])
        lost += float(curve.lost[step])
        after = float(curve.at_risk[step] - curve.events[step] - curve.lost[step])
        if events == 0 or any(is_small(count, least) for count in (events, lost, after)):
            continue
        chosen.append(step)
        events = lost = 0.0
    return chosen


def logrank(excess: Floats, variance: Floats) -> tuple[float, int, float] | None:
    """Return chi-square, degrees of freedom and p of O - E, [groups], and its covariance.

    None if no two groups were ever at risk together.
    """
    kept = np.flatnonzero(np.diag(variance) > 0)
    if len(kept) <= 1:
        return None
    use = kept[:-1]  # the terms of all groups add up to 0: one says nothing new
    part = variance[np.ix_(use, use)]
    if np.linalg.matrix_rank(part) < len(use):
        return None
    statistic = float(excess[use] @ np.linalg.solve(part, excess[use]))
    return statistic, len(use), chi_square_tail(statistic, len(use))


def chi_square_tail(statistic: float, freedom: int) -> float:
    """Return the chance that a chi-square variable is above `statistic`: Q(k/2, x/2).

    The regularised upper incomplete gamma function: by its series below a + 1, by Lentz's
    continued fraction above (Press et al. 2007, Numerical Recipes, chapter 6).
    """
    a, x = freedom / 2.0, statistic / 2.0
    if x <= 0:
        return 1.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    return 1.0 - front * _series(a, x) if x < a + 1.0 else front * _fraction(a, x)


def _series(a: float, x: float) -> float:
    term = total = 1.0 / a
    for step in range(1, _STEPS):
        term *= x / (a + step)
        total += term
        if term < total * 1e-17:
            break
    return total


def _fraction(a: float, x: float) -> float:
    b = x + 1.0 - a
    c, d = 1.0 / _TINY, 1.0 / b
    h = d
    for step in range(1, _STEPS):
        an = -step * (step - a)
        b += 2.0
        d = 1.0 / _away(an * d + b)
        c = _away(b + an / c)
        change = c * d
        h *= change
        if abs(change - 1.0) < 1e-16:  # noqa: PLR2004
            break
    return h


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
