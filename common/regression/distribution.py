"""Tails of the normal and of Student's t distribution, without scipy.

The normal's come from `math.erfc` and, for quantiles, from the standard library's inverse
(Wichura 1988, AS 241). Student's t follows from the regularised incomplete beta function by
its continued fraction (DLMF 8.17.22, evaluated by Lentz's method), good to about 1e-14;
quantiles by bisection on it.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

_TERMS: Final = 500
_TINY: Final = 1e-300
_PRECISION: Final = 1e-16
_MANY: Final = 1e10
"""Degrees of freedom above which Student's t is the normal distribution."""


def normal_tail(z: float) -> float:
    """Return P(|Z| > |z|) of a standard normal Z."""
    return math.erfc(abs(z) / math.sqrt(2.0))


def normal_quantile(confidence: float) -> float:
    """Return z with P(|Z| <= z) = `confidence`, in (0, 1)."""
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def student_tail(t: float, df: float) -> float:
    """Return P(|T| > |t|) of Student's t with `df` > 0 degrees of freedom."""
    if df > _MANY:
        return normal_tail(t)
    whole = df + t * t
    return incomplete_beta(df / 2.0, 0.5, df / whole, t * t / whole)


def student_quantile(confidence: float, df: float) -> float:
    """Return t with P(|T| <= t) = `confidence`, in (0, 1), to 1e-13 relative."""
    if df > _MANY:
        return normal_quantile(confidence)
    wanted, low, high = 1.0 - confidence, 0.0, 1.0
    while student_tail(high, df) > wanted:
        high *= 2.0
    while high - low > 1e-13 * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if student_tail(middle, df) > wanted else (low, middle)
    return (low + high) / 2.0


def incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """Return I_x(a, b), the regularised incomplete beta function, for x in [0, 1] and y = 1 - x.

    Both are given, because the small one of the two is what a caller knows exactly.
    """
    if x <= 0.0 or y <= 0.0:
        return float(y <= 0.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, y, x)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    log_front = a * math.log(x) + b * math.log(y) - log_beta
    return math.exp(log_front) / (a * _fraction(a, b, x))


def _fraction(a: float, b: float, x: float) -> float:
    """Return 1 + d1/(1 + d2/(1 + ...)) of DLMF 8.17.22."""
    value = c = 1.0
    d = 0.0
    for term in range(1, _TERMS):
        m = term // 2
        if term % 2:
            part = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            part = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _away_from_zero(1.0 + part * d)
        c = _away_from_zero(1.0 + part / c)
        value *= c * d
        if abs(c * d - 1.0) < _PRECISION:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
