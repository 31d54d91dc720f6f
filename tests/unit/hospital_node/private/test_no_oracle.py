"""Whether a hospital takes part in a noised round never depends on one patient.

Whoever writes the header chooses the model. With weights of 1e38 a gradient or a score is not
finite for patients with a large value, and finite for all others. If the hospital then left the
round, that would be an answer about them without noise, round after round, at no charge.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from common import noised_evaluation
from common.entropy import CountingEntropy
from common.features import Encoded
from common.models import initial
from common.preprocessing import Preprocessing
from common.secagg.dp import DpMode, DpTerms
from common.secagg.header import Header
from common.secagg.keys import CoefficientSeed
from common.study import Study, parse_study
from hospital_node.private import contribution
from hospital_node.private.local_steps import LocalTraining
from tests.learning import table
from tests.private_study import header_of, private_study, private_text

SEED = CoefficientSeed(bytes(32))
TERMS = DpTerms(DpMode.PATIENT_DISTRIBUTED, 2.0, 1.0, 4096, 4096.0, 53248, 1.0, 100)
HUGE = np.float32(3e38)
KINDS = {"logistic": "{kind: logistic}", "mlp": "{kind: mlp, hidden: [3, 3]}"}
TRAPS = [("mlp", HUGE, 30.0), ("mlp", HUGE, math.inf), ("logistic", np.float32(0), math.inf)]
"""A kind of model, the size of its weights, and a patient's value that it overflows for."""

traps = pytest.mark.parametrize(("model", "size", "mark"), TRAPS)


def study_with(model: str, mode: str = "patient-distributed") -> Study:
    return parse_study(private_text(mode=mode).replace("{kind: logistic}", KINDS[model]))


def trap(study: Study, size: np.float32) -> NDArray[np.float32]:
    """A model of finite weights of either sign that does not overflow for patients of value 0."""
    weights = np.zeros_like(initial(study))
    weights[::2], weights[1::2] = size, -size
    return weights if study.model.kind == "logistic" else weights * np.float32(0.5)


def rows(*values: float) -> tuple[Encoded, NDArray[np.int64]]:
    features = np.array(values, np.float32)[:, np.newaxis]
    target = (np.arange(len(values)) % 2).astype(np.float32)
    return Encoded(features, target), np.arange(len(values), dtype=np.int64)


def step(study: Study, size: np.float32, *values: float) -> NDArray[np.int64]:
    data, patients = rows(*values)
    entropy = CountingEntropy(b"e")
    weights = trap(study, size)
    return contribution.patient_sum(study, data, patients, weights, patients, TERMS, entropy)


@traps
def test_a_step_is_taken_whatever_a_gradient_overflows_to(
    model: str, size: np.float32, mark: float
) -> None:
    study = study_with(model)
    others, marked = step(study, size, 0.0, 0.0), step(study, size, 0.0, 0.0, mark)
    assert float(np.linalg.norm(marked - others)) <= TERMS.delta_int + 2 * math.sqrt(others.size)


@traps
def test_figures_are_made_whatever_a_score_overflows_to(
    model: str, size: np.float32, mark: float
) -> None:
    study = study_with(model)

    def histogram(*values: float) -> NDArray[np.int64]:
        data, patients = rows(*values)
        weights, entropy = trap(study, size), CountingEntropy(b"e")
        return contribution.evaluation_sum(study, data, patients, weights, patients, TERMS, entropy)

    moved = np.abs(histogram(0.0, 0.0, mark) - histogram(0.0, 0.0))
    assert moved.sum() in (0, TERMS.delta_int)


@traps
def test_a_hospitals_update_is_bounded_where_training_overflows(
    model: str, size: np.float32, mark: float
) -> None:
    study = study_with(model, "hospital")
    data, _ = rows(0.0, 0.0, mark, mark)
    terms = header_of(private_study(mode="hospital"), 1).dp
    weights, entropy = trap(study, size), CountingEntropy(b"e")
    found = contribution.hospital_step(study, "a", data, weights, terms, entropy)
    assert float(np.linalg.norm(found)) <= terms.delta_int


@traps
def test_local_steps_are_taken_whatever_a_gradient_overflows_to(
    model: str, size: np.float32, mark: float
) -> None:
    """What leaves may be anything that noised sums lead to; a patient alone stops nothing."""
    study = local_study(model)
    data, patients = rows(0.0, 0.0, mark)
    training = LocalTraining(study, "a", data, patients, patients, CountingEntropy(b"e"))
    weights = trap(study, size)
    header = local_header(study, weights.size)
    assert np.isfinite(training.update(weights, header, SEED)).all()


def local_study(model: str) -> Study:
    text = private_text().replace("mode: patient-distributed", "mode: patient-local")
    text = text.replace("{lr: 1.0}", "{lr: 0.1, local_steps: 2}")
    return parse_study(text.replace("{kind: logistic}", KINDS[model]))


def local_header(study: Study, weights: int) -> Header:
    terms = replace(TERMS, mode=DpMode.PATIENT_LOCAL, steps=2)
    return replace(header_of(private_study(), 1), d=weights, dp=terms)


def test_constants_that_overflow_a_value_stop_nothing() -> None:
    """Centre and scale come with the model, too."""
    study = private_study()
    constants = Preprocessing(("age",), (0.0,), (1e-38,), (None,))
    found = constants.encode(study, table([[0.0, 50.0]]))
    assert found.features[:, 0].tolist() == [0.0, math.inf]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_adds_nothing(wrong: float) -> None:
    predictions, target = np.array([0.2, wrong, 0.7, wrong]), np.array([0.0, 1.0, 1.0, 0.0])
    groups = np.array([0, 0, 1, 2])
    found = noised_evaluation.contributions(predictions, target, groups)
    assert found.sum(axis=1).tolist() == [0.5, 1.0, 0.0]
