"""The charged epsilon: Rényi differential privacy of Gaussian steps (protocol, section 9.4).

A step with effective inverse noise `e` (in effect 1/z) costs, at order alpha,

    unsampled           alpha e^2 / 2
    Poisson-sampled     ln( sum_l binom(alpha, l) (1-p)^(alpha-l) p^l exp(l (l-1) e^2 / 2) )
                        / (alpha - 1)

(Mironov 2017; Mironov, Talwar and Zhang 2019, section 3.3), costs of steps add up, and

    epsilon = min_alpha [ RDP(alpha) + ln((alpha-1)/alpha) - (ln delta' + ln alpha)/(alpha-1) ]

(Balle et al. 2020, theorem 21) with delta' = delta (1 - 2^-10). The rest of delta pays for
what the sampler's table cannot represent. Neighbours differ by one patient (or hospital)
added or removed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError, Refusal

ORDERS: Final = (*range(2, 129), 256)
"""The alphas of every ledger."""

DELTA_SHARE: Final = 1 - 2.0**-10
"""Of delta, what the conversion uses; the rest is the sampler's reserve."""

SAMPLER_DISTANCE: Final = 2.0**-100
"""Statistical distance of one noise sample from the discrete Gaussian (section 9.2)."""

Rdp: TypeAlias = tuple[float, ...]
"""One cost for each of `ORDERS`."""

NOTHING: Final[Rdp] = (0.0,) * len(ORDERS)

_MOST_EXPONENT: Final = 700.0
"""Of e in binary64; nothing pays for more."""

_ALPHA: Final = np.array(ORDERS, np.float64)


@dataclass(frozen=True, slots=True)
class Spent:
    """`epsilon` at a delta, and the order that gave it."""

    epsilon: float
    order: int


def inverse_noise(z: float, *, d: int, h: int, sigma_loc: float) -> float:
    """Return `e = 1/z + sqrt(d) tau`, tau being what h summed discrete Gaussians miss (9.1)."""
    tau = 10 * (h - 1) * math.exp(-(math.pi**2) * sigma_loc**2)
    return 1 / z + math.sqrt(d) * tau


@lru_cache(maxsize=512)
def step_rdp(e: float, p: float = 1.0) -> Rdp:
    """Return the cost of one step at each order; `e` > 0, `p` in (0, 1] (1: unsampled).

    Raises:
        InternalError: `e` or `p` outside its range.
    """
    if not (math.isfinite(e) and e > 0 and 0 < p <= 1):
        raise InternalError(f"no step has inverse noise {e} and sampling {p}")
    if p == 1:
        return tuple(alpha * (e * e / 2) for alpha in ORDERS)
    return tuple(_sampled(alpha, e, p) for alpha in ORDERS)


def _sampled(alpha: int, e: float, p: float) -> float:
    if not math.isfinite(alpha * (alpha - 1) * (e * e / 2)):
        return math.inf  # inf - inf below would be no number, and that would count as nothing
    chosen = np.arange(alpha + 1, dtype=np.float64)
    terms = (
        _log_binomials(alpha)
        + (alpha - chosen) * math.log1p(-p)
        + chosen * math.log(p)
        + chosen * (chosen - 1) * (e * e / 2)
    )
    top = float(terms.max())
    return max(0.0, (top + math.log(float(np.exp(terms - top).sum()))) / (alpha - 1))


@lru_cache(maxsize=len(ORDERS))
def _log_binomials(alpha: int) -> NDArray[np.float64]:
    logs = [math.lgamma(k + 1) for k in range(alpha + 1)]
    return np.array([logs[alpha] - logs[k] - logs[alpha - k] for k in range(alpha + 1)])


def times(rdp: Rdp, steps: int) -> Rdp:
    """Return the cost of `steps` equal steps."""
    return tuple(cost * steps for cost in rdp)


def add(first: Rdp, second: Rdp) -> Rdp:
    """Return the cost of both.

    Raises:
        ValueError: one of them is not over `ORDERS`.
    """
    return tuple(a + b for a, b in zip(first, second, strict=True))


def epsilon(rdp: Sequence[float], delta: float) -> Spent:
    """Return what a cost amounts to at `delta` in (0, 1); nothing spent is 0.

    Raises:
        InternalError: the cost is not over `ORDERS`, negative or no number, or delta lies
            outside (0, 1).
    """
    if len(rdp) != len(ORDERS) or not 0 < delta < 1 or not all(cost >= 0 for cost in rdp):
        raise InternalError("an epsilon needs a cost at every order and a delta in (0, 1)")
    if not any(rdp):
        return Spent(0.0, ORDERS[0])
    rest = math.log(delta * DELTA_SHARE) + np.log(_ALPHA)
    found = np.array(rdp) + np.log1p(-1 / _ALPHA) - rest / (_ALPHA - 1)
    best = int(found.argmin())
    return Spent(max(0.0, float(found[best])), ORDERS[best])


def check_reserve(eps: float, delta: float, *, rounds: int, n: int, d: int) -> None:
    """Refuse a guarantee whose reserve of delta does not pay for the sampler (9.4).

    `rounds` noised vectors of `d` words from each of `n` hospitals.

    Raises:
        Refusal: DP_WEAK.
    """
    factor = math.exp(eps) if eps < _MOST_EXPONENT else math.inf
    needed = (1 + factor) * rounds * n * d * SAMPLER_DISTANCE
    if not delta * (1 - DELTA_SHARE) > needed:  # a NaN pays for nothing
        raise Refusal(
            "DP_WEAK",
            f"delta {delta:g} leaves nothing for {rounds} rounds of noise at epsilon {eps:g}",
        )
