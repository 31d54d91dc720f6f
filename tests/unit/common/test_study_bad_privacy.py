"""Studies whose guarantee could not hold: refused by line, with the reason and what to do."""

from __future__ import annotations

import pytest

from common.errors import FedError
from common.study import canonical_json, parse_study
from tests.security.refusals import OPEN, PRIVATE, Change, changed

LOGISTIC = "model: {kind: logistic}"
HOSPITAL = "{mode: hospital, epsilon: 1, delta: 1.0e-4, clip: 1, noise_multiplier: 40000}"


def refused(base: str, *changes: Change) -> FedError:
    text = changed(base, *changes)
    with pytest.raises(FedError) as caught:
        parse_study(text, "study.yaml")
    return caught.value


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_normalisation_between_layers_is_refused_where_patients_are_protected(norm: str) -> None:
    error = refused(PRIVATE, (LOGISTIC, f"model: {{kind: mlp, hidden: [4], norm: {norm}}}"))
    assert error.detail.startswith("study.yaml:11: model.norm is")
    assert error.name == "BAD_VALUE"
    assert ("mixes the patients of a batch" in error.detail) == (norm == "batch")
    assert "use none" in error.detail


@pytest.mark.parametrize(("norm", "name"), [("group", "NOT_SUPPORTED"), ("bach", "BAD_VALUE")])
def test_other_norms_are_not_ignored(norm: str, name: str) -> None:
    error = refused(OPEN, (LOGISTIC, f"model: {{kind: mlp, hidden: [4], norm: {norm}}}"))
    assert error.name == name


def test_an_mlp_without_normalisation_says_so_in_its_canonical_form() -> None:
    study = parse_study(changed(OPEN, (LOGISTIC, "model: {kind: mlp, hidden: [4]}")))
    assert b'"norm":"none"' in canonical_json(study)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((("clip: 1.0", "clip: 1.0e-306"),), "privacy.dp.clip is 1e-306, which 4096 integer steps"),
        ((("clip: 1.0", "clip: 5.0e-324"),), "privacy.dp.clip is 4.94066e-324"),
        ((("clip: 1.0", "clip: .inf"),), "privacy.dp.clip must be a finite number"),
        ((("clip: 1.0", "clip: .nan"),), "privacy.dp.clip must be a finite number"),
        ((("clip: 1.0", "clip: 2.0e+9"),), "privacy.dp.clip must be at most 1e+09"),
        ((("clip: 1.0", "clip: -1"),), "privacy.dp.clip must be more than 0"),
        (
            (("clip: 1.0", "clip: 1.0, noise_multiplier: 60000"),),
            "is not carried by the ring: 3 hospitals with words up to",
        ),
    ],
)
def test_a_clip_that_the_ring_cannot_carry_is_refused(
    changes: tuple[Change, ...], words: str
) -> None:
    error = refused(PRIVATE, *changes)
    assert error.name == "BAD_VALUE"
    assert words in error.detail
    assert error.detail.startswith("study.yaml:2")


def test_as_many_patients_as_the_format_has_fit_the_wide_ring() -> None:
    parse_study(changed(PRIVATE, ("max_patients: 200", "max_patients: 2147483648")))


def test_by_hospital_the_noise_alone_can_be_too_much() -> None:
    error = refused(
        changed(OPEN, ("suite: hybrid}", f"suite: hybrid}}, dp: {HOSPITAL.replace('40000', '1')}"))
        .replace("noise_multiplier: 1}", "noise_multiplier: 90000}")
    )  # fmt: skip
    assert "is not carried by the ring" in error.detail


EPSILON = "epsilon: 1.0, delta: 1.0e-4"


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ("epsilon: 5, evaluation_epsilon: 0.5, evaluation_noise: 2.0", "dp.evaluation_noise is 2,"),
        ("epsilon: 5, noise_multiplier: 5.0e-324", "dp.noise_multiplier must be at least 1e-09"),
        ("epsilon: 5, noise_multiplier: 1.0e-160", "dp.noise_multiplier must be at least 1e-09"),
        (
            "epsilon: 5, evaluation_epsilon: 1, evaluation_noise: 5.0e-324",
            "dp.evaluation_noise must be at least 1e-09",
        ),
        ("epsilon: 1000", "dp.delta does not pay for the noise: delta 0.0001 leaves nothing"),
        ("epsilon: 60", "dp.delta does not pay for the noise"),
        ("epsilon: 1.0e-3", "dp.epsilon is 0.001, which no noise gives"),
    ],
)
def test_terms_that_contradict_each_other_or_cannot_hold_are_refused_by_key(
    terms: str, words: str
) -> None:
    error = refused(PRIVATE, (EPSILON, f"{terms}, delta: 1.0e-4"))
    assert error.name == "BAD_VALUE"
    assert words in error.detail


@pytest.mark.parametrize("delta", ["1.0e-300", "1.0e-30"])
def test_a_delta_below_the_samplers_distance_is_refused(delta: str) -> None:
    error = refused(PRIVATE, (EPSILON, f"epsilon: 5, delta: {delta}"))
    assert "dp.delta does not pay for the noise" in error.detail
