"""What a survival model's predictions are worth at one hospital, in plain numpy, exactly.

`time` >= 0 and `event` (1: the event came then, 0: censored then) are float64 [rows];
`risk` is the log hazard, or anything that rises with it. A figure without a value is `None`.

* `pairs`: Harrell's C (Harrell et al. 1982), with each row's share for its variance.
* `censoring`: G(t-), the chance to be uncensored just before t, by Kaplan and Meier.
* `horizon_weights`: inverse-probability-of-censoring weights at a horizon t (Graf et al.
  1999; Uno et al. 2007): 1/G(T-) for an event at T <= t, 1/G(t) for a row seen beyond t,
  0 for a row censored before.
* `breslow`: the cumulative baseline hazard (Breslow 1972).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 1 << 22
"""Pairs that are looked at together: bounds the memory, not the result."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Of each row, over the comparable pairs it is in: how many, and how many concordant.

    `comparable`, `concordant` float64 [rows]; pairs of equal risk are half concordant. Every
    pair stands in two rows.
    """

    comparable: _Floats
    concordant: _Floats

    def sums(self) -> _Floats:
        """Return what adds up over hospitals: concordant, comparable, and the squares."""
        c, n = self.concordant, self.comparable
        return np.array([c.sum() / 2, n.sum() / 2, c @ c, c @ n, n @ n], np.float64)


def pairs(time: _Floats, event: _Floats, risk: _Floats) -> Pairs:
    """Compare each row that had the event with each that was still without it then.

    A row censored at the very time of the event counts as still without it; two events at
    one time are not compared.
    """
    comparable, concordant = np.zeros(len(time)), np.zeros(len(time))
    sick = np.flatnonzero(event > 0)
    step = max(1, _BLOCK // max(1, len(time)))
    for start in range(0, len(sick), step):
        rows = sick[start : start + step]
        later = time[None, :] > time[rows, None]
        later |= (time[None, :] == time[rows, None]) & (event[None, :] <= 0)
        gap = risk[rows, None] - risk[None, :]
        right = later * ((gap > 0) + 0.5 * (gap == 0))
        comparable[rows] += later.sum(axis=1)
        concordant[rows] += right.sum(axis=1)
        comparable += later.sum(axis=0)
        concordant += right.sum(axis=0)
    return Pairs(comparable, concordant)


def c_index(sums: _Floats) -> tuple[float | None, float | None]:
    """Return C and its standard error from `Pairs.sums`, added over hospitals or not.

    C = concordant / comparable. Its variance is that of the infinitesimal jackknife: row i
    with c_i of n_i pairs concordant moves C by (c_i - C n_i) / comparable. `None` without
    a comparable pair.
    """
    concordant, comparable, cc, cn, nn = (float(value) for value in sums)
    if comparable < 0.5:  # noqa: PLR2004 - none, but for rounding
        return None, None
    c = concordant / comparable
    spread = max(0.0, cc - 2.0 * c * cn + c * c * nn)
    return c, spread**0.5 / comparable


def censoring(time: _Floats, event: _Floats, at: _Floats) -> _Floats:
    """Return G(t-) at each of the times `at`: Kaplan-Meier of being censored.

    Where an event and a censoring share a time the event comes first, so that whoever had
    it then is no longer at risk of being censored.
    """
    times = np.unique(time)
    rising = np.sort(time)
    at_risk = len(time) - np.searchsorted(rising, times, side="left")
    events = np.array([float((event[time == t] > 0).sum()) for t in times])
    lost = np.array([float((event[time == t] <= 0).sum()) for t in times])
    share = 1.0 - lost / np.maximum(at_risk - events, 1.0)
    curve = np.concatenate([[1.0], np.cumprod(share)])
    found: _Floats = curve[np.searchsorted(times, at, side="left")]
    return found


def horizon_weights(time: _Floats, event: _Floats, t: float) -> tuple[_Floats, _Floats]:
    """Return (case weights, control weights) at horizon `t`, each float64 [rows].

    Where nobody is left uncensored at `t` there are no controls, and no weight is infinite.
    """
    before = censoring(time, event, time)
    case = (time <= t) & (event > 0) & (before > 0)
    beyond = float(censoring(time, event, np.array([np.nextafter(t, np.inf)]))[0])
    control = (time > t) & (beyond > 0)
    cases = np.divide(1.0, before, out=np.zeros(len(time)), where=case)
    return cases, np.where(control, 1.0 / beyond if beyond > 0 else 0.0, 0.0)


def auroc_at(cases: _Floats, controls: _Floats, risk: _Floats) -> float | None:
    """Return the cumulative/dynamic AUROC of weighted cases and controls (Uno et al. 2007)."""
    _, place = np.unique(risk, return_inverse=True)
    high = np.bincount(place, cases)
    low = np.bincount(place, controls)
    total = float(high.sum() * low.sum())
    return float(high @ (np.cumsum(low) - low / 2.0)) / total if total > 0 else None


def brier_sum(cases: _Floats, controls: _Floats, survival: _Floats) -> float:
    """Return the weighted sum of (1{T > t} - S(t))^2; over the rows it is the Brier score."""
    return float(cases @ survival**2 + controls @ (1.0 - survival) ** 2)


def breslow(time: _Floats, event: _Floats, risk: _Floats, at: _Floats) -> _Floats:
    """Return the cumulative baseline hazard at each of the times `at`, float64.

    H0(t) = sum over events at T_i <= t of 1 / sum over rows j with T_j >= T_i of exp(risk_j).
    """
    order = np.argsort(-time, kind="stable")
    at_risk = np.cumsum(np.exp(risk[order]))
    last = np.searchsorted(-time[order], -time, side="right") - 1
    jumps = np.where(event > 0, 1.0 / at_risk[last], 0.0)
    return np.array([float(jumps[time <= t].sum()) for t in at], np.float64)
