"""Calibration slope and intercept: a logistic regression of the outcome on the model's logit.

    logit P(sick) = a + b l,    l = log(p / (1 - p))            (Cox 1958)

The slope is b; below 1 the predictions are too extreme. The intercept is a with b = 1
(calibration in the large); below 0 they are too high. Both as in Van Calster et al. 2019,
"Calibration: the Achilles heel of predictive analytics", BMC Medicine 17:230.

Bins move every l a little. Six sums over rows, exact, make up for it: they are the values
and first derivatives of the likelihood equations at a = 0, b = 1, so that what the bins
distort is replaced there by what all rows give and is right to first order around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.metrics import PROBABILITY_FLOOR
from common.score_counts import ScoreCounts

SUMS: Final = ("p", "lp", "v", "lv", "llv", "yl")
"""Names of the six sums: v = p (1 - p), l the logit, y the outcome (1 or 0)."""

_STEPS: Final = 100
_CLOSE: Final = 1e-10
_STEEPEST: Final = 50.0
"""A slope beyond has no value: the classes are (all but) separated by the score."""


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted a and b with their standard errors."""

    a: float
    b: float
    a_error: float
    b_error: float


def logits(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(p / (1 - p)), with p within [1e-7, 1 - 1e-7]: within +-16.2."""
    p = np.clip(probabilities, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return np.asarray(np.log(p) - np.log1p(-p), np.float64)


def row_terms(
    probabilities: NDArray[np.float64], labels: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Return each row's six terms (`SUMS`), each float64 [rows] and within +-17."""
    p = np.clip(probabilities, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    t, v = logits(p), p * (1.0 - p)
    return [p, t * p, v, t * v, t * t * v, labels * t]


@dataclass(frozen=True, slots=True)
class _Equations:
    """The likelihood equations over counts, and what the exact sums add to them."""

    logit: NDArray[np.float64]
    counts: ScoreCounts
    exact: NDArray[np.float64]
    """float64 [6], `SUMS`."""

    def gap(self) -> NDArray[np.float64]:
        """Return what bins took from the first five sums, float64 [5]."""
        p, rows = self.counts.scores, self.counts.rows
        binned = np.stack(row_terms(p, np.zeros(len(p)))[:5]) @ rows
        return np.asarray(self.exact[:5] - binned, np.float64)

    def at(
        self, a: float, b: float, gap: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return score [2] and information [2, 2] at (a, b)."""
        rows, t = self.counts.rows, self.logit
        p = 0.5 * (1.0 + np.tanh(0.5 * (a + b * t)))  # without overflow
        v = rows * p * (1.0 - p)
        slopes = np.array([[gap[2], gap[3]], [gap[3], gap[4]]])
        move = np.array([a, b - 1.0])
        expected = np.array([rows @ p, (rows * t) @ p]) + gap[:2] + slopes @ move
        seen = np.array([self.counts.sick.sum(), self.exact[5]])
        information = np.array([[v.sum(), v @ t], [v @ t, v @ (t * t)]])
        return seen - expected, information


def slope(counts: ScoreCounts, exact: NDArray[np.float64]) -> Line | None:
    """Return the fitted line; None with one class, one score, or separated classes.

    `exact` float64 [6] holds the sums of `row_terms` over the very rows.
    """
    if counts.sick.sum() <= 0 or counts.healthy.sum() <= 0 or len(counts.scores) < 2:  # noqa: PLR2004
        return None
    equations = _Equations(logits(counts.scores), counts, exact)
    gap, found = equations.gap(), np.array([0.0, 1.0])
    for _ in range(_STEPS):
        score, information = equations.at(found[0], found[1], gap)
        if np.linalg.cond(information) > 1e14:  # noqa: PLR2004 - all in one place
            return None
        step = np.linalg.solve(information, score)
        # Newton's steps overshoot where the curve is flat; a bounded step cannot run away.
        found = found + step / max(1.0, float(np.abs(step).max()))
        if abs(found[1]) > _STEEPEST:
            return None
        if np.abs(step).max() < _CLOSE:
            errors = np.sqrt(np.diag(np.linalg.inv(information)))
            return Line(float(found[0]), float(found[1]), float(errors[0]), float(errors[1]))
    return None


def intercept(counts: ScoreCounts, exact: NDArray[np.float64]) -> Line | None:
    """Return the line with b = 1; None with one class only."""
    if counts.sick.sum() <= 0 or counts.healthy.sum() <= 0:
        return None
    equations, a = _Equations(logits(counts.scores), counts, exact), 0.0
    gap = equations.gap()
    for _ in range(_STEPS):
        score, information = equations.at(a, 1.0, gap)
        if information[0, 0] <= 0:  # every probability has reached 0 or 1
            return None
        step = float(score[0] / information[0, 0])
        a += max(-1.0, min(1.0, step))
        if abs(step) < _CLOSE:
            return Line(a, 1.0, float(information[0, 0] ** -0.5), 0.0)
    return None
