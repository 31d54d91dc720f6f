"""What a study of mode patient-local says, what follows from it, and what contradicts it."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from common.privacy.accountant import epsilon, step_rdp, times
from common.study import Study, canonical_json, parse_study, study_from_canonical
from common.study_privacy import charged, steps, steps_per_round

STUDY = """\
schema: fedcare.study/v1
id: local-study
purpose: research
dataset: heart
owner: {name: n, organisation: o}
features: [{name: age, type: float}]
target: {type: binary, name: sick}
normalise: none
model: {kind: logistic}
train: {lr: 0.5, local_steps: 4}
federation: {weights: {a: 120, b: 60, c: 40}, rounds: 5}
privacy: {dp: {mode: patient-local, epsilon: 2, delta: 1.0e-5, sampling: 0.25, spare_rounds: 1}}
"""
EQUAL = {"weights: {a: 120, b: 60, c: 40}, ": "", "sampling": "batch: 30, sampling"}


def altered(*pairs: tuple[str, str]) -> Study:
    text = STUDY
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return parse_study(text, "s.yaml")


def test_noise_pays_for_every_local_step_of_every_round_and_spare() -> None:
    study = altered()
    assert (steps_per_round(study), steps(study)) == (4, (5 + 1) * 4)
    z = study.privacy.dp.noise_multiplier
    assert z is not None
    one_by_one = [0.0] * len(step_rdp(1 / z, 0.25))
    for _ in range(24):
        one_by_one = [a + b for a, b in zip(one_by_one, step_rdp(1 / z, 0.25), strict=True)]
    assert charged(study) == pytest.approx(epsilon(one_by_one, 1e-5).epsilon, rel=1e-12)
    assert charged(study) <= 2
    too_little = times(step_rdp(1 / (z - 1e-4), 0.25), 24)
    assert epsilon(too_little, 1e-5).epsilon > 2


def test_defaults_and_the_canonical_form() -> None:
    study = altered(("train: {lr: 0.5, local_steps: 4}\n", ""), (", sampling: 0.25", ""))
    terms = study.privacy.dp
    assert study.train.local_steps == 1
    assert (terms.sampling, terms.clip, terms.max_patients, terms.batch) == (1, 1, 10_000, None)
    assert study_from_canonical(canonical_json(study)) == study


def test_equal_weights_need_a_public_batch() -> None:
    study = altered(*EQUAL.items())
    assert (study.federation.weight_rule, study.privacy.dp.batch) == ("equal", 30)
    assert study_from_canonical(canonical_json(study)) == study


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("sampling", "batch: 30, sampling")], "privacy.dp.batch is not used where"),
        ([next(iter(EQUAL.items()))], "privacy.dp needs the key 'batch'"),
        ([("c: 40", "c: 3")], "federation.weights.c gives c 3, of which sampling 0.25"),
        ([("{a: 120, b: 60, c: 40}", "size_class")], "is size_class; with dp mode patient-local"),
        ([("{a: 120, b: 60, c: 40}", "samples")], "is samples; with dp mode patient-local"),
        ([("local_steps: 4", "local_epochs: 4")], "train must be sgd with local_steps"),
        ([("lr: 0.5", "optimiser: adam")], "train must be sgd with local_steps"),
        ([("lr: 0.5", "batch: 64")], "train.batch is not used by dp mode patient-local"),
        ([("epsilon: 2, ", "")], "privacy.dp needs the key 'epsilon'"),
        ([("spare_rounds: 1", "noise_multiplier: 0.5")], "charges epsilon"),
        ([("spare_rounds", "evaluation_epsilon: 0.2, spare_rounds")], "is for mode patient-distr"),
        ([("normalise: none", "normalise: federated")], "which sums patients' values"),
        ([("mode: patient-local", "mode: hospital, clip: 1")], "is not used by dp mode hospital"),
    ],
)
def test_what_contradicts_it_is_refused(pairs: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        altered(*pairs)
    assert words in refused.value.detail
    assert refused.value.detail.startswith("s.yaml:")
