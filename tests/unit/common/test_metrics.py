"""The metrics equal scikit-learn's, and a histogram's AUROC the exact one's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as reference

from common import metrics
from common.evaluation import BINS
from common.score_counts import histogram_of, score_bins


def histogram(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    return histogram_of(p, y, score_bins(BINS, 0.5))


def sample(rows: int, seed: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.4).astype(np.float64)
    logits = sharpness * (rng.normal(size=rows) + labels - 0.5)
    return 1.0 / (1.0 + np.exp(-logits)), labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [None, 7])
def test_equals_scikit_learn_with_and_without_ties(seed: int, levels: int | None) -> None:
    p, y = sample(200, seed, 1.0)
    if levels:
        p = np.round(p * levels) / levels
    assert metrics.auroc(p, y) == pytest.approx(reference.roc_auc_score(y, p), abs=1e-12)
    assert metrics.brier(p, y) == pytest.approx(reference.brier_score_loss(y, p), abs=1e-12)
    assert metrics.accuracy(p, y) == pytest.approx(reference.accuracy_score(y, p > 0.5))
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    assert metrics.log_loss(p, y) == pytest.approx(reference.log_loss(y, clipped), abs=1e-12)


@pytest.mark.parametrize("labels", [[1.0, 1.0], [0.0, 0.0], []])
def test_one_class_has_no_auroc(labels: list[float]) -> None:
    y = np.array(labels)
    assert metrics.auroc(np.full(len(y), 0.3), y) is None
    healthy, sick = histogram(np.full(len(y), 0.3), y)
    assert metrics.auroc_from_histogram(healthy, sick) is None


def test_no_rows_have_no_metrics() -> None:
    empty = np.zeros(0)
    assert metrics.accuracy(empty, empty) is None
    assert metrics.brier(empty, empty) is None
    assert metrics.log_loss(empty, empty) is None


@pytest.mark.parametrize("sharpness", [0.05, 1.0, 8.0, 40.0])
@pytest.mark.parametrize("rows", [254, 5000])
def test_a_histograms_auroc_is_within_0_002_of_the_exact_one(rows: int, sharpness: float) -> None:
    for seed in range(5):
        p, y = sample(rows, seed, sharpness)
        exact = metrics.auroc(p, y)
        found = metrics.auroc_from_histogram(*histogram(p, y))
        assert exact is not None
        assert found == pytest.approx(exact, abs=0.002)


def test_histograms_of_hospitals_add_up_to_the_pooled_histogram() -> None:
    parts = [sample(rows, rows, 1.0) for rows in (3, 40, 111)]
    added = sum(histogram(p, y) for p, y in parts)
    whole = histogram(np.concatenate([p for p, _ in parts]), np.concatenate([y for _, y in parts]))
    assert np.array_equal(added, whole)


def test_negative_rounding_in_a_summed_histogram_is_nothing() -> None:
    healthy, sick = np.array([5.0, -1e-9, 0.0]), np.array([-1e-9, 0.0, 5.0])
    assert metrics.auroc_from_histogram(healthy, sick) == 1.0


@given(
    arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)),
    st.integers(0, 2**32 - 1),
)
def test_every_probability_falls_into_one_bin(p: np.ndarray, seed: int) -> None:
    y = np.random.default_rng(seed).integers(0, 2, len(p)).astype(np.float64)
    found = histogram(p, y)
    assert found.shape == (2, BINS)
    assert found.sum(axis=1).tolist() == [float((y == 0).sum()), float((y == 1).sum())]


@given(arrays.arrays(np.float64, st.integers(2, 60), elements=st.floats(-5, 5, width=16)))
def test_auroc_counts_pairs_and_half_of_the_ties(scores: np.ndarray) -> None:
    y = (np.arange(len(scores)) % 2).astype(np.float64)
    sick, healthy = scores[y == 1], scores[y == 0]
    above = (sick[:, None] > healthy).sum() + 0.5 * (sick[:, None] == healthy).sum()
    assert metrics.auroc(scores, y) == pytest.approx(above / (len(sick) * len(healthy)))
