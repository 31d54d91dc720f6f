"""Pooled metrics out of masked sums equal those over all rows of all hospitals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from common import evaluation
from common.errors import InternalError, Refusal
from common.layouts import header_ranges, round_layout
from common.quantise import Coding, VectorEncoder
from common.secagg.header import Rounding, RoundKind, quant_bound
from common.study import Study
from tests.learning import study

Floats = NDArray[np.float64]


def binary(rows: int, seed: int, share: float = 0.4) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < share).astype(np.float64)
    return 1 / (1 + np.exp(-rng.normal(size=rows) - labels + 0.5)), labels


def ranges_of(terms: Study, bound: int) -> tuple[float, ...]:
    return header_ranges(round_layout(terms, RoundKind.EVALUATE), bound, ())


def opened(terms: Study, sites: list[tuple[Floats, Floats]]) -> evaluation.Metrics:
    bound = quant_bound(len(sites), evaluation.RING_BITS)
    schema = evaluation.layout(terms)
    coding = Coding(bound, evaluation.RING_BITS, Rounding.EVEN)
    total = np.zeros(schema.words, np.int64)
    for p, y in sites:
        values = evaluation.contribution(terms, p, y, levels=bound)
        words = np.empty(schema.words, np.uint64)
        VectorEncoder(schema, values, ranges=ranges_of(terms, bound), coding=coding).fill(words, 0)
        total += words.view(np.int64)
    return evaluation.pooled(terms, total[: schema.parameters], bound)


def test_the_pooled_metrics_are_those_over_all_rows() -> None:
    terms = study()
    sites = [binary(rows, rows) for rows in (104, 89, 16, 45)]
    p, y = (np.concatenate([site[k] for site in sites]) for k in (0, 1))
    found = opened(terms, sites)
    exact = evaluation.site_metrics(terms, p, y)
    assert (found.rows, found.positives) == (254, y.sum())
    assert found.auroc == pytest.approx(reference.roc_auc_score(y, p), abs=0.002)
    assert found.accuracy == pytest.approx(exact.accuracy, abs=1e-9)
    assert found.brier == pytest.approx(exact.brier, abs=1e-6)
    assert found.log_loss == pytest.approx(exact.log_loss, abs=1e-6)


def test_the_exact_metrics_of_a_site_equal_scikit_learns() -> None:
    p, y = binary(200, 1)
    found = evaluation.site_metrics(study(), p, y)
    assert found.auroc == pytest.approx(reference.roc_auc_score(y, p))
    assert found.brier == pytest.approx(reference.brier_score_loss(y, p))
    assert found.log_loss == pytest.approx(reference.log_loss(y, p))
    assert found.as_dict(study())["rows"] == 200


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_class_at_a_site_leaves_out_its_auroc_only(share: float) -> None:
    terms = study()
    p, y = binary(30, 1, share)
    found = evaluation.site_metrics(terms, p, y).as_dict(terms)
    assert found["auroc"] is None
    assert found["calibration_slope"] is None
    rest = ("rows", "positives", "accuracy", "brier", "log_loss", "brier_low", "observed_expected")
    assert all(np.isfinite(found[name]) for name in rest)  # type: ignore[arg-type]


def test_a_site_without_test_rows_adds_nothing() -> None:
    terms = study()
    empty = (np.zeros(0), np.zeros(0))
    assert evaluation.site_metrics(terms, *empty).as_dict(terms)["rows"] == 0
    alone, joined = ([binary(50, 1)], [binary(50, 1), empty])
    assert opened(terms, joined) == opened(terms, alone)
    nobody = opened(terms, [empty, empty])
    assert (nobody.rows, nobody.auroc, nobody.accuracy) == (0, None, None)


def test_several_levels() -> None:
    terms = study(target="{type: multiclass, name: kind, levels: [a, b, c]}")
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 90).astype(np.float64)
    p = rng.dirichlet(np.ones(3), 90)
    found = evaluation.site_metrics(terms, p, y)
    assert found.accuracy == pytest.approx((p.argmax(axis=1) == y).mean())
    assert found.log_loss == pytest.approx(reference.log_loss(y, p))
    joined = opened(terms, [(p[:40], y[:40]), (p[40:], y[40:])])
    assert joined.brier == pytest.approx(found.brier, abs=1e-6)


def test_numbers() -> None:
    terms = study(
        target="{type: continuous, name: days}",
        model="{kind: mlp, hidden: [4]}",
    )
    rng = np.random.default_rng(3)
    y = rng.normal(20, 5, 90)
    p = y + rng.normal(0, 2, 90)
    found = evaluation.site_metrics(terms, p, y)
    assert found.mse == pytest.approx(reference.mean_squared_error(y, p))
    assert found.rmse == pytest.approx(reference.root_mean_squared_error(y, p))
    assert found.mae == pytest.approx(reference.mean_absolute_error(y, p))
    assert found.r2 == pytest.approx(reference.r2_score(y, p))
    assert evaluation.site_metrics(terms, p[:3], np.full(3, 7.0)).r2 is None
    joined = opened(terms, [(p[:40], y[:40]), (p[40:], y[40:])])
    assert joined.r2 == pytest.approx(found.r2, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 6), st.floats(0.3, 30))
def test_pooled_figures_of_numbers_of_any_size_are_the_exact_ones(
    seed: int, magnitude: float, spread: float
) -> None:
    """From mol/l to costs in cents; relative, for a figure has the target's unit."""
    terms = study(target="{type: continuous, name: days}", model="{kind: mlp, hidden: [4]}")
    rng, unit = np.random.default_rng(seed), 10.0**magnitude
    y = unit * rng.normal(20, spread, 300)
    p = 0.9 * y + unit * rng.normal(1, 2, 300)
    exact = evaluation.site_metrics(terms, p, y).as_dict(terms)
    found = opened(terms, [(p[:40], y[:40]), (p[40:], y[40:])]).as_dict(terms)
    assert found.keys() == exact.keys() >= {"rmse", "mae", "mae_low", "r2", "calibration_slope"}
    for name, value in exact.items():
        assert value is not None
        scale = unit if name.startswith("calibration_intercept") else abs(value)
        assert found[name] == pytest.approx(value, abs=0.002 * scale), name


def test_sums_too_large_for_a_word_are_refused_and_never_cut_off() -> None:
    terms = study(target="{type: continuous, name: days}", model="{kind: mlp, hidden: [4]}")
    y = np.linspace(1e8, 2e8, 300)
    with pytest.raises(Refusal, match="larger unit"):
        evaluation.contribution(terms, y, y, levels=2**52)


def test_the_mean_errors_interval_is_that_of_a_mean() -> None:
    terms = study(target="{type: continuous, name: days}", model="{kind: mlp, hidden: [4]}")
    p, y = np.random.default_rng(4).normal(20, 5, (2, 150))
    each = np.abs(p - y)
    half = 1.959964 * each.std(ddof=1) / np.sqrt(150)
    named = evaluation.site_metrics(terms, p, y).as_dict(terms)
    assert named["mae_low"] == pytest.approx(each.mean() - half, abs=1e-6)
    assert named["mae_high"] == pytest.approx(each.mean() + half, abs=1e-6)


def test_a_sum_of_another_length_is_refused() -> None:
    with pytest.raises(InternalError):
        evaluation.pooled(study(), np.zeros(7, np.int64), 2**52)
