"""What one hospital adds to an exact regression: log-likelihood, gradient, Hessian, counts.

With x a row's encoded features (and a 1 for the intercept), eta = x theta:

    logistic   l = y eta - log(1 + e^eta)   g = x (y - mu)   H = x x' mu (1 - mu)
    poisson    l = y eta - mu - log(y!)     g = x (y - mu)   H = x x' mu
    linear     l = -(y - eta)^2 / 2         g = x (y - eta)  H = x x'
    cox        Efron's partial likelihood; each hospital is a stratum with its own risk sets

with mu = 1/(1 + e^-eta) (logistic) or e^eta (poisson)

(McCullagh and Nelder 1989, chapter 2; Cox 1972; Efron 1977, equation 4.) The linear
model's l lacks its variance, which follows from the residual sum of squares in the end.

The numbers travel in two words each ("limbs"), `high` with range R = 2^40 and what its
rounding left over as `low` with range R/B: with B = 2^52 together a resolution of about
2^-65, far below what float64 keeps of sums of this size. A number beyond R is refused, never
clipped: a coefficient that runs away (separation), or columns that are not scaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError, Refusal
from common.features import encoded_columns
from common.quantise import from_limbs, limbs
from common.study import Study
from common.vectors import ParameterSchema, TensorSpec, TensorType

Floats = NDArray[np.float64]

RANGE: Final = 2.0**40
"""R of `high`: sums of squares of a million rows of values up to a thousand."""

RING_BITS: Final = 64

FAMILIES: Final = ("logistic", "linear", "poisson", "cox")

_COUNTS: Final = 3
"""Rows, and the sums of y and y^2 (cox: events, then 0)."""

_START: Final = 0.1
"""Added to a count where its logarithm starts a Poisson fit (McCullagh and Nelder, p. 41)."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Of one hospital or of all: what Newton's method needs at one theta of p coefficients.

    `log_likelihood`; `gradient` [p]; `hessian` [p, p], negative second derivatives, symmetric;
    `rows`; `total` and `squares` of the target (cox: `total` counts events).
    """

    log_likelihood: float
    gradient: Floats
    hessian: Floats
    rows: float
    total: float
    squares: float


def has_intercept(study: Study) -> bool:
    """Whether the last coefficient is an intercept."""
    return study.model.kind != "cox"


def size(study: Study) -> int:
    """Return p, the number of coefficients."""
    return len(encoded_columns(study)) + has_intercept(study)


def layout(study: Study) -> ParameterSchema:
    """Return the layout of a round of exact regression: `high` and `low`, k words each."""
    p = size(study)
    shape = (1 + p + p * (p + 1) // 2 + _COUNTS,)
    return ParameterSchema(
        (
            TensorSpec("high", TensorType.FLOAT64, shape),
            TensorSpec("low", TensorType.FLOAT64, shape),
        )
    )


def contribution(sums: Sums, levels: int) -> Floats:
    """Return a hospital's vector, float64 [2 k]: `high`, then `low`.

    Raises:
        Refusal: INPUT_NAN, a sum is not finite or lies beyond `RANGE`.
    """
    upper = np.triu_indices(len(sums.gradient))
    counts = [sums.rows, sums.total, sums.squares]
    value = np.concatenate(
        [[sums.log_likelihood], sums.gradient, sums.hessian[upper], counts]
    ).astype(np.float64)
    if not np.isfinite(value).all() or float(np.abs(value).max()) > RANGE:
        raise Refusal(
            "INPUT_NAN",
            "the sums of the regression are not finite or exceed 2^40: a coefficient runs away "
            "(set federation.strategy.ridge), or features need normalise: federated",
        )
    return limbs(value, RANGE, levels)


def opened(study: Study, words: NDArray[np.int64], levels: int) -> Sums:
    """Return the sums over all hospitals from the opened tensor words, int64 [2 k].

    Raises:
        InternalError: `words` has not the layout's length.
    """
    p = size(study)
    count = layout(study).tensors[0].size
    if words.shape != (2 * count,):
        raise InternalError("a regression's sum is not of the layout")
    value = from_limbs(words, RANGE, levels)
    hessian = np.zeros((p, p))
    hessian[np.triu_indices(p)] = value[1 + p : -_COUNTS]
    hessian = hessian + np.triu(hessian, 1).T
    rows, total, squares = (float(number) for number in value[-_COUNTS:])
    return Sums(float(value[0]), value[1 : 1 + p], hessian, round(rows), total, squares)


def sums_of(study: Study, features: Floats, target: Floats, theta: Floats) -> Sums:
    """Return a hospital's sums at `theta` [p]; `features` [rows, columns], `target` as encoded.

    A Poisson fit starts at mu = y + 0.1 rather than at theta = 0, from where its first step
    would be far too long; the sums then are those of that starting point, so that the same
    step leads from 0 to the first coefficients, and their log-likelihood is -R / rows.

    Raises:
        Refusal: INPUT_NAN, a count below 0 in a Poisson regression.
    """
    match study.model.kind:
        case "logistic":
            return _logistic(_with_one(features), target, theta)
        case "linear":
            return _linear(_with_one(features), target, theta)
        case "poisson":
            return _poisson(_with_one(features), target, theta)
        case "cox":
            return _cox(features, target[:, 0], target[:, 1], theta)
        case other:
            raise InternalError(f"no exact regression for a model of kind {other}")


def _with_one(features: Floats) -> Floats:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _sums(likelihood: float, x: Floats, residual: Floats, weight: Floats, y: Floats) -> Sums:
    return Sums(
        likelihood,
        x.T @ residual,
        (x * weight[:, None]).T @ x,
        float(len(y)),
        float(y.sum()),
        float((y * y).sum()),
    )


def _logistic(x: Floats, y: Floats, theta: Floats) -> Sums:
    eta = x @ theta
    mu = 0.5 * (1.0 + np.tanh(0.5 * eta))  # no overflow, and exact symmetry
    likelihood = float((y * eta - np.logaddexp(0.0, eta)).sum())
    return _sums(likelihood, x, y - mu, mu * (1.0 - mu), y)


def _linear(x: Floats, y: Floats, theta: Floats) -> Sums:
    residual = y - x @ theta
    return _sums(-0.5 * float(residual @ residual), x, residual, np.ones(len(y)), y)


def _poisson(x: Floats, y: Floats, theta: Floats) -> Sums:
    if (y < 0).any():
        raise Refusal(
            "INPUT_NAN", "a Poisson regression counts, and the target has a value below 0"
        )
    if not theta.any():
        mu = y + _START
        working = np.log(mu) + (y - mu) / mu
        return _sums(-RANGE / 2.0**10, x, mu * working, mu, y)
    eta = x @ theta
    with np.errstate(over="ignore"):
        mu = np.exp(eta)
    factorials = sum(math.lgamma(value + 1.0) for value in y.tolist())
    return _sums(float((y * eta - mu).sum()) - factorials, x, y - mu, mu, y)


def _cox(x: Floats, time: Floats, event: Floats, theta: Floats) -> Sums:
    """Return Efron's sums; rows in falling order of time, so that risk sets only grow.

    At an event time with d events: with S0, S1, S2 the sums of r, r x, r x x' (r = e^eta) over
    the risk set and D0, D1, D2 the same over the events,
        l += sum of eta over the events - sum over k < d of log(S0 - k/d D0)
    and g, H follow with a = (S1 - k/d D1) / (S0 - k/d D0), H += (S2 - k/d D2)/(..) - a a'.
    """
    p = x.shape[1]
    order = np.argsort(-time, kind="stable")
    x, time, came = x[order], time[order], event[order] > 0
    eta = x @ theta
    shift = float(eta.max(initial=0.0))  # ratios of r are what counts: none overflows
    risk = np.exp(eta - shift)
    likelihood, gradient, hessian = 0.0, np.zeros(p), np.zeros((p, p))
    s0, s1, s2 = 0.0, np.zeros(p), np.zeros((p, p))
    starts = np.flatnonzero(np.diff(time, prepend=np.inf) != 0)
    for start, stop in zip(starts, [*starts[1:], len(time)], strict=True):
        rows, r = x[start:stop], risk[start:stop]
        s0 += float(r.sum())
        s1 = s1 + r @ rows
        s2 = s2 + (rows * r[:, None]).T @ rows
        died = came[start:stop]
        count = int(died.sum())
        if count == 0:
            continue
        dead, dead_r = rows[died], r[died]
        d0, d1 = float(dead_r.sum()), dead_r @ dead
        d2 = (dead * dead_r[:, None]).T @ dead
        likelihood += float(eta[start:stop][died].sum()) - count * shift
        gradient += dead.sum(axis=0)
        for k in range(count):
            part = k / count
            below = s0 - part * d0
            mean = (s1 - part * d1) / below
            likelihood -= math.log(below)
            gradient -= mean
            hessian += (s2 - part * d2) / below - np.outer(mean, mean)
    return Sums(likelihood, gradient, hessian, float(len(time)), float(came.sum()), 0.0)
