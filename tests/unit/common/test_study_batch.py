"""The public number that a step is divided by: stated, or what the sites' public sizes say."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from common.study import Study, canonical_json, parse_study, study_from_canonical
from tests.study_texts import HEART, altered

SIZES = "{north: 200, east: 175.5, west: 30}"


def private(weights: str, terms: str) -> Study:
    text = altered(HEART, ", impute: mean", "", count=2)
    text = altered(text, "normalise: federated", "normalise: none")
    text = altered(text, "stratify: true", "stratify: false")
    text = altered(text, "  weights: size_class\n", weights)
    text = altered(text, "batch: 16, local_steps: 25, ", "")
    return parse_study(
        altered(text, "{mode: none}", f"{{epsilon: 1.0, delta: 1.0e-6, clip: 1.0{terms}}}")
    )


@pytest.mark.parametrize(
    ("terms", "batch"),
    [("", 406), (", sampling: 0.1", 41), (", sampling: 0.0001", 1), (", batch: 300", 300)],
)
def test_public_sizes_give_the_batch_unless_it_is_stated(terms: str, batch: int) -> None:
    study = private(f"  weights: {SIZES}\n", terms)
    assert study.privacy.dp.batch == batch
    assert study.federation.weight_rule == "public"
    assert study_from_canonical(canonical_json(study)) == study


def test_without_either_the_study_is_told_what_to_state() -> None:
    with pytest.raises(ConfigError) as refused:
        private("", "")
    assert "needs the key 'batch' for mode patient-distributed" in refused.value.detail
    assert "or state federation.weights" in refused.value.detail


@pytest.mark.parametrize("weights", ["size_class", "samples"])
def test_sizes_that_are_secret_are_no_batch(weights: str) -> None:
    with pytest.raises(ConfigError) as refused:
        private(f"  weights: {weights}\n", ", batch: 300")
    assert "must be equal, or a public number of patients for each site" in refused.value.detail


def test_in_mode_hospital_each_hospital_counts_the_same() -> None:
    with pytest.raises(ConfigError) as refused:
        private(f"  weights: {SIZES}\n", ", mode: hospital")
    assert "is public; with dp mode hospital it must be equal" in refused.value.detail
