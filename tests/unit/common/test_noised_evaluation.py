"""Noised figures come from one histogram, which a patient changes by at most 1."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from common import layouts, noised_evaluation
from common.entropy import CountingEntropy
from common.errors import ConfigError, InternalError
from common.privacy.accountant import add, epsilon, step_rdp, times
from common.privacy.clipping import integer_sum, secret_uniforms
from common.secagg.dp import DpMode, DpPlan
from common.secagg.header import RoundKind
from common.study import Study, parse_study
from common.study_privacy import charged, steps, study_cost
from tests.study_texts import HEART, altered

TERMS = DpPlan(DpMode.PATIENT_DISTRIBUTED, 8.0, 1.0, 4096, 1.0, 500).terms(2)


def private(evaluation: str = "evaluation_epsilon: 0.25") -> Study:
    text = altered(HEART, ", impute: mean", "", count=2)
    text = altered(text, "normalise: federated", "normalise: none")
    text = altered(text, "weights: size_class", "weights: equal")
    text = altered(text, ", missing: [0]", "")
    train = "{optimiser: sgd, lr: 0.02, batch: 16, local_steps: 25, weight_decay: 0}"
    text = altered(text, train, "{optimiser: sgd, lr: 2.0}")
    text = altered(text, "stratify: true", "stratify: false")
    terms = f"{{epsilon: 1.0, delta: 1.0e-6, batch: 400, {evaluation}}}"
    return parse_study(altered(text, "{mode: none}", terms))


def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.4).astype(np.float64)
    return 1 / (1 + np.exp(-rng.normal(size=count) - 1.5 * labels + 0.5)), labels


def whole_sum(p: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    given = np.arange(len(p)) if groups is None else groups
    vectors = noised_evaluation.contributions(p, y, given)
    return integer_sum(vectors, 1.0, 4096, secret_uniforms(CountingEntropy(b"e")))


def test_without_noise_the_figures_are_those_of_all_patients_but_for_the_bins() -> None:
    p, y = rows(5000, 1)
    found = noised_evaluation.pooled(whole_sum(p, y), TERMS, 3)
    assert (found.rows, found.positives) == (5000, y.sum())
    assert found.accuracy == pytest.approx(float(np.mean((p > 0.5) == (y > 0))), abs=1e-12)
    assert found.auroc == pytest.approx(reference.roc_auc_score(y, p), abs=0.01)
    assert found.brier == pytest.approx(reference.brier_score_loss(y, p), abs=0.01)
    assert found.log_loss == pytest.approx(reference.log_loss(y, p), abs=0.02)


def test_the_noise_on_each_count_is_stated_with_the_figures() -> None:
    p, y = rows(100, 2)
    found = noised_evaluation.pooled(whole_sum(p, y), TERMS, 3)
    assert found.noise_sd == pytest.approx(8.0 * math.sqrt(3 / 2))
    assert found.as_dict(private())["noise_sd"] == found.noise_sd


@pytest.mark.parametrize("score", [0.0, 1.0, 0.5, np.nextafter(0.5, 1), 1e-300])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_score_at_an_edge_counts_on_the_side_of_the_decision(score: float, label: float) -> None:
    found = noised_evaluation.pooled(whole_sum(np.array([score]), np.array([label])), TERMS, 3)
    assert found.accuracy == float((score > 0.5) == (label > 0))


@pytest.mark.parametrize("repeats", [1, 2, 7, 1000])
def test_a_patient_counts_once_however_many_rows_there_are(repeats: int) -> None:
    p, y = rows(repeats, 3)
    vectors = noised_evaluation.contributions(p, y, np.zeros(repeats, np.int64))
    assert vectors.shape == (1, 2 * noised_evaluation.BINS)
    assert np.linalg.norm(vectors) <= 1 + 1e-12
    assert vectors.sum() == pytest.approx(1.0)


def test_adding_a_patient_moves_the_sum_by_at_most_delta_int() -> None:
    p, y = rows(40, 4)
    before = whole_sum(p, y)
    for score, label in ((0.01, 1.0), (0.99, 0.0)):
        after = whole_sum(np.append(p, score), np.append(y, label))
        assert np.linalg.norm((after - before).astype(np.float64)) == 4096


def test_noise_above_the_counts_gives_no_figure_rather_than_a_wild_one() -> None:
    found = noised_evaluation.pooled(np.full(2 * noised_evaluation.BINS, -4096), TERMS, 3)
    assert (found.rows, found.auroc, found.accuracy) == (0.0, None, None)
    with pytest.raises(InternalError):
        noised_evaluation.pooled(np.zeros(5, np.int64), TERMS, 3)


def test_the_evaluation_is_paid_out_of_the_studys_epsilon() -> None:
    study = private()
    terms = study.privacy.dp
    assert terms.evaluation_noise is not None
    assert terms.noise_multiplier is not None
    alone = epsilon(step_rdp(1 / terms.evaluation_noise), 1e-6).epsilon
    assert alone == pytest.approx(0.25, abs=1e-3)
    assert alone <= 0.25
    training = times(step_rdp(1 / terms.noise_multiplier), steps(study))
    assert study_cost(study) == add(training, step_rdp(1 / terms.evaluation_noise))
    assert charged(study) == pytest.approx(1.0, abs=1e-3)
    assert charged(study) <= 1.0
    assert terms.noise_multiplier > private("spare_rounds: 2").privacy.dp.noise_multiplier  # type: ignore[operator]


def test_a_study_that_pays_for_figures_has_a_noised_evaluate_round_and_others_have_none() -> None:
    study = private()
    assert layouts.round_kinds(study)[-1] is RoundKind.EVALUATE
    layout = layouts.round_layout(study, RoundKind.EVALUATE)
    assert layout.dp is not None
    assert (layout.dp.z, layout.dp.p) == (study.privacy.dp.evaluation_noise, 1.0)
    assert not layout.schema.weighted
    assert layout.ranges == ()
    assert RoundKind.EVALUATE not in layouts.round_kinds(private("spare_rounds: 2"))


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ("evaluation_noise: 3.0", "needs the key 'evaluation_epsilon'"),
        ("evaluation_epsilon: 1.5", "leaves nothing of epsilon 1 for training"),
        ("evaluation_epsilon: 0.5, evaluation_noise: 1.0", "leaves nothing"),
    ],
)
def test_figures_that_the_epsilon_does_not_pay_for_are_refused(terms: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        private(terms)
    assert says in refused.value.detail
