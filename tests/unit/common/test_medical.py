"""Each figure of a medical paper equals an independent computation; bins cost under 0.002."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn import metrics as reference

from common import evaluation, medical, recalibration, score_counts
from common.score_counts import ScoreCounts, counted
from tests.learning import study
from tests.unit.common.test_evaluation import opened

Floats = NDArray[np.float64]


def sample(rows: int, seed: int, stretch: float = 1.0, shift: float = 0.0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=rows)
    labels = (rng.random(rows) < expit(truth + shift)).astype(np.float64)
    return expit(stretch * truth + shift), labels


def delong_pairs(p: Floats, y: Floats) -> tuple[float, float]:
    """DeLong's AUROC and standard error by all pairs, as the paper's equations say."""
    sick, healthy = p[y > 0], p[y == 0]
    wins = np.array([[(x > z) + 0.5 * (x == z) for z in healthy] for x in sick])
    of_sick, of_healthy = wins.mean(axis=1), wins.mean(axis=0)
    variance = of_sick.var(ddof=1) / len(sick) + of_healthy.var(ddof=1) / len(healthy)
    return float(wins.mean()), float(variance**0.5)


@pytest.mark.parametrize("levels", [None, 5])
def test_auroc_and_its_error_are_delongs_by_pairs(levels: int | None) -> None:
    p, y = sample(90, 4)
    p = p if levels is None else np.round(p * levels) / levels
    value, error = delong_pairs(p, y)
    found = medical.auroc(counted(p, y), 0.95)
    half = 1.959964 * error / (value * (1 - value))
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.low == pytest.approx(expit(logit(value) - half), abs=1e-7)
    assert found.high == pytest.approx(expit(logit(value) + half), abs=1e-7)


def test_average_precision_is_scikit_learns_without_ties() -> None:
    p, y = sample(300, 5)
    found = medical.auprc(counted(p, y), 0.95)
    assert found.value == pytest.approx(reference.average_precision_score(y, p), abs=1e-12)
    value, sick = found.value or 0.0, y.sum()
    half = 1.959964 / np.sqrt(sick * value * (1 - value))
    assert found.low == pytest.approx(expit(logit(value) - half), abs=1e-6)


def test_average_precision_of_ties_is_the_mean_over_their_orders() -> None:
    p = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.2])
    y = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    values = []
    for order in itertools.permutations(range(1, 5)):
        labels = y[[0, *order, 5]]
        values.append(reference.average_precision_score(labels, -np.arange(6.0)))
    assert medical.auprc(counted(p, y), 0.95).value == pytest.approx(np.mean(values))


@pytest.mark.parametrize("stretch", [0.4, 1.0, 3.0])
def test_slope_and_intercept_are_statsmodels(stretch: float) -> None:
    p, y = sample(400, 6, stretch, -0.5)
    exact = np.stack(recalibration.row_terms(p, y)).sum(axis=1)
    sloped = recalibration.slope(counted(p, y), exact)
    level = recalibration.intercept(counted(p, y), exact)
    assert sloped is not None
    assert level is not None
    fit = sm.GLM(y, sm.add_constant(logit(p)), family=sm.families.Binomial()).fit(tol=1e-12)
    assert [sloped.a, sloped.b] == pytest.approx(fit.params, abs=1e-7)
    assert [sloped.a_error, sloped.b_error] == pytest.approx(fit.bse, rel=1e-5)
    alone = sm.GLM(y, np.ones(len(y)), family=sm.families.Binomial(), offset=logit(p)).fit()
    assert level.a == pytest.approx(alone.params[0], abs=1e-7)
    assert level.a_error == pytest.approx(alone.bse[0], rel=1e-5)


def test_separated_classes_and_a_single_score_have_no_slope() -> None:
    y = np.array([0.0, 0.0, 1.0, 1.0] * 5)
    for p in (np.where(y > 0, 0.8, 0.3) + 0.01 * np.arange(20) / 20, np.full(20, 0.4)):
        exact = np.stack(recalibration.row_terms(p, y)).sum(axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert recalibration.slope(counted(p, y), exact) is None


def test_rates_table_and_net_benefit_are_counts_of_rows() -> None:
    p, y = sample(200, 7)
    p[:20] = 0.3  # exactly at the threshold says no
    tn, fp, fn, tp = reference.confusion_matrix(y, p > 0.3).ravel()
    cells = medical.confusion(counted(p, y), 0.3)
    assert (cells.true_positive, cells.false_positive) == (tp, fp)
    assert (cells.false_negative, cells.true_negative) == (fn, tn)
    rates = medical.rates(cells, 0.95)
    assert rates["sensitivity"].value == pytest.approx(reference.recall_score(y, p > 0.3))
    assert rates["ppv"].value == pytest.approx(reference.precision_score(y, p > 0.3))
    assert rates["specificity"].value == pytest.approx(tn / (tn + fp))
    assert rates["npv"].value == pytest.approx(tn / (tn + fn))
    model, everybody = medical.net_benefit(counted(p, y), 0.3)
    assert model == pytest.approx((tp - fp * 3 / 7) / 200)
    assert everybody == pytest.approx((y.sum() - (200 - y.sum()) * 3 / 7) / 200)


def test_the_brier_scores_interval_is_that_of_a_mean() -> None:
    p, y = sample(150, 8)
    terms = (p - y) ** 2
    half = 1.959964 * terms.std(ddof=1) / np.sqrt(150)
    found = evaluation.site_metrics(study(), p, y).as_dict(study())
    assert found["brier_low"] == pytest.approx(terms.mean() - half, abs=1e-7)
    assert found["brier_high"] == pytest.approx(terms.mean() + half, abs=1e-7)


def test_roc_starts_at_nothing_and_its_area_is_the_auroc() -> None:
    counts = counted(*sample(120, 9))
    points = medical.roc(counts)
    assert points is not None
    assert (points[0][0], points[1][0], points[0][-1], points[1][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(points[1], points[0]) == pytest.approx(medical.auroc(counts, 0.9).value)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40),
    st.integers(1, 30),
    st.none() | st.floats(0, 1),
)
def test_bands_cover_all_groups_in_order_and_none_is_small(
    pairs: list[tuple[int, int]], size: int, cut: float | None
) -> None:
    healthy, sick = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    counts = ScoreCounts(np.linspace(0.01, 0.99, len(pairs)), healthy, sick)
    found = medical.bands(counts, size, cut)
    assert all(counts.rows[first:last].sum() >= size for first, last in found)
    if counts.rows.sum() >= size:
        assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
        assert found[-1][1] == len(pairs)
    else:
        assert found == []


def test_groups_of_a_calibration_curve_hold_all_rows_and_their_shares() -> None:
    p, y = sample(500, 10)
    curve = medical.calibration_curve(counted(p, y), 0.95)
    assert sum(group.rows for group in curve) == 500
    assert sum((group.observed.value or 0) * group.rows for group in curve) == pytest.approx(
        y.sum()
    )
    assert sum(group.predicted * group.rows for group in curve) == pytest.approx(p.sum())
    assert len(curve) <= 10


# --- bins -------------------------------------------------------------------------------------


@given(st.floats(0.01, 0.99))
def test_the_threshold_is_an_edge_so_counts_at_it_are_exact(threshold: float) -> None:
    bins = score_counts.score_bins(4096, threshold)
    assert len(bins.edges) == 4095
    assert len(bins.middles) == 4096
    assert (np.diff(bins.edges) >= 0).all()
    p = np.array([np.nextafter(threshold, 0), threshold, np.nextafter(threshold, 1)])
    histogram = score_counts.histogram_of(p, np.ones(3), bins)
    yes = medical.confusion(score_counts.from_histogram(histogram, bins), threshold)
    assert (yes.true_positive, yes.false_negative) == (1, 2)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1.0, 0.0), (1.0, -2.0), (0.1, 0.0), (8.0, 0.0), (40.0, 0.0), (0.2, -2.0)]),
    st.integers(400, 3000),
)
def test_pooled_figures_are_within_0_002_of_the_exact_ones(
    seed: int, shape: tuple[float, float], rows: int
) -> None:
    """Hesitant, rare, crowded and very sure scores. A slope far from 1 to 0.2 % of itself."""
    terms = study()
    p, y = sample(rows, seed, *shape)
    exact = evaluation.site_metrics(terms, p, y).as_dict(terms)
    found = opened(terms, [(p[:90], y[:90]), (p[90:], y[90:])]).as_dict(terms)
    assert found.keys() == exact.keys()
    scale = max(1.0, exact["calibration_slope_high"] or 1.0)
    for name, value in exact.items():
        if value is None:
            assert found[name] is None
            continue
        steep = scale if name.startswith("calibration_slope") else 1.0
        # The first few rows' order decides an average precision: of rare, crowded scores it
        # is promised less (docs/evaluation.md).
        crowded = name.startswith("auprc") and shape == (0.2, -2.0)
        assert found[name] == pytest.approx(value, abs=0.006 if crowded else 0.002 * steep), name


def test_continuous_slope_and_intercept_are_least_squares() -> None:
    terms = study(target="{type: continuous, name: days}", model="{kind: mlp, hidden: [4]}")
    rng = np.random.default_rng(3)
    p = rng.normal(20, 5, 90)
    y = 3 + 0.8 * p + rng.normal(0, 2, 90)
    fit = sm.OLS(y, sm.add_constant(p)).fit()
    z = 1.959964
    for found in (
        evaluation.site_metrics(terms, p, y).as_dict(terms),
        opened(terms, [(p[:40], y[:40]), (p[40:], y[40:])]).as_dict(terms),
    ):
        assert found["calibration_slope"] == pytest.approx(fit.params[1], abs=1e-4)
        assert found["calibration_intercept"] == pytest.approx(fit.params[0], abs=1e-3)
        assert found["calibration_slope_low"] == pytest.approx(
            fit.params[1] - z * fit.bse[1], abs=1e-3
        )
        assert found["calibration_intercept_high"] == pytest.approx(
            fit.params[0] + z * fit.bse[0], abs=5e-3
        )


@given(st.integers(4097, 20_000), st.integers(0, 10**6), st.floats(0, 1))
def test_a_large_group_of_equal_scores_is_the_list_of_its_places(
    rows: int, above: int, share: float
) -> None:
    sick, sick_above = 1.0 + share * (rows - 1), share * above
    place = np.arange(1.0, rows + 1.0)
    precision = (sick_above + 1.0 + (place - 1.0) * (sick - 1.0) / (rows - 1.0)) / (above + place)
    found = medical._tied(sick, float(rows), sick_above, float(above))
    assert found == pytest.approx(float(precision.sum()) / rows * sick, rel=1e-9)


def test_a_corrupt_count_of_rows_costs_no_memory() -> None:
    huge = ScoreCounts(np.array([0.2, 0.7]), np.array([1e12, 2e9]), np.array([3e9, 1e12]))
    assert medical.auprc(huge, 0.95).value is not None
