"""The result of an exact regression as a paper prints it, in the features' own units.

The fit is on encoded columns, (value - centre) / scale. With theta' = A theta the same
model reads in the original units: a coefficient is divided by its scale, the intercept
loses what centring moved into it, and covariances are A V A' (a linear map, so nothing is
approximated). V is the inverse Hessian at the fitted coefficients, times the residual
variance in a linear model. With a ridge it is (H + ridge)^-1, the curvature of the
penalised likelihood: such coefficients are shrunk, and intervals around them do not have
their stated coverage; the table says so.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from common.features import encoded_columns
from common.preprocessing import Preprocessing
from common.regression.distribution import (
    normal_quantile,
    normal_tail,
    student_quantile,
    student_tail,
)
from common.regression.fit import Fit, inverse, penalty
from common.regression.sums import Floats, has_intercept
from common.study import Newton, Study

SCHEMA: Final = "fedcare.coefficients/v1"
FILE: Final = "coefficients.json"
LEAST_ROWS: Final = 10
"""Rows of all hospitals together below which no table is published."""

RATIOS: Final = {"logistic": "odds ratio", "poisson": "rate ratio", "cox": "hazard ratio"}

_RIDGE: Final = "coefficients are shrunk by the ridge; intervals do not have their stated coverage"
_LONG: Final = "the fit did not converge: more rounds, or a ridge if classes are separated"
_LOOSE: Final = "coefficients without a standard error cannot be told apart from the data"


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One line: in the feature's unit (a category's: against its first level).

    `standardised`: per standard deviation of the pooled rows. `statistic` is z, or t in a
    linear model. All but the name are None where the data do not fix the coefficient.
    `ratio`: e^coefficient, with its interval, where the model has one.
    """

    name: str
    coefficient: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    statistic: float | None
    p_value: float | None
    standardised: float | None
    standardised_error: float | None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


@dataclass(frozen=True, slots=True)
class RegressionTable:
    """A fitted model: `coefficients` as in the model, an intercept last.

    `events`: positives, counts or events of the target, None in a linear model, whose
    residual variance is `variance`, with `residual_df` degrees of freedom, and whose fit
    `r2`. `aic` = 2 p - 2 l, `bic` = p log(n) - 2 l (cox: n is the events) over the p
    coefficients that the data fix.
    """

    family: str
    confidence: float
    rows: int
    events: float | None
    log_likelihood: float
    aic: float
    bic: float
    variance: float | None
    residual_df: int | None
    r2: float | None
    ridge: float
    converged: bool
    rounds: int
    notes: tuple[str, ...]
    coefficients: tuple[Coefficient, ...]

    def data(self) -> dict[str, object]:
        """Return the form for envelopes and files."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> bytes:
        """Return the released file: sorted keys, shortest floats, one line end."""
        text = json.dumps(self.data(), sort_keys=True, indent=1, allow_nan=False)
        return text.encode() + b"\n"


def table_of(study: Study, preprocessing: Preprocessing, fit: Fit) -> RegressionTable | None:
    """Return the table of a fit; None where too few rows stand behind it."""
    sums, strategy = fit.sums, study.federation.strategy
    if sums is None or sums.rows < LEAST_ROWS or not isinstance(strategy, Newton):
        return None
    covariance, fixed = inverse(sums.hessian + np.diag(penalty(study)))
    linear, count = study.model.kind == "linear", int(fixed.sum())
    rows = int(sums.rows)
    likelihood, variance, df, r2 = sums.log_likelihood, None, None, None
    if linear:
        residual = -2.0 * sums.log_likelihood
        df = rows - count
        variance = residual / df if df > 0 else None
        covariance = covariance * (variance if variance is not None else math.nan)
        spread = sums.squares - sums.total * sums.total / rows
        r2 = 1.0 - residual / spread if spread > 0 else None
        likelihood = -0.5 * rows * (math.log(2.0 * math.pi * max(residual, 1e-300) / rows) + 1.0)
    sample = sums.total if study.model.kind == "cox" else rows
    notes = [_RIDGE] * (strategy.ridge > 0) + [_LONG] * (not fit.converged)
    notes += [_LOOSE] * (not fixed.all())
    return RegressionTable(
        family=study.model.kind,
        confidence=study.evaluate.confidence,
        rows=rows,
        events=None if linear else sums.total,
        log_likelihood=likelihood,
        aic=2.0 * count - 2.0 * likelihood,
        bic=count * math.log(max(sample, 1.0)) - 2.0 * likelihood,
        variance=variance,
        residual_df=df,
        r2=r2,
        ridge=strategy.ridge,
        converged=fit.converged,
        rounds=fit.rounds,
        notes=tuple(notes),
        coefficients=_lines(study, preprocessing, fit.exact, covariance, fixed, df),
    )


def original_units(study: Study, preprocessing: Preprocessing) -> Floats:
    """Return A [p, p]: coefficients on encoded columns to coefficients on the features."""
    scale = np.array(preprocessing.scale, np.float64)
    if not has_intercept(study):
        return np.diag(1.0 / scale)
    out = np.diag(np.append(1.0 / scale, 1.0))
    out[-1, :-1] = -np.array(preprocessing.centre, np.float64) / scale
    return out


def _lines(
    study: Study,
    preprocessing: Preprocessing,
    theta: Floats,
    covariance: Floats,
    fixed: np.ndarray,
    df: int | None,
) -> tuple[Coefficient, ...]:
    a = original_units(study, preprocessing)
    # The intercept is as well known as every coefficient that centring brought into it.
    told = ~((np.abs(a) > 0) & ~fixed[None, :]).any(axis=1)
    values, errors = a @ theta, np.sqrt(np.clip(np.diag(a @ covariance @ a.T), 0.0, None))
    own_errors = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
    names = [column.name for column in encoded_columns(study)]
    names += ["(intercept)"] * has_intercept(study)
    lines = []
    for place, name in enumerate(names):
        error = float(errors[place])
        if not (told[place] and math.isfinite(error) and error > 0):
            lines.append(Coefficient(name, *(None,) * 8))
            continue
        intercept = name == "(intercept)" and place == len(names) - 1
        lines.append(
            _line(
                study,
                name,
                (float(values[place]), error),
                (float(theta[place]), float(own_errors[place])),
                df,
                ratio=study.model.kind in RATIOS and not intercept,
            )
        )
    return tuple(lines)


def _line(
    study: Study,
    name: str,
    own: tuple[float, float],
    standardised: tuple[float, float],
    df: int | None,
    *,
    ratio: bool,
) -> Coefficient:
    confidence, (value, error) = study.evaluate.confidence, own
    statistic = value / error
    if df is None:
        reach, p = normal_quantile(confidence) * error, normal_tail(statistic)
    else:
        reach, p = student_quantile(confidence, df) * error, student_tail(statistic, df)
    low, high = value - reach, value + reach
    ratios = tuple(_exp(x) for x in (value, low, high)) if ratio else ()
    return Coefficient(name, value, error, low, high, statistic, p, *standardised, *ratios)


def _exp(value: float) -> float | None:
    """Return e^value; None where float64 has no such number."""
    return math.exp(value) if value < math.log(np.finfo(float).max) else None
