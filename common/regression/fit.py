"""Newton's method at the coordinator: one step for each opened sum, and when to stop.

`Fit` is all it remembers, and a round makes the next one of it: `begin`, then `advance` with
the sums at the coefficients that travelled (`Fit.sent`, in float32). The step is damped
twice: no coefficient of a model with a link moves by more than `LONGEST_STEP` at once, and
coefficients at which the penalised log-likelihood fell are taken back by half, as often as
needed. A direction in which the data say nothing (a column that is constant, or the sum of
others) gets no step: the Hessian is inverted where its eigenvalues are above `SINGULAR`
of the largest, and the coefficients concerned are named in the table as not estimable.

A log-likelihood is compared with that of the same hospitals only: over others it is another
function. Where a hospital dropped out or came back, the coefficients that travelled are kept
and the fit goes on from them over the hospitals there are, with a whole step.

A fit is over when no coefficient moves by more than the study's `tolerance`, or than float32
can tell. The step that was taken last is then exact to the square of that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InternalError, StateError
from common.regression.sums import Floats, Sums, has_intercept, size
from common.study import Newton, Study

LONGEST_STEP: Final = 5.0
"""Standard deviations' worth of log odds, log rate or log hazard."""

SINGULAR: Final = 1e-11
"""Share of the largest eigenvalue below which a direction is one the data do not know."""

_FELL: Final = 1e-10
"""Relative loss of log-likelihood that is rounding."""

_FLOAT32: Final = 2.0**-23
SCHEMA: Final = "fedcare.regression-fit/v1"


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a fit stands after the sums of its last round.

    `sent` float32 [p]: the coefficients that travel next. `exact` float64 [p]: what they are
    rounded from. `base` and `likelihood`: the best coefficients so far, with their penalised
    log-likelihood (None before the first sums); `step` the whole step from there, of which
    `fraction` was taken. `sums` are those at `base`, over the hospitals in `over` (a name for
    the set, "" before the first sums); `converged`, and after how many `rounds`.
    """

    sent: NDArray[np.float32]
    exact: Floats
    base: Floats
    likelihood: float | None
    step: Floats
    fraction: float
    sums: Sums | None
    converged: bool
    rounds: int
    over: str = ""


def begin(study: Study) -> Fit:
    """Return the fit before any sum: all coefficients 0."""
    p = size(study)
    zero = np.zeros(p)
    return Fit(
        np.zeros(p, np.float32), zero, zero, None, zero, 1.0, None, converged=False, rounds=0
    )


def penalty(study: Study) -> Floats:
    """Return the ridge of each coefficient; the intercept has none."""
    strategy = study.federation.strategy
    if not isinstance(strategy, Newton):
        raise InternalError("an exact regression without its strategy")
    out = np.full(size(study), strategy.ridge)
    if has_intercept(study):
        out[-1] = 0.0
    return out


def inverse(hessian: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return a Hessian's inverse over the directions it knows, and which coefficients they fix.

    [p, p] and [p]: a coefficient is fixed if no unknown direction has a part in it. The
    columns are scaled to a diagonal of 1 first, so that a feature's unit does not matter.
    """
    scale = np.sqrt(np.clip(np.diag(hessian), 0.0, None))
    safe = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(hessian / np.outer(safe, safe))
    known = values > max(SINGULAR * float(values.max(initial=0.0)), np.finfo(float).tiny)
    kept = vectors[:, known]
    out = (kept / values[known]) @ kept.T / np.outer(safe, safe)
    loose = np.abs(vectors[:, ~known]).max(axis=1, initial=0.0)
    return out, (loose < 1e-6) & (scale > 0)  # noqa: PLR2004


def advance(study: Study, fit: Fit, sums: Sums, over: str = "all") -> Fit:
    """Return the fit after the sums at `fit.sent` over the hospitals named by `over`."""
    ridge, at = penalty(study), fit.sent.astype(np.float64)
    likelihood = sums.log_likelihood - 0.5 * float(ridge @ (at * at))
    if over == fit.over and _fell(fit.likelihood, likelihood):
        fraction = fit.fraction / 2.0
        return _send(replace(fit, fraction=fraction, rounds=fit.rounds + 1))
    step = inverse(sums.hessian + np.diag(ridge))[0] @ (sums.gradient - ridge * at)
    longest = float(np.abs(step).max(initial=0.0))
    first_guess = study.model.kind == "poisson" and not at.any()
    if study.model.kind != "linear" and not first_guess and longest > LONGEST_STEP:
        step *= LONGEST_STEP / longest
    done = bool((np.abs(step) <= np.maximum(_tolerance(study), _FLOAT32 * np.abs(at))).all())
    fresh = Fit(fit.sent, fit.exact, at, likelihood, step, 1.0, sums, done, fit.rounds + 1, over)
    return _send(fresh)


def _fell(before: float | None, after: float) -> bool:
    return before is not None and after < before - _FELL * abs(before)


def _tolerance(study: Study) -> float:
    strategy = study.federation.strategy
    return strategy.tolerance if isinstance(strategy, Newton) else 0.0


def _send(fit: Fit) -> Fit:
    exact = fit.base + fit.fraction * fit.step
    return replace(fit, exact=exact, sent=exact.astype(np.float32))


# --- what is kept between rounds ---------------------------------------------------------------


def to_json(fit: Fit) -> bytes:
    """Return a fit for the coordinator's object store; floats to the last bit."""
    sums = fit.sums
    body = {
        "schema": SCHEMA,
        "exact": fit.exact.tolist(),
        "base": fit.base.tolist(),
        "likelihood": fit.likelihood,
        "step": fit.step.tolist(),
        "fraction": fit.fraction,
        "converged": fit.converged,
        "rounds": fit.rounds,
        "over": fit.over,
        "sums": None
        if sums is None
        else {
            "log_likelihood": sums.log_likelihood,
            "gradient": sums.gradient.tolist(),
            "hessian": sums.hessian.tolist(),
            "rows": sums.rows,
            "total": sums.total,
            "squares": sums.squares,
        },
    }
    return json.dumps(body, sort_keys=True, allow_nan=False).encode()


def from_json(data: bytes) -> Fit:
    """Read back what `to_json` wrote.

    Raises:
        StateError: STATE_DAMAGED.
    """
    try:
        body: dict[str, Any] = json.loads(data)
        if body["schema"] != SCHEMA:
            raise StateError("STATE_DAMAGED", "the stored fit is of another version")
        exact = np.array(body["exact"], np.float64)
        kept = body["sums"]
        sums = (
            None
            if kept is None
            else Sums(
                kept["log_likelihood"],
                np.array(kept["gradient"], np.float64),
                np.array(kept["hessian"], np.float64),
                kept["rows"],
                kept["total"],
                kept["squares"],
            )
        )
        return Fit(
            exact.astype(np.float32),
            exact,
            np.array(body["base"], np.float64),
            body["likelihood"],
            np.array(body["step"], np.float64),
            body["fraction"],
            sums,
            body["converged"],
            body["rounds"],
            body["over"],
        )
    except (ValueError, KeyError, TypeError):
        raise StateError("STATE_DAMAGED", "the stored fit of a regression cannot be read") from None
