"""Survival figures equal slow computations and lifelines, and add up under the masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from common import evaluation, survival_evaluation, survival_metrics
from common.errors import Refusal
from common.evaluation_document import published
from common.study import Study
from tests.learning import study

Arrays = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def cox_study(horizons: str = "[2, 5]") -> Study:
    return study(
        target="{type: survival, time: t, event: e}",
        model="{kind: cox}",
        more=f"evaluate: {{metrics: [c_index, auroc, brier], horizons: {horizons}}}",
    )


def drawn(seed: int, rows: int = 60) -> Arrays:
    """Patients with ties in time and in risk."""
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=rows), 1)
    time = np.ceil(rng.exponential(6 * np.exp(-risk)))
    return time, (rng.random(rows) < 0.6).astype(float), risk


def slow_c(
    time: NDArray[np.float64], event: NDArray[np.float64], risk: NDArray[np.float64]
) -> tuple[float, float]:
    right = total = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[j] > time[i] or (time[j] == time[i] and not event[j])):
                total += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j])
    return right, total


@given(st.integers(0, 10_000), st.integers(1, 25))
def test_concordant_and_comparable_pairs_equal_a_loop_over_all(seed: int, rows: int) -> None:
    time, event, risk = drawn(seed, rows)
    sums = survival_metrics.pairs(time, event, risk).sums()
    assert tuple(sums[:2]) == slow_c(time, event, risk)


def test_c_index_censoring_and_baseline_equal_lifelines() -> None:
    lifelines = pytest.importorskip(
        "lifelines", reason="lifelines is not installed: make install has it"
    )
    from lifelines.utils import concordance_index

    time, event, risk = drawn(3)
    c, _ = survival_metrics.c_index(survival_metrics.pairs(time, event, risk).sums())
    assert c == pytest.approx(concordance_index(time, -risk, event), abs=1e-12)
    # lifelines lets an event at a shared time come first if it is moved just before it.
    fitted = lifelines.KaplanMeierFitter().fit(time - 1e-6 * event, 1 - event)
    at = np.array([2.5, 4.5, 9.5])
    assert survival_metrics.censoring(time, event, at) == pytest.approx(
        fitted.predict(at).to_numpy()
    )
    own = np.unique(time)  # G(t-): a censoring at t itself has not happened yet
    before = fitted.predict(own - 1e-3).to_numpy()
    assert survival_metrics.censoring(time, event, own) == pytest.approx(before)
    assert (before != fitted.predict(own).to_numpy()).any()
    zero = np.zeros_like(risk)
    nelson = lifelines.NelsonAalenFitter(nelson_aalen_smoothing=False).fit(time, event)
    found = survival_metrics.breslow(time, event, zero, at)
    assert found == pytest.approx(nelson.predict(at).to_numpy(), rel=0.05)


PATIENTS = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40
)


@given(PATIENTS)
def test_c_is_that_of_lifelines_with_ties_of_times_and_scores(
    patients: list[tuple[int, bool, int]],
) -> None:
    concordance = pytest.importorskip(
        "lifelines.utils", reason="lifelines is not installed: make install has it"
    ).concordance_index
    time, event, score = (np.array(part, np.float64) for part in zip(*patients, strict=True))
    found, _ = survival_metrics.c_index(survival_metrics.pairs(time, event, score).sums())
    try:
        wanted = concordance(time, -score, event)
    except ZeroDivisionError:
        assert found is None
        return
    assert found == pytest.approx(wanted)


def test_few_events_few_censored_and_few_cases_at_a_horizon_are_withheld() -> None:
    terms = cox_study("[1, 5]")
    time = np.repeat([0.5, 3.0, 7.0], [9, 10, 20])
    risk = np.linspace(1, -1, len(time))
    rows = np.column_stack([risk, np.full((len(time), 2), 0.5)])

    def shown(event: NDArray[np.float64]) -> dict[str, float | None]:
        found = evaluation.site_metrics(terms, rows, np.column_stack([time, event]))
        left = published(found)
        assert left is not None
        return left.as_dict(terms)

    names = {"auroc_at_1", "brier_at_1", "auroc_at_5", "brier_at_5"}
    enough = shown((time < 5).astype(float))
    assert (enough["events"], names & set(enough)) == (19, {"auroc_at_5", "brier_at_5"})
    assert enough["c_index"] == 1.0
    few = shown((time < 1).astype(float))
    assert few == {"rows": 39, "events": None, "c_index": None}
    almost_all = shown((np.arange(39) < 32).astype(float))
    assert almost_all["events"] is None
    assert almost_all["c_index"] == 1.0
    assert shown(np.ones(39))["events"] == 39


@pytest.mark.parametrize("name", ["pairs", "influence"])
def test_more_pairs_than_a_word_counts_are_refused_not_cut_off(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    terms, (time, event, risk) = cox_study(), drawn(4)
    rows = np.column_stack([risk, np.full((60, 2), 0.5)]), np.column_stack([time, event])
    assert survival_evaluation.contribution(terms, *rows).any()
    monkeypatch.setitem(survival_evaluation._RANGES, name, 9.0)
    with pytest.raises(Refusal, match="more pairs"):
        survival_evaluation.contribution(terms, *rows)


def test_auroc_and_brier_at_a_horizon_equal_a_loop_over_pairs() -> None:
    time, event, risk = drawn(4)
    survival, t = np.exp(-0.2 * np.exp(risk)), 4.0
    cases, controls = survival_metrics.horizon_weights(time, event, t)
    g = survival_metrics.censoring
    top = bottom = brier = 0.0
    for i in range(len(time)):
        one = 1 / g(time, event, time[i : i + 1])[0] if time[i] <= t and event[i] else 0.0
        zero = 1 / g(time, event, np.array([t + 0.5]))[0] if time[i] > t else 0.0
        brier += one * survival[i] ** 2 + zero * (1 - survival[i]) ** 2
        for j in range(len(time)):
            other = 1 / g(time, event, np.array([t + 0.5]))[0] if time[j] > t else 0.0
            bottom += one * other
            top += one * other * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
    assert survival_metrics.auroc_at(cases, controls, risk) == pytest.approx(top / bottom)
    assert survival_metrics.brier_sum(cases, controls, survival) == pytest.approx(brier)


def test_auroc_at_a_horizon_is_that_of_scikit_learn_with_weights() -> None:
    for seed in range(20):
        time, event, risk = drawn(seed)
        cases, controls = survival_metrics.horizon_weights(time, event, 4.0)
        known = cases + controls > 0
        wanted = roc_auc_score(
            cases[known] > 0, risk[known], sample_weight=(cases + controls)[known]
        )
        assert survival_metrics.auroc_at(cases, controls, risk) == pytest.approx(wanted)


def test_what_is_opened_from_masked_words_agrees_with_the_exact_figures() -> None:
    terms = cox_study()
    rng = np.random.default_rng(0)
    hospitals = []
    for seed in range(4):
        time, event, _ = drawn(seed, 80)
        risk = rng.normal(size=80) - 0.1 * time
        hazard = np.exp(risk)[:, None] * np.array([[0.1, 0.3]])
        predictions = np.column_stack([risk, np.exp(-hazard)])
        hospitals.append((predictions, np.column_stack([time, event])))
    schema, ranges, levels = evaluation.layout(terms), evaluation.ranges(terms), 2**52
    scale = np.concatenate(
        [np.full(t.size, r) for t, r in zip(schema.tensors, ranges, strict=True)]
    )
    words = sum(
        np.rint(evaluation.contribution(terms, *h, levels=levels) / scale * levels)
        for h in hospitals
    )
    pooled = evaluation.pooled(terms, np.asarray(words).astype(np.int64), levels)
    known = evaluation.of_hospitals(terms, hospitals)
    assert pooled.at_horizons == known.at_horizons
    assert all(at.cases != at.controls for at in known.at_horizons)
    opened, exact = pooled.as_dict(terms), known.as_dict(terms)
    assert opened == pytest.approx(exact, abs=0.002)
    assert {"c_index", "c_index_low", "auroc_at_2", "brier_at_5"} <= set(opened)


def test_the_interval_of_c_covers_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        risk = rng.normal(size=150)
        time = rng.exponential(np.exp(-0.7 * risk))
        c, error = survival_metrics.c_index(survival_metrics.pairs(time, np.ones(150), risk).sums())
        assert c is not None
        assert error is not None
        # P(T_1 < T_2) given risks is logistic in 0.7 times their gap, N(0, 2).
        gap = np.abs(np.random.default_rng(1).normal(0, 2**0.5, 20_000))
        truth = float(np.mean(1 / (1 + np.exp(-0.7 * gap))))
        inside += abs(c - truth) < 1.96 * error
    assert 88 <= inside <= 100


def test_no_event_no_rows_and_all_censored_have_no_figure() -> None:
    terms = cox_study()
    time, _, risk = drawn(1, 10)
    rows = np.column_stack([risk, np.full((10, 2), 0.5)])
    censored = np.column_stack([time, np.zeros(10)])
    found = evaluation.site_metrics(terms, rows, censored).as_dict(terms)
    assert found["c_index"] is None
    assert found["auroc_at_2"] is None
    assert not evaluation.contribution(terms, rows[:0], censored[:0], levels=2**52).any()
