"""Constants of a study with differential privacy: bounded by patient, safe under any noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common import layouts, noised_statistics, statistics
from common.entropy import CountingEntropy
from common.errors import ConfigError, InternalError
from common.features import Table
from common.privacy.accountant import add, epsilon, step_rdp, times
from common.privacy.clipping import integer_sum, secret_uniforms
from common.secagg.dp import DpMode, DpPlan
from common.secagg.header import RoundKind
from common.study import Study
from common.study_privacy import charged, steps, study_cost
from tests.learning import random_table, study

FEATURES = """
  - {name: age, type: float, range: [18, 110], impute: mean}
  - {name: visits, type: int, range: [0, 40], impute: mean}
  - {name: dose, type: float, range: [0, 8], impute: mean}
  - {name: marker, type: float, range: [985, 1015], impute: mean}
  - {name: stage, type: category, levels: [a, b, c], impute: most-frequent}
"""
PRIVACY = "{epsilon: 2.0, delta: 1.0e-6, batch: 400, statistics_epsilon: 0.5}"


def private(features: str = FEATURES, terms: str = PRIVACY, more: str = "") -> Study:
    return study(
        features,
        train="{lr: 1.0}",
        federation="{rounds: 3}",
        more=f"privacy: {{dp: {terms}}}\n{more}",
    )


def without_privacy() -> Study:
    return study(FEATURES)


PLAN = layouts.round_layout(private(), RoundKind.STATISTICS).dp


def opened(table: Table, groups: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    assert PLAN is not None
    given_groups = np.arange(table.rows) if groups is None else groups
    vectors = noised_statistics.contributions(private(), table, given_groups)
    uniforms = secret_uniforms(CountingEntropy(b"s"))
    return integer_sum(vectors, PLAN.clip, PLAN.delta_int, uniforms)


def test_without_noise_the_constants_are_those_of_the_pooled_rows() -> None:
    assert PLAN is not None
    table = random_table(4000, 1)
    found = noised_statistics.pooled(private(), opened(table), PLAN.terms(2))
    terms = without_privacy()
    levels = 2**40
    exact = statistics.contribution(terms, table, 1.0, levels)
    size = exact.size // 2
    words = np.concatenate([np.rint(exact[:size] * levels), np.zeros(size)]).astype(np.int64)
    wanted = statistics.pooled(terms, words, levels)
    np.testing.assert_allclose(found.centre, wanted.centre, rtol=1e-2, atol=5e-3)
    np.testing.assert_allclose(found.scale, wanted.scale, rtol=3e-2)
    assert found.impute == pytest.approx(wanted.impute, rel=1e-2)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), min_size=5, max_size=5),
    st.integers(1, 6),
)
def test_no_patient_adds_more_than_the_clip(values: list[float], repeats: int) -> None:
    assert PLAN is not None
    rows = np.tile(np.array(values), (repeats, 1))
    table = Table(rows, np.zeros(repeats), np.zeros(repeats, np.int64))
    vectors = noised_statistics.contributions(private(), table, np.zeros(repeats, np.int64))
    assert vectors.shape == (1, 15)
    assert np.linalg.norm(vectors) <= noised_statistics.clip(private()) + 1e-12
    assert PLAN.clip == noised_statistics.clip(private()) == math.sqrt(13)


@settings(max_examples=100)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=15, max_size=15))
def test_whatever_the_noise_the_constants_can_be_used(words: list[int]) -> None:
    assert PLAN is not None
    found = noised_statistics.pooled(private(), np.array(words), PLAN.terms(2))
    halves = np.array([46, 20, 4, 15])
    assert (np.abs(np.array(found.centre[:4]) - [64, 20, 4, 1000]) <= halves * (1 + 1e-12)).all()
    scales = np.array(found.scale[:4])
    assert (scales >= 0.05 * halves * (1 - 1e-12)).all()
    assert (scales <= halves * (1 + 1e-12)).all()
    assert found.impute[4] in (0.0, 1.0, 2.0)


def test_a_sum_of_another_length_is_refused() -> None:
    assert PLAN is not None
    with pytest.raises(InternalError):
        noised_statistics.pooled(private(), np.zeros(3, np.int64), PLAN.terms(2))


def test_the_statistics_are_paid_out_of_the_studys_epsilon() -> None:
    terms = private().privacy.dp
    assert terms.statistics_noise is not None
    assert terms.noise_multiplier is not None
    assert epsilon(step_rdp(1 / terms.statistics_noise), 1e-6).epsilon <= 0.5
    training = times(step_rdp(1 / terms.noise_multiplier), steps(private()))
    assert study_cost(private()) == add(training, step_rdp(1 / terms.statistics_noise))
    assert 1.999 < charged(private()) <= 2.0


def test_the_round_of_statistics_is_noised_as_its_header_says() -> None:
    kinds = layouts.round_kinds(private())
    assert kinds == (RoundKind.STATISTICS, *[RoundKind.TRAIN] * 3)
    layout = layouts.round_layout(private(), RoundKind.STATISTICS)
    assert isinstance(layout.dp, DpPlan)
    assert (layout.dp.mode, layout.dp.p) == (DpMode.PATIENT_DISTRIBUTED, 1.0)
    assert layout.dp.z == private().privacy.dp.statistics_noise
    assert (layout.ranges, layout.schema.weighted) == ((), False)


PLAIN = PRIVACY.replace(", statistics_epsilon: 0.5", "")


@pytest.mark.parametrize(
    ("features", "terms", "more", "says"),
    [
        (FEATURES, PLAIN, "", "is federated, which sums"),
        (FEATURES, PLAIN, "normalise: none", "impute is mean"),
        (FEATURES.replace("range: [0, 8], ", ""), PRIVACY, "", "needs a 'range'"),
        (FEATURES.replace("[0, 8], impute: mean", "[0, 8], impute: median"), PRIVACY, "", "median"),
        ("\n  - {name: x, type: float}", PRIVACY, "normalise: none", "remove it"),
        (FEATURES, PRIVACY.replace("0.5", "2.5"), "", "leaves nothing of epsilon 2"),
        (FEATURES, "{mode: none, statistics_epsilon: 0.5}", "", "not used by dp mode none"),
        (FEATURES, PRIVACY.replace("{", "{mode: hospital, clip: 1.0, ").replace(" batch: 400,", ""),
         "", "for mode patient-distributed"),
    ],
)  # fmt: skip
def test_constants_without_a_bound_or_a_price_are_refused(
    features: str, terms: str, more: str, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        private(features, terms, more)
    assert says in refused.value.detail
