"""Exact regression over split rows is the pooled fit of statsmodels and lifelines, to 1e-6."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from common.errors import Refusal
from common.preprocessing import Preprocessing
from common.quantise import limb_ranges
from common.regression import distribution, fit, sums, table
from common.secagg.header import quant_bound
from common.study import Study, parse_study

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pandas as pd
    import statsmodels.api as sm
    from lifelines import CoxPHFitter

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that are the oracle

COLUMNS = 4
TEXT = """
schema: fedcare.study/v1
id: exact
purpose: research
dataset: d
owner: {{name: A, organisation: b}}
features:
  - {{name: a, type: float}}
  - {{name: b, type: float}}
  - {{name: c, type: float}}
  - {{name: d, type: float}}
target: {target}
split: {{test: 0.2, stratify: false}}
model: {{kind: {kind}}}
federation: {{rounds: 25, strategy: {{name: newton, ridge: {ridge}}}}}
"""
TARGETS = {
    "logistic": "{type: binary, name: y}",
    "linear": "{type: continuous, name: y}",
    "poisson": "{type: continuous, name: y}",
    "cox": "{type: survival, time: t, event: e}",
}
CENTRE = (50.0, -3.0, 0.0, 1e3)
SCALE = (12.0, 0.01, 1.0, 250.0)
PREPROCESSING = Preprocessing(tuple("abcd"), CENTRE, SCALE, (None,) * 4)
SITES = (40, 7, 120, 33)


def study_of(kind: str, ridge: float = 0.0) -> Study:
    return parse_study(TEXT.format(kind=kind, target=TARGETS[kind], ridge=ridge))


def data_of(
    kind: str, seed: int = 3, rows: int = sum(SITES)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return features in their own units and targets; times have ties."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, COLUMNS))
    z[:, 1] = (z[:, 1] > 0.4) - 0.3  # and one indicator
    eta = z @ np.array([0.8, -0.5, 0.3, 0.0])
    x = z * SCALE + CENTRE
    if kind == "logistic":
        return x, (rng.random(rows) < 1 / (1 + np.exp(-eta))).astype(float)
    if kind == "linear":
        return x, 120.0 + 15.0 * eta + rng.normal(0, 9.0, rows)
    if kind == "poisson":
        return x, rng.poisson(np.exp(2.0 + eta)).astype(float)
    time = np.ceil(rng.exponential(np.exp(-eta)) * 20)
    return x, np.stack([time, (rng.random(rows) < 0.7).astype(float)], axis=1)


def federated(study: Study, x: NDArray[np.float64], y: NDArray[np.float64]) -> fit.Fit:
    """Run rounds over `SITES`, each sum through the words of a 64-bit ring."""
    encoded = (x - CENTRE) / SCALE
    ends = np.cumsum(SITES)[:-1]
    levels = quant_bound(len(SITES), 64)
    state = fit.begin(study)
    high, low = limb_ranges(sums.RANGE, levels)
    count = sums.layout(study).tensors[0].size
    scale = np.repeat([high, low], count)
    for _ in range(study.federation.rounds):
        total = np.zeros(2 * count, np.int64)
        for rows, labels in zip(np.split(encoded, ends), np.split(y, ends), strict=True):
            own = sums.sums_of(study, rows, labels, state.sent.astype(np.float64))
            words = np.rint(sums.contribution(own, levels) * levels / scale)
            total += words.astype(np.int64)
        state = fit.advance(study, state, sums.opened(study, total, levels))
        if state.converged:
            break
    return state


def table_for(kind: str, ridge: float = 0.0) -> tuple[table.RegressionTable, Any]:
    study = study_of(kind, ridge)
    x, y = data_of(kind)
    state = federated(study, x, y)
    made = table.table_of(study, PREPROCESSING, fit.from_json(fit.to_json(state)))
    assert made is not None
    return made, (x, y)


def close(ours: float | None, theirs: float) -> bool:
    return ours is not None and abs(ours - theirs) <= 1e-6 * max(1.0, abs(theirs))


@pytest.mark.parametrize("kind", ["logistic", "linear", "poisson"])
def test_the_table_is_that_of_statsmodels_on_all_rows(kind: str) -> None:
    made, (x, y) = table_for(kind)
    with_one = sm.add_constant(x, prepend=False)
    family = {"logistic": sm.families.Binomial(), "poisson": sm.families.Poisson()}
    if kind == "linear":
        pooled = sm.OLS(y, with_one).fit()
    else:
        pooled = sm.GLM(y, with_one, family=family[kind]).fit(tol=1e-14, maxiter=100)
    intervals = np.asarray(pooled.conf_int())
    assert made.converged
    assert 1 <= made.rounds <= 8
    assert made.rows == len(y)
    assert close(made.log_likelihood, float(pooled.llf))
    assert close(made.aic, float(pooled.aic))
    for place, line in enumerate(made.coefficients):
        assert close(line.coefficient, pooled.params[place])
        assert close(line.standard_error, pooled.bse[place])
        assert close(line.low, intervals[place, 0])
        assert close(line.high, intervals[place, 1])
        assert close(line.statistic, pooled.tvalues[place])
        assert close(line.p_value, pooled.pvalues[place])
        if kind != "linear" and line.name != "(intercept)":
            assert close(line.ratio, math.exp(pooled.params[place]))
            assert close(line.ratio_low, math.exp(intervals[place, 0]))
    if kind == "linear":
        assert close(made.r2, float(pooled.rsquared))
        assert close(made.variance, float(pooled.scale))


def test_cox_with_a_stratum_for_each_hospital_is_that_of_lifelines() -> None:
    made, (x, y) = table_for("cox")
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["t"], frame["e"] = y[:, 0], y[:, 1]
    frame["site"] = np.repeat(np.arange(len(SITES)), SITES)
    pooled = CoxPHFitter().fit(
        frame, "t", "e", strata=["site"], fit_options={"precision": 1e-13, "max_steps": 200}
    )
    assert made.converged
    assert made.rounds <= 8
    assert made.events == y[:, 1].sum()
    assert close(made.log_likelihood, pooled.log_likelihood_)
    summary = pooled.summary
    for line in made.coefficients:
        theirs = summary.loc[line.name]
        assert close(line.coefficient, theirs["coef"])
        assert close(line.standard_error, theirs["se(coef)"])
        assert close(line.p_value, theirs["p"])
        assert close(line.ratio, theirs["exp(coef)"])
        assert close(line.ratio_low, theirs["exp(coef) lower 95%"])
        assert close(line.ratio_high, theirs["exp(coef) upper 95%"])


def test_cox_ties_by_efron_are_those_of_statsmodels() -> None:
    made, (x, y) = table_for("cox")
    strata = np.repeat(np.arange(len(SITES)), SITES)
    pooled = sm.PHReg(y[:, 0], x, status=y[:, 1], strata=strata, ties="efron").fit(
        method="newton", tol=1e-14, maxiter=100, disp=False
    )
    for place, line in enumerate(made.coefficients):
        assert close(line.coefficient, pooled.params[place])
        assert close(line.standard_error, pooled.bse[place])


@pytest.mark.parametrize("kind", ["logistic", "poisson", "cox"])
def test_gradient_and_hessian_are_the_derivatives_of_the_log_likelihood(kind: str) -> None:
    study = study_of(kind)
    x, y = data_of(kind, rows=30)
    encoded = (x - CENTRE) / SCALE
    theta = np.linspace(-0.4, 0.5, sums.size(study))
    found = sums.sums_of(study, encoded, y, theta)
    step = 1e-5
    for place in range(len(theta)):
        shift = np.zeros(len(theta))
        shift[place] = step
        up, down = (sums.sums_of(study, encoded, y, theta + sign * shift) for sign in (1, -1))
        slope = (up.log_likelihood - down.log_likelihood) / (2 * step)
        assert found.gradient[place] == pytest.approx(slope, rel=1e-6, abs=1e-6)
        curve = -(up.gradient - down.gradient) / (2 * step)
        np.testing.assert_allclose(found.hessian[place], curve, rtol=1e-5, atol=1e-5)


def test_a_ridge_is_the_minimum_of_the_penalised_likelihood_and_is_said() -> None:
    made, (x, y) = table_for("logistic", ridge=2.5)
    assert any("ridge" in note for note in made.notes)
    encoded = sm.add_constant((x - CENTRE) / SCALE, prepend=False)
    theta = np.array([line.standardised for line in made.coefficients], np.float64)
    # The intercept on encoded columns is where the table's own-unit one came from.
    mu = 1 / (1 + np.exp(-encoded @ theta))
    slope = encoded.T @ (y - mu) - 2.5 * np.append(theta[:-1], 0.0)
    assert np.abs(slope).max() < 1e-5


def test_a_column_that_the_data_do_not_know_is_named_and_harms_no_other() -> None:
    study = study_of("logistic")
    x, y = data_of("logistic")
    x[:, 2] = CENTRE[2]  # constant
    made = table.table_of(study, PREPROCESSING, federated(study, x, y))
    assert made is not None
    assert made.converged
    lines = {line.name: line for line in made.coefficients}
    assert lines["c"].coefficient is None
    pooled = sm.GLM(
        y, sm.add_constant(np.delete(x, 2, 1), prepend=False), family=sm.families.Binomial()
    ).fit(tol=1e-14)
    for place, name in enumerate(("a", "b", "d")):
        assert close(lines[name].coefficient, pooled.params[place])
        assert close(lines[name].standard_error, pooled.bse[place])
    assert any("cannot be told apart" in note for note in made.notes)


def test_separated_classes_end_without_convergence_and_without_nan() -> None:
    study = study_of("logistic")
    x, _ = data_of("logistic")
    y = (x[:, 0] > CENTRE[0]).astype(float)
    state = federated(study, x, y)
    assert not state.converged
    assert np.isfinite(state.exact).all()
    made = table.table_of(study, PREPROCESSING, state)
    assert made is not None
    assert any("did not converge" in note for note in made.notes)
    made.to_json()


def test_a_step_that_lost_is_taken_back_by_half() -> None:
    study = study_of("poisson")
    x, y = data_of("poisson")
    good = federated(study, x, y)
    encoded = (x - CENTRE) / SCALE
    far = fit.Fit(
        (good.exact + 3).astype(np.float32), good.exact + 3, good.exact, good.likelihood,
        np.full(5, 3.0), 1.0, good.sums, converged=False, rounds=4, over="all",
    )  # fmt: skip
    after = fit.advance(study, far, sums.sums_of(study, encoded, y, far.sent.astype(np.float64)))
    assert after.fraction == 0.5
    np.testing.assert_allclose(after.exact, good.exact + 1.5)


def test_a_likelihood_over_other_hospitals_is_not_compared() -> None:
    """More hospitals lose more log-likelihood at the same coefficients; that is no bad step."""
    study = study_of("logistic")
    x, y = data_of("logistic")
    encoded = (x - CENTRE) / SCALE
    first = sums.sums_of(study, encoded[:80], y[:80], np.zeros(5))
    state = fit.advance(study, fit.begin(study), first, "three")
    at = state.sent.astype(np.float64)
    everybody = sums.sums_of(study, encoded, y, at)
    assert everybody.log_likelihood < first.log_likelihood
    after = fit.advance(study, state, everybody, "four")
    assert after.fraction == 1.0
    assert after.sums == everybody
    np.testing.assert_array_equal(after.base, at)
    assert fit.advance(study, state, everybody, "three").fraction == 0.5


def test_sums_beyond_the_range_are_refused_not_clipped() -> None:
    study = study_of("linear")
    own = sums.sums_of(study, np.full((4, 4), 1e7), np.ones(4), np.zeros(5))
    with pytest.raises(Refusal, match=r"exceed 2\^40"):
        sums.contribution(own, quant_bound(4, 64))


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(Refusal, match="below 0"):
        sums.sums_of(study_of("poisson"), np.zeros((1, 4)), np.array([-1.0]), np.zeros(5))


def test_too_few_rows_give_no_table() -> None:
    study = study_of("logistic")
    state = fit.begin(study)
    few = sums.sums_of(study, np.eye(4), np.array([0.0, 1, 0, 1]), np.zeros(5))
    assert table.table_of(study, PREPROCESSING, fit.advance(study, state, few)) is None


@given(st.floats(-40, 40), st.floats(0.5, 5000))
def test_tails_are_those_of_scipy(x: float, df: float) -> None:
    assert distribution.student_tail(x, df) == pytest.approx(
        2 * stats.t.sf(abs(x), df), rel=1e-9, abs=1e-300
    )
    assert distribution.normal_tail(x) == pytest.approx(2 * stats.norm.sf(abs(x)), rel=1e-11)


@given(st.floats(0.5, 0.999), st.floats(1, 3000))
def test_quantiles_are_those_of_scipy(confidence: float, df: float) -> None:
    half = 0.5 + confidence / 2
    assert distribution.student_quantile(confidence, df) == pytest.approx(
        stats.t.ppf(half, df), rel=1e-8
    )
    assert distribution.normal_quantile(confidence) == pytest.approx(stats.norm.ppf(half), rel=1e-9)
